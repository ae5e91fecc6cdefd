"""Picking by arc maps with torch's indexing: any device, any shape of what is picked from, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def fsa_pick(src: Tensor, map: Tensor, filler: float) -> Tensor:
    if not map.is_cuda and (map.numel() == 0 or int(map.min()) >= 0):  # on CUDA an answer would have to be waited for
        return src.index_select(0, map)
    if src.shape[0] == 0:
        return src.new_full((map.numel(), *src.shape[1:]), filler)
    ans = src.index_select(0, map.clamp(min=0))
    return ans.masked_fill((map < 0).reshape(-1, *[1] * (src.ndim - 1)), filler)


def _rows(map_splits: Tensor) -> Tensor:
    counts = map_splits[1:] - map_splits[:-1]
    return torch.repeat_interleave(torch.arange(counts.numel(), device=counts.device), counts)


def fsa_pick_sum(src: Tensor, map_splits: Tensor, map: Tensor) -> Tensor:
    ans = src.new_zeros(map_splits.numel() - 1, *src.shape[1:])
    return ans.index_add(0, _rows(map_splits), fsa_pick(src, map, 0))


def fsa_pick_lists(src: Tensor, map_splits: Tensor, map: Tensor, filler: float) -> tuple[Tensor, Tensor]:
    values = fsa_pick(src, map, filler)
    listed = values != filler
    ends = torch.cat([listed.new_zeros(1, dtype=torch.int64), listed.cumsum(0)])[map_splits.long()]
    return ends.int(), values[listed]
