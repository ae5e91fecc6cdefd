"""From log-probabilities of symbols and blanks at every (t, s) to px and py, which the recursion wants.

N utterances, T frames, S symbols, R positions in a band; shapes are suffixed to names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.mutual_information import check_boundary

RNNT_TYPES = ("regular", "modified", "constrained")
LogProbs = tuple[Tensor, Tensor]


def to_lattice(symbol_NTS: Tensor, blank_NTS: Tensor, boundary: Tensor | None, rnnt_type: str) -> LogProbs:
    """(px, py) of log-probabilities of symbols (N, T, S) and blanks (N, T, S + 1), see docs/transducer-losses.md."""
    px_NST, py_NST = symbol_NTS.transpose(1, 2), blank_NTS.transpose(1, 2)
    if rnnt_type == "modified":
        return px_NST, py_NST
    if rnnt_type == "constrained":
        return px_NST + py_NST[:, 1:], py_NST
    N, S, T = px_NST.shape
    # Past the last frame no symbol may be emitted, so the last arc of every path is a blank.
    px_NST = F.pad(px_NST, (0, 1), value=float("-inf"))
    boundary = check_boundary(boundary, N, S, T, px_NST.device)
    if boundary is not None:
        frame_T = torch.arange(T + 1, device=px_NST.device)
        px_NST = px_NST.masked_fill(frame_T == boundary[:, 3, None, None], float("-inf"))
    return px_NST, py_NST


def band_to_lattice(
    symbol_NTR: Tensor, blank_NTR: Tensor, ranges: Tensor, S1: int, boundary: Tensor | None, rnnt_type: str
) -> LogProbs:
    """`to_lattice` of log-probabilities inside bands; those outside are -inf."""
    outside_NTS = symbol_NTR.new_full((*ranges.shape[:2], S1), float("-inf"))
    symbol_NTS = outside_NTS.scatter(2, ranges, symbol_NTR)[:, :, :-1]
    return to_lattice(symbol_NTS, outside_NTS.scatter(2, ranges, blank_NTR), boundary, rnnt_type)


def check_type(rnnt_type: str) -> None:
    if rnnt_type not in RNNT_TYPES:
        raise ValueError(f"rnnt_type={rnnt_type!r}: expected one of {', '.join(RNNT_TYPES)}")
