"""Frame scores as automata: intersection against the ordinary one, CTC loss against torch's and against all paths."""

from __future__ import annotations

import math
import random

import pytest
import torch
from fsa_helpers import all_paths, assert_same, language, peak_memory, random_text

import ops as k2

INF = float("inf")


def dense(seed=0, n=2, t=4, c=3, lens=None, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(n, t, c, generator=g, dtype=dtype).log_softmax(-1)
    lens = lens or [t - i for i in range(n)]
    return log_probs, torch.tensor([[i, 0, lens[i]] for i in range(n)], dtype=torch.int32)


def test_scores_matrix_and_conversion(device):
    log_probs, segments = dense()
    d = k2.DenseFsaVec(log_probs.to(device), segments)
    assert d.scores.shape == (4 + 3 + 2, 4) and d.dim0() == 2 and d.duration.tolist() == [4, 3]
    assert d.scores[4].tolist() == [0.0, -INF, -INF, -INF] and bool((d.scores[:4, 0] == -INF).all())
    assert torch.equal(d.scores[5:8, 1:].cpu(), log_probs[1, :3]) and torch.equal(d[1].cpu(), log_probs[1, :3])
    fsas = k2.convert_dense_to_fsa_vec(d)
    assert fsas.shape == (2, None, None) and fsas.num_arcs == 7 * 3 + 2
    assert fsas[1].arcs3.tolist()[:4] == [[0, 1, 0], [0, 1, 1], [0, 1, 2], [1, 2, 0]]
    assert torch.allclose(
        fsas.get_tot_scores(True, True), torch.zeros(2, dtype=torch.float64, device=device), atol=1e-5
    )


def test_bad_segments():
    log_probs, _ = dense()
    for bad in ([[0, 0, 5]], [[2, 0, 1]], [[0, -1, 2]], [[0, 0, -1]], [[0, 3, 2]]):
        with pytest.raises(ValueError):
            k2.DenseFsaVec(log_probs, torch.tensor(bad, dtype=torch.int32))
    cut = k2.DenseFsaVec(log_probs, torch.tensor([[0, 0, 5], [1, 2, 3]], dtype=torch.int32), allow_truncate=1)
    assert cut.duration.tolist() == [4, 2]
    with pytest.raises(ValueError):
        k2.DenseFsaVec(log_probs[0], torch.tensor([[0, 0, 1]]))


def cyclic_graph(seed, c=3):
    rng = random.Random(seed)
    rows = []
    for s in range(4):
        rows += [f"{s} {rng.randrange(4)} {rng.randrange(c)} {rng.uniform(-1, 0):.3f}" for _ in range(3)]
        rows.append(f"{s} 4 -1 {rng.uniform(-1, 0):.3f}")
    return k2.Fsa.from_str("\n".join([*rows, "4"]))


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_ordinary_intersection(device, seed):
    log_probs, segments = dense(seed)
    d = k2.DenseFsaVec(log_probs.to(device), segments)
    graph = cyclic_graph(seed).to(device)
    lattice, map_a, map_b = k2.intersect_dense(
        k2.create_fsa_vec([graph, graph]), d, 1000, seqframe_idx_name="row", frame_idx_name="frame", ret_arc_maps=True
    )
    expected = k2.connect(k2.intersect(k2.convert_dense_to_fsa_vec(d), graph, treat_epsilons_specially=False))
    for log_semiring in (False, True):
        assert torch.allclose(
            lattice.get_tot_scores(True, log_semiring), expected.get_tot_scores(True, log_semiring), atol=1e-5
        )
    assert lattice.num_arcs == expected.num_arcs
    for x, y in zip(lattice.to("cpu"), expected.to("cpu")):
        assert_same(language(x, epsilons=True), language(y, epsilons=True))
    both = graph.scores[map_a.long() % graph.num_arcs] + d.scores.reshape(-1)[map_b.long()]
    assert torch.allclose(lattice.scores, both)
    assert torch.equal(lattice.row, (map_b // 4).int())
    pruned = k2.intersect_dense_pruned(graph, d, 1000, 1000, 1, 1000)
    assert k2.to_str(pruned.to("cpu")) == k2.to_str_simple(lattice.to("cpu"))


def test_output_beam_keeps_just_the_good_arcs():
    log_probs, segments = dense(3, n=1, t=5)
    d, graph = k2.DenseFsaVec(log_probs, segments), cyclic_graph(3)
    full = k2.intersect_dense(graph, d, 1000)
    post = full.get_arc_post(True, False)
    for beam in (0.5, 1.5, 3.0):
        lattice = k2.intersect_dense(graph, d, beam)
        assert lattice.num_arcs == int((post >= -beam).sum())
        assert k2.connect(lattice).num_arcs == lattice.num_arcs
    best = k2.shortest_path(k2.intersect_dense_pruned(graph, d, 0.01, 0.01, 1, 1), True)
    assert best.num_arcs in (0, 6)


def test_active_limits():
    log_probs, segments = dense(4, n=1, t=6, c=5)
    d = k2.DenseFsaVec(log_probs, segments)
    topo = k2.ctc_topo(4)
    for limit in (1, 2, 3):
        lattice = k2.intersect_dense_pruned(topo, d, 100, 100, 0, limit, frame_idx_name="frame")
        states = {}
        for (src, _, _), frame in zip(lattice.arcs3.tolist(), lattice.frame.tolist()):
            states.setdefault(frame, set()).add(src)
        assert max(len(x) for x in states.values()) <= limit
    narrow = k2.intersect_dense_pruned(topo, d, 1e-3, 100, 0, 100)
    assert narrow.shape[0] == 1 and narrow.num_arcs == 7  # the greedy path
    wide = k2.intersect_dense_pruned(topo, d, 1e-3, 100, 4, 100)
    assert wide.arcs.tot_size(1) == 2 + 6 * 4


def test_no_path_and_partial():
    log_probs, segments = dense(1, n=1, t=3)
    d = k2.DenseFsaVec(log_probs, segments)
    long = k2.linear_fsa([1, 2, 1, 2])
    assert k2.intersect_dense(long, d, 10).shape == (1, None, None)
    assert k2.intersect_dense(long, d, 10)[0].shape[0] == 0
    lattice = k2.intersect_dense_pruned(long, d, 10, 10, 1, 10, allow_partial=True)
    expected = log_probs[0, 0, 1] + log_probs[0, 1, 2] + log_probs[0, 2, 1]
    assert lattice.get_tot_scores(True, True).item() == pytest.approx(expected.item(), abs=1e-5)
    assert lattice.labels.tolist() == [1, 2, 1, -1]
    with pytest.raises(RuntimeError, match="label"):
        k2.intersect_dense(k2.linear_fsa([7, 1, 1]), d, 10)
    with pytest.raises(ValueError):
        k2.intersect_dense(k2.linear_fsa([[1], [1]]), d, 10)
    with pytest.raises(ValueError):
        k2.intersect_dense(long, d, -1)
    with pytest.raises(RuntimeError, match="max_arcs"):
        k2.intersect_dense(k2.ctc_topo(2), d, 10, max_arcs=3)
    minus = log_probs.clone()
    minus[0, 1] = -INF
    assert k2.intersect_dense(k2.ctc_topo(2), k2.DenseFsaVec(minus, segments), 10)[0].shape[0] == 0


def test_a_to_b_map():
    log_probs, segments = dense(2)
    d = k2.DenseFsaVec(log_probs, segments)
    graphs = k2.linear_fsa([[1, 2, 1], [1, 2, 1, 1], [2, 2, 1]])
    lattice = k2.intersect_dense(graphs, d, 10, a_to_b_map=torch.tensor([1, 0, 1], dtype=torch.int32))
    frames = ((1, [1, 2, 1]), (0, [1, 2, 1, 1]), (1, [2, 2, 1]))
    expected = [sum(log_probs[n, t, x].item() for t, x in enumerate(labels)) for n, labels in frames]
    assert lattice.get_tot_scores(True, True).tolist() == pytest.approx(expected, abs=1e-5)


def test_gradients():
    log_probs, segments = dense(0, t=3, dtype=torch.float64)
    graph = cyclic_graph(1)

    def total(lp, w):
        g = graph.clone()
        g.scores = w
        return k2.intersect_dense(g, k2.DenseFsaVec(lp, segments), 1000).get_tot_scores(True, True)

    assert torch.autograd.gradcheck(total, (log_probs.requires_grad_(), graph.scores.double().requires_grad_()))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_ctc_loss_is_torchs(device, reduction):
    log_probs, segments = dense(5, n=4, t=9, c=5, lens=[9, 8, 7, 5], dtype=torch.float64)
    targets = [[1, 1, 2], [3], [], [4, 2, 2, 1]]
    lengths = torch.tensor([len(t) for t in targets])
    ours, theirs = (log_probs.clone().to(device).requires_grad_() for _ in range(2))
    loss = k2.ctc_loss(k2.ctc_graph(targets, device=device), k2.DenseFsaVec(ours, segments), 1000, reduction=reduction,
                       target_lengths=lengths)  # fmt: skip
    flat = torch.tensor([x for t in targets for x in t])
    expected = torch.nn.functional.ctc_loss(
        theirs.transpose(0, 1),
        flat.to(device),
        segments[:, 2].long(),
        lengths,
        reduction=reduction,
        zero_infinity=False,
    )
    assert loss.dtype == torch.float64 and torch.allclose(loss, expected, atol=1e-9)
    loss.sum().backward()
    expected.sum().backward()
    # torch's gradient is by the inputs of the log_softmax that it supposes was there: compare after one.
    project = lambda g: g - log_probs.to(device).exp() * g.sum(-1, keepdim=True)  # noqa: E731
    assert torch.allclose(project(ours.grad), project(theirs.grad), atol=1e-9)
    module = k2.CtcLoss(output_beam=1000, reduction=reduction)
    again = module(k2.ctc_graph(targets, device=device), k2.DenseFsaVec(ours, segments), target_lengths=lengths)
    assert torch.equal(again, loss)


def test_ctc_loss_edge_cases():
    log_probs, segments = dense(6, n=2, t=3, c=4)
    lp = log_probs.requires_grad_()
    loss = k2.ctc_loss(k2.ctc_graph([[1, 2, 3, 1], [2]]), k2.DenseFsaVec(lp, segments), reduction="none")
    assert loss[0] == INF and math.isfinite(loss[1].item())
    loss[1].backward()
    assert lp.grad[0].abs().sum() == 0 and torch.isfinite(lp.grad).all()
    with pytest.raises(ValueError):
        k2.ctc_loss(k2.ctc_graph([[1], [2]]), k2.DenseFsaVec(lp, segments), reduction="mean")
    with pytest.raises(ValueError):
        k2.ctc_loss(k2.ctc_graph([[1], [2]]), k2.DenseFsaVec(lp, segments), reduction="max")


def test_delay_penalty_prefers_early_tokens():
    log_probs, segments = torch.zeros(1, 5, 2), torch.tensor([[0, 0, 5]], dtype=torch.int32)
    d, graph = k2.DenseFsaVec(log_probs, segments), k2.ctc_graph([[1]])
    lattice = k2.intersect_dense(graph, d, 1000, frame_idx_name="frame")
    total = []
    for path in all_paths(lattice[0]):
        emitted = next(lattice.frame[a].item() for a in path if lattice.aux_labels[a] > 0)
        total.append(0.5 * ((5 - 1) / 2 - emitted))
    expected = -math.log(sum(math.exp(x) for x in total))
    assert k2.ctc_loss(graph, d, 1000, delay_penalty=0.5).item() == pytest.approx(expected, abs=1e-6)


def test_random_graphs_one_by_one():
    log_probs, segments = dense(8, n=3, t=6, c=4, lens=[6, 5, 3])
    graphs = [k2.Fsa.from_str(random_text(random.Random(i), states=7, labels=3)) for i in range(3)]
    batch = k2.intersect_dense(k2.create_fsa_vec(graphs), k2.DenseFsaVec(log_probs, segments), 20)
    for i, graph in enumerate(graphs):
        one = k2.intersect_dense(graph, k2.DenseFsaVec(log_probs, segments[i : i + 1]), 20)
        assert k2.to_str(one[0]) == k2.to_str(batch[i])


def test_float32_gradients_are_those_of_float64():
    """float32 scores come from the search itself, float64 ones are picked anew: the gradients must be the same."""
    log_probs, segments = dense(2, n=2, t=5)
    graph = cyclic_graph(2)
    grads = []
    for dtype in (torch.float32, torch.float64):
        lp, w = (x.clone().to(dtype).requires_grad_() for x in (log_probs, graph.scores))
        g = graph.clone()
        g.scores = w
        lattice = k2.intersect_dense(g, k2.DenseFsaVec(lp, segments), 4.0)
        assert lattice.scores.dtype == dtype
        (lattice.scores * torch.linspace(-1, 2, lattice.num_arcs, dtype=dtype)).sum().backward()
        grads.append((lp.grad.double(), w.grad.double()))
    for a, b in zip(*grads):
        assert torch.allclose(a, b, atol=1e-5) and bool(a.any())
    lp = log_probs.clone().requires_grad_()  # a frozen graph
    k2.intersect_dense(graph, k2.DenseFsaVec(lp, segments), 1000).get_tot_scores(True, True).sum().backward()
    assert torch.allclose(lp.grad[0].sum(-1), torch.ones(5), atol=1e-5)
    assert torch.allclose(lp.grad[1].sum(-1), torch.tensor([1.0, 1, 1, 1, 0]), atol=1e-5)


@pytest.mark.parametrize("beam", [0.3, 1.0, 4.0])
def test_pruned_search_with_wide_beam_is_exact_search(beam):
    log_probs, segments = dense(9, n=3, t=12, c=6)
    graph, d = k2.ctc_topo(5), k2.DenseFsaVec(2 * log_probs, segments)
    exact = k2.intersect_dense(k2.create_fsa_vec([graph] * 3), d, beam)
    assert k2.to_str(k2.intersect_dense_pruned(graph, d, 1000, beam, 0, 1000)) == k2.to_str(exact)
    post = exact.get_arc_post(True, False)
    assert bool((post >= -beam - 1e-4).all())
    wide = k2.intersect_dense(k2.create_fsa_vec([graph] * 3), d, 1000)
    assert exact.num_arcs == int((wide.get_arc_post(True, False) >= -beam).sum()) < wide.num_arcs


def test_all_arcs_between_surviving_states_stay():
    """An arc that is worse than the search beam by itself stays if both of its states do and the output beam allows."""
    graph = k2.Fsa.from_str("0 1 0 0.0\n0 2 0 -1.0\n1 2 0 0.0\n2 2 0 -1.5\n2 3 -1 0\n3")
    d = k2.DenseFsaVec(torch.zeros(1, 2, 1), torch.tensor([[0, 0, 2]], dtype=torch.int32))
    lattice = k2.intersect_dense_pruned(graph, d, 1.0, 10, 0, 10)
    assert sorted(s for path in all_paths(lattice[0]) for s in [lattice.scores[path].sum().item()]) == [-2.5, 0.0]


def test_segment_without_frames():
    log_probs, _ = dense(1, n=2, t=3)
    d = k2.DenseFsaVec(log_probs, torch.tensor([[0, 1, 0], [1, 0, 3], [1, 3, 0]], dtype=torch.int32))
    assert d.scores.shape == (3 + 3, 4) and d.scores[0].tolist() == [0.0, -INF, -INF, -INF]
    lattice = k2.intersect_dense_pruned(k2.ctc_topo(2), d, 10, 10, 1, 10, frame_idx_name="frame")
    assert lattice[0].arcs3.tolist() == lattice[2].arcs3.tolist() == [[0, 1, -1]] and lattice[1].num_arcs > 4
    assert k2.intersect_dense(k2.linear_fsa([1]), d, 10)[0].shape[0] == 0
    nothing = k2.DenseFsaVec(torch.zeros(2, 0, 3), torch.tensor([[0, 0, 0]], dtype=torch.int32))
    assert k2.intersect_dense(k2.ctc_topo(2), nothing, 10).num_arcs == 1
    assert nothing.scores.tolist() == [[0.0, -INF, -INF, -INF]]
    assert k2.convert_dense_to_fsa_vec(nothing)[0].arcs3.tolist() == [[0, 1, -1]]


def test_nan_is_no_score():
    log_probs, segments = dense(2, n=1, t=4)
    log_probs[0, 1, 2] = float("nan")
    impossible = log_probs.nan_to_num(-INF)
    pair = [
        k2.intersect_dense_pruned(k2.ctc_topo(2), k2.DenseFsaVec(x, segments), 50, 50, 1, 50)
        for x in (log_probs, impossible)
    ]
    assert k2.to_str(pair[0]) == k2.to_str(pair[1]) and pair[0].num_arcs > 0


def test_memory_does_not_grow_with_states_times_batch():
    """One table over the graph's states for each thread, not for each utterance: 64 x 400,000 x 8 bytes would be 205 MB."""
    graph = k2.linear_fsa([1] * 400_000)
    d = k2.DenseFsaVec(torch.zeros(64, 3, 2), torch.tensor([[i, 0, 3] for i in range(64)], dtype=torch.int32))
    lattices = []
    assert (
        peak_memory(lambda: lattices.append(k2.intersect_dense_pruned(graph, d, 10, 10, 1, 10, allow_partial=True)))
        < 100
    )
    assert lattices[0].num_arcs == 64 * 4


def test_threads_do_not_change_the_result():
    log_probs, segments = dense(3, n=8, t=20, c=10)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            lattice = k2.intersect_dense_pruned(k2.ctc_topo(9), k2.DenseFsaVec(log_probs, segments), 5, 4, 2, 8)
            lp = log_probs.clone().requires_grad_()
            loss = k2.ctc_loss(k2.ctc_graph([[1, 2, 3]] * 8), k2.DenseFsaVec(lp, segments))
            loss.backward()
            results.append((k2.to_str(lattice), loss.item(), lp.grad))
    finally:
        torch.set_num_threads(threads)
    assert results[0][:2] == results[1][:2] and torch.equal(results[0][2], results[1][2])
