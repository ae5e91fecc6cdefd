"""Scores of states and arcs: forward, backward, total and posterior, in the log and the tropical semiring,
differentiable.

  forward(d)  = sum over arcs s -> d of forward(s) + score,    forward(start) = 0
  backward(s) = sum over arcs s -> d of score + backward(d),   backward(final) = 0

where the sum is log-add or max. FSAs must be top-sorted and acyclic. Recursions run in float64 whatever the scores'
dtype.
Source: Mohri, "Semiring frameworks and algorithms for shortest-distance problems", 2002.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ops.fsa_call import call, has_kernel
from ops.ragged import RaggedShape, RaggedTensor
from ops.ragged.shape import ids_to_splits, splits_to_ids

if TYPE_CHECKING:
    from ops.fsa import Fsa


def by_level(device: torch.device) -> bool:
    """Whether scores are computed level by level for all FSAs at once, as GPUs need it, not an FSA a thread."""
    return device.type != "cpu" and has_kernel("fsa_state_scores_by_level", device.type)


def level_index(fsa: Fsa) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States by levels and arcs by destinations, kept with the FSA: (order, level_splits (on the CPU), entering_splits,
    entering), int32. Raises RuntimeError for FSAs that are not top-sorted.

    The CUDA ops trust it, and know from its making that arcs stay within their FSA.
    """
    return fsa._kept("level_index", lambda: (*call("fsa_levels", *fsa.splits(), fsa.arcs3), *_entering(fsa)))


def _entering(fsa: Fsa) -> tuple[Tensor, Tensor]:
    """(splits, arcs): the arcs that enter each state, in their order, int32. Nothing waits for a GPU."""
    dest, order = torch.sort(arc_places(fsa)[2], stable=True)
    states = torch.arange(fsa.splits()[1].numel(), device=fsa.device)
    return torch.searchsorted(dest, states, out_int32=True), order.int()


class _StateScores(torch.autograd.Function):
    """`fsa`: the tensors that say where arcs go; with a level_index, its tensors, too."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, scores: Tensor, fsa: tuple[Tensor, ...], forward: bool, log_semiring: bool, want_shares: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.op = "fsa_state_scores_by_level" if len(fsa) > 3 else "fsa_state_scores"
        want_shares = want_shares or ctx.needs_input_grad[0]
        out, best, shares = call(ctx.op, *fsa, scores, forward, log_semiring, want_shares)
        ctx.save_for_backward(*fsa, scores, out, best, shares)
        ctx.kind = forward, log_semiring
        ctx.mark_non_differentiable(best, shares)
        return out, best, shares

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Any:  # type: ignore[override]
        *fsa, scores, out, best, shares = ctx.saved_tensors
        arc_grad = call(f"{ctx.op}_grad", *fsa, scores, *ctx.kind, out, best, shares, grad.contiguous())
        return arc_grad, None, None, None, None


def _state_scores(
    fsa: Fsa, forward: bool, log_semiring: bool, want_shares: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """float64 scores of all states; the arc by which each state's best path goes (-1: none; tropical only); of each arc
    its share in the sum of the state that it leaves (log semiring, backward, if wanted)."""
    tensors = (*fsa.splits(), fsa.arcs3, *(level_index(fsa) if by_level(fsa.device) else ()))
    return _StateScores.apply(fsa.scores.double().contiguous(), tensors, forward, log_semiring, want_shares)


def get_forward_scores(fsa: Fsa, use_double_scores: bool, log_semiring: bool) -> Tensor:
    """(number of states,) total score of all paths from the start to each state; -inf where there is none."""
    return _cast(_state_scores(fsa, True, log_semiring)[0], use_double_scores)


def get_backward_scores(fsa: Fsa, use_double_scores: bool, log_semiring: bool) -> Tensor:
    """(number of states,) total score of all paths from each state to the final state; -inf where there is none."""
    return _cast(_state_scores(fsa, False, log_semiring)[0], use_double_scores)


def _cast(x: Tensor, use_double_scores: bool) -> Tensor:
    return x if use_double_scores else x.float()


def _at(states: Tensor, state_scores: Tensor, fsa_splits: Tensor) -> Tensor:
    """The scores of one state of each FSA; -inf for FSAs without states."""
    padded = torch.cat([state_scores, state_scores.new_full((1,), float("-inf"))])
    return padded.index_select(0, torch.where(fsa_splits[1:] > fsa_splits[:-1], states, state_scores.numel()))


def get_tot_scores(fsa: Fsa, use_double_scores: bool, log_semiring: bool) -> Tensor:
    """(number of FSAs,) total score of all paths; -inf for an FSA without a path or without states."""
    fsa_splits = fsa.splits()[0]
    if log_semiring:  # from the end, where a state's arcs lie side by side
        total = _at(fsa_splits[:-1], _state_scores(fsa, False, True)[0], fsa_splits)
    else:
        total = _at(fsa_splits[1:] - 1, _state_scores(fsa, True, False)[0], fsa_splits)
    return _cast(total, use_double_scores)


def get_arc_post(fsa: Fsa, use_double_scores: bool, log_semiring: bool) -> Tensor:
    """(number of arcs,) log-posterior of each arc: the total score of the paths through it less that of all paths.

    In the tropical semiring: how far the best path through the arc falls behind the best. -inf off all paths.
    """
    forward, backward = (_state_scores(fsa, f, log_semiring)[0] for f in (True, False))
    arc_fsa, src, dest = arc_places(fsa)
    fsa_splits = fsa.splits()[0]
    total = _at(fsa_splits[1:] - 1, forward, fsa_splits).index_select(0, arc_fsa)
    some = torch.isfinite(total)
    through = forward.index_select(0, src) + fsa.scores.double() + backward.index_select(0, dest)
    return _cast(torch.where(some, through - torch.where(some, total, 0.0), float("-inf")), use_double_scores)


def arc_places(fsa: Fsa) -> tuple[Tensor, Tensor, Tensor]:
    """The FSA, the source state and the destination state of each arc, numbered over the whole vector, int64."""
    vec = fsa.as_vec()
    src = vec._shape.row_ids(2).long()
    arc_fsa = vec._shape.row_ids(1).long()[src]
    return arc_fsa, src, vec._shape.row_splits(1).long()[arc_fsa] + vec.arcs3[:, 1].long()


def best_entering_arcs(fsa: Fsa) -> Tensor:
    """(number of states,) int32: the last arc of the best path to each state; -1 for the start and where there is
    none.
    """
    with torch.no_grad():
        return _state_scores(fsa, True, False)[1]


def leaving_probabilities(fsa: Fsa) -> Tensor:
    """float64 (number of arcs,): with what probability a path, drawn by exp(score), leaves an arc's source by the arc."""
    with torch.no_grad():
        return _state_scores(fsa, False, True, want_shares=True)[2]


