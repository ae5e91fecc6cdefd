"""CTC loss on any decoding graph: minus the total log-score of the graph's paths through the frames."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ops.dense import DenseFsaVec, intersect_dense
from ops.fsa import Fsa
from ops.fsa_attributes import call

Reduction = Literal["none", "mean", "sum"]


def ctc_loss(
    decoding_graph: Fsa,
    dense_fsa_vec: DenseFsaVec,
    output_beam: float = 10,
    delay_penalty: float = 0.0,
    reduction: Reduction = "sum",
    use_double_scores: bool = True,
    target_lengths: Tensor | None = None,
) -> Tensor:
    """-log sum over paths of exp(graph score + frame scores), for each segment.

    Args:
      decoding_graph: FsaVec, one graph a segment. Unscored graphs of label sequences (`ctc_graph(token_lists)`, standard
        or modified) take a recursion of their own, many times faster; others go through intersect_dense.
      output_beam: paths that fall more than this behind the best are left out of the sum; the recursion for label
        sequences leaves out none.
      delay_penalty: added to the scores of arcs that emit a token for the first time (aux_labels other than 0), less
        for each frame later: penalty * ((frames - 1) / 2 - frame); emitting late costs.
      reduction: "none", "sum", or "mean" (of the losses divided by target_lengths).
      target_lengths: (S,), needed for "mean".
    Returns (S,) for "none", else a scalar; float64 with use_double_scores, else float32. A segment that no path fits
    (too few frames for its tokens, frames of -inf or nan only) has loss inf and gradient 0: `loss.isinf()` of reduction
    "none" names it. Sums run in float64. Source: Graves et al., 2006.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if reduction == "mean" and target_lengths is None:
        raise ValueError("reduction 'mean' needs target_lengths")
    tokens = _label_sequences(decoding_graph, dense_fsa_vec, delay_penalty)
    if tokens is not None:
        segments = dense_fsa_vec.segments.to(dense_fsa_vec.device)
        total = _CtcTotal.apply(dense_fsa_vec.log_probs, segments, tokens, delay_penalty)
    else:
        total = _total_of_lattice(decoding_graph, dense_fsa_vec, output_beam, delay_penalty)
    loss = -total if use_double_scores else -total.float()
    if reduction == "mean":
        assert target_lengths is not None
        lengths = target_lengths.to(loss.device)
        if lengths.shape != loss.shape or bool((lengths < 0).any()):
            raise ValueError(f"target_lengths must be {tuple(loss.shape)} numbers >= 0, got {target_lengths}")
        return (loss / lengths.clamp(min=1)).mean()
    return loss.sum() if reduction == "sum" else loss


def _label_sequences(graph: Fsa, dense: DenseFsaVec, delay_penalty: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """(token_splits, tokens, skips) if all graphs are CTC graphs of label sequences without scores, one a segment."""
    vec = graph.as_vec()
    paired = vec._shape.dim0 == dense.dim0() and graph.device == dense.device
    if not paired or graph.requires_grad or bool(graph.scores.any()):
        return None
    aux = getattr(graph, "aux_labels", None) if delay_penalty != 0.0 else None
    if delay_penalty != 0.0 and not (isinstance(aux, Tensor) and aux.dtype == torch.int32):
        return None
    tokens = call("fsa_ctc_read", *vec.splits(), vec.arcs3, None if aux is None else aux.contiguous())
    return tokens if tokens[0].numel() else None


class _CtcTotal(torch.autograd.Function):
    """The total log-score of each segment's label sequence, float64. Forward keeps the occupation of each token in each
    frame, (frames, tokens + 1) numbers a segment, which is all that backward needs."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, segments: Tensor, tokens: Any, delay_penalty: float) -> Tensor:  # type: ignore[override]
        values = log_probs if log_probs.dtype in (torch.float32, torch.float64) else log_probs.float()
        total, occupations = call(
            "fsa_ctc_loss", values.contiguous(), segments, *tokens, delay_penalty, ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(occupations, segments, *tokens[:2])
        ctx.like = log_probs.shape, log_probs.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        occupations, segments, token_splits, tokens = ctx.saved_tensors
        shape, dtype = ctx.like
        ans = call("fsa_ctc_loss_grad", occupations, grad.contiguous(), segments, token_splits, tokens, *shape)
        return ans.to(dtype), None, None, None


def _total_of_lattice(graph: Fsa, dense: DenseFsaVec, output_beam: float, delay_penalty: float) -> Tensor:
    lattice = intersect_dense(graph, dense, output_beam, frame_idx_name="ctc_loss_frame_")
    if delay_penalty != 0.0:
        emits = lattice.aux_labels
        first = (emits if isinstance(emits, Tensor) else emits.max(0)) > 0
        segment = lattice._shape.row_ids(1).long()[lattice._shape.row_ids(2).long()]
        frames = dense.duration.to(lattice.device)[segment]
        lead = (frames - 1) / 2 - lattice.ctc_loss_frame_
        lattice.scores = lattice.scores + torch.where(first, delay_penalty * lead, 0.0).to(lattice.scores.dtype)
    return lattice.get_tot_scores(use_double_scores=True, log_semiring=True)


class CtcLoss(nn.Module):
    """ctc_loss as a module."""

    def __init__(
        self,
        output_beam: float = 10,
        reduction: Reduction = "sum",
        use_double_scores: bool = True,
        delay_penalty: float = 0.0,
    ):
        super().__init__()
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
        self.output_beam = output_beam
        self.reduction: Reduction = reduction
        self.use_double_scores = use_double_scores
        self.delay_penalty = delay_penalty

    def forward(self, decoding_graph: Fsa, dense_fsa_vec: DenseFsaVec, target_lengths: Tensor | None = None) -> Tensor:
        return ctc_loss(
            decoding_graph,
            dense_fsa_vec,
            output_beam=self.output_beam,
            delay_penalty=self.delay_penalty,
            reduction=self.reduction,
            use_double_scores=self.use_double_scores,
            target_lengths=target_lengths,
        )
