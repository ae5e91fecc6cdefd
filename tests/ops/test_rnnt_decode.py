"""The FSA-based search of transducers: against all paths, one by one, in pieces, and at its limits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import ops
from ops import Fsa, RnntDecodingConfig, RnntDecodingStream, RnntDecodingStreams
from ops.rnnt_decode_batch import BLOCK_SIZE

V = 4


@pytest.fixture(params=[False, True], ids=["a stream a thread", "padded"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the bookkeeping is done."""
    monkeypatch.setattr(RnntDecodingStreams.__init__, "__defaults__", (request.param, None))


def table(seed: int, history: int = 2) -> Tensor:
    """(T, contexts, V) log-probabilities: those of symbols at a frame after a context."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(8, V**history, V, generator=generator) * 1.5).log_softmax(-1)


def config(
    history: int = 2, beam: float = 1000.0, states: int = 10_000, contexts: int = 10_000, **more
) -> RnntDecodingConfig:
    return RnntDecodingConfig(V, history, beam, states, contexts, **{"count_last_frame": True, **more})


def decode(streams: RnntDecodingStreams, tables: list[Tensor], frames: range) -> list[Tensor]:
    """Advance by these frames of a table for each stream; returns what was given to advance."""
    given = []
    for t in frames:
        shape, contexts = streams.get_contexts()
        powers = V ** torch.arange(contexts.shape[1] - 1, -1, -1)
        ids = (contexts.long() * powers).sum(1)
        rows = [tables[i][t, c] for i, c in zip(shape.row_ids(1).tolist(), ids.tolist())]
        given.append(torch.stack(rows) if rows else torch.zeros(0, V))
        streams.advance(given[-1])
    streams.terminate_and_flush_to_streams()
    return given


def lattice_of(
    graph: Fsa, log_probs: Tensor, num_frames: int, config: RnntDecodingConfig, partial: bool = False
) -> Fsa:
    streams = RnntDecodingStreams([RnntDecodingStream(graph)], config)
    decode(streams, [log_probs], range(num_frames))
    return streams.format_output([num_frames], partial)


def accepted(graph: Fsa, symbols: list[int]) -> list[float]:
    """The scores of all paths of `graph` that spell `symbols` and end."""
    found: list[float] = []

    def walk(state: int, rest: list[int], score: float) -> None:
        for (src, dest, label), weight in zip(graph.arcs3.tolist(), graph.scores.tolist()):
            if src == state and label == -1 and not rest:
                found.append(score + weight)
            elif src == state and rest and label == rest[0]:
                walk(dest, rest[1:], score + weight)

    walk(0, symbols, 0.0)
    return found


def all_paths(graph: Fsa, log_probs: Tensor, num_frames: int, history: int) -> list[float]:
    """The scores of all pairs of an alignment and a path of the graph."""
    scores = []
    for path in itertools.product(range(V), repeat=num_frames):
        symbols: list[int] = []
        score = 0.0
        for t, symbol in enumerate(path):
            context = 0
            for s in ([0] * history + symbols)[-history:]:
                context = context * V + s
            score += float(log_probs[t, context, symbol])
            symbols += [symbol] if symbol else []
        scores += [score + g for g in accepted(graph, symbols)]
    return scores


LOOP = "0 0 1 -0.5\n0 1 2 0.3\n1 0 3 0\n0 1 1 -0.25\n1 1 2 0.1\n0 2 -1 0.2\n1 2 -1 -0.7\n2"


@pytest.mark.parametrize("history", [1, 2])
@pytest.mark.parametrize("name", ["trivial", "loop", "linear"])
@pytest.mark.usefixtures("way")
def test_wide_search_has_all_paths(name: str, history: int) -> None:
    graph = {
        "trivial": ops.trivial_graph(V - 1),
        "loop": Fsa.from_str(LOOP),
        "linear": ops.linear_fsa([2, 1]),
    }[name]
    log_probs = table(1, history)
    lattice = lattice_of(graph, log_probs, 5, config(history))
    scores = torch.tensor(all_paths(graph, log_probs, 5, history), dtype=torch.float64)
    assert len(scores) > 5
    torch.testing.assert_close(lattice.get_tot_scores(True, True)[0], scores.logsumexp(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(lattice.get_tot_scores(True, False)[0], scores.max(), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("way")
def test_limits_hold_and_only_take_away() -> None:
    log_probs, graph = table(2), ops.trivial_graph(V - 1)
    whole = lattice_of(graph, log_probs, 8, config()).get_tot_scores(True, True)
    for narrow in (config(contexts=3), config(states=2), config(beam=1.0), config(states=1), config(contexts=1)):
        streams = RnntDecodingStreams([RnntDecodingStream(graph)], narrow)
        for t in range(8):
            ids = streams.context_ids()[1]
            streams.advance(log_probs[t, ids])
        streams.terminate_and_flush_to_streams()
        for frame, _ in streams.src_streams[0].history:
            assert len(frame.graph_states) <= narrow.max_states
        contexts, _, _, scores = streams.src_streams[0].state
        assert len(contexts) <= min(narrow.max_contexts, len(scores))
        assert float(scores.max() - scores.min()) <= narrow.beam
        assert streams.format_output([8]).get_tot_scores(True, True) < whole


@pytest.mark.usefixtures("way")
def test_one_state_is_greedy() -> None:
    log_probs = table(3)
    lattice = lattice_of(ops.trivial_graph(V - 1), log_probs, 8, config(states=1))
    symbols: list[int] = [0, 0]
    path = []
    for t in range(8):
        path.append(int(log_probs[t, symbols[-2] * V + symbols[-1]].argmax()))
        symbols += [path[-1]] if path[-1] else []
    assert ops.shortest_path(lattice, True).labels.tolist() == [*path, -1]


@pytest.mark.usefixtures("way")
def test_each_max_is_counted_per_stream_and_a_batch_is_one_by_one() -> None:
    graphs = [ops.trivial_graph(V - 1), Fsa.from_str(LOOP), ops.linear_fsa([1, 2, 3])]
    tables, lens = [table(4), table(5), table(6)], [8, 5, 3]
    narrow = config(contexts=4, states=6, beam=8.0)
    streams = RnntDecodingStreams([RnntDecodingStream(g) for g in graphs], narrow)
    decode(streams, tables, range(8))
    together = streams.format_output(lens, allow_partial=True)
    for i, (graph, log_probs, n) in enumerate(zip(graphs, tables, lens)):
        alone = lattice_of(graph, log_probs, n, narrow, partial=True)
        assert torch.equal(together[i].arcs3, alone.arcs3) and torch.equal(together[i].scores, alone.scores)


@pytest.mark.usefixtures("way")
def test_streams_that_stop_early_and_go_on_elsewhere() -> None:
    """keep_running, and flushing in the middle and combining anew, change nothing."""
    graph, tables, lens = ops.trivial_graph(V - 1), [table(4), table(5), table(6)], [8, 5, 3]
    narrow = config(contexts=4)
    expected = [lattice_of(graph, x, n, narrow) for x, n in zip(tables, lens)]

    streams = RnntDecodingStreams([RnntDecodingStream(graph) for _ in lens], narrow)
    for t in range(8):
        streams.keep_running(sum(n > t for n in lens))
        owner, ids = streams.context_ids()
        assert streams.get_contexts()[0].dim0 == 3
        streams.advance(torch.stack([tables[i][t, c] for i, c in zip(owner.tolist(), ids.tolist())]))
    streams.terminate_and_flush_to_streams()
    for i, lattice in enumerate(streams.format_output(lens)):
        assert torch.equal(lattice.arcs3, expected[i].arcs3) and torch.equal(lattice.scores, expected[i].scores)

    sources = [RnntDecodingStream(graph) for _ in lens]
    decode(RnntDecodingStreams(sources, narrow), tables, range(3))
    second = RnntDecodingStreams([sources[1], sources[0]], narrow)
    decode(second, [tables[1], tables[0]], range(3, 5))
    third = RnntDecodingStreams([sources[0], sources[2]], narrow)
    decode(third, [tables[0], tables[0]], range(5, 8))
    assert torch.equal(second.format_output([5, 2])[0].arcs3, expected[1].arcs3)
    lattice = third.format_output([8, 3])
    for i, e in enumerate((expected[0], expected[2])):
        assert torch.equal(lattice[i].arcs3, e.arcs3)
    with pytest.raises(ValueError, match="log_probs cannot be given"):
        third.format_output([8, 3], log_probs=torch.zeros(sum(third._num_rows), V))


@pytest.mark.usefixtures("way")
def test_attributes_of_different_graphs() -> None:
    a, b = ops.trivial_graph(V - 1), Fsa.from_str(LOOP)
    a.phrase = ops.RaggedTensor([[int(x), 7] if x > 0 else [] for x in a.labels], dtype=torch.int32)
    b.cost = torch.arange(b.num_arcs) + 0.5
    b.cost_filler = -2.0
    b.language = "b"
    streams = RnntDecodingStreams([RnntDecodingStream(g) for g in (a, b, a)], config())
    decode(streams, [table(1)] * 3, range(4))
    lattice = streams.format_output([4] * 3)
    assert lattice.language == "b"
    for i in (0, 2):
        part = lattice[i]
        assert torch.equal(part.aux_labels, part.labels)
        assert part.phrase.tolist() == [[x, 7] if x > 0 else [] for x in part.labels.tolist()]
        assert set(part.cost.tolist()) == {-2.0}
    part = lattice[1]
    blank = part.labels == 0
    assert part.cost[blank].eq(-2.0).all() and part.cost[~blank].ge(0.5).all() and part.aux_labels.eq(0).all()
    at = part.cost[~blank] - 0.5
    assert torch.equal(b.labels[at.long()], part.labels[~blank])


@pytest.mark.parametrize("count_last_frame", [True, False])
@pytest.mark.usefixtures("way")
def test_scores_from_log_probs_have_gradients(count_last_frame: bool) -> None:
    graphs = [Fsa.from_str(LOOP), ops.trivial_graph(V - 1)]
    for graph in graphs:
        graph.scores = graph.scores.double().requires_grad_()
    chosen = config(contexts=5, beam=20.0, count_last_frame=count_last_frame)
    streams = RnntDecodingStreams([RnntDecodingStream(g) for g in graphs], chosen)
    given = torch.cat(decode(streams, [table(7), table(8)], range(6))).double().requires_grad_()
    plain = streams.format_output([6, 4])
    lattice = streams.format_output([6, 4], log_probs=given)
    torch.testing.assert_close(lattice.scores.float(), plain.scores)

    def total(given: Tensor, *scores: Tensor) -> Tensor:
        for graph, s in zip(graphs, scores):
            graph.scores = s
        return streams.format_output([6, 4], log_probs=given).get_tot_scores(True, True)

    inputs = (given, *(g.scores for g in graphs))
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.usefixtures("way")
def test_no_frames_no_path_and_nothing_left() -> None:
    graph = ops.linear_fsa([1, 2])
    empty = lattice_of(graph, table(1), 0, config())
    assert empty.shape == (1, None, None) and empty.num_arcs == 0  # the end cannot be reached in no frames
    assert lattice_of(graph, table(1), 0, config(), partial=True).labels.tolist() == [-1]
    assert lattice_of(ops.trivial_graph(2), table(1), 0, config()).get_tot_scores(True, True).tolist() == [0.0]
    assert lattice_of(graph, table(1), 1, config()).num_arcs == 0
    assert lattice_of(graph, table(1), 1, config(), partial=True).num_arcs == 4  # blank or 1, then the end
    for nothing in (float("-inf"), float("nan")):
        log_probs = torch.full_like(table(1), nothing)
        lattice = lattice_of(graph, log_probs, 3, config(), partial=True)
        assert lattice.num_arcs == 0 and lattice.get_tot_scores(True, True).tolist() == [-math.inf]


@pytest.mark.usefixtures("way")
def test_results_do_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    made = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            graph = ops.trivial_graph(V - 1)
            streams = RnntDecodingStreams([RnntDecodingStream(graph) for _ in range(9)], config(contexts=4))
            decode(streams, [table(i) for i in range(9)], range(6))
            made.append(streams.format_output([6] * 9))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0].arcs3, made[1].arcs3) and torch.equal(made[0].scores, made[1].scores)


@pytest.mark.usefixtures("way")
def test_a_label_zero_is_taken_with_a_blank() -> None:
    graph = Fsa.from_str("0 1 0 -0.5\n1 2 2 0\n2 3 -1 0\n3")
    log_probs = table(1)
    lattice = lattice_of(graph, log_probs, 2, config())
    expected = log_probs[0, 0, 0] - 0.5 + log_probs[1, 0, 2]
    assert lattice.labels.tolist() == [0, 2, -1]
    torch.testing.assert_close(lattice.get_tot_scores(False, True)[0], expected)


@pytest.mark.usefixtures("way")
def test_bad_arguments_are_named() -> None:
    graph = ops.trivial_graph(V - 1)
    for name, value in (("vocab_size", 0), ("max_states", 0), ("max_contexts", -1), ("beam", 0.0)):
        fields = {"vocab_size": 4, "decoder_history_len": 2, "beam": 4.0, "max_states": 4, "max_contexts": 4}
        with pytest.raises(ValueError, match=f"{name}={value}"):
            RnntDecodingConfig(**{**fields, name: value})
    with pytest.raises(ValueError, match="64-bit"):
        RnntDecodingConfig(500, 8, 4.0, 4, 4)
    with pytest.raises(ValueError, match="a vector of 2"):
        RnntDecodingStream(ops.create_fsa_vec([graph, graph]))
    with pytest.raises(ValueError, match="src_streams is empty"):
        RnntDecodingStreams([], config())
    streams = RnntDecodingStreams([RnntDecodingStream(graph)], config())
    with pytest.raises(ValueError, match=r"log_probs must be float \(1, 4\)"):
        streams.advance(torch.zeros(1, 5))
    with pytest.raises(RuntimeError, match="terminate_and_flush_to_streams first"):
        streams.format_output([0])
    streams.advance(torch.zeros(1, V))
    streams.terminate_and_flush_to_streams()
    with pytest.raises(RuntimeError, match="flushed"):
        streams.get_contexts()
    with pytest.raises(ValueError, match=r"num_frames\[0\]=2: stream 0 has read 1"):
        streams.format_output([2])
    with pytest.raises(ValueError, match="num_frames has 2 entries"):
        streams.format_output([1, 1])
    with pytest.raises(ValueError, match=r"log_probs must be \(1, 4\)"):
        streams.format_output([1], log_probs=torch.zeros(2, V))
    with pytest.raises(RuntimeError, match="not below vocab_size: 4"):
        RnntDecodingStreams([RnntDecodingStream(ops.trivial_graph(V))], config()).advance(torch.zeros(1, V))


def random_graph(seed: int, states: int, arcs: int) -> Fsa:
    """Arcs of any kind: parallel ones, loops, ones without a symbol, several ends, scores that are equal by chance."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, n: int = arcs) -> Tensor:
        return torch.randint(high, (n,), generator=generator)

    rows = torch.stack([draw(states), draw(states), draw(V), -draw(3)], 1).tolist()
    rows += [[s, states, -1, -1] for s in draw(states, 3).tolist()]
    return Fsa.from_str("\n".join(" ".join(map(str, row)) for row in [*sorted(rows), [states]]))


