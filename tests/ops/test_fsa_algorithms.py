"""Each algorithm against the enumeration of all paths, by strings with their scores in both semirings; arc maps;
edge cases.
"""

from __future__ import annotations

import random

import pytest
import torch
from fsa_helpers import all_paths, assert_same, language, random_text

import ops as k2
from ops import fsa_properties as p
from ops.ragged import RaggedTensor

SEEDS = range(12)
ENDLESS = "0 1 1 0\n1 1 2 -1\n1 2 -1 0\n2"
EMPTY = "0"


def fsa(seed: int, **kwargs) -> k2.Fsa:
    rng = random.Random(seed)
    return k2.Fsa.from_str(random_text(rng, states=rng.randint(2, 6), **kwargs))


def messy(seed: int) -> k2.Fsa:
    """With dead ends, unreached states and states in no order."""
    rng = random.Random(seed)
    n = rng.randint(3, 8)
    order = [0, *rng.sample(range(1, n - 1), n - 2), n - 1]
    rows = []
    for _ in range(2 * n):
        a, b = sorted(rng.sample(range(n), 2))
        label = -1 if b == n - 1 else rng.randint(0, 2)
        rows.append(f"{order[a]} {order[b]} {label} {rng.uniform(-2, 1):.3f}")
    return k2.Fsa.from_str("\n".join([*rows, str(n - 1)]))


def with_ids(f: k2.Fsa) -> k2.Fsa:
    f.ids = torch.arange(f.num_arcs, dtype=torch.int32)
    f.words = RaggedTensor([[i, i] for i in range(f.num_arcs)], dtype=torch.int32) if f.num_arcs else f.ids
    f.note = "kept"
    return f.requires_grad_(True)


def check_follows(src: k2.Fsa, out: k2.Fsa) -> None:
    """Attributes, scores and gradients of a one-to-one operation come from the arcs that the map names."""
    ids = out.ids.long()
    assert torch.equal(out.scores, src.scores[ids]) and out.note == "kept"
    assert out.words.tolist() == [[i, i] for i in ids.tolist()]
    src.scores.grad = None
    weight = torch.arange(1.0, out.num_arcs + 1)
    (out.scores * weight).sum().backward()
    assert torch.allclose(src.grad, torch.zeros(src.num_arcs).index_add(0, ids, weight))


@pytest.mark.parametrize("seed", SEEDS)
def test_connect_top_sort_arc_sort(seed):
    f = with_ids(messy(seed))
    c = k2.connect(f)
    assert_same(language(f), language(c))
    useful = {a for path in all_paths(f) for a in path}
    assert set(c.ids.tolist()) == useful
    t = k2.top_sort(f)
    assert t.properties & p.TOPSORTED_AND_ACYCLIC
    assert_same(language(f), language(t))
    s, arc_map = k2.arc_sort(f, ret_arc_map=True)
    assert s.properties & p.ARC_SORTED and torch.equal(arc_map, s.ids)
    assert_same(language(f), language(s))
    for out in (c, t, s):
        assert out.properties & p.VALID
        if out.num_arcs:
            check_follows(f, out)
    vec = k2.create_fsa_vec([f, k2.Fsa.from_str(EMPTY), f])
    for op in (k2.connect, k2.top_sort, k2.arc_sort):
        out = op(vec)
        assert k2.to_str_simple(out[0]) == k2.to_str_simple(out[2]) == k2.to_str_simple(op(f))
        assert out[1].shape[0] == 0


def test_connect_without_a_path():
    assert k2.connect(k2.Fsa.from_str("0 1 1 0\n3")).shape == (0, None)
    assert k2.connect(k2.Fsa.from_str(EMPTY)).shape == (0, None)
    assert k2.to_str(k2.connect(k2.Fsa.from_str("0 1 1 0.5\n0 2 1 0.25\n2 3 -1 0\n3"))) == "0 1 1 0.25\n1 2 -1 0\n2\n"


