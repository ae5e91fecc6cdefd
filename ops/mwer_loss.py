"""Minimum word error rate training: the expected number of errors over an n-best list."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ops.fsa import Fsa
from ops.nbest import Nbest
from ops.ragged import RaggedTensor

Reduction = Literal["none", "mean", "sum"]


def mwer_loss(
    lattice: Fsa,
    ref_texts: RaggedTensor | list[list[int]],
    nbest_scale: float = 0.5,
    num_paths: int = 200,
    temperature: float = 1.0,
    use_double_scores: bool = True,
    reduction: Reduction = "sum",
) -> Tensor | RaggedTensor:
    """Sum over paths of P(path) * errors(path), with P = softmax over an utterance's paths of score / temperature.

    Args:
      lattice: FsaVec with gradients in its scores; what counts as an error are aux_labels (labels, if there are none).
      ref_texts: the reference labels of each utterance.
      nbest_scale, num_paths: see Nbest.from_lattice; paths with equal words count once.
      temperature: above 1 flattens P, which long utterances make sharp.
      reduction: "none": a RaggedTensor [utterance][path] (its .sum() is the loss of each utterance), "sum" over all
        paths, "mean": that divided by the number of paths.
    An utterance whose lattice has no path adds nothing. float64 with use_double_scores, else float32. Gradients go to the
    lattice's scores. Source: Prabhavalkar et al., 2018; equation 2 of arXiv 2106.02302.
    """
    return MWERLoss(temperature, use_double_scores, reduction)(lattice, ref_texts, nbest_scale, num_paths)


class MWERLoss(nn.Module):
    """mwer_loss as a module."""

    def __init__(self, temperature: float = 1.0, use_double_scores: bool = True, reduction: Reduction = "sum"):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
        self.temperature = temperature
        self.use_double_scores = use_double_scores
        self.reduction: Reduction = reduction

    def forward(
        self, lattice: Fsa, ref_texts: RaggedTensor | list[list[int]], nbest_scale: float, num_paths: int
    ) -> Tensor | RaggedTensor:
        nbest = Nbest.from_lattice(lattice, num_paths, self.use_double_scores, nbest_scale)
        errors = nbest.num_errors(ref_texts).values
        logits = RaggedTensor(nbest.shape, nbest.tot_scores().values / self.temperature)
        loss = logits.normalize(use_log=True).values.exp() * errors
        loss = loss if self.use_double_scores else loss.float()
        if self.reduction == "none":
            return RaggedTensor(nbest.shape, loss)
        return loss.sum() if self.reduction == "sum" else loss.sum() / max(loss.numel(), 1)