def state_levels(fsa: Fsa) -> Tensor:
    """(number of states,) int64: the length of the longest path to each state, so that arcs go up. Needs top-sorted
    FSAs without cycles.
    """
    order, level_splits = level_index(fsa)[:2]
    level = torch.zeros(order.numel(), dtype=torch.int64, device=fsa.device)
    return level.scatter_(0, order.long(), splits_to_ids(level_splits, order.numel()).long().to(fsa.device))


def state_batches(fsa: Fsa) -> RaggedTensor:
    """States, numbered over the whole vector, in batches that can be handled at once: axes [batch][fsa][state].

    Batch b of an FSA has the states at level b (see state_levels).
    """
    vec = fsa.as_vec()
    level, num_fsas = state_levels(fsa), vec._shape.dim0
    num_batches = int(level.max()) + 1 if level.numel() else 0
    key = level * max(num_fsas, 1) + vec._shape.row_ids(1).long()
    order = torch.argsort(key, stable=True)
    rows = torch.arange(num_batches + 1, dtype=torch.int32, device=fsa.device) * num_fsas
    return RaggedTensor(RaggedShape(splits=[rows, ids_to_splits(key[order], num_batches * num_fsas)]), order.int())


def incoming_arcs(fsa: Fsa) -> RaggedTensor:
    """The arcs that enter each state, numbered over the whole vector: axes [fsa][state][arc]."""
    splits, order = _entering(fsa)
    return RaggedTensor(RaggedShape(splits=[fsa.splits()[0], splits]), order)


def batched(states: RaggedTensor, lists: RaggedTensor) -> RaggedTensor:
    """Each state of batches [batch][fsa][state] replaced by its list: axes [batch][fsa][state][...]."""
    return lists.remove_axis(0).index(states)


class ScoreMethods:
    """What an Fsa says about its paths. Those with an underscore are k2's inner ones: the values without gradients, and
    the orders in which states and arcs can be handled at once."""

    def get_forward_scores(self: Any, use_double_scores: bool, log_semiring: bool) -> Tensor:
        return get_forward_scores(self, use_double_scores, log_semiring)

    def get_backward_scores(self: Any, use_double_scores: bool, log_semiring: bool) -> Tensor:
        return get_backward_scores(self, use_double_scores, log_semiring)

    def get_tot_scores(self: Any, use_double_scores: bool, log_semiring: bool) -> Tensor:
        return get_tot_scores(self, use_double_scores, log_semiring)

    def get_arc_post(self: Any, use_double_scores: bool, log_semiring: bool) -> Tensor:
        return get_arc_post(self, use_double_scores, log_semiring)

    @torch.no_grad()
    def _get_forward_scores(self: Any, use_double_scores: bool, log_semiring: bool) -> Tensor:
        return get_forward_scores(self, use_double_scores, log_semiring)

    @torch.no_grad()
    def _get_backward_scores(self: Any, use_double_scores: bool, log_semiring: bool) -> Tensor:
        return get_backward_scores(self, use_double_scores, log_semiring)

    @torch.no_grad()
    def _get_tot_scores(self: Any, use_double_scores: bool, log_semiring: bool) -> Tensor:
        return get_tot_scores(self, use_double_scores, log_semiring)

    @torch.no_grad()
    def _get_arc_post(self: Any, use_double_scores: bool, log_semiring: bool) -> Tensor:
        return get_arc_post(self, use_double_scores, log_semiring)

    def _get_entering_arcs(self: Any, use_double_scores: bool) -> Tensor:
        return best_entering_arcs(self)

    def _get_state_batches(self: Any) -> RaggedTensor:
        return state_batches(self)

    def _get_incoming_arcs(self: Any) -> RaggedTensor:
        return incoming_arcs(self)

    def _get_dest_states(self: Any) -> RaggedTensor:
        """The destination of each arc, numbered over the whole vector: axes [fsa][state][arc]."""
        return RaggedTensor(self.as_vec()._shape, arc_places(self)[2].int())

    def _get_entering_arc_batches(self: Any) -> RaggedTensor:
        return batched(state_batches(self), incoming_arcs(self))

    def _get_leaving_arc_batches(self: Any) -> RaggedTensor:
        arcs = torch.arange(self.num_arcs, dtype=torch.int32, device=self.device)
        return batched(state_batches(self), RaggedTensor(self.as_vec()._shape, arcs))