def frames_of(
    padded: bool, graphs: list[Fsa], tables: list[Tensor], chosen: RnntDecodingConfig, lens: list[int]
) -> tuple[list[list[list]], Fsa, RnntDecodingStreams]:
    """For each stream and frame: states of the graph, arcs and their scores; the lattice; the streams."""
    streams = RnntDecodingStreams([RnntDecodingStream(g) for g in graphs], chosen, padded, tables[0].device)
    for t in range(max(lens)):
        running = sum(n > t for n in lens)
        streams.keep_running(running)
        if padded:
            ids_NC, used_NC = streams.padded_context_ids()
            rows = torch.stack([tables[i][t, ids_C] for i, ids_C in enumerate(ids_NC)])
            rows[~used_NC] = float("nan")  # nobody looks there
            streams.advance(rows.view(-1, V))
        else:
            owner, ids = streams.context_ids()
            streams.advance(torch.stack([tables[i][t, c] for i, c in zip(owner.tolist(), ids.tolist())]))
    streams.terminate_and_flush_to_streams()
    found = []
    for stream in streams.src_streams:
        found.append([])
        for frame, i in stream.history:
            ends = [int(frame.context_splits[int(frame.stream_splits[j])]) for j in (i, i + 1)]
            arcs = slice(int(frame.arc_splits[i]), int(frame.arc_splits[i + 1]))
            of_graph = frame.arcs[arcs, :3].tolist()
            found[-1].append([frame.graph_states[slice(*ends)].tolist(), of_graph, frame.arc_scores[arcs].tolist()])
    return found, streams.format_output(lens, allow_partial=True), streams


