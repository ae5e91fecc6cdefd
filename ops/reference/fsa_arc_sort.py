"""The order of arcs by state, label (-1 last) and destination, by two stable sorts."""

from __future__ import annotations

import torch
from torch import Tensor


def fsa_arc_sort(state_splits: Tensor, arcs: Tensor) -> Tensor:
    _, dest, label = arcs.long().unbind(1)
    order = torch.argsort(((label & 0xFFFFFFFF) - 2**31) * 2**32 + dest, stable=True)
    counts = (state_splits[1:] - state_splits[:-1]).long()
    states = torch.arange(counts.numel(), device=arcs.device)
    state = torch.repeat_interleave(states, counts, output_size=arcs.shape[0])
    return order[torch.argsort(state[order], stable=True)].int()
