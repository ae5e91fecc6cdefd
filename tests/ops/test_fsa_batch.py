"""Paths and connect for a whole batch at once, as the GPU does it, against the CPU's algorithms, an FSA at a time: the CPU
instance of the same source runs everywhere, the CUDA one where there is a GPU."""

from __future__ import annotations

import random

import pytest
import torch
from fsa_helpers import random_text

import ops as k2
from ops import algorithms, fsa_properties, reference
from ops.fsa_call import call
from ops.scores import arc_places, best_entering_arcs, leaving_probabilities

EMPTY = k2.Fsa(torch.zeros((0, 4), dtype=torch.int32))
CHAIN = "\n".join([*(f"{i} {i + 1} {-1 if i == 149 else 1} -0.125" for i in range(150)), "150"])  # over 64 rounds


def acyclic(seed: int) -> k2.Fsa:
    rng = random.Random(seed)
    texts = [random_text(rng, states=rng.randint(2, 12)) for _ in range(10)]
    texts += ["0", "0 1 1 0.5\n1 2 2 0.5\n4", CHAIN]
    rng.shuffle(texts)
    return k2.create_fsa_vec([EMPTY, *(k2.Fsa.from_str(t) for t in texts), EMPTY])


def cyclic(seed: int, states: int, arcs: float = 1.3) -> k2.Fsa:
    """So many arcs a state, from anywhere to anywhere; some states are not reached, some lead nowhere."""
    rng = random.Random(seed)
    rows = sorted((rng.randrange(states - 1), rng.randrange(states)) for _ in range(int(arcs * states)))
    rows = [(s, d, -1 if d == states - 1 else rng.randint(0, 3)) for s, d in rows]
    return k2.Fsa.from_str("\n".join([*(f"{s} {d} {x} 0.5" for s, d, x in rows), str(states - 1)]))


def agree(name: str, device: torch.device, *args: object) -> tuple[torch.Tensor, ...]:
    """The batch op's result, which must be that of the CPU's own op, and, on the GPU, that of the name without `_batch`."""
    expected = call(name, *args)
    moved = [x.to(device) if isinstance(x, torch.Tensor) else x for x in args]
    for op in (name + "_batch", name):
        actual = call(op, *moved)
        for x, y in zip(actual, expected):
            assert x.device.type == device.type and torch.equal(x.cpu(), y)
    return actual


@pytest.mark.parametrize("seed", range(5))
def test_shortest_path(device, seed):
    fsas = acyclic(seed)
    agree("fsa_shortest_path", device, *fsas.splits(), fsas.arcs3, best_entering_arcs(fsas))


def test_shortest_path_says_what_is_wrong_with_best(device):
    fsas = k2.create_fsa_vec([k2.Fsa.from_str("0 1 1 0\n1 2 -1 0\n2")] * 2).to(device)
    for values in ([-1, 0, 1, -1, 0, 3], [-1, 0, 1, -1, 2, 4], [-1, 0, 1, -1, 3, 3], [0, 0, 1, -1, 2, 3]):
        best = torch.tensor(values, dtype=torch.int32, device=device)
        with pytest.raises(RuntimeError, match="is no arc into that state"):
            call("fsa_shortest_path_batch", *fsas.splits(), fsas.arcs3, best)


@pytest.mark.parametrize("seed", range(5))
def test_random_paths(device, seed):
    fsas = acyclic(seed)
    counts = torch.randint(0, 30, (fsas.shape[0],), generator=torch.Generator().manual_seed(seed))
    splits = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    _, arcs = agree("fsa_random_paths", device, *fsas.splits(), fsas.arcs3, leaving_probabilities(fsas), splits, seed)
    assert arcs.numel() > 100
    with pytest.raises(RuntimeError, match="path_splits"):
        bad = splits.flip(0).to(device)
        there = fsas.to(device)
        call("fsa_random_paths_batch", *there.splits(), there.arcs3, leaving_probabilities(there), bad, seed)


@pytest.mark.parametrize("seed", range(8))
def test_connect(device, seed):
    fsas = k2.create_fsa_vec([EMPTY, *(cyclic(10 * seed + i, 2 + 5 * i) for i in range(10)), *acyclic(seed)])
    agree("fsa_connect", device, *fsas.splits(), fsas.arcs3)


def test_connect_of_nothing_and_of_what_is_malformed(device):
    nothing = k2.create_fsa_vec([EMPTY, EMPTY])
    agree("fsa_connect", device, *nothing.splits(), nothing.arcs3)
    agree("fsa_shortest_path", device, *nothing.splits(), nothing.arcs3, nothing.arcs3[:, 0].contiguous())
    fsas = k2.create_fsa_vec([k2.Fsa.from_str("0 1 1 0\n1 2 -1 0\n2")]).to(device)
    for name, args in (("connect", ()), ("shortest_path", (fsas.splits()[1][1:].contiguous(),))):
        for arc in ([0, 3, 1], [0, -5, 1], [2, 1, 1]):
            bad = fsas.arcs3.clone()
            bad[0] = torch.tensor(arc, dtype=torch.int32, device=device)
            with pytest.raises(RuntimeError, match="an arc leads out"):
                call(f"fsa_{name}_batch", *fsas.splits(), bad, *args)


