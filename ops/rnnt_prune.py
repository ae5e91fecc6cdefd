"""Pruning of the transducer lattice: which few symbol positions to keep at each frame, and joiner inputs there."""

from __future__ import annotations

import torch
from torch import Tensor

from ops import build
from ops.mutual_information import check_boundary, check_lattice


def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor | None, s_range: int) -> Tensor:
    """The s_range neighbouring symbol positions that carry most of the occupation, for each frame.

    Args:
      px_grad: (N, S, T + 1) for rnnt_type "regular", (N, S, T) for the others: occupations of the symbol arcs, as
        returned by `rnnt_loss_simple` or `rnnt_loss_smoothed` with return_grad=True.
      py_grad: (N, S + 1, T), occupations of the blank arcs.
      boundary: int64 (N, 4), rows [0, 0, S_n, T_n]; None: all utterances fill the batch.
      s_range: positions to keep; at least 2 for "regular" (a band of one position could never move up), else 1.

    Returns:
      int64 (N, T, R) with R = min(s_range, S + 1), where [n, t] = start, start + 1, …, start + R - 1. Guaranteed: start
      is 0 at t = 0, never decreases, rises by at most R - 1 a frame (1 if px_grad is (N, S, T)), and from frame T_n - 1
      on the band holds position S_n, provided that T_n leaves time enough to get there. Not differentiable.

    Source: Kuang et al., arXiv 2206.13236, section 3.2.
    """
    check_lattice(px_grad, py_grad, ("px_grad", "py_grad"))
    N, S, T1 = px_grad.shape
    T = py_grad.shape[2]
    smallest = 1 if T1 == T else 2
    if s_range < smallest:
        raise ValueError(
            f"s_range must be at least {smallest} for px_grad of shape {tuple(px_grad.shape)}, got {s_range}"
        )
    boundary = check_boundary(boundary, N, S, T, px_grad.device)
    if boundary is None:
        boundary = torch.tensor([0, 0, S, T], device=px_grad.device).repeat(N, 1)
    build.load()
    return torch.ops.lattica.rnnt_prune_ranges(
        px_grad.detach().contiguous(), py_grad.detach().contiguous(), boundary, min(s_range, S + 1)
    )


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """The joiner's two inputs at the positions in `ranges`.

    Args:
      am: (N, T, C), encoder side.
      lm: (N, S + 1, C), decoder side.
      ranges: int64 (N, T, R) from `get_rnnt_prune_ranges`.

    Returns:
      am_pruned (N, T, R, C), a view of am expanded over R; lm_pruned (N, T, R, C) with
      lm_pruned[n, t, r] = lm[n, ranges[n, t, r]].
    """
    if am.ndim != 3 or lm.ndim != 3 or am.shape[0] != lm.shape[0] or am.shape[2] != lm.shape[2]:
        raise ValueError(f"am must be (N, T, C) and lm (N, S + 1, C), got {tuple(am.shape)} and {tuple(lm.shape)}")
    if ranges.ndim != 3 or ranges.shape[:2] != am.shape[:2]:
        raise ValueError(f"ranges must be (N, T, R) with N, T of am {tuple(am.shape)}, got {tuple(ranges.shape)}")
    N, T, R = ranges.shape
    C = lm.shape[2]
    am_pruned = am[:, :, None, :].expand(N, T, R, C)
    lm_pruned = torch.gather(lm, 1, ranges.reshape(N, T * R, 1).expand(-1, -1, C)).reshape(N, T, R, C)
    return am_pruned, lm_pruned


@build.when_loaded
def _register() -> None:
    @torch.library.register_fake("lattica::rnnt_prune_ranges")
    def fake(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
        return boundary.new_empty(py_grad.shape[0], py_grad.shape[2], s_range)
