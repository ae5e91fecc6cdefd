"""The recursion for label sequences: against intersect_dense on the same graphs, torch's loss, and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import ops as k2

INF = float("inf")
TARGETS = [[1, 1, 2], [3], [], [4, 2, 2, 1]]
LENS = [9, 8, 7, 5]


def batch(seed=5, dtype=torch.float64, t=9, c=5, lens=LENS):
    lp = torch.randn(len(lens), t, c, generator=torch.Generator().manual_seed(seed), dtype=dtype).log_softmax(-1)
    return lp, torch.tensor([[i, 0, n] for i, n in enumerate(lens)], dtype=torch.int32)


def by_lattice(graph, dense, delay_penalty=0.0):
    """The same loss through intersect_dense: a gradient on the graph's scores rules the recursion out."""
    graph = graph.clone().requires_grad_(True)
    return k2.ctc_loss(graph, dense, 1000, delay_penalty, reduction="none")


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.3, -0.2])
def test_is_the_sum_over_the_lattice(modified, delay_penalty):
    lp, segments = batch()
    graph = k2.ctc_graph(TARGETS, modified=modified)
    ours, theirs = lp.clone().requires_grad_(), lp.clone().requires_grad_()
    loss = k2.ctc_loss(graph, k2.DenseFsaVec(ours, segments), 10, delay_penalty, reduction="none")
    expected = by_lattice(graph, k2.DenseFsaVec(theirs, segments), delay_penalty)
    assert [x.grad_fn.next_functions[0][0].name() == "_CtcTotalBackward" for x in (loss, expected)] == [True, False]
    assert torch.allclose(loss, expected, atol=1e-9)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    (loss * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-9)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_is_torchs_on_longer_input(dtype, tolerance):
    g = torch.Generator().manual_seed(0)
    lens, sizes = [120, 100, 77, 40], [30, 0, 38, 39]
    lp, segments = batch(1, dtype, 120, 50, lens)
    lp = (4 * lp).log_softmax(-1)  # sharp, so that the scores of states lie far apart
    targets = [torch.randint(1, 50, (n,), generator=g).tolist() for n in sizes]
    ours, theirs = lp.clone().requires_grad_(), lp.double().requires_grad_()
    loss = k2.ctc_loss(k2.ctc_graph(targets), k2.DenseFsaVec(ours, segments), reduction="none")
    flat = torch.tensor([x for t in targets for x in t])
    expected = torch.nn.functional.ctc_loss(
        theirs.transpose(0, 1), flat, segments[:, 2].long(), torch.tensor(sizes), reduction="none"
    )
    assert loss.dtype == torch.float64 and torch.allclose(loss, expected, rtol=tolerance / 10, atol=tolerance)
    loss.sum().backward()
    expected.sum().backward()
    project = lambda g: g - lp.exp() * g.sum(-1, keepdim=True)  # noqa: E731 - torch's is by the inputs of a log_softmax
    assert ours.grad.dtype == dtype
    assert torch.allclose(project(ours.grad).double(), project(theirs.grad).double(), atol=tolerance)
    for i, n in enumerate(lens):  # each frame has one label
        assert torch.allclose(ours.grad[i, :n].sum(-1), torch.tensor(-1.0, dtype=dtype), atol=1e-5)
        assert not ours.grad[i, n:].any()


def test_gradcheck():
    lp, segments = batch(t=6, lens=[6, 5, 3, 6])
    graph = k2.ctc_graph([[1, 1], [3, 2, 4], [], [2]])

    def loss(x):
        return k2.ctc_loss(graph, k2.DenseFsaVec(x, segments), delay_penalty=0.1, reduction="none")

    assert torch.autograd.gradcheck(loss, (lp.requires_grad_(),))


def test_segments_may_overlap_and_lie_in_any_order():
    lp, _ = batch(t=8, lens=[8, 8])
    segments = torch.tensor([[1, 2, 6], [0, 0, 8], [1, 0, 5], [1, 4, 0]], dtype=torch.int32)
    graph = k2.ctc_graph([[1, 2], [3], [4, 4], []])
    ours, theirs = lp.clone().requires_grad_(), lp.clone().requires_grad_()
    k2.ctc_loss(graph, k2.DenseFsaVec(ours, segments)).backward()
    by_lattice(graph, k2.DenseFsaVec(theirs, segments)).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-9)


