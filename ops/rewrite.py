"""Algorithms that keep what an automaton accepts, with its scores: remove_epsilon, determinize, minimize, push."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

from ops.algorithms import add_epsilon_self_loops, connect
from ops.fsa import Fsa
from ops.fsa_attributes import arcs_of, call, fsa_from_unary_function_ragged, fsa_from_unary_function_tensor, scores64
from ops.fsa_properties import TOPSORTED_AND_ACYCLIC
from ops.ragged import RaggedShape, RaggedTensor
from ops.scores import arc_places


class DeterminizeWeightPushingType(enum.Enum):
    """What determinize does with the scores: leave them as late as they come, or push them to the front."""

    kTropicalWeightPushing = 0
    kLogWeightPushing = 1
    kNoWeightPushing = 2


def _from_lists(fsa: Fsa, result: tuple[Tensor, ...], remove_filler: bool, ret_arc_map: bool) -> Any:
    *arcs, map_splits, values = result
    arc_map = RaggedTensor(RaggedShape(splits=[map_splits]), values)
    ans = fsa_from_unary_function_ragged(fsa, arcs_of(arcs, fsa.is_vec()), arc_map, remove_filler)
    return (ans, arc_map) if ret_arc_map else ans


def remove_epsilon(fsa: Fsa, log_semiring: bool = False, ret_arc_map: bool = False) -> Any:
    """Accepts the same without label 0: each arc stands for the epsilons before it and itself.

    The best score of every string is kept. With log_semiring=True (not in k2) the total score is kept, too: every
    epsilon path counts, not the best between each two states; their number may grow exponentially, and epsilon cycles
    raise RuntimeError, as do epsilon cycles with a positive score in the default case. Int attributes become ragged.
    """
    result = call("fsa_remove_epsilon", *fsa.splits(), fsa.arcs3, scores64(fsa), log_semiring)
    return _from_lists(fsa, result, True, ret_arc_map)


def remove_epsilon_and_add_self_loops(fsa: Fsa, remove_filler: bool = True) -> Fsa:
    """remove_epsilon, then add_epsilon_self_loops."""
    result = call("fsa_remove_epsilon", *fsa.splits(), fsa.arcs3, scores64(fsa), False)
    return add_epsilon_self_loops(_from_lists(fsa, result, remove_filler, False))


def determinize(
    fsa: Fsa,
    weight_pushing_type: DeterminizeWeightPushingType = DeterminizeWeightPushingType.kNoWeightPushing,
    max_states: int = 50_000_000,
    ret_arc_map: bool = False,
) -> Any:
    """Accepts the same with the same best score of every string; no state has two arcs with one label. Sorted by label.

    Label 0 counts as a label like others: call remove_epsilon first. Cyclic input may have no finite result:
    RuntimeError beyond max_states (not in k2). Int attributes become ragged. Pushing makes the scores no sums of input
    scores, so with it the arc map is not returned.
    """
    if not isinstance(weight_pushing_type, DeterminizeWeightPushingType):
        raise ValueError(f"weight_pushing_type must be a DeterminizeWeightPushingType, got {weight_pushing_type!r}")
    result = call("fsa_determinize", *fsa.splits(), fsa.arcs3, scores64(fsa), max_states)
    if weight_pushing_type is DeterminizeWeightPushingType.kNoWeightPushing:
        return _from_lists(fsa, result, True, ret_arc_map)
    if ret_arc_map:
        raise ValueError("determinize: there is no arc map with weight pushing")
    det = _from_lists(fsa, result, True, False)
    return push(det, weight_pushing_type is DeterminizeWeightPushingType.kLogWeightPushing)


def push(fsa: Fsa, log_semiring: bool = False, tolerance: float = 1e-9, max_sweeps: int = 100_000) -> Fsa:
    """Accepts the same with the same scores, moved as far to the front as they go (OpenFst's meaning of push).

    After it the scores of the arcs leaving a state have max 0 (log semiring: their probabilities sum to 1), apart from
    the total of the whole, which the arcs that leave the start carry; or, if arcs enter the start, the arcs into the
    final state. States on no path are dropped. Differentiable for acyclic top-sorted FSAs; in a cyclic one the
    potentials count as constants, and scores of cycles that do not converge raise RuntimeError.
    """
    fsa = connect(fsa)
    if fsa.properties & TOPSORTED_AND_ACYCLIC:
        backward = fsa.get_backward_scores(True, log_semiring)
    else:
        backward = call("fsa_potentials", *fsa.splits(), fsa.arcs3, scores64(fsa), log_semiring, tolerance, max_sweeps)
    arc_fsa, src, dest = arc_places(fsa)
    starts = fsa.splits()[0].long()[:-1]
    entered = torch.zeros(starts.numel(), dtype=torch.bool, device=fsa.device)
    entered[arc_fsa[dest == starts[arc_fsa]]] = True
    carries = torch.where(entered[arc_fsa], fsa.labels == -1, src == starts[arc_fsa])
    total = torch.where(carries, backward[starts[arc_fsa]], 0.0)
    # A state all of whose ways on score -inf has potential -inf: leave its arcs alone.
    moved = torch.where(torch.isfinite(backward[src]), backward[dest] - backward[src] + total, 0.0)
    ans = fsa._with_shape(fsa._shape)
    ans.scores = (fsa.scores.double() + moved).to(fsa.scores.dtype)
    return ans


def minimize(fsa: Fsa, delta: float = 1 / 1024, push_scores: bool = True) -> Fsa:
    """Accepts the same with the same scores (to within delta an arc), in fewer states: those with equal futures are
    merged.

    The least possible for a deterministic FSA; any other gets smaller or stays. aux_labels (ragged as well) are part
    of what must be equal; of other attributes, and for the gradient, one of the merged states' arcs stands for all.

    Args:
      delta: scores closer than this count as equal.
      push_scores: push first (tropical), without which states that differ in where a score is paid stay apart.
    """
    if not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}")
    fsa = push(fsa) if push_scores else connect(fsa)
    result = call("fsa_minimize", *fsa.splits(), fsa.arcs3, scores64(fsa), _aux_key(fsa), delta)
    *arcs, arc_map = result
    return fsa_from_unary_function_tensor(fsa, arcs_of(arcs, fsa.is_vec()), arc_map)


def _aux_key(fsa: Fsa) -> Tensor:
    """An int32 for each arc, equal where aux_labels are."""
    aux = fsa._tensor_attr.get("aux_labels")
    if aux is None:
        return torch.zeros(fsa.num_arcs, dtype=torch.int32, device=fsa.device)
    if isinstance(aux, Tensor):
        return aux.int().contiguous()
    # A 64-bit hash of each list: its length, and its numbers mixed with their places.
    rows = aux.shape.row_ids(1).long()
    place = torch.arange(rows.numel(), device=rows.device) - aux.shape.row_splits(1)[rows]
    mixed = (aux.values.long() + 1) * 0x2545F4914F6CDD1D + place * 0x1D8E4E27C47D124F
    mixed = (mixed ^ (mixed >> 29)) * 0x369DEA0F31A53F85
    key = aux.shape.counts(1).long().index_add(0, rows, mixed ^ (mixed >> 32))
    return torch.unique(key, return_inverse=True)[1].int()
