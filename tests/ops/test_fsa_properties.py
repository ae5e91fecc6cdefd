"""Properties of the FSA algorithms on automata that hypothesis makes up: strings keep their weights, combined automata
have the weights that the definitions give, gradients agree with finite differences.

Weights come from `weight`, which reads a string symbol by symbol, or from `language`, which lists all paths; neither
uses the ops.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fsa_helpers import Weights, all_paths, assert_same, language, totals

import ops as k2
from ops import fsa_properties as p

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

INF = float("inf")
NUM_LABELS = 2
STRINGS = [s for n in range(5) for s in itertools.product(range(1, NUM_LABELS + 1), repeat=n)]
PROPERTIES: dict[str, tuple[tuple, Callable]] = {}


def holds_for(*strategies: Any) -> Callable:
    """Register a property, to be checked by test_property on values from the strategies."""

    def register(body: Callable) -> Callable:
        PROPERTIES[body.__name__] = strategies, body
        return body

    return register


@pytest.mark.parametrize("examples", [20, pytest.param(1500, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("name", [
    "sorting_keeps_weights", "cyclic_automata_keep_weights", "remove_epsilon_keeps_weights", "determinize_keeps_weights",
    "push_keeps_weights", "minimize_keeps_weights", "union_adds_weights", "closure_repeats", "reverse_turns_strings",
    "intersect_multiplies_weights", "compose_links_outputs", "scores_are_sums_over_paths", "gradients_of_one",
    "gradients_of_two",
])  # fmt: skip
def test_property(name: str, examples: int) -> None:
    strategies, body = PROPERTIES[name]
    quiet = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much]
    settings = hypothesis.settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=quiet
    )
    settings(hypothesis.given(*strategies)(body))()


# ---- what hypothesis makes up ----


@st.composite
def fsas(draw: Any, epsilons: bool = False, cyclic: bool = False, aux: bool = False, least_arcs: int = 0) -> k2.Fsa:
    """Up to five states and ten arcs, with dead ends and states that nothing enters.

    Acyclic ones are top-sorted. Cyclic ones have arcs of low scores, so that sums over endless paths converge, and
    epsilons that go up only.
    """
    final = draw(st.integers(1, 4))
    scores = st.integers(-16, -9) if cyclic else st.integers(-8, 8)
    rows = []
    for _ in range(draw(st.integers(least_arcs, 10))):
        src = draw(st.integers(0, final - 1))
        dest = draw(st.integers(0 if cyclic else src + 1, final))
        label = -1 if dest == final else draw(st.integers(0 if epsilons and dest > src else 1, NUM_LABELS))
        out = (-1 if label == -1 else draw(st.integers(0, NUM_LABELS)),) if aux else ()
        rows.append((src, dest, label, *out, draw(scores) / 4))
    text = "\n".join(" ".join(map(str, row)) for row in [*rows, (final,)])
    return k2.Fsa.from_str(text, num_aux_labels=int(aux))


def generic(fsa: k2.Fsa, seed: int) -> k2.Fsa:
    """The same arcs with float64 scores among which no two paths tie."""
    copy = fsa.clone()
    copy.scores = torch.randn(fsa.num_arcs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return copy


# ---- oracles ----


def add(values: list[float], log_semiring: bool) -> float:
    top = max(values, default=-INF)
    return top + math.log(sum(math.exp(v - top) for v in values)) if log_semiring and top > -INF else top


def weight(fsa: k2.Fsa, string: tuple[int, ...], log_semiring: bool) -> float:
    """The total score of a string; the FSA may have cycles, but not of epsilons alone."""
    if not fsa.shape[0]:
        return -INF
    arcs = list(zip(fsa.arcs3.tolist(), fsa.scores.tolist()))

    def step(scores: dict[int, float], wanted: int) -> dict[int, float]:
        ways: dict[int, list[float]] = {}
        for (src, dest, label), score in arcs:
            if label == wanted and src in scores:
                ways.setdefault(dest, []).append(scores[src] + score)
        return {state: add(values, log_semiring) for state, values in ways.items()}

    def with_epsilons(scores: dict[int, float]) -> dict[int, float]:
        found, last = dict(scores), scores
        while last := step(last, 0):
            for state, score in last.items():
                found[state] = add([score, found.get(state, -INF)], log_semiring)
        return found

    scores = with_epsilons({0: 0.0})
    for label in string:
        scores = with_epsilons(step(scores, label))
    return step(scores, -1).get(fsa.shape[0] - 1, -INF)


def assert_same_weights(a: k2.Fsa, b: k2.Fsa, semirings: tuple[bool, ...] = (False, True), tolerance: float = 1e-4):
    for log_semiring, string in itertools.product(semirings, STRINGS):
        x, y = weight(a, string, log_semiring), weight(b, string, log_semiring)
        assert x == y or abs(x - y) < tolerance, (string, log_semiring, x, y)


# ---- one automaton ----


@holds_for(fsas(epsilons=True))
def sorting_keeps_weights(f: k2.Fsa) -> None:
    for op in (k2.connect, k2.top_sort, k2.arc_sort):
        out = op(f)
        assert out.properties & p.VALID
        assert_same(language(f, epsilons=True), language(out, epsilons=True))
    useful = {f.arcs3[a].tolist()[0] for path in all_paths(f) for a in path}
    assert k2.connect(f).shape[0] == (len(useful) + 1 if useful else 0)
    assert k2.top_sort(f).properties & p.TOPSORTED_AND_ACYCLIC and k2.arc_sort(f).properties & p.ARC_SORTED


@holds_for(fsas(cyclic=True, epsilons=True))
def cyclic_automata_keep_weights(f: k2.Fsa) -> None:
    for out in (k2.connect(f), k2.arc_sort(f), k2.minimize(f, push_scores=False), k2.add_epsilon_self_loops(f)):
        out = k2.remove_epsilon_self_loops(out)
        assert_same_weights(f, out)
    assert_same_weights(f, k2.remove_epsilon(f), semirings=(False,))
    assert_same_weights(f, k2.remove_epsilon(f, log_semiring=True))
    for log_semiring in (False, True):
        assert_same_weights(f, k2.push(f, log_semiring), tolerance=1e-3)
    try:
        det = k2.determinize(k2.remove_epsilon(f), max_states=200)
    except RuntimeError as error:
        assert "max_states" in str(error)
    else:
        assert_same_weights(f, det, semirings=(False,))


@holds_for(fsas(epsilons=True))
def remove_epsilon_keeps_weights(f: k2.Fsa) -> None:
    for log_semiring in (False, True):
        out = k2.remove_epsilon(f, log_semiring)
        assert out.properties & p.EPSILON_FREE and out.properties & p.VALID
        assert_same(language(f), language(out), semirings=(False, True) if log_semiring else (False,))


@holds_for(fsas())
def determinize_keeps_weights(f: k2.Fsa) -> None:
    best = totals(language(f), log_semiring=False)
    for kind in k2.DeterminizeWeightPushingType:
        out = k2.determinize(f, kind)
        assert out.properties & p.ARC_SORTED_AND_DETERMINISTIC
        paths = language(out)
        assert all(len(scores) == 1 for scores in paths.values())  # so that both semirings agree on it
        assert_same({string: [score] for string, score in best.items()}, paths)


@holds_for(fsas(epsilons=True), st.booleans())
def push_keeps_weights(f: k2.Fsa, log_semiring: bool) -> None:
    out = k2.push(f, log_semiring)
    assert_same(language(f), language(out))
    if out.shape[0]:
        assert out.get_backward_scores(True, log_semiring)[1:].abs().max() < 1e-4


@holds_for(fsas(epsilons=True, aux=True))
def minimize_keeps_weights(f: k2.Fsa) -> None:
    tolerance = 0.02  # minimize may move a score by delta = 1 / 1024 an arc
    out = k2.minimize(f)
    assert out.shape[0] <= k2.connect(f).shape[0]
    assert_same(language(f, with_aux=True), language(out, with_aux=True), tolerance=tolerance)
    again = k2.minimize(out)
    assert again.shape == out.shape
    shrunk = k2.minimize(k2.determinize(k2.remove_epsilon(f)))
    assert_same(language(f), language(shrunk), semirings=(False,), tolerance=tolerance)


@holds_for(fsas(epsilons=True, least_arcs=3))
def scores_are_sums_over_paths(f: k2.Fsa) -> None:
    scores = f.scores.tolist()
    of_paths = [sum(scores[a] for a in path) for path in all_paths(f)]
    vec = k2.create_fsa_vec([f, f])
    for log_semiring in (False, True):
        expected = pytest.approx(add(of_paths, log_semiring), abs=1e-5)
        assert vec.get_tot_scores(True, log_semiring).tolist() == [expected, expected]
        assert f.get_backward_scores(True, log_semiring)[0].item() == expected
    best = k2.shortest_path(f, True)
    assert [[sum(best.scores.tolist())] for _ in all_paths(best)] == [[pytest.approx(x)] for x in sorted(of_paths)[-1:]]
    torch.manual_seed(0)
    drawn = k2.random_paths(vec, True, 3).tolist()
    for i, paths in enumerate(drawn):
        assert all([a - i * f.num_arcs for a in path] in (all_paths(f) or [[]]) for path in paths)


# ---- automata from automata ----


@holds_for(st.lists(fsas(epsilons=True), min_size=1, max_size=3))
def union_adds_weights(parts: list[k2.Fsa]) -> None:
    expected: Weights = {}
    for part in parts:
        for string, scores in language(part).items():
            expected.setdefault(string, []).extend(scores)
    out = k2.union(k2.create_fsa_vec(parts))
    assert out.properties & p.VALID
    assert_same(expected, language(out))


@holds_for(fsas(epsilons=True))
def closure_repeats(f: k2.Fsa) -> None:
    once = language(f)
    hypothesis.assume(() not in once)  # else there are cycles of epsilons, and sums over endless paths
    many = k2.closure(f)
    assert many.properties & p.VALID
    for log_semiring, string in itertools.product((False, True), STRINGS):
        part = totals(once, log_semiring)
        expected = [0.0]  # of each prefix: the sum over its last part and what comes before
        for end in range(1, len(string) + 1):
            ways = [expected[begin] + part.get(string[begin:end], -INF) for begin in range(end)]
            expected.append(add(ways, log_semiring))
        assert weight(many, string, log_semiring) == pytest.approx(expected[-1], abs=1e-4)


@holds_for(fsas(epsilons=True, aux=True))
def reverse_turns_strings(f: k2.Fsa) -> None:
    there = language(f, with_aux=True)
    turned = {(string[::-1], out[::-1]): scores for (string, out), scores in there.items()}
    assert_same(turned, language(k2.reverse(f), with_aux=True))
    assert_same(there, language(k2.reverse(k2.reverse(f)), with_aux=True))
    assert_same({(y, x): scores for (x, y), scores in there.items()}, language(k2.invert(f), with_aux=True))


@holds_for(fsas(epsilons=True, cyclic=True), fsas(epsilons=True))
def intersect_multiplies_weights(a: k2.Fsa, b: k2.Fsa) -> None:
    for out in (k2.intersect(a, b), k2.intersect(k2.arc_sort(b), a)):
        assert out.properties & p.VALID
        for log_semiring, string in itertools.product((False, True), STRINGS):
            expected = weight(a, string, log_semiring) + weight(b, string, log_semiring)
            assert weight(out, string, log_semiring) == pytest.approx(expected, abs=1e-4)
    plain = k2.intersect(b, b, treat_epsilons_specially=False)
    alike = language(b, epsilons=True)
    expected_plain = {string: [x + y for x in scores for y in scores] for string, scores in alike.items()}
    assert_same(expected_plain, language(plain, epsilons=True))


@holds_for(fsas(epsilons=True, aux=True), fsas(epsilons=True, aux=True))
def compose_links_outputs(a: k2.Fsa, b: k2.Fsa) -> None:
    expected: Weights = {}
    for (x, y), scores in language(a, with_aux=True).items():
        for (u, z), others in language(b, with_aux=True).items():
            if y == u:
                expected.setdefault((x, z), []).extend(i + j for i in scores for j in others)
    assert_same(expected, language(k2.compose(a, b), with_aux=True))


# ---- gradients ----


def check_gradient(f: Callable[..., torch.Tensor], *scores: torch.Tensor) -> None:
    """Finite differences, in a random direction, against autograd."""
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(f, tuple(s.detach().requires_grad_() for s in scores), fast_mode=True)


def total(fsa: k2.Fsa, log_semiring: bool) -> torch.Tensor:
    """The total score; that of an FSA without a path, -inf, has no finite differences."""
    out = k2.create_fsa_vec([k2.top_sort(fsa)]).get_tot_scores(True, log_semiring)
    return out[torch.isfinite(out)]


@holds_for(fsas(epsilons=True, aux=True, least_arcs=4), st.integers(0, 99))
def gradients_of_one(f: k2.Fsa, seed: int) -> None:
    hypothesis.assume(all_paths(f))
    f = generic(f, seed)

    def through(op: Callable[[k2.Fsa], k2.Fsa], log_semiring: bool) -> Callable:
        def run(scores: torch.Tensor) -> torch.Tensor:
            copy = f.clone()
            copy.scores = scores
            return total(op(copy), log_semiring)

        return run

    ops = [
        lambda x: k2.arc_sort(k2.top_sort(k2.connect(x))), lambda x: k2.push(x, log_semiring), k2.reverse, k2.invert,
        lambda x: k2.remove_epsilon(x, log_semiring), lambda x: k2.union(k2.create_fsa_vec([x, x])),
        lambda x: k2.connect(k2.intersect(k2.closure(x), k2.linear_fsa([1, 2]))) if () not in language(f) else x,
    ]  # fmt: skip
    for log_semiring in (False, True):
        for op in ops:
            # The same FSA twice in a tropical union ties, and then there is no derivative.
            if log_semiring or op is not ops[5]:
                check_gradient(through(op, log_semiring), f.scores)
    check_gradient(through(lambda x: k2.determinize(k2.remove_epsilon(x)), False), f.scores)
    check_gradient(through(lambda x: k2.shortest_path(x, True), True), f.scores)
    check_gradient(lambda s: through(lambda x: x, True)(s) - through(lambda x: x, False)(s), f.scores)


@holds_for(fsas(epsilons=True, aux=True, least_arcs=4), fsas(epsilons=True, aux=True, least_arcs=4), st.integers(0, 99))
def gradients_of_two(a: k2.Fsa, b: k2.Fsa, seed: int) -> None:
    a, b = generic(a, seed), generic(b, seed + 100)
    for op, log_semiring in itertools.product((k2.intersect, k2.compose), (False, True)):
        x, y = (a, b) if op is k2.compose else (k2.Fsa(a.arcs), k2.Fsa(b.arcs))

        def run(v, w, op=op, log_semiring=log_semiring, x=x, y=y):
            first, second = x.clone(), y.clone()
            first.scores, second.scores = v, w
            return total(op(first, second), log_semiring)

        if run(a.scores, b.scores).numel():
            check_gradient(run, a.scores, b.scores)
