"""Pruning bounds: equal to the reference twin, and what they promise."""

from __future__ import annotations

import pytest
import torch

import ops
from ops import build, reference


def occupations(N: int, S: int, T: int, kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    am, lm = torch.randn(N, T, 9, generator=g) * 3, torch.randn(N, S + 1, 9, generator=g) * 3
    symbols = torch.randint(1, 9, (N, S), generator=g)
    ends = torch.randint(0, S + 1, (N,), generator=g)
    ends[0] = S
    frames = torch.maximum(torch.randint(1, T + 1, (N,), generator=g), ends)
    frames[0] = T
    boundary = torch.stack([torch.zeros_like(ends), torch.zeros_like(ends), ends, frames], 1)
    _, (px_grad, py_grad) = ops.rnnt_loss_simple(lm, am, symbols, 0, boundary, kind, return_grad=True)
    return px_grad, py_grad, boundary


@pytest.mark.parametrize("kind", ["regular", "modified", "constrained"])
@pytest.mark.parametrize(("S", "T", "s_range"), [(7, 20, 3), (12, 14, 5), (3, 9, 5), (6, 30, 2), (0, 4, 3)])
def test_ranges_keep_their_promises(S: int, T: int, s_range: int, kind: str, device: torch.device) -> None:
    px_grad, py_grad, boundary = occupations(6, S, T, kind, seed=S + T)
    ranges = ops.get_rnnt_prune_ranges(px_grad.to(device), py_grad.to(device), boundary, s_range).cpu()
    R = min(s_range, S + 1)
    assert torch.equal(ranges, reference.rnnt_prune_ranges(px_grad, py_grad, boundary, R))
    start = ranges[:, :, 0]
    assert torch.equal(ranges, start[:, :, None] + torch.arange(R))
    assert (start[:, 0] == 0).all() and (ranges <= S).all()
    rise = start.diff(dim=1)
    assert (rise >= 0).all() and (rise <= (R - 1 if kind == "regular" else 1)).all()
    for n, (_, _, s_end, t_end) in enumerate(boundary.tolist()):
        if kind != "regular" or (t_end - 1) * (R - 1) >= s_end - R + 1:
            assert s_end in ranges[n, t_end - 1].tolist()


def test_ranges_hold_most_of_the_occupation() -> None:
    """Not just any legal band: it keeps more blanks' occupation than the straight line from corner to corner does."""
    px_grad, py_grad, boundary = occupations(8, 20, 60, "regular", seed=3)
    boundary[:] = torch.tensor([0, 0, 20, 60])
    ranges = ops.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 5)
    line = (torch.arange(60) * 16 // 59)[None, :, None] + torch.arange(5)
    kept = py_grad.transpose(1, 2).gather(2, ranges).sum()
    assert kept > py_grad.transpose(1, 2).gather(2, line.expand_as(ranges)).sum()


def test_opcheck(device: torch.device) -> None:
    build.load()
    px_grad, py_grad, boundary = (x.to(device) for x in occupations(2, 4, 8, "regular", seed=0))
    torch.library.opcheck(torch.ops.lattica.rnnt_prune_ranges.default, (px_grad, py_grad, boundary, 3))


def test_do_rnnt_pruning_gathers_and_its_gradient_scatters(device: torch.device) -> None:
    px_grad, py_grad, boundary = occupations(3, 6, 10, "regular", seed=1)
    ranges = ops.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 3)
    am = torch.randn(3, 10, 4, dtype=torch.float64, device=device, requires_grad=True)
    lm = torch.randn(3, 7, 4, dtype=torch.float64, device=device, requires_grad=True)
    am_pruned, lm_pruned = ops.do_rnnt_pruning(am, lm, ranges.to(device))
    for n, t, r in [(0, 0, 0), (1, 5, 2), (2, 9, 1)]:
        assert torch.equal(am_pruned[n, t, r], am[n, t]) and torch.equal(lm_pruned[n, t, r], lm[n, ranges[n, t, r]])
    assert torch.autograd.gradcheck(lambda a, b: torch.add(*ops.do_rnnt_pruning(a, b, ranges.to(device))), (am, lm))


def test_bad_input_is_named() -> None:
    px_grad, py_grad, boundary = occupations(2, 4, 8, "regular", seed=0)
    with pytest.raises(ValueError, match="s_range must be at least 2"):
        ops.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 1)
    with pytest.raises(ValueError, match="px_grad must be"):
        ops.get_rnnt_prune_ranges(px_grad[:, :1], py_grad, boundary, 3)
    with pytest.raises(ValueError, match=r"boundary\[0\]"):
        ops.get_rnnt_prune_ranges(px_grad, py_grad, boundary + 9, 3)
    with pytest.raises(ValueError, match="ranges must be"):
        ops.do_rnnt_pruning(torch.zeros(2, 8, 3), torch.zeros(2, 5, 3), torch.zeros(2, 7, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="am must be"):
        ops.do_rnnt_pruning(torch.zeros(2, 8, 3), torch.zeros(2, 5, 4), torch.zeros(2, 8, 2, dtype=torch.int64))
