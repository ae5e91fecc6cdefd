"""Values of arcs picked by arc maps: one by one, summed over lists, or listed.

In one compiled pass where they are plain 1-D numbers on the CPU that ask for no gradient, else by torch's indexing,
which is differentiable (and the compiled ops' twin).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ops import build, fsa_fakes, reference  # noqa: F401 (the fakes register themselves)
from ops.ragged import RaggedShape, RaggedTensor, index_and_sum

_DTYPES = (torch.int32, torch.int64, torch.float32, torch.float64)


def pick(value: Tensor | RaggedTensor, arc_map: Tensor, filler: float = 0) -> Any:
    """value[arc_map], with the filler (a ragged tensor: an empty row) where the map is -1."""
    if isinstance(value, RaggedTensor):
        return value.index(arc_map)[0]
    if _plain(value, arc_map) and _fits(filler, value.dtype):
        return torch.ops.lattica.fsa_pick(value, arc_map, filler)
    return reference.fsa_pick(value, arc_map, filler)


def pick_sum(value: Tensor, arc_map: RaggedTensor) -> Tensor:
    """The sum of value over each list of the map (two axes)."""
    splits, flat = arc_map.shape.row_splits(1), arc_map.values
    if _plain(value, flat):
        return torch.ops.lattica.fsa_pick_sum(value, splits, flat)
    return index_and_sum(value, arc_map)


def pick_lists(value: Tensor, arc_map: RaggedTensor, filler: float = 0) -> RaggedTensor:
    """value over each list of the map, without those that are the filler."""
    splits, flat = arc_map.shape.row_splits(1), arc_map.values
    if _plain(value, flat) and _fits(filler, value.dtype):
        splits, values = torch.ops.lattica.fsa_pick_lists(value, splits, flat, filler)
        return RaggedTensor(RaggedShape(splits=[splits]), values)
    return RaggedTensor(arc_map.shape, pick(value, flat, filler)).remove_values_eq(filler)


def _plain(value: Tensor, arc_map: Tensor) -> bool:
    """Whether the compiled ops take them. Neither is looked into, so CUDA has nothing to wait for."""
    if not (value.is_cpu and value.ndim == 1 and value.dtype in _DTYPES and value.is_contiguous()):
        return False
    if (value.requires_grad and torch.is_grad_enabled()) or arc_map.dtype != torch.int32 or not arc_map.is_contiguous():
        return False
    build.load()
    return True


def _fits(filler: float, dtype: torch.dtype) -> bool:
    """Whether a number of this dtype is the filler exactly, or it is a floating one."""
    return dtype.is_floating_point or (filler == int(filler) and abs(filler) < 2**31)
