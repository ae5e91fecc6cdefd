"""Properties of automata as bits (k2's FsaProperties): what they mean, how they are found, how they are printed."""

from __future__ import annotations

import torch
from torch import Tensor

VALID = 0x01  # labels >= -1; label -1 exactly on the arcs into the final state (the last); no arc leaves it
NONEMPTY = 0x02  # has a state
TOPSORTED = 0x04  # no arc goes back to a lower state
TOPSORTED_AND_ACYCLIC = 0x08  # ... nor to its own
ARC_SORTED = 0x10  # the arcs of each state are ordered by label, -1 last
ARC_SORTED_AND_DETERMINISTIC = 0x20  # ... and no label occurs twice
EPSILON_FREE = 0x40  # no label is 0
ACCESSIBLE = 0x80  # every state but the first is entered by an arc (necessary, not sufficient, for being reached)
COACCESSIBLE = 0x0100  # every state but the last is left by an arc (likewise)
ALL = 0x01FF

_NAMES = (
    (VALID, "Valid"),
    (NONEMPTY, "Nonempty"),
    (TOPSORTED, "TopSorted"),
    (TOPSORTED_AND_ACYCLIC, "TopSortedAndAcyclic"),
    (ARC_SORTED, "ArcSorted"),
    (ARC_SORTED_AND_DETERMINISTIC, "ArcSortedAndDeterministic"),
    (EPSILON_FREE, "EpsilonFree"),
    (ACCESSIBLE, "MaybeAccessible"),
    (COACCESSIBLE, "MaybeCoaccessible"),
)


def to_str(p: int) -> str:
    """The names of the bits set in p, joined by "|"."""
    return "|".join(name for bit, name in _NAMES if p & bit)


def compute(arcs: Tensor, fsa_splits: Tensor, state_splits: Tensor) -> Tensor:
    """The property bits of each FSA, int32 (number of FSAs,).

    Args:
      arcs: (A, 3) int32 source, destination (both within their FSA), label.
      fsa_splits: where the states of each FSA begin. state_splits: where the arcs of each state begin.
    """
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
        VALID: all_of(valid, fsa_A) & (states_F != 1),
        NONEMPTY: states_F > 0,
        TOPSORTED: all_of(dest >= src, fsa_A),
        TOPSORTED_AND_ACYCLIC: all_of(dest > src, fsa_A),
        ARC_SORTED: all_of(level, fsa_A),
        ARC_SORTED_AND_DETERMINISTIC: all_of(rises, fsa_A),
        EPSILON_FREE: all_of(label != 0, fsa_A),
        ACCESSIBLE: all_of(entered, fsa_S),
        COACCESSIBLE: all_of(left, fsa_S),
    }
    return sum(
        (flag.int() * bit for bit, flag in bits.items()), torch.zeros(num_fsas, dtype=torch.int32, device=device)
    )


def intersect(properties: Tensor) -> int:
    """The bits that all FSAs of a vector have; ALL for an empty vector."""
    ans = ALL
    for p in set(properties.tolist()):
        ans &= p
    return ans