def test_what_has_no_path():
    lp, _ = batch(t=4, lens=[4] * 8)
    lp[3] = -INF
    lp[4, 1] = float("nan")
    lp[5, :, 3] = -INF  # a column that this transcript does not need
    lp[6, :, 3] = float("nan")
    lp[7, :, 0] = -INF  # no blanks
    targets = [[1, 2, 3, 4, 1], [1, 1, 1], [2], [2], [2], [2], [2], [2]]
    segments = torch.tensor([[i, 0, n] for i, n in enumerate([4, 4, 0, 4, 4, 4, 4, 4])], dtype=torch.int32)
    x = lp.clone().requires_grad_()
    loss = k2.ctc_loss(k2.ctc_graph(targets), k2.DenseFsaVec(x, segments), reduction="none")
    assert loss.isinf().tolist() == [True] * 5 + [False] * 3
    assert loss[7].item() == pytest.approx(-lp[7, :, 2].sum().item())  # only 2 2 2 2 is left
    loss[5:].sum().backward()
    assert torch.isfinite(x.grad).all() and not x.grad[:5].any()
    assert torch.allclose(loss[5], by_lattice(k2.ctc_graph([targets[5]]), k2.DenseFsaVec(lp, segments[5:6])))
    y = lp.clone().requires_grad_()
    k2.ctc_loss(k2.ctc_graph(targets), k2.DenseFsaVec(y, segments)).backward()
    assert torch.isfinite(y.grad).all() and not y.grad[:5].any()


def test_far_apart_alignments_do_not_underflow():
    """The only way through has states that fall thousands behind others on the way."""
    t = 40
    lp = torch.zeros(1, t, 3, dtype=torch.float64)
    lp[..., 1:] = -100.0
    targets = [[1, 2] * (t // 2)]  # a token in each frame
    dense = k2.DenseFsaVec(lp.requires_grad_(), torch.tensor([[0, 0, t]], dtype=torch.int32))
    loss = k2.ctc_loss(k2.ctc_graph(targets), dense)
    assert loss.item() == pytest.approx(100.0 * t)
    loss.backward()
    assert torch.equal(lp.grad[0, :, 0], torch.zeros(t, dtype=torch.float64)) and lp.grad.sum() == -t


def test_other_graphs_take_the_lattice():
    lp, segments = batch()
    dense = k2.DenseFsaVec(lp, segments)
    graph = k2.ctc_graph(TARGETS)
    plain = k2.ctc_loss(graph, dense, 1000, reduction="none")
    scored = graph.clone()
    scored.scores = torch.full_like(graph.scores, 0.25)  # one for each frame, one for the end
    assert torch.allclose(
        k2.ctc_loss(scored, dense, 1000, reduction="none"), plain - 0.25 * (segments[:, 2] + 1), atol=1e-5
    )
    through_topo = k2.connect(k2.compose(k2.ctc_topo(4), k2.linear_fsa(TARGETS)))
    assert torch.allclose(k2.ctc_loss(through_topo, dense, 1000, reduction="none"), plain, atol=1e-5)
    one = k2.ctc_graph([[2]])  # one graph for all segments
    each = [k2.ctc_loss(one, k2.DenseFsaVec(lp, segments[i : i + 1]), 1000).item() for i in range(4)]
    assert k2.ctc_loss(one, dense, 1000, reduction="none").tolist() == pytest.approx(each, abs=1e-5)
    with pytest.raises(RuntimeError, match="label 4"):
        k2.ctc_loss(graph, k2.DenseFsaVec(lp[..., :4], segments))


@pytest.mark.parametrize("modified", [False, True])
def test_all_labellings_of_a_small_case(modified):
    lp, segments = batch(t=5, c=3, lens=[5])
    total = 0.0
    for labels in itertools.product(range(3), repeat=5):
        score = sum(lp[0, i, x].item() for i, x in enumerate(labels))
        # Modified: a run of n equal labels may be read as 1 ... n tokens, so 1 1 2 is found in more than one way.
        runs = [(x, len(list(g))) for x, g in itertools.groupby(labels)]
        choices = [range(1, n + 1) if modified else [1] for x, n in runs if x > 0]
        tokens = [(x, n) for x, n in runs if x > 0]
        ways = 0
        for counts in itertools.product(*choices):
            read = [x for (x, _), k in zip(tokens, counts) for _ in range(k)]
            if read == [1, 1, 2]:
                ways += math.prod(math.comb(n - 1, k - 1) for (_, n), k in zip(tokens, counts))
        if ways:
            total += ways * math.exp(score)
    loss = k2.ctc_loss(k2.ctc_graph([[1, 1, 2]], modified=modified), k2.DenseFsaVec(lp, segments))
    assert loss.item() == pytest.approx(-math.log(total), abs=1e-9)


def test_batch_is_one_by_one_and_half_precision():
    lp, segments = batch(dtype=torch.float32)
    graph = k2.ctc_graph(TARGETS)
    loss = k2.ctc_loss(graph, k2.DenseFsaVec(lp, segments), reduction="none")
    for i in range(4):
        one = k2.ctc_loss(k2.ctc_graph([TARGETS[i]]), k2.DenseFsaVec(lp, segments[i : i + 1]))
        assert one == loss[i]
    half = lp.bfloat16().requires_grad_()
    short = k2.ctc_loss(graph, k2.DenseFsaVec(half, segments), reduction="none", use_double_scores=False)
    assert short.dtype == torch.float32 and torch.allclose(short.double(), loss, rtol=0.02)
    short.sum().backward()
    assert half.grad.dtype == torch.bfloat16
