"""RaggedArcs: what k2 users know as `fsa.arcs`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ops.ragged import RaggedShape

if TYPE_CHECKING:
    from ops.fsa import Fsa


class RaggedArcs:
    """`fsa.arcs`, as k2 users know it: shape() and values() (A, 4) int32, the last column the bits of the float32
    score.
    """

    def __init__(self, fsa: Fsa):
        self._fsa = fsa

    def values(self) -> Tensor:
        """A copy: set `fsa.labels` and `fsa.scores` to change an FSA."""
        bits = self._fsa.scores.detach().float().contiguous().view(torch.int32)
        return torch.cat([self._fsa.arcs3, bits[:, None]], dim=1)

    def shape(self) -> RaggedShape:
        return self._fsa._shape

    def row_splits(self, axis: int) -> Tensor:
        return self._fsa._shape.row_splits(axis)

    def row_ids(self, axis: int) -> Tensor:
        return self._fsa._shape.row_ids(axis)

    def num_axes(self) -> int:
        return self._fsa._shape.num_axes

    def dim0(self) -> int:
        return self._fsa._shape.dim0

    def tot_size(self, axis: int) -> int:
        return self._fsa._shape.tot_size(axis)

    def num_elements(self) -> int:
        return self._fsa._shape.numel()

    def is_cpu(self) -> bool:
        return not self._fsa.arcs3.is_cuda

    def is_cuda(self) -> bool:
        return self._fsa.arcs3.is_cuda

    def to_str(self) -> str:
        arcs = [f"{s} {d} {x} {w:.6g}" for (s, d, x), w in zip(self._fsa.arcs3.tolist(), self._fsa.scores.tolist())]
        values: list[str] = arcs
        for axis in range(self.num_axes() - 1, 0, -1):
            splits = self.row_splits(axis).tolist()
            values = ["[ " + "".join(v + " " for v in values[a:b]) + "]" for a, b in itertools.pairwise(splits)]
        return "[ " + "".join(v + " " for v in values) + "]"

    __str__ = __repr__ = to_str
