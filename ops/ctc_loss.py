"""CTC loss on any decoding graph: minus the total log-score of the graph's paths through the frames."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ops.dense import DenseFsaVec, intersect_dense
from ops.fsa import Fsa

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
      decoding_graph: FsaVec, one graph a segment, for instance `ctc_graph(token_lists)`.
      output_beam: paths that fall more than this behind the best are left out of the sum.
      delay_penalty: added to the scores of arcs that emit a token for the first time (aux_labels other than 0), less
        for
        each frame later: penalty * ((frames - 1) / 2 - frame); emitting late costs.
      reduction: "none", "sum", or "mean" (of the losses divided by target_lengths).
      target_lengths: (S,), needed for "mean".
    Returns (S,) for "none", else a scalar; float64 with use_double_scores, else float32. A segment that no path fits
    has loss inf and gradient 0. Source: Graves et al., 2006.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if reduction == "mean" and target_lengths is None:
        raise ValueError("reduction 'mean' needs target_lengths")
    lattice = intersect_dense(decoding_graph, dense_fsa_vec, output_beam, frame_idx_name="ctc_loss_frame_")
    if delay_penalty != 0.0:
        emits = lattice.aux_labels
        first = (emits if isinstance(emits, Tensor) else emits.max(0)) > 0
        segment = lattice._shape.row_ids(1).long()[lattice._shape.row_ids(2).long()]
        frames = dense_fsa_vec.duration.to(lattice.device)[segment]
        lead = (frames - 1) / 2 - lattice.ctc_loss_frame_
        lattice.scores = lattice.scores + torch.where(first, delay_penalty * lead, 0.0).to(lattice.scores.dtype)
    loss = -lattice.get_tot_scores(use_double_scores=use_double_scores, log_semiring=True)
    if reduction == "mean":
        assert target_lengths is not None
        lengths = target_lengths.to(loss.device)
        if lengths.shape != loss.shape or bool((lengths < 0).any()):
            raise ValueError(f"target_lengths must be {tuple(loss.shape)} numbers >= 0, got {target_lengths}")
        return (loss / lengths.clamp(min=1)).mean()
    return loss.sum() if reduction == "sum" else loss


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
