"""Properties of automata as bits (k2's FsaProperties): what they mean, how they are found, how they are printed."""

from __future__ import annotations

from torch import Tensor

from ops.fsa_call import call

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
    return call("fsa_properties", fsa_splits, state_splits, arcs)


def intersect(properties: Tensor) -> int:
    """The bits that all FSAs of a vector have; ALL for an empty vector."""
    ans = ALL
    for p in set(properties.tolist()):
        ans &= p
    return ans