@pytest.mark.parametrize("seed", range(4))
def test_arc_sort_by_torch(device, seed):
    fsas = k2.create_fsa_vec([cyclic(seed, 12), acyclic(seed)[3], EMPTY, cyclic(seed + 9, 30)])
    expected = call("fsa_arc_sort", fsas.splits()[1], fsas.arcs3)
    there = fsas.to(device)
    assert torch.equal(reference.fsa_arc_sort(there.splits()[1], there.arcs3).cpu(), expected)
    assert torch.equal(k2.arc_sort(there).arcs3.cpu(), k2.arc_sort(fsas).arcs3)
    assert there.properties == fsas.properties


@pytest.fixture
def batches_everywhere(monkeypatch):
    monkeypatch.setattr(algorithms, "intersects_batches", lambda device: True)


def rows(fsa: k2.Fsa, *maps: torch.Tensor) -> list[list[tuple]]:
    """The arcs of each FSA by what made them, which does not depend on how states are numbered."""
    arc_fsa = arc_places(fsa)[0].tolist()
    found: list[list[tuple]] = [[] for _ in range(fsa.as_vec()._shape.dim0)]
    for i, row in zip(arc_fsa, zip(fsa.labels.tolist(), *(m.tolist() for m in maps), fsa.scores.tolist())):
        found[i].append(row)
    return [sorted(x) for x in found]


@pytest.mark.parametrize("seed", range(6))
def test_intersect_device(batches_everywhere, device, seed):
    rng = random.Random(seed)
    a = k2.create_fsa_vec([*(cyclic(20 * seed + i, 3 + 2 * i, 5.0) for i in range(4)), EMPTY, *acyclic(seed)])
    b = k2.create_fsa_vec([cyclic(100 * seed + i, 2 + 4 * i, 4.0) for i in range(6)] + [EMPTY, *acyclic(seed + 50)])
    a_of_b = torch.tensor([rng.randrange(4 if i < 6 else a.shape[0]) for i in range(b.shape[0])], dtype=torch.int32)
    ans, *maps = k2.intersect_device(a.to(device), b.to(device), a_of_b.to(device), ret_arc_maps=True)
    assert ans.device.type == device.type and maps[0].device.type == device.type
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithms, "intersects_batches", lambda device: False)
        expected, *expected_maps = k2.intersect_device(a, b, a_of_b, ret_arc_maps=True)
    assert expected.num_arcs > 50
    ans, maps = ans.to("cpu"), [m.cpu() for m in maps]
    assert torch.equal(ans.splits()[0], expected.splits()[0]) and rows(ans, *maps) == rows(expected, *expected_maps)
    assert ans.properties & fsa_properties.VALID or not expected.properties & fsa_properties.VALID
    # States: each stands for one pair of input states, the same one on all its arcs.
    _, src, dest = arc_places(ans)
    pairs: dict[int, set[tuple[int, int]]] = {}
    for ends, column in ((src, 0), (dest, 1)):
        a_state, b_state = (f.arcs3[m.long(), column].tolist() for f, m in zip((a, b), maps))
        for state, *pair in zip(ends.tolist(), a_state, b_state):
            pairs.setdefault(state, set()).add(tuple(pair))
    assert all(len(x) == 1 for x in pairs.values())
    for i in range(ans.shape[0]):  # by the sorted numbers, what was top-sorted stays so
        if all(f[j].properties & fsa_properties.TOPSORTED for f, j in ((a, int(a_of_b[i])), (b, i))):
            assert ans[i].properties & fsa_properties.TOPSORTED


def test_intersect_many_states_and_compose(batches_everywhere, device):
    """More states than the set has room for at first; and labels that are not the arcs' own."""
    words = k2.linear_fsa([[1 + i % 2 for i in range(60)]] * 2, device=device)
    anything = "\n".join(
        [*(f"{i} {j} {x} 0.5" for i in range(80) for j in (i, i + 1) for x in (1, 2)), "80 81 -1 0", "81"]
    )
    free = k2.create_fsa_vec([k2.arc_sort(k2.Fsa.from_str(anything)).to(device)])
    both = k2.intersect_device(free, words, torch.zeros(2, dtype=torch.int32, device=device))
    assert both.arcs.tot_size(1) == 0  # 60 labels cannot take 80 steps
    words = k2.linear_fsa([[1 + i % 2 for i in range(90)]] * 2, device=device)
    both = k2.intersect_device(free, words, torch.zeros(2, dtype=torch.int32, device=device))
    assert both.arcs.tot_size(1) > 2 * 2000
    transducer = k2.Fsa.from_str("0 1 1 5 0.5\n0 1 2 6 0.25\n1 2 3 5 0\n2 3 -1 -1 0\n3", num_aux_labels=1).to(device)
    acceptor = k2.Fsa.from_str("0 1 5 9 1\n1 2 5 8 2\n2 3 -1 -1 0\n3", num_aux_labels=1).to(device)
    z = k2.compose(transducer, acceptor, treat_epsilons_specially=False)
    assert z.labels.tolist() == [1, 3, -1] and z.aux_labels.tolist() == [9, 8, -1] and z.scores.tolist() == [1.5, 2, 0]


def test_intersect_says_what_is_wrong(batches_everywhere, device):
    fsas = k2.linear_fsa([[1, 2], [3]], device=device)
    for bad in ([0, 2], [-1, 0]):
        with pytest.raises(RuntimeError, match="is no FSA"):
            k2.intersect_device(fsas, fsas, torch.tensor(bad, dtype=torch.int32, device=device))
    none = k2.create_fsa_vec([EMPTY]).to(device)
    assert k2.intersect_device(fsas, none, torch.zeros(1, dtype=torch.int32, device=device)).shape == (1, None, None)
