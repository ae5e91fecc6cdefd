"""Run by test_fsa_fuzz.py in a process of its own: every FSA function on broken automata and every FSA op on tensors of
the wrong kind. Each call may work or raise; a crash ends the process, which the test sees.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

import ops as k2
from ops import build, scores
from ops.ragged import RaggedShape, RaggedTensor

INF = float("inf")
ALLOWED = (ValueError, RuntimeError, IndexError)
TEXT = "0 1 1 4 0.5\n0 1 0 5 0.25\n1 2 2 0 1\n1 3 -1 -1 0\n2 3 -1 -1 -1\n3"
FUNCTIONS: dict[str, Callable[[k2.Fsa], Any]] = {
    "connect": k2.connect,
    "top_sort": k2.top_sort,
    "arc_sort": k2.arc_sort,
    "intersect": lambda f: k2.intersect(f, f),
    "intersect linear": lambda f: k2.intersect(k2.linear_fsa([1, 2]), f),
    "intersect_device": lambda f: k2.intersect_device(f, f, torch.tensor([1, 0], dtype=torch.int32)),
    "compose": lambda f: k2.compose(f, f, inner_labels="inner"),
    "determinize": lambda f: k2.determinize(f, max_states=1000),
    "determinize and push": lambda f: k2.determinize(f, k2.DeterminizeWeightPushingType.kLogWeightPushing, 1000),
    "remove_epsilon": k2.remove_epsilon,
    "remove_epsilon log": lambda f: k2.remove_epsilon(f, log_semiring=True),
    "remove_epsilon_and_add_self_loops": k2.remove_epsilon_and_add_self_loops,
    "add_epsilon_self_loops": k2.add_epsilon_self_loops,
    "remove_epsilon_self_loops": k2.remove_epsilon_self_loops,
    "push": lambda f: k2.push(f, max_sweeps=100),
    "push log": lambda f: k2.push(f, True, max_sweeps=100),
    "minimize": k2.minimize,
    "minimize finely": lambda f: k2.minimize(f, delta=1e-300, push_scores=False),
    "union": k2.union,
    "closure": lambda f: k2.closure(f[0]),
    "reverse": k2.reverse,
    "invert": k2.invert,
    "replace_fsa": lambda f: k2.replace_fsa(f, f, 1),
    "cat": lambda f: k2.cat([f, f]),
    "expand_ragged_attributes": k2.expand_ragged_attributes,
    "shortest_path": lambda f: k2.shortest_path(f, True),
    "random_paths": lambda f: k2.random_paths(f, True, 5),
    "prune_on_arc_post": lambda f: k2.prune_on_arc_post(f, 0.1, True),
    "is_rand_equivalent": lambda f: k2.is_rand_equivalent(f, f, log_semiring=True, npath=3),
    "levenshtein_alignment": lambda f: k2.levenshtein_alignment(f, f, torch.tensor([0, 1], dtype=torch.int32)),
    "tot scores": lambda f: f.get_tot_scores(True, True).sum().backward(),
    "arc_post": lambda f: f.get_arc_post(True, False).sum().backward(),
    "state_batches": scores.state_batches,
    "incoming_arcs": scores.incoming_arcs,
    "properties": lambda f: f.properties_str,
    "text": str,
    "as_dict": lambda f: k2.Fsa.from_dict(f.as_dict()),
    "index_fsa": lambda f: k2.index_fsa(f, torch.tensor([1, -1, 0])),
    "indexing": lambda f: f[1],
    "draw": lambda f: k2.to_dot(f[0]),
    "intersect_dense": lambda f: k2.intersect_dense(f, dense(), 8.0),
    "intersect_dense_pruned": lambda f: k2.intersect_dense_pruned(f, dense(), 8.0, 8.0, 1, 100),
    "ctc_loss": lambda f: k2.ctc_loss(f, dense(), 8.0),
}


def dense() -> k2.DenseFsaVec:
    return k2.DenseFsaVec(torch.zeros(2, 3, 3), torch.tensor([[0, 0, 3], [1, 0, 2]], dtype=torch.int32))


def broken() -> Iterator[tuple[str, Callable[[], k2.Fsa]]]:
    """Vectors of two automata, each wrong in one way."""

    def make(arcs3: torch.Tensor, values: torch.Tensor, splits: list[torch.Tensor], aux: Any = None) -> k2.Fsa:
        f = k2.Fsa.from_arcs(RaggedShape(splits=splits), arcs3, values)
        f.aux_labels = good.aux_labels.clone() if aux is None else aux
        f.__ins_del_score_internal_attr_ = torch.zeros(f.num_arcs)
        return f.requires_grad_(True)

    good = k2.create_fsa_vec([k2.Fsa.from_str(TEXT), k2.Fsa.from_str(TEXT)])
    splits = list(good.splits())
    extremes = (-1, -2, 0, 99, 2**31 - 1, -(2**31))
    for arc, column, value in [(a, c, v) for a in (0, 3, 7) for c in (0, 1, 2) for v in extremes]:
        arcs3 = good.arcs3.clone()
        arcs3[arc, column] = value
        yield f"arcs3[{arc}, {column}] = {value}", lambda a=arcs3: make(a, good.scores.clone(), splits)
    for value in (INF, -INF, float("nan"), 3e38, -3e38):
        for count in (1, good.num_arcs):
            values = good.scores.clone()
            values[:count] = value
            yield f"scores[:{count}] = {value}", lambda v=values: make(good.arcs3, v, splits)
    for layer in (0, 1):
        for i, value in ((0, 1), (1, 99), (1, -1), (-1, 99), (-1, 0), (1, 2**31 - 1)):
            changed = [s.clone() for s in splits]
            changed[layer][i] = value
            yield f"splits[{layer}][{i}] = {value}", lambda c=changed: make(good.arcs3, good.scores.clone(), c)
    for aux in (torch.full((10,), 2**31 - 1).int(), torch.full((10,), -7).int(), torch.rand(10), torch.rand(10, 2),
                RaggedTensor([[-1, 5, -1]] * 10), RaggedTensor([[]] * 10, dtype=torch.int32),
                RaggedTensor([[[1]]] * 10), RaggedTensor([[0.5]] * 10)):  # fmt: skip
        yield f"aux_labels = {aux}", lambda a=aux: make(good.arcs3, good.scores.clone(), splits, a)
    for name, texts in {
        "cycle": ["0 1 1 1 0\n1 0 1 1 0\n1 2 -1 -1 0\n2"] * 2,
        "cycle that gains": ["0 1 0 1 1e30\n1 0 0 1 -9.9e29\n1 1 0 1 1\n1 2 -1 -1 0\n2"] * 2,
        "endless gain": ["0 1 0 0 0\n1 2 0 0 inf\n2 1 0 0 0\n2 3 -1 -1 0\n3"] * 2,
        "no path": ["0 1 1 1 0\n9", "0 1 1 1 0\n2 3 -1 -1 0\n3"],
        "nothing": ["0 1 -1 -1 0\n1", "0"],
    }.items():
        parts = [k2.Fsa.from_str(t, num_aux_labels=1) for t in texts]
        yield name, lambda p=parts: k2.create_fsa_vec(p).requires_grad_(True)
    yield "one state", lambda: make(good.arcs3[:0], good.scores[:0].clone(), [torch.tensor([0, 1, 2]).int(),
                                    torch.tensor([0, 0, 0]).int()], good.aux_labels[:0])  # fmt: skip


def long_and_wild() -> None:
    n = 20_000  # each state has all later ones in its closure: the work grows with the square
    arcs3 = torch.stack([torch.arange(n), torch.arange(1, n + 1), torch.zeros(n, dtype=torch.int64)], 1).int()
    arcs3[-1, 2] = -1
    shape = RaggedShape(splits=[torch.tensor([*range(n + 1), n], dtype=torch.int32)])
    chain = k2.Fsa.from_arcs(shape, arcs3, torch.zeros(n))
    assert k2.remove_epsilon(k2.top_sort(k2.connect(k2.arc_sort(chain)))).num_arcs == 1
    one = k2.remove_epsilon(chain, log_semiring=True, ret_arc_map=True)
    assert one[0].num_arcs == 1 and one[1].numel() == n
    many = k2.Fsa.from_str("\n".join([*(f"0 {1 + i % 50} 1 {'nan' if i % 3 else i}" for i in range(999)),
                                      *(f"{1 + i} 51 -1 0" for i in range(50)), "51"]))  # fmt: skip
    assert k2.determinize(many).num_arcs == 2


def strange_arguments(rng: random.Random, kind: str) -> Any:
    if kind == "Tensor[]":
        return []
    if kind.startswith("Tensor"):
        data: torch.Tensor = rng.choice([
            torch.zeros(0), torch.zeros(3), torch.tensor([0, 1, 2]), torch.tensor([0, 2, 4]), torch.tensor([0, 0, 9]),
            torch.tensor([5, -1, 2**31 - 1]), torch.zeros(4, 3), torch.ones(2, 4, 3), torch.tensor(2.5),
            torch.tensor([[0, 1, 2], [1, 2, -1]]), torch.tensor([[0, 0, 3]]), torch.full((4,), INF), torch.zeros(6)[::2],
        ])  # fmt: skip
        dtype = rng.choice([torch.int32] * 4 + [torch.float64, torch.float32, torch.int64, torch.bool, torch.uint8])
        return data.nan_to_num(0, 0, 0).to(dtype) if not dtype.is_floating_point else data.to(dtype)
    if kind == "int":
        return rng.choice([0, 1, 3, -1, 2**31, -(2**40)])
    if kind == "float":
        return rng.choice([0.0, 1.0, -1.0, INF, float("nan")])
    if kind == "bool":
        return rng.random() < 0.5
    return None if kind.endswith("?") else "x"


def main() -> None:
    calls = raised = 0
    for what, make in broken():
        for name, function in FUNCTIONS.items():
            calls += 1
            try:
                function(make())
            except ALLOWED as error:
                raised += 1
                assert str(error), (what, name)
            except Exception as error:
                raise AssertionError(f"{name} with {what}: {type(error).__name__}: {error}") from error
    long_and_wild()
    rng = random.Random(0)
    build.load()
    for schema in build.schemas():
        name, arguments = re.fullmatch(r"(\w+)\((.*)\) -> .*", schema, re.DOTALL).groups()  # type: ignore[union-attr]
        if not name.startswith(("fsa_", "ctc_loss", "edit_distance")):
            continue
        kinds = [re.sub(r"\(.*?\)", "", x.split()[0]) for x in arguments.split(",") if x.strip() and x.strip() != "*"]
        for _ in range(150):
            calls += 1
            try:
                getattr(torch.ops.lattica, name)(*[strange_arguments(rng, kind) for kind in kinds])
            except (*ALLOWED, TypeError) as error:
                raised += 1
                assert str(error), name
    print(f"survived {calls} calls, {raised} of them with an error")


if __name__ == "__main__":
    main()
