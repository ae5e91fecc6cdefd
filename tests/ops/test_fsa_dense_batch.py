"""The frame-by-frame search of a whole batch (what CUDA runs) against the search of an utterance a thread: equal, bit by bit."""

from __future__ import annotations

import random
from contextlib import contextmanager

import pytest
import torch
from fsa_helpers import peak_memory
from torch import Tensor

import ops as k2
from ops import build
from ops.ragged.shape import counts_to_splits

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

INF, NAN = float("inf"), float("nan")
NAMES = ("fsa_splits", "state_splits", "arcs", "map", "frame", "scores", "frames", "tokens", "states", "token_scores")


def run(name: str, *args):
    build.load()
    return getattr(torch.ops.lattica, name)(*args)


@contextmanager
def threads(n: int):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Problem:
    """Graphs, frame scores, and which goes with which."""

    def __init__(self, graphs, log_probs: Tensor, segments, a_index=None, b_index=None):
        self.graphs = k2.create_fsa_vec(graphs) if isinstance(graphs, list) else graphs.as_vec()
        self.log_probs = log_probs
        self.segments = torch.tensor(segments, dtype=torch.int32).reshape(-1, 3)
        n, num_a = len(self.segments), self.graphs.shape[0]
        self.b_index = torch.tensor(range(n) if b_index is None else b_index, dtype=torch.int32)
        default = [0] * len(self.b_index) if num_a == 1 else range(len(self.b_index))
        self.a_index = torch.tensor(default if a_index is None else a_index, dtype=torch.int32)

    def solve(self, batch: bool, limits, partial=False, frame=True, history=None, device="cpu"):
        graphs, indexes = self.graphs, (self.segments, self.a_index, self.b_index)
        inputs = [*graphs.splits(), graphs.arcs3, graphs.scores.float().contiguous(), self.log_probs]
        name = "fsa_intersect_dense" + "_batch" * batch + "_online" * (history is not None)
        last = (frame,) if history is None else (history[0], *(x.to(device) for x in history[1:]))
        result = run(name, *(x.to(device) for x in inputs), *indexes, *limits, partial, *last)
        return [x.cpu() for x in result]

    def check(self, limits, partial=False, frame=True, history=None, device="cpu"):
        expected = self.solve(False, limits, partial, frame, history)
        got = self.solve(True, limits, partial, frame, history, device)
        assert len(got) == len(expected)
        for name, x, y in zip(NAMES, got, expected):
            assert x.dtype == y.dtype and torch.equal(x, y), (name, x, y)
        return expected


def random_graph(rng: random.Random, states: int, labels: int, rounded: bool) -> k2.Fsa:
    """Cyclic, with dead ends; rounded scores give ties."""
    rows = []
    for s in range(states):
        for _ in range(rng.choice([0, 1, 2, 3, 40] if s else [2, 3, 40])):
            score = rng.choice([0.0, 0.0, -0.5, -INF, NAN]) if rounded else rng.uniform(-1, 0)
            if rng.random() < 0.2:
                rows.append((s, states, -1, score))
            else:
                rows.append((s, rng.randrange(states), rng.randrange(labels), score))
    text = "\n".join(" ".join(map(str, row)) for row in rows)
    return k2.Fsa.from_str(f"{text}\n{states}")


def random_problem(seed: int) -> tuple[Problem, random.Random]:
    rng = random.Random(seed)
    n, T, C, rounded = rng.randint(1, 5), rng.randint(1, 9), rng.randint(1, 5), rng.random() < 0.5
    log_probs = torch.randn(n, T, C, generator=torch.Generator().manual_seed(seed))
    if rounded:
        log_probs = log_probs.round()
        missing = torch.rand(log_probs.shape, generator=torch.Generator().manual_seed(seed)) < 0.05
        log_probs[missing] = rng.choice([NAN, -INF])
    segments = []
    for _ in range(n):
        begin = rng.randint(0, T)
        segments.append([rng.randrange(n), begin, rng.choice([0, T - begin, rng.randint(0, T - begin)])])
    shared = rng.random() < 0.4
    graphs = [random_graph(rng, rng.randint(1, 12), C, rounded) for _ in range(1 if shared else n)]
    b_index = rng.choices(range(n), k=n) if rng.random() < 0.5 else None
    return Problem(graphs, log_probs, segments, b_index=b_index), rng


def random_limits(rng: random.Random) -> tuple:
    least = rng.choice([0, 0, 1, 3])
    most = rng.choice([max(least, 1), least + 2, 2**31 - 1])
    return rng.choice([0.5, 2.0, 10.0, INF]), rng.choice([0.3, 1.0, 8.0, INF]), least, most


@pytest.mark.parametrize("num_threads", [1, 8])
def test_random_graphs(device, num_threads):
    num_arcs = paths = 0
    with threads(num_threads):
        for seed in range(150):
            problem, rng = random_problem(seed)
            result = problem.check(random_limits(rng), rng.random() < 0.5, device=device)
            num_arcs += len(result[2])
            paths += int((result[0].diff() > 0).sum())
    assert num_arcs > 1000 and paths > 100


