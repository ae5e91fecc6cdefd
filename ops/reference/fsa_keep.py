"""Automata with some of their arcs, by cumulative sums over masks."""

from __future__ import annotations

import torch
from torch import Tensor

from ops.ragged.shape import counts_to_splits, ids_to_splits, splits_to_ids


def fsa_keep(
    fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, arc_mask: Tensor, all_states: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_states, num_fsas = state_splits.numel() - 1, fsa_splits.numel() - 1
    fsa_ids, first = splits_to_ids(fsa_splits, num_states).long(), fsa_splits.long()
    arc_map = arc_mask.nonzero().squeeze(1)
    src = splits_to_ids(state_splits, arcs.shape[0]).long()[arc_map]
    dest = first[fsa_ids[src]] + arcs[arc_map, 1]
    kept = torch.full((num_states,), all_states, dtype=torch.bool, device=arcs.device)
    some = fsa_splits[1:] > fsa_splits[:-1]
    for states in (src, dest, first[:-1][some], first[1:][some] - 1):
        kept[states] = True
    rank = kept.cumsum(0) - 1  # new number over the whole vector
    new_splits = counts_to_splits(torch.bincount(fsa_ids[kept], minlength=num_fsas))
    begin = new_splits.long()[fsa_ids[src]]
    arcs3 = torch.stack([rank[src] - begin, rank[dest] - begin, arcs[arc_map, 2]], dim=1).int()
    return new_splits, ids_to_splits(rank[src].int(), int(new_splits[-1])), arcs3, arc_map.int()
