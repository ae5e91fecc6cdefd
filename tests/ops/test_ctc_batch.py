"""CTC for a whole batch, a block a segment, as on the GPU, against the CPU's recursions. Its CPU instance, which runs everywhere,
gives each block three threads and little memory."""

from __future__ import annotations

import pytest
import torch

import ops as k2
from ops.fsa_call import call

INF = float("inf")


def batch(seed: int, lens: list[int], sizes: list[int], C: int = 6, dtype=torch.float64):
    """(log_probs, segments), and (token_splits, tokens, skips) with repeated tokens."""
    g = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(len(lens), max(lens), C, generator=g, dtype=dtype)).log_softmax(-1)
    segments = torch.tensor([[i, 0, n] for i, n in enumerate(lens)], dtype=torch.int32)
    targets = [torch.randint(1, C, (n,), generator=g).tolist() for n in sizes]
    graph = k2.ctc_graph(targets, modified=seed % 2 == 1)
    return log_probs, segments, call("fsa_ctc_read", *graph.splits(), graph.arcs3, None)


def to(device, values):
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in values]


CASES = [
    ([9, 8, 7, 5, 0, 1, 1], [3, 1, 0, 5, 0, 1, 0]),  # no path, too; no frames
    ([12, 3, 5], [4, 3, 5]),  # just as many frames as tokens
    ([45, 40, 20, 34], [32, 2, 10, 33]),  # more than the memory of a block of the CPU instance
]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.25])
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("seed", range(2))
def test_loss_and_gradient(device, seed, case, delay_penalty, dtype, tolerance):
    log_probs, segments, tokens = batch(seed, *CASES[case], dtype=dtype)
    log_probs[0, 3, 1], log_probs[1, 1, 2] = -INF, float("nan")
    log_probs[2, :, 0] = -INF
    total, occupations = call("fsa_ctc_loss", log_probs, segments, *tokens, delay_penalty, True)
    weights = torch.randn(len(segments), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    shape = log_probs.shape
    grad = call("fsa_ctc_loss_grad", occupations, weights, segments, *tokens[:2], *shape)

    there = to(device, (log_probs, segments, *tokens))
    for batch_name in {"_batch", "_batch" if device.type == "cpu" else ""}:
        ours, kept = call("fsa_ctc_loss" + batch_name, *there, delay_penalty, True)
        torch.testing.assert_close(ours.cpu(), total, rtol=1e-12, atol=1e-12)
        assert torch.equal(call("fsa_ctc_loss" + batch_name, *there, delay_penalty, False)[0], ours)
        args = (kept, weights.to(device), *there[1:4], *shape)
        our_grad = call("fsa_ctc_loss_grad" + batch_name, *args)
        torch.testing.assert_close(our_grad.cpu(), grad, rtol=tolerance, atol=tolerance)
        assert torch.equal(call("fsa_ctc_loss_grad" + batch_name, *args), our_grad) and our_grad.dtype == dtype


def test_segments_may_overlap(device):
    log_probs, _, tokens = batch(3, [10, 10], [2, 3])
    segments = torch.tensor([[1, 2, 7], [1, 0, 5]], dtype=torch.int32)
    expected, occupations = call("fsa_ctc_loss", log_probs, segments, *tokens, 0.0, True)
    weights = torch.tensor([1.0, -0.5], dtype=torch.float64)
    grad = call("fsa_ctc_loss_grad", occupations, weights, segments, *tokens[:2], *log_probs.shape)
    there = to(device, (log_probs, segments, *tokens))
    total, kept = call("fsa_ctc_loss_batch", *there, 0.0, True)
    torch.testing.assert_close(total.cpu(), expected)
    ours = call("fsa_ctc_loss_grad_batch", kept, weights.to(device), *there[1:4], *log_probs.shape)
    torch.testing.assert_close(ours.cpu(), grad)


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("blank", [0, 5])
def test_alignment(device, case, blank):
    log_probs, segments, (splits, tokens, skips) = batch(case, *CASES[case])
    log_probs[0, 2, 1] = -INF
    tokens = tokens % 5 + (0 if blank == 5 else 1)
    args = (log_probs, segments, splits, tokens, skips, blank)
    expected = call("fsa_ctc_align", *args)
    assert torch.equal(call("fsa_ctc_align_batch", *to(device, args)).cpu(), expected)
    assert torch.equal(call("fsa_ctc_align", *to(device, args)).cpu(), expected)


GRAPHS = [
    (lambda: k2.ctc_graph([[1, 2, 2, 3], [], [5], [1, 1]]), True),
    (lambda: k2.ctc_graph([[1, 2, 2, 3], [4, 4]], modified=True), True),
    (lambda: k2.create_fsa_vec([k2.arc_sort(k2.ctc_topo(2))]), False),
    (lambda: k2.linear_fsa([[1, 2, 3], [4]]), False),
    (lambda: k2.create_fsa_vec([k2.Fsa.from_str("0 1 -1 0\n1")]), False),  # no loop on the blank
    (lambda: k2.create_fsa_vec([k2.Fsa.from_str("0 0 0 0\n0 0 0 0\n0 1 -1 0\n1")]), False),  # one arc twice
    (lambda: k2.create_fsa_vec([k2.Fsa.from_str("0")]), False),
]


@pytest.mark.parametrize("make, is_ctc", GRAPHS)
def test_graphs_are_read(device, make, is_ctc):
    graph = make()
    for aux in (None, *([graph.aux_labels] if hasattr(graph, "aux_labels") else [])):
        expected = call("fsa_ctc_read", *graph.splits(), graph.arcs3, aux)
        assert (expected[0].numel() > 0) == is_ctc
        there = graph.to(device)
        actual = call("fsa_ctc_read_batch", *there.splits(), there.arcs3, None if aux is None else aux.to(device))
        assert all(torch.equal(x.cpu(), y) for x, y in zip(actual, expected)) and len(actual) == 3
    if is_ctc and graph.num_arcs:
        wrong = graph.aux_labels.clone()
        wrong[0] = 1
        assert call("fsa_ctc_read_batch", *there.splits(), there.arcs3, wrong.to(device))[0].numel() == 0


def test_malformed_input_is_an_error(device):
    log_probs, segments, (splits, tokens, skips) = batch(0, [6, 6], [2, 3])
    for bad_segments, message in (([[2, 0, 1], [0, 0, 1]], "segment 0"), ([[0, 0, 1], [1, 3, 4]], "segment 1"),
                                  ([[0, -1, 1], [1, 0, 4]], "segment 0"), ([[0, 0, 1], [1, 0, -1]], "segment 1")):  # fmt: skip
        bad = torch.tensor(bad_segments, dtype=torch.int32)
        for name, last in (("loss", (0.0, True)), ("align", (0,))):
            with pytest.raises(RuntimeError, match=message):
                call(f"fsa_ctc_{name}_batch", *to(device, (log_probs, bad, splits, tokens, skips)), *last)
    for value in (-1, 6):
        bad = tokens.clone()
        bad[3] = value
        with pytest.raises(RuntimeError, match="sequence 1 has a label"):
            call("fsa_ctc_loss_batch", *to(device, (log_probs, segments, splits, bad, skips)), 0.0, True)
    for values in ([0, 2, 6], [1, 2, 5], [0, 7, 5], [0, -1, 5]):
        bad = torch.tensor(values, dtype=torch.int32)
        with pytest.raises(RuntimeError, match="token_splits"):
            call("fsa_ctc_loss_batch", *to(device, (log_probs, segments, bad, tokens, skips)), 0.0, True)


def test_the_public_functions(device):
    """On CUDA they take the kernels above."""
    targets, lens = [[1, 1, 2], [3], [], [4, 2, 2, 1]], [9, 8, 7, 4]
    log_probs = batch(0, lens, [1, 1, 1, 1])[0]
    segments = torch.tensor([[i, 0, n] for i, n in enumerate(lens)], dtype=torch.int32)

    def run(where):
        x = log_probs.to(where).requires_grad_()
        loss = k2.ctc_loss(k2.ctc_graph(targets, device=where), k2.DenseFsaVec(x, segments), reduction="none")
        loss[:3].sum().backward()
        labels, scores = k2.forced_align(x.detach(), targets, torch.tensor(lens))
        return [y.detach().cpu() for y in (loss, x.grad, labels, scores)]

    with pytest.warns(UserWarning, match="no alignment"):
        actual, expected = run(device), run("cpu")
    for x, y in zip(actual, expected):
        torch.testing.assert_close(x, y)