@pytest.mark.parametrize("num_threads", [1, 8])
def test_larger_batch_of_a_shared_graph(device, num_threads):
    """Several looks of the host, sets of many states, limits by rank."""
    T = 70
    log_probs = 2 * torch.randn(6, T, 40, generator=torch.Generator().manual_seed(0))
    segments = [[i, 0, d] for i, d in enumerate([T, 33, 64, 1, 0, T - 1])]
    problem = Problem(k2.ctc_topo(39), log_probs.log_softmax(-1), segments)
    with threads(num_threads):
        for limits in ((20.0, 8.0, 30, 10000), (6.0, 5.0, 0, 20), (1.0, 3.0, 12, 25), (INF, 4.0, 0, 2**31 - 1)):
            assert len(problem.check(limits, device=device)[2]) > 500


def test_memory_grows_as_the_search_needs_it(device):
    """More states, then more tokens, than are made room for at first: a tree that fans out, its leaves and the way home."""
    fan, states = 120, 1 + 120 + 120 * 120
    rows = [f"0 {1 + i} 0 {-i / 7}" for i in range(fan)]
    rows += [f"{1 + i} {1 + fan + i * fan + j} {j % 2} {-j / 3}" for i in range(fan) for j in range(fan)]
    rows += [f"{s} {s} 1 0" for s in range(1 + fan, states)] + [f"{s} {states} -1 0" for s in range(1 + fan, states)]
    graph = k2.Fsa.from_str("\n".join([*rows, str(states)]))
    log_probs = torch.randn(2, 40, 2, generator=torch.Generator().manual_seed(0))
    problem = Problem(graph, log_probs, [[0, 0, 40], [1, 0, 37]])
    for limits in ((INF, 6.0, 0, 2**31 - 1), (INF, 6.0, 0, 9000), (2.0, 6.0, 5000, 9000)):
        assert len(problem.check(limits, device=device)[2]) > 100


def test_ties_go_to_lower_states(device):
    rows = [f"0 {s} 0 0" for s in (5, 3, 1, 4, 2)] + [f"{s} 6 -1 0" for s in range(1, 6)]
    problem = Problem(k2.Fsa.from_str("\n".join([*sorted(rows), "6"])), torch.zeros(1, 1, 1), [[0, 0, 1]])
    fsa_splits, _, arcs, arc_map, _, _ = problem.check((1.0, 1.0, 0, 2), device=device)
    assert fsa_splits.tolist() == [0, 4] and arcs.tolist() == [[0, 1, 0], [0, 2, 0], [1, 3, -1], [2, 3, -1]]
    assert problem.graphs.arcs3[arc_map.long(), 1].tolist()[:2] == [1, 2]


def test_lattices_are_connected_whatever_the_beam(device):
    """Scores summed from the left and from the right round differently, by more than this beam."""
    log_probs = 100 * torch.rand(3, 60, 12, generator=torch.Generator().manual_seed(0))
    problem = Problem(k2.ctc_topo(11), log_probs, [[0, 0, 60], [1, 0, 50], [2, 0, 20]])
    _, _, arcs, *_ = result = problem.check((20.0, 1e-7, 0, 50), device=device)
    lattice = k2.Fsa.from_arcs(k2.RaggedShape(splits=[result[0], result[1]]), arcs, result[5])
    assert k2.connect(lattice).num_arcs == lattice.num_arcs and result[0].diff().tolist() == [62, 52, 22]


def test_maps_between_graphs_and_segments(device):
    graphs = [k2.linear_fsa([1, 2]), k2.ctc_topo(3), k2.Fsa.from_str("2\n"), k2.ctc_topo(2)]
    log_probs = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    problem = Problem(graphs, log_probs, [[0, 1, 4], [1, 0, 2]], a_index=[3, 0, 0, 1, 1], b_index=[1, 1, 0, 0, 1])
    sizes = problem.check((9.0, 9.0, 1, 9), device=device)[0].diff()
    assert sizes[1] == 4 and sizes[2] == 0 and int((sizes > 0).sum()) == 4


def test_nothing(device):
    log_probs = torch.zeros(1, 3, 4)
    empty = Problem(k2.ctc_topo(3), log_probs, [])
    assert [len(x) for x in empty.check((1.0, 1.0, 0, 9), device=device)] == [1, 1, 0, 0, 0, 0]
    dead = Problem(k2.linear_fsa([1] * 9), log_probs, [[0, 0, 3], [0, 1, 0]])
    assert dead.check((1.0, 1.0, 0, 9), device=device)[0].tolist() == [0, 0, 0]
    assert dead.check((1.0, 1.0, 0, 9), True, device=device)[0].tolist() == [0, 5, 7]
    no_frame = dead.check((1.0, 1.0, 0, 9), True, frame=False, device=device)
    assert len(no_frame[4]) == 0 and len(no_frame[2]) == 4 + 1


