"""The pruning bounds of the transducer, window by window and frame by frame."""

from __future__ import annotations

import torch
from torch import Tensor


def rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """See ops/rnnt_prune.py. px_grad: (N, S, T + 1) or (N, S, T); py_grad: (N, S + 1, T). Returns (N, T, s_range)."""
    N, S1, T = py_grad.shape
    max_step = 1 if px_grad.shape[2] == T else s_range - 1
    starts_NT = torch.zeros(N, T, dtype=torch.int64)
    for n in range(N):
        s_end, t_end = int(boundary[n, 2]), int(boundary[n, 3])
        windows_WT = py_grad[n].unfold(0, s_range, 1).sum(-1)
        windows_WT[1:] -= px_grad[n, : S1 - s_range, :T]
        starts = windows_WT.argmax(0).tolist()
        for t in range(max(0, t_end - 1), T):
            starts[t] = max(0, s_end - s_range + 1)
        for t in range(T - 2, -1, -1):  # never down
            starts[t] = min(starts[t], starts[t + 1])
        for t in range(T - 2, -1, -1):  # never up by more than max_step
            starts[t] = max(starts[t], starts[t + 1] - max_step)
        for t in range(T):  # reachable from position 0
            starts[t] = min(starts[t], max_step * t)
        starts_NT[n] = torch.tensor(starts, dtype=torch.int64)
    return (starts_NT[:, :, None] + torch.arange(s_range)).to(px_grad.device)