def test_top_sort_and_cycles():
    loop = k2.top_sort(k2.Fsa.from_str("0 2 1 0\n2 2 3 0\n2 1 2 0\n1 3 -1 0\n3"))
    assert k2.to_str(loop) == "0 1 1 0\n1 1 3 0\n1 2 2 0\n2 3 -1 0\n3\n"
    for bad in ("0 1 1 0\n1 0 2 0\n1 2 -1 0\n2", "0 1 1 0\n1 2 2 0\n2 1 2 0\n2 3 -1 0\n3"):
        with pytest.raises(RuntimeError, match="cycle"):
            k2.top_sort(k2.Fsa.from_str(bad))


def joined(a, b):
    """Strings of both with the sums of the scores of all pairs of paths."""
    return {s: [x + y for x in a[s] for y in b[s]] for s in a.keys() & b.keys()}


@pytest.mark.parametrize("epsilons", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("seed", range(6))
def test_intersect(seed, epsilons):
    a, b = fsa(seed, epsilons=epsilons[0]), fsa(seed + 50, epsilons=epsilons[1])
    a.only_a = torch.arange(a.num_arcs, dtype=torch.int32)
    a.both, b.both = torch.rand(a.num_arcs), torch.rand(b.num_arcs)
    a.twice, b.twice = a.only_a.clone(), torch.zeros(b.num_arcs, dtype=torch.int32)
    out, map_a, map_b = k2.intersect(a, b, ret_arc_maps=True)
    assert_same(joined(language(a), language(b)), language(out))
    one = map_a >= 0, map_b >= 0
    assert bool((one[0] | one[1]).all()) and not hasattr(out, "twice")
    expected = sum(torch.where(m >= 0, f.scores[m.long()], 0.0) for f, m in ((a, map_a), (b, map_b)))
    assert torch.equal(out.scores, expected)
    assert out.only_a.tolist() == [max(i, 0) for i in map_a.tolist()]
    assert torch.equal(out.both, sum(torch.where(m >= 0, f.both[m.long()], 0.0) for f, m in ((a, map_a), (b, map_b))))
    plain = k2.intersect(a, b, treat_epsilons_specially=False)
    assert_same(joined(language(a, epsilons=True), language(b, epsilons=True)), language(plain, epsilons=True))


def test_intersect_vectors_and_single_arcs():
    one = k2.linear_fsa([])  # one arc: k2 1.24 fails on it
    assert k2.to_str(k2.intersect(one, one)) == "0 1 -1 0\n1\n"
    a = k2.create_fsa_vec([fsa(1), fsa(2), k2.Fsa.from_str(EMPTY)])
    assert k2.intersect(a, fsa(1)).shape == (3, None, None)
    assert k2.intersect(a, a)[2].shape == (0, None)
    for i in range(2):
        assert_same(joined(language(a[i]), language(fsa(1))), language(k2.intersect(a, fsa(1))[i]))
        assert_same(joined(language(a[i]), language(a[1])), language(k2.intersect_device(a, k2.create_fsa_vec(
            [fsa(1), a[1]]), torch.tensor([0, i], dtype=torch.int32))[1]))  # fmt: skip
    with pytest.raises(ValueError):
        k2.intersect(a, k2.create_fsa_vec([fsa(1), fsa(2)]))
    with pytest.raises(ValueError):
        k2.intersect_device(a, a, torch.tensor([0]))
    with pytest.raises(RuntimeError):
        k2.intersect_device(a, a, torch.tensor([0, 1, 9], dtype=torch.int32))


def test_cyclic_intersect():
    f = k2.Fsa.from_str(ENDLESS)
    out = k2.connect(k2.intersect(f, k2.linear_fsa([1, 2, 2, 2])))
    assert language(out) == {(1, 2, 2, 2): [-3.0]}


@pytest.mark.parametrize("seed", range(8))
def test_compose(seed):
    rng = random.Random(seed)
    a = k2.Fsa.from_str(random_text(rng, states=4, aux=True))
    b = k2.Fsa.from_str(random_text(rng, states=5, labels=3, aux=True, epsilons=seed % 2 == 1))
    out = k2.compose(a, b, inner_labels="middle")
    x, y = language(a, with_aux=True), language(b, with_aux=True)
    expected: dict = {}
    for (s, t), scores in x.items():
        for (u, v), others in y.items():
            if t == u:
                expected.setdefault((s, v), []).extend(i + j for i in scores for j in others)
    assert_same(expected, language(out, with_aux=True))
    for path in all_paths(out):
        middle = tuple(m for m in out.middle[path].tolist() if m > 0)
        assert any(t == middle for _, t in x)
    ragged = k2.Fsa.from_str(k2.to_str(a)).convert_attr_to_ragged_("aux_labels")
    assert_same(expected, language(k2.compose(ragged, b), with_aux=True))
    with pytest.raises(ValueError):
        k2.compose(k2.linear_fsa([1]), b)


@pytest.mark.parametrize("seed", SEEDS)
def test_remove_epsilon(seed):
    f = fsa(seed, epsilons=True)
    f.ids = torch.arange(f.num_arcs, dtype=torch.int32) + 1
    f.requires_grad_(True)
    out, arc_map = k2.remove_epsilon(f, ret_arc_map=True)
    assert out.properties & p.EPSILON_FREE and out.properties & p.VALID
    assert_same(language(f), language(out), semirings=(False,))
    assert out.ids.tolist() == [[i + 1 for i in row] for row in arc_map.tolist()]
    assert torch.allclose(out.scores, torch.stack([f.scores[torch.tensor(r)].sum() for r in arc_map.tolist()]))
    out.scores.sum().backward()
    assert torch.equal(f.grad, torch.bincount(arc_map.values.long(), minlength=f.num_arcs).float())
    both = k2.remove_epsilon(f, log_semiring=True)
    assert both.properties & p.EPSILON_FREE
    assert_same(language(f), language(both))
    looped = k2.remove_epsilon_and_add_self_loops(f)
    assert (looped.labels == 0).sum() == looped.shape[0] - 1
    assert_same(language(out), language(k2.remove_epsilon_self_loops(looped)))


def test_remove_epsilon_visits_only_what_leads_to_an_arc():
    """Each of these would take 10^10 steps and more if every state that epsilons lead to were visited, or walked to."""
    n = 300_000
    states = torch.arange(n, dtype=torch.int32)
    zero = torch.zeros_like(states)

    def automaton(src: torch.Tensor, dest: torch.Tensor, label: torch.Tensor) -> k2.Fsa:
        rows = torch.stack([src, dest, label, zero.new_zeros(src.numel())], dim=1)
        return k2.Fsa(rows[torch.argsort(src, stable=True)])

    ends = torch.tensor([n, n + 1, -1], dtype=torch.int32)
    chain = automaton(torch.cat([states, ends[:1]]), torch.cat([states + 1, ends[1:2]]), torch.cat([zero, ends[2:]]))
    for log_semiring in (False, True):
        out, arc_map = k2.remove_epsilon(chain, log_semiring, ret_arc_map=True)
        assert out.arcs3.tolist() == [[0, 1, -1]] and arc_map.values.tolist() == list(range(n + 1))

    # A real arc leads from the start to each state of a chain of epsilons that leads nowhere.
    src = torch.cat([zero, zero[:1], 1 + states[:-1]])
    dest = torch.cat([1 + states, ends[1:2], 2 + states[:-1]])
    fan = automaton(src, dest, torch.cat([zero + 5, ends[2:], zero[:-1]]))
    for log_semiring in (False, True):
        assert k2.remove_epsilon(fan, log_semiring).arcs3.tolist() == fan.arcs3[: n + 1].tolist()

    # Two epsilons from each state to the next, to a dead end: 2^40 paths.
    rows = "".join(f"{s} {s + 1} 0 0\n{s} {s + 1} 0 0\n" for s in range(40))
    assert k2.remove_epsilon(k2.Fsa.from_str(f"0 41 -1 0\n{rows}41"), log_semiring=True).arcs3.tolist() == [[0, 1, -1]]


def test_remove_epsilon_cycles():
    f = k2.Fsa.from_str("0 1 0 -1\n1 0 0 -1\n1 2 3 0\n2 3 -1 0\n3")
    assert language(k2.remove_epsilon(f)) == {(3,): [-1.0]}
    with pytest.raises(RuntimeError, match="cycle"):
        k2.remove_epsilon(f, log_semiring=True)
    with pytest.raises(RuntimeError, match="positive"):
        k2.remove_epsilon(k2.Fsa.from_str("0 1 0 1\n1 0 0 1\n1 2 3 0\n2 3 -1 0\n3"))
    only_epsilons = k2.remove_epsilon(k2.Fsa.from_str("0 1 0 0.5\n1 2 0 0.25\n2 3 -1 1\n3"))
    assert k2.to_str(only_epsilons) == "0 1 -1 1.75\n1\n"


@pytest.mark.parametrize("seed", SEEDS)
def test_determinize(seed):
    f = fsa(seed)
    f.ids = torch.arange(f.num_arcs, dtype=torch.int32) + 1
    f.requires_grad_(True)
    out, arc_map = k2.determinize(f, ret_arc_map=True)
    assert out.properties & p.ARC_SORTED_AND_DETERMINISTIC
    assert_same(language(f), language(out), semirings=(False,))
    assert torch.allclose(out.scores, k2.ragged.index_and_sum(f.scores, arc_map))
    best = max(f.scores[path].sum().item() for path in all_paths(f))
    total = out.get_tot_scores(True, False)
    assert total.item() == pytest.approx(best, abs=1e-4)
    total.backward()
    wins = [path for path in all_paths(f) if abs(f.scores[path].sum().item() - best) < 1e-6]
    assert sorted(f.grad.nonzero().squeeze(1).tolist()) == sorted(wins[0])
    for kind in k2.DeterminizeWeightPushingType:
        assert_same(language(f), language(k2.determinize(f, kind)), semirings=(False,))


def test_determinize_transducer_and_limits():
    f = k2.Fsa.from_str("0 1 1 5 0.5\n0 2 1 6 0.25\n1 3 2 0 0\n2 3 3 7 0\n3 4 -1 -1 0\n4")
    out = k2.determinize(f)
    assert_same(language(f, with_aux=True), language(out, with_aux=True), semirings=(False,))
    assert language(k2.determinize(k2.Fsa.from_str(EMPTY))) == {}
    endless = k2.Fsa.from_str("0 1 1 0\n0 2 1 0\n1 1 2 -1\n2 2 2 -2\n1 3 3 0\n2 3 4 0\n3 4 -1 0\n4")
    with pytest.raises(RuntimeError, match="max_states"):
        k2.determinize(endless, max_states=1000)
    cyclic = k2.Fsa.from_str(ENDLESS)
    assert k2.to_str(k2.determinize(cyclic)) == k2.to_str(cyclic)


@pytest.mark.parametrize("log_semiring", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_push(seed, log_semiring):
    f = fsa(seed, epsilons=seed % 2 == 0)
    out = k2.push(f, log_semiring)
    assert_same(language(f), language(out))
    backward = out.get_backward_scores(True, log_semiring)
    assert backward[1:].abs().max() < 1e-5
    assert torch.allclose(backward[0], k2.connect(f).get_tot_scores(True, log_semiring)[0], atol=1e-5)


def test_push_cycles():
    f = k2.Fsa.from_str("0 1 1 -1\n1 0 2 -1\n1 2 -1 -3\n2")
    for log_semiring in (False, True):
        out = k2.push(f, log_semiring)
        for n in range(3):
            string = [1, *[2, 1] * n]
            pair = [k2.top_sort(k2.connect(k2.intersect(k2.linear_fsa(string), g))) for g in (f, out)]
            assert torch.allclose(*(g.get_tot_scores(True, True) for g in pair), atol=1e-5)
    with pytest.raises(RuntimeError, match="converge"):
        k2.push(k2.Fsa.from_str("0 1 1 0\n1 1 2 0.5\n1 2 -1 0\n2"), max_sweeps=100)


def minimal_states(weights) -> int:
    """The number of states of the least deterministic acyclic automaton: distinct futures of prefixes (unweighted)."""
    futures: dict[tuple, set] = {}
    for string in weights:
        for i in range(len(string) + 1):
            futures.setdefault(string[:i], set()).add(string[i:])
    return len({frozenset(x) for x in futures.values()}) + 1  # and the final state


@pytest.mark.parametrize("seed", SEEDS)
def test_minimize(seed):
    f = k2.determinize(k2.remove_epsilon(fsa(seed, epsilons=True)))
    out = k2.minimize(f)
    assert out.shape[0] <= f.shape[0]
    assert_same(language(f), language(out), tolerance=0.02)
    flat = f.clone()
    flat.scores = torch.zeros_like(flat.scores)
    least = k2.minimize(flat)
    assert least.shape[0] == minimal_states(language(flat)) and k2.top_sort(least).shape == least.shape
    nondeterministic = fsa(seed, aux=True)
    assert_same(language(nondeterministic, with_aux=True), language(k2.minimize(nondeterministic), with_aux=True),
                tolerance=0.02)  # fmt: skip


def test_minimize_shares_suffixes_and_cycles():
    words = k2.determinize(k2.union(k2.linear_fsa([[1, 5, 6], [2, 5, 6], [3, 5, 6]])))
    words = k2.determinize(k2.remove_epsilon(words))
    assert words.shape[0] == 11 and k2.minimize(words).shape[0] == 5
    cyclic = k2.Fsa.from_str("0 1 1 0\n0 2 2 0\n1 1 3 0\n2 2 3 0\n1 3 -1 0\n2 3 -1 0\n3")
    assert k2.to_str(k2.minimize(cyclic)) == "0 1 1 0\n0 1 2 0\n1 1 3 0\n1 2 -1 0\n2\n"
    assert k2.minimize(k2.Fsa.from_str(EMPTY)).shape[0] == 0
    different = k2.Fsa.from_str("0 1 1 1 0\n0 2 2 1 0\n1 3 3 8 0\n2 3 3 9 0\n3 4 -1 -1 0\n4")
    assert k2.minimize(different).shape[0] == 5
    ragged = k2.minimize(k2.Fsa.from_str(k2.to_str(different)).convert_attr_to_ragged_("aux_labels"))
    assert ragged.shape[0] == 5


@pytest.mark.parametrize("seed", range(6))
def test_union_closure_reverse(seed):
    parts = [fsa(seed, aux=True), fsa(seed + 30, aux=True)]
    vec = k2.create_fsa_vec([parts[0], k2.Fsa.from_str("0", num_aux_labels=1), parts[1]]).requires_grad_(True)
    out = k2.union(vec)
    assert out.properties & p.VALID and len(out.shape) == 2
    x, y = (language(f, with_aux=True) for f in parts)
    assert_same({k: x.get(k, []) + y.get(k, []) for k in x.keys() | y.keys()}, language(out, with_aux=True))
    out.scores.sum().backward()
    assert vec.grad.tolist() == [1] * vec.num_arcs
    back = k2.reverse(parts[0])
    assert back.properties & p.VALID
    turned = {(s[::-1], t[::-1]): v for (s, t), v in x.items()}
    assert_same(turned, language(k2.top_sort(back), with_aux=True))
    assert_same(x, language(k2.top_sort(k2.connect(k2.reverse(back))), with_aux=True))
    many = k2.closure(parts[0])
    assert many.properties & p.VALID
    once = language(parts[0])
    twice: dict = {}
    for s, v in once.items():
        for t, w in once.items():
            twice.setdefault(s + t, []).extend(i + j for i in v for j in w)
    for string in list(twice)[:5] if () not in once else []:  # else there are epsilon cycles
        both = k2.top_sort(k2.connect(k2.intersect(k2.linear_fsa(list(string)), many)))
        expected = max(twice[string] + once.get(string, [-1e9]))
        assert both.get_tot_scores(True, False).item() >= expected - 1e-4
    # No list of paths here: where the part accepts the empty string, its closure has cycles of epsilons.
    assert k2.connect(k2.intersect(k2.linear_fsa([]), many)).num_arcs > 0


def test_closure_does_not_end_in_the_midst():
    f = k2.Fsa.from_str("0 0 1 0\n0 1 2 0\n1 2 -1 0\n2")  # 1* 2; k2's closure would accept "1"
    many = k2.closure(f)
    for string, accepted in {(1,): False, (2,): True, (1, 2, 2, 1, 1, 2): True, (): True, (2, 1): False}.items():
        assert (k2.connect(k2.intersect(k2.linear_fsa(list(string)), many)).num_arcs > 0) is accepted


def test_empty_union():
    assert k2.union(k2.create_fsa_vec([k2.Fsa.from_str(EMPTY)])).shape == (0, None)


@pytest.mark.parametrize("seed", range(6))
def test_invert_and_expand(seed):
    f = fsa(seed, aux=True)
    x = language(f, with_aux=True)
    assert_same({(t, s): v for (s, t), v in x.items()}, language(k2.invert(f), with_aux=True))
    rng = random.Random(seed)
    g = k2.Fsa.from_str(k2.to_str(f))
    rows = [[rng.randint(1, 3) for _ in range(rng.randint(0, 3))] + [-1] * (lab == -1) for lab in g.labels.tolist()]
    g.aux_labels = RaggedTensor(rows, dtype=torch.int32)
    g.extra = torch.arange(1, g.num_arcs + 1, dtype=torch.int32)
    expanded, arc_map = k2.expand_ragged_attributes(g, ret_arc_map=True)
    assert isinstance(expanded.aux_labels, torch.Tensor) and expanded.properties & p.VALID
    assert expanded.properties & p.TOPSORTED_AND_ACYCLIC
    assert_same(language(g, with_aux=True), language(expanded, with_aux=True))
    assert expanded.extra.tolist() == [i + 1 if i >= 0 else 0 for i in arc_map.tolist()]
    assert expanded.num_arcs == sum(max(1, len(r)) for r in rows)
    y = language(g, with_aux=True)
    assert_same({(t, s): v for (s, t), v in y.items()}, language(k2.invert(g), with_aux=True))
    vec = k2.expand_ragged_attributes(k2.create_fsa_vec([g, g]))
    assert k2.to_str(vec[0]) == k2.to_str(vec[1]) == k2.to_str(expanded)
    with pytest.raises(ValueError):
        k2.expand_ragged_attributes(g, ragged_attribute_names=["nothing"])


def test_replace_fsa():
    index = k2.Fsa.from_str("0 1 1 0.5\n0 1 7 0.25\n1 2 2 1\n2 3 -1 0\n3").requires_grad_(True)
    src = k2.create_fsa_vec([k2.Fsa.from_str("0 1 11 0.1\n0 1 12 0.2\n1 2 -1 0.3\n2"), k2.linear_fsa([21, 22])])
    out, map_src, map_index = k2.replace_fsa(src, index, 1, ret_arc_map=True)
    assert out.properties & p.VALID and out.properties & p.TOPSORTED_AND_ACYCLIC
    expected = {(11, 21, 22): [0.5 + 0.1 + 0.3 + 1], (12, 21, 22): [0.5 + 0.2 + 0.3 + 1], (7, 21, 22): [1.25]}
    assert_same(expected, language(out))
    assert map_src.shape == map_index.shape == (out.num_arcs,)
    out.scores.sum().backward()
    assert index.grad.tolist() == [1.0, 1.0, 1.0, 1.0]
    cut = k2.replace_fsa(k2.create_fsa_vec([k2.Fsa.from_str(EMPTY)]), index, 1)
    assert_same({(7, 2): [1.25]}, language(cut))


def test_compose_arc_maps():
    flat, lists = torch.tensor([3, -1, 5], dtype=torch.int32), RaggedTensor([[1, 2], [], [3]])
    assert k2.compose_arc_maps(flat, torch.tensor([2, -1, 1, 0]).int()).tolist() == [5, -1, -1, 3]
    assert k2.compose_arc_maps(lists, torch.tensor([2, -1, 0]).int()).tolist() == [[3], [], [1, 2]]
    assert k2.compose_arc_maps(flat, RaggedTensor([[0, 2], []])).tolist() == [[3, 5], []]
    assert k2.compose_arc_maps(lists, RaggedTensor([[0, 2], [1]])).tolist() == [[1, 2, 3], []]


def test_is_rand_equivalent():
    f = fsa(3)
    assert k2.is_rand_equivalent(f, k2.determinize(f), log_semiring=False)
    assert k2.is_rand_equivalent(f, k2.push(f, True), log_semiring=True, delta=1e-4)
    g = f.clone()
    g.scores = f.scores + 1
    assert not k2.is_rand_equivalent(f, g, log_semiring=False)
    assert not k2.is_rand_equivalent(f, k2.linear_fsa([1]), log_semiring=False)
    assert k2.is_rand_equivalent(k2.create_fsa_vec([f, g]), k2.create_fsa_vec([f, g]), log_semiring=True)


def test_is_rand_equivalent_with_cycles():
    words = {"0 0 1 -1\n0 1 2 -2\n1 0 3 -0.5\n0 2 -1 0\n2": True, "0 0 1 -1\n0 1 2 -2\n1 0 3 -0.75\n0 2 -1 0\n2": False}
    same = k2.Fsa.from_str("0 1 2 -2\n0 3 -1 0\n0 2 1 -1\n1 2 3 -0.5\n2 2 1 -1\n2 1 2 -2\n2 3 -1 0\n3")
    for text, equal in words.items():
        for log_semiring in (True, False):
            assert k2.is_rand_equivalent(k2.Fsa.from_str(text), same, log_semiring) == equal
    topo = k2.ctc_topo(4)
    assert k2.is_rand_equivalent(topo, k2.arc_sort(topo), True, treat_epsilons_specially=False)
    assert not k2.is_rand_equivalent(topo, k2.ctc_topo(4, modified=True), True, treat_epsilons_specially=False)
    with pytest.raises(RuntimeError, match="cycle"):
        k2.is_rand_equivalent(*[k2.Fsa.from_str("0 1 0 -1\n1 0 0 -1\n1 2 -1 0\n2")] * 2, False)


def test_random_fsas():
    random.seed(0)
    for acyclic in (True, False):
        vec = k2.random_fsa_vec(2, 5, acyclic, 10, 0, 30)
        assert 2 <= vec.shape[0] <= 5 and vec.properties & p.VALID
        assert not acyclic or vec.properties & p.TOPSORTED_AND_ACYCLIC
    picked = k2.index_fsa(vec, torch.tensor([1, 1, 0]))
    assert [k2.to_str(x) for x in picked] == [k2.to_str(vec[i]) for i in (1, 1, 0)]
    assert k2.monotonic_lower_bound(torch.tensor([3, 1, 4, 2, 5])).tolist() == [1, 1, 2, 2, 5]


def test_gradcheck_through_a_pipeline():
    f, g = fsa(5), fsa(6, epsilons=True)

    def total(w, v):
        a, b = f.clone(), g.clone()
        a.scores, b.scores = w, v
        both = k2.top_sort(k2.connect(k2.intersect(k2.arc_sort(a), k2.arc_sort(b))))
        return k2.remove_epsilon(k2.create_fsa_vec([both]), log_semiring=True).get_tot_scores(True, True)

    w, v = (x.scores.double().requires_grad_() for x in (f, g))
    assert torch.isfinite(total(w, v)).all()
    assert torch.autograd.gradcheck(total, (w, v))