def without_stream(history: list[Tensor], stream: int) -> list[Tensor]:
    """A history [stream][frame][token] in which one stream has no frames."""
    frames, tokens, states, scores = history
    counts = frames.diff().long()
    kept = torch.arange(len(counts)).repeat_interleave(counts) != stream  # by frame
    some = kept.repeat_interleave(tokens.diff().long())
    counts[stream] = 0
    return [counts_to_splits(counts), counts_to_splits(tokens.diff()[kept]), states[some], scores[some]]


@pytest.mark.parametrize("num_threads", [1, 8])
def test_online(device, num_threads):
    """Streams go on from histories of different lengths, one begins anew; the result is that of all frames at once."""
    nothing = torch.zeros(5).int(), torch.zeros(1).int(), torch.zeros(0).int(), torch.zeros(0)
    with threads(num_threads):
        for seed in range(25):
            rng = random.Random(seed)
            graph = k2.ctc_topo(4) if seed % 2 else random_graph(rng, 8, 5, seed % 4 == 0)
            log_probs = torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(seed))
            limits = random_limits(rng)
            lens = [rng.randint(0, 4) for _ in range(4)]
            first = Problem(graph, log_probs, [[i, 0, d] for i, d in enumerate(lens)])
            history = first.check(limits, True, True, nothing, device)[6:]
            assert history[0].diff().tolist() == [d + 1 for d in lens]
            longer = Problem(graph, log_probs, [[i, 0, d + rng.randint(0, 5)] for i, d in enumerate(lens)])
            result = longer.check(limits, True, True, without_stream(history, rng.randrange(4)), device)
            for x, y in zip(result, longer.check(limits, True, device=device)):
                assert torch.equal(x, y)


def test_bad_input(device):
    problem = Problem(k2.ctc_topo(2), torch.zeros(1, 3, 3), [[0, 0, 3]])
    limits = (1.0, 1.0, 0, 9)

    def solve(**changes):
        changed = Problem(k2.ctc_topo(2), torch.zeros(1, 3, 3), [[0, 0, 3]])
        vars(changed).update(changes)
        changed.solve(True, limits, device=device)

    solve()
    with pytest.raises(RuntimeError, match="arc 2 of the graphs has label 2, but the scores have 2 columns"):
        solve(log_probs=torch.zeros(1, 3, 2))
    with pytest.raises(RuntimeError, match="segment 0 lies outside"):
        solve(segments=torch.tensor([[0, 1, 3]], dtype=torch.int32))
    with pytest.raises(RuntimeError, match="out of range"):
        solve(a_index=torch.tensor([1], dtype=torch.int32))
    with pytest.raises(RuntimeError, match="beams"):
        problem.solve(True, (0.0, 1.0, 0, 9), device=device)
    graphs = problem.graphs
    inputs = [*graphs.splits(), graphs.arcs3, graphs.scores, problem.log_probs]
    for place, match in ((0, "fsa_splits"), (1, "state_splits"), (2, "an arc")):
        wrong = [x.clone() for x in inputs]
        wrong[place][1] -= 9
        with pytest.raises(RuntimeError, match=match):
            run("fsa_intersect_dense_batch", *(x.to(device) for x in wrong), problem.segments, problem.a_index,
                problem.b_index, *limits, False, True)  # fmt: skip

    def go_on(frames, tokens, states, scores):
        history = [torch.tensor(x, dtype=torch.int32) for x in (frames, tokens, states)]
        problem.solve(True, limits, history=[*history, torch.tensor(scores)], device=device)

    go_on([0, 2], [0, 1, 2], [0, 1], [0.0, 0.0])
    for frames, tokens, states in (([0, 2], [0, 1, 2], [0, 9]), ([0, 1], [0, 2], [0, 1]), ([0, 2], [0, 3, 2], [0, 1])):
        with pytest.raises(RuntimeError, match="history"):
            go_on(frames, tokens, states, [0.0, 0.0])
    with pytest.raises(RuntimeError, match="twice"):
        go_on([0, 2], [0, 1, 3], [0, 1, 1], [0.0, 0.0, 0.0])
    with pytest.raises(RuntimeError, match="shorter than its history"):
        go_on([0, 5], [0, 1, 1, 1, 1, 1], [0], [0.0])


def test_memory_does_not_grow_with_states_times_batch():
    """64 x 1,000,000 states: a table of them with four bytes each would be 256 MB."""
    problem = Problem(k2.linear_fsa([1] * 1_000_000), torch.zeros(64, 3, 2), [[i, 0, 3] for i in range(64)])
    assert peak_memory(lambda: problem.solve(True, (10.0, 10.0, 1, 10), True)) < 100
    assert len(problem.solve(True, (10.0, 10.0, 1, 10), True)[2]) == 64 * 4
