"""The property bits of automata in plain PyTorch; ops/fsa_properties.py says what they mean."""

from __future__ import annotations

import torch
from torch import Tensor

from ops import fsa_properties as p


def fsa_properties(fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor) -> Tensor:
    device, num_fsas, num_states = arcs.device, fsa_splits.numel() - 1, state_splits.numel() - 1
    first_arc = state_splits[fsa_splits.long()].long()
    states_F = (fsa_splits[1:] - fsa_splits[:-1]).long()
    fsa_A = torch.repeat_interleave(torch.arange(num_fsas, device=device), first_arc[1:] - first_arc[:-1])
    fsa_S = torch.repeat_interleave(torch.arange(num_fsas, device=device), states_F)
    counts_S = (state_splits[1:] - state_splits[:-1]).long()
    state_A = torch.repeat_interleave(torch.arange(num_states, device=device), counts_S)
    begin_F = fsa_splits[:-1].long()
    src, dest, label = arcs.long().unbind(1)
    final_A = states_F[fsa_A] - 1
    inside = (dest >= 0) & (dest <= final_A)
    valid = inside & (src == state_A - begin_F[fsa_A]) & (label >= -1) & ((label == -1) == (dest == final_A))
    valid &= src != final_A
    key = label & 0xFFFFFFFF  # -1 sorts last
    follows = torch.zeros_like(valid)
    follows[1:] = state_A[1:] == state_A[:-1]
    rises = torch.cat([key[:1] >= 0, key[1:] > key[:-1]]) | ~follows
    level = torch.cat([key[:1] >= 0, key[1:] >= key[:-1]]) | ~follows
    entered = torch.zeros(num_states, dtype=torch.bool, device=device)
    entered[(begin_F[fsa_A] + dest)[inside]] = True
    entered[begin_F[states_F > 0]] = True
    left = counts_S > 0
    left[(fsa_splits[1:].long() - 1)[states_F > 0]] = True

    def all_of(good: Tensor, fsa: Tensor) -> Tensor:
        bad = torch.zeros(num_fsas, dtype=torch.int64, device=device).index_add(0, fsa, (~good).long())
        return bad == 0

    bits = {
        p.VALID: all_of(valid, fsa_A) & (states_F != 1),
        p.NONEMPTY: states_F > 0,
        p.TOPSORTED: all_of(dest >= src, fsa_A),
        p.TOPSORTED_AND_ACYCLIC: all_of(dest > src, fsa_A),
        p.ARC_SORTED: all_of(level, fsa_A),
        p.ARC_SORTED_AND_DETERMINISTIC: all_of(rises, fsa_A),
        p.EPSILON_FREE: all_of(label != 0, fsa_A),
        p.ACCESSIBLE: all_of(entered, fsa_S),
        p.COACCESSIBLE: all_of(left, fsa_S),
    }
    return sum(
        (flag.int() * bit for bit, flag in bits.items()), torch.zeros(num_fsas, dtype=torch.int32, device=device)
    )
