"""Forward-backward over the transducer lattice, one utterance and one anti-diagonal at a time.

It keeps both forward scores (paths to a cell) and backward scores (paths from it); the compiled op keeps neither, so
the two agree only if both are right.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mutual_information(
    px: Tensor, py: Tensor, boundary: Tensor | None, want_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See ops/mutual_information.py. px: (N, S, T + 1) or, modified, (N, S, T); py: (N, S + 1, T)."""
    N, S, T1 = px.shape
    T = py.shape[2]
    if py.shape[:2] != (N, S + 1) or T1 not in (T, T + 1):
        raise RuntimeError(
            f"px must be (N, S, T + 1) or (N, S, T) where py is (N, S + 1, T); got {px.shape}, {py.shape}"
        )
    scores = px.new_empty(N)
    px_grad = torch.zeros_like(px, memory_format=torch.contiguous_format) if want_grad else px.new_empty(0)
    py_grad = torch.zeros_like(py, memory_format=torch.contiguous_format) if want_grad else py.new_empty(0)
    bounds = [[0, 0, S, T]] * N if boundary is None else boundary.tolist()
    for n, (s0, t0, s1, t1) in enumerate(bounds):
        if not (0 <= s0 <= s1 <= S and 0 <= t0 <= t1 <= T):
            raise RuntimeError(f"boundary[{n}] = {[s0, t0, s1, t1]} does not fit in S = {S}, T = {T}")
        px_n, py_n = px[n, s0:s1, t0 : t1 + (T1 - T)], py[n, s0 : s1 + 1, t0:t1]
        scores[n], px_occupation, py_occupation = _one(px_n, py_n)
        if want_grad:
            px_grad[n, s0:s1, t0 : t1 + (T1 - T)] = px_occupation
            py_grad[n, s0 : s1 + 1, t0:t1] = py_occupation
    return scores, px_grad, py_grad


def _one(px: Tensor, py: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    S, T = px.shape[0], py.shape[1]
    step = 0 if px.shape[1] == T + 1 else 1  # frames that a symbol takes
    forward = px.new_full((S + 1, T + 1), float("-inf"))
    backward = forward.clone()
    forward[0, 0] = 0.0
    backward[S, T] = 0.0

    for d in range(1, S + T + 1):
        s, t = _cells(d, S, T)
        via_y = torch.full_like(forward[s, t], float("-inf"))
        via_x = via_y.clone()
        y, x = t >= 1, (s >= 1) & (t >= step)
        via_y[y] = forward[s[y], t[y] - 1] + py[s[y], t[y] - 1]
        via_x[x] = forward[s[x] - 1, t[x] - step] + px[s[x] - 1, t[x] - step]
        forward[s, t] = torch.logaddexp(via_y, via_x)

    for d in range(S + T - 1, -1, -1):
        s, t = _cells(d, S, T)
        via_y = torch.full_like(backward[s, t], float("-inf"))
        via_x = via_y.clone()
        y, x = t < T, (s < S) & (t + step <= T)
        via_y[y] = backward[s[y], t[y] + 1] + py[s[y], t[y]]
        via_x[x] = backward[s[x] + 1, t[x] + step] + px[s[x], t[x]]
        backward[s, t] = torch.logaddexp(via_y, via_x)

    total = forward[S, T]
    if total == float("-inf"):  # no path, no occupation
        return total, torch.zeros_like(px), torch.zeros_like(py)
    px_occupation = torch.exp(forward[:S, : px.shape[1]] + px + backward[1:, step:] - total)
    py_occupation = torch.exp(forward[:, :T] + py + backward[:, 1:] - total)
    return total, px_occupation, py_occupation


def _cells(d: int, S: int, T: int) -> tuple[Tensor, Tensor]:
    s = torch.arange(max(0, d - T), min(S, d) + 1)
    return s, d - s
