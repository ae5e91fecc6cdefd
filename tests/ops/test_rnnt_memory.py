"""The predicted memory of the losses against what the allocator hands out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ops
from ops import rnnt_loss_memory
from ops.rnnt_memory import measured_peak


def measured(N: int, T: int, S: int, V: int, D: int, s_range: int | None, fused: bool, keep_bytes: int | None) -> int:
    torch.manual_seed(0)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((N, T, D), (N, S + 1, D), (V, D), (V,))]
    am, lm, weight, bias = leaves
    weight.data *= D**-0.5  # a flat distribution: every row matters
    symbols = torch.randint(1, V, (N, S))
    if s_range is not None:
        # A band that climbs evenly, so that nothing need be computed to get it.
        start = torch.arange(T) * (S + 2 - s_range) // T
        ranges = (start[:, None] + torch.arange(s_range)).expand(N, T, s_range).contiguous()

    def loss() -> Tensor:
        if fused and s_range is None:
            return ops.rnnt_loss_fused(am, lm, weight, bias, symbols, 0, keep_bytes=keep_bytes)
        if fused:
            return ops.rnnt_loss_pruned_fused(am, lm, ranges, weight, bias, symbols, 0, keep_bytes=keep_bytes)
        if s_range is None:
            return ops.rnnt_loss(F.linear(torch.tanh(am[:, :, None] + lm[:, None]), weight, bias), symbols, 0)
        am_pruned, lm_pruned = ops.do_rnnt_pruning(am, lm, ranges)
        return ops.rnnt_loss_pruned(F.linear(torch.tanh(am_pruned + lm_pruned), weight, bias), symbols, ranges, 0)

    torch.autograd.grad(loss(), leaves)  # what is allocated once in a process is not the batch's
    return measured_peak(lambda: torch.autograd.grad(loss(), leaves))


CASES = [
    (4, 150, 20, 500, 128, 5),
    (2, 60, 15, 300, 128, None),
    (2, 40, 10, 5000, 64, 5),
    (8, 100, 60, 40, 256, 5),
    (4, 200, 150, 10, 16, 3),
    (4, 100, 20, 256, 256, 5),
    (2, 100, 20, 500, 512, 5),
]


@pytest.mark.parametrize("keep_bytes", [None, 0, 1 << 20, 1 << 40])
@pytest.mark.parametrize("shape", CASES)
def test_fused(shape: tuple, keep_bytes: int | None) -> None:
    actual, predicted = measured(*shape, True, keep_bytes), rnnt_loss_memory(*shape, keep_bytes=keep_bytes)
    assert predicted == pytest.approx(actual, rel=0.2)


@pytest.mark.parametrize("shape", CASES)
def test_unfused(shape: tuple) -> None:
    assert rnnt_loss_memory(*shape, fused=False) == pytest.approx(measured(*shape, False, 0), rel=0.2)


def test_fused_takes_a_quarter_of_unfused_at_most() -> None:
    """By prediction at real sizes, where measuring would take long, and by measurement at a small one."""
    for N, T, S in ((8, 200, 40), (16, 400, 80), (30, 400, 80)):
        fused = rnnt_loss_memory(N, T, S, 500, 512, 5)
        assert fused <= rnnt_loss_memory(N, T, S, 500, 512, 5, fused=False) / 4
    shape = (8, 150, 30, 500, 512, 5)
    assert measured(*shape, True, None) <= measured(*shape, False, None) / 4


def test_full_loss_takes_bounded_memory() -> None:
    """Ten times the lattice costs ten times the log-probabilities, but no logits."""
    small, large = (rnnt_loss_memory(4, T, 50, 5000, 512) for T in (100, 1000))
    one_more_frame = (large - small) / 900
    logits_of_a_frame = 4 * 51 * 5000 * 4
    assert one_more_frame < logits_of_a_frame / 50


def test_knobs() -> None:
    shape = (4, 100, 20, 500, 256, 5)
    assert rnnt_loss_memory(*shape, dtype=torch.float64) > rnnt_loss_memory(*shape)
    assert rnnt_loss_memory(*shape, is_cpu=False) > rnnt_loss_memory(*shape)
    assert rnnt_loss_memory(0, 100, 20, 500, 256) < 4 << 20
    with pytest.raises(ValueError, match="num_frames=-1"):
        rnnt_loss_memory(4, -1, 20, 500, 256)