@pytest.mark.parametrize("count_last_frame", [True, False])
@pytest.mark.parametrize(
    "bounds", [(1000.0, 1000, 1000), (4.0, 1000, 1000), (1000.0, 5, 1000), (1000.0, 1000, 2), (6.0, 7, 3)]
)
def test_padded_frames_are_those_of_a_stream_a_thread(
    bounds: tuple[float, int, int], count_last_frame: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States, arcs and scores of every frame, on random graphs, with scores that tie and a table of few values."""
    chosen = config(2, *bounds, count_last_frame=count_last_frame)
    graphs = [random_graph(seed, 6, 20) for seed in range(4)] + [ops.trivial_graph(V - 1)]
    tables = [table(seed).mul(2).round().div(2) for seed in range(5)]
    tables[1][3, :, 1] = float("nan")
    tables[2][2, :, 0] = -math.inf
    lens = [6, 5, 5, 3, 2]
    frames, lattice, streams = frames_of(False, graphs, tables, chosen, lens)
    expected = [s.state for s in streams.src_streams]
    monkeypatch.setattr("ops.rnnt_decode_batch.MOST_WORDS", 1)  # memory for one stream only: they take turns
    padded = frames_of(True, graphs, tables, chosen, lens)
    assert padded[0] == frames
    assert torch.equal(padded[1].arcs3, lattice.arcs3) and torch.equal(padded[1].scores, lattice.scores)
    for stream, state in zip(padded[2].src_streams, expected):
        assert all(torch.equal(x, y) for x, y in zip(stream.state, state))


@pytest.mark.parametrize("count_last_frame", [True, False])
def test_a_team_of_threads_makes_the_same(count_last_frame: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's program with a CPU thread for each of a block's threads: nobody forgets to wait for the others."""
    chosen = config(1, 6.0, 5, 2, count_last_frame=count_last_frame)
    graphs, tables = [random_graph(7, 5, 14), ops.trivial_graph(V - 1)], [table(1, 1), table(2, 1)]
    frames, lattice, _ = frames_of(False, graphs, tables, chosen, [3, 3])
    monkeypatch.setitem(BLOCK_SIZE, "cpu", 3)
    together = frames_of(True, graphs, tables, chosen, [3, 3])
    assert together[0] == frames
    assert torch.equal(together[1].arcs3, lattice.arcs3) and torch.equal(together[1].scores, lattice.scores)


@pytest.mark.parametrize("allow_partial", [False, True])
def test_best_paths_are_those_of_the_lattices(allow_partial: bool) -> None:
    graphs = [random_graph(seed, 6, 20) for seed in range(4)] + [ops.linear_fsa([1, 2, 3])]
    for graph in graphs:
        graph.scores = torch.randn(graph.num_arcs, generator=torch.Generator().manual_seed(graph.num_arcs))
    tables, lens = [table(seed) for seed in range(5)], [6, 5, 5, 3, 2]
    tables[2][1] = float("nan")
    chosen = config(2, 6.0, 7, 3)
    streams = RnntDecodingStreams([RnntDecodingStream(g) for g in graphs], chosen, True)
    for t in range(6):
        streams.keep_running(sum(n > t for n in lens))
        streams.advance(torch.cat([tables[i][t, ids_C] for i, ids_C in enumerate(streams.padded_context_ids()[0])]))
    symbols_NT, log_probs_NT, scores_N = streams.best_paths(allow_partial)
    assert symbols_NT.shape == log_probs_NT.shape == (5, 6)
    _, lattice, _ = frames_of(False, graphs, tables, chosen, lens)
    best = lattice.get_tot_scores(True, False)
    if not allow_partial:
        for i, n in enumerate(lens):
            best[i] = lattice_of(graphs[i], tables[i], n, chosen).get_tot_scores(True, False)[0]
    torch.testing.assert_close(scores_N, best, atol=1e-5, rtol=0)
    found = [i for i in range(5) if scores_N[i] > -math.inf]
    assert 2 <= len(found) < 5
    paths = ops.shortest_path(lattice, use_double_scores=True)
    for i in found:
        assert (
            symbols_NT[i, : lens[i]].tolist() == paths[i].labels[:-1].tolist() and symbols_NT[i, lens[i] :].eq(0).all()
        )
        context = 0
        for t in range(lens[i]):
            symbol = int(symbols_NT[i, t])
            assert float(log_probs_NT[i, t]) == pytest.approx(float(tables[i][t, context, symbol]), abs=1e-6)
            context = (context * V + symbol) % V**2 if symbol else context
    with pytest.raises(RuntimeError, match="flushed"):
        streams.best_paths()
    with pytest.raises(RuntimeError, match="only of padded streams"):
        RnntDecodingStreams([RnntDecodingStream(graphs[0])], chosen, False).best_paths()


@pytest.mark.cuda
@pytest.mark.parametrize("count_last_frame", [True, False])
def test_on_a_gpu(count_last_frame: bool) -> None:
    chosen = config(2, 6.0, 7, 3, count_last_frame=count_last_frame)
    graphs = [random_graph(seed, 6, 20) for seed in range(4)] + [ops.trivial_graph(V - 1)]
    tables, lens = [table(seed) for seed in range(5)], [6, 5, 5, 3, 2]
    frames, lattice, _ = frames_of(False, graphs, tables, chosen, lens)
    for graphs_there in (graphs, [g.to("cuda") for g in graphs]):
        on_gpu = frames_of(True, graphs_there, [x.cuda() for x in tables], chosen, lens)
        assert on_gpu[0] == frames and on_gpu[1].device == graphs_there[0].device
        assert torch.equal(on_gpu[1].arcs3.cpu(), lattice.arcs3)
        torch.testing.assert_close(on_gpu[1].scores.cpu(), lattice.scores)


def test_padded_contexts_are_those_of_get_contexts() -> None:
    streams = RnntDecodingStreams([RnntDecodingStream(ops.trivial_graph(V - 1)) for _ in range(3)], config(), True)
    streams.advance(table(3)[0, :1].expand(3, V))
    symbols_NCH, used_NC = streams.padded_contexts()
    shape, symbols = streams.get_contexts()
    assert torch.equal(symbols_NCH[used_NC], symbols) and used_NC.sum(1).tolist() == shape.row_splits(1).diff().tolist()
    with pytest.raises(RuntimeError, match="padded=True"):
        RnntDecodingStreams([RnntDecodingStream(ops.trivial_graph(V - 1))], config(), False).padded_contexts()
