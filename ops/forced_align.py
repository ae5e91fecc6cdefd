"""Forced alignment: which frame of an utterance belongs to which token of its transcript."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.fsa_attributes import call
from ops.ragged import RaggedTensor
from ops.ragged.shape import counts_to_splits

Targets = RaggedTensor | Tensor | Sequence[Sequence[int]]


@dataclass(frozen=True)
class TokenSpan:
    """A token of an alignment: frames start ... end - 1, and the mean of their scores."""

    token: int
    start: int
    end: int
    score: float

    def __len__(self) -> int:
        return self.end - self.start


def forced_align(
    log_probs: Tensor,
    targets: Targets,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
) -> tuple[Tensor, Tensor]:
    """The best frame labelling of each utterance that CTC's rule (merge repeats, drop blanks) reads as its targets.

    Args:
      log_probs: float (N, T, C) log-probabilities.
      targets: token lists, a RaggedTensor, padded (N, U), or one after another (sum of target_lengths,); no blanks.
      input_lengths: (N,) frames of each utterance; default T.
      target_lengths: (N,) tokens of each utterance, for targets given as a tensor; default U.
    Returns labels (N, T) int32, -1 after the utterance's end; and scores (N, T), log_probs of the labels (0 after the
    end), differentiable. An utterance that no labelling fits (fewer frames than tokens plus repeats, or -inf or nan in
    its way) gets labels -1 and scores -inf throughout, and a warning names it. Meaning and names are torchaudio's,
    batched. Of labellings with one score it gives the one that moves on latest. CPU threads over utterances, or CUDA blocks.
    """
    if log_probs.ndim != 3 or not log_probs.is_floating_point():
        raise ValueError(f"log_probs must be float (N, T, C), got {log_probs.dtype} {tuple(log_probs.shape)}")
    N, T, C = log_probs.shape
    if not 0 <= blank < C:
        raise ValueError(f"blank must be one of {C} columns of log_probs, got {blank}")
    lens = torch.full((N,), T) if input_lengths is None else input_lengths.cpu()
    if lens.shape != (N,) or bool(((lens < 0) | (lens > T)).any()):
        raise ValueError(f"input_lengths must be {N} numbers of frames from 0 to {T}, got {lens.tolist()}")
    splits, tokens = _token_lists(targets, target_lengths, N)
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= C or bool((tokens == blank).any())):
        raise ValueError(f"targets must lie in [0, {C}) and be no blank ({blank}); got {tokens.unique().tolist()[:20]}")
    skips = torch.ones_like(tokens)
    skips[1:] = tokens[1:] != tokens[:-1]
    index = torch.arange(N)
    segments = torch.stack([index, torch.zeros_like(index), lens], dim=1).int()
    values, device = log_probs.detach(), log_probs.device
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    ints = [x.to(device) for x in (segments, splits, tokens, skips)]
    labels = call("fsa_ctc_align", values.contiguous(), *ints, blank)
    inside = (torch.arange(T) < lens[:, None]).to(device)
    failed = ((labels < 0) & inside).any(1) | ((lens == 0) & (splits[1:] > splits[:-1])).to(device)
    if bool(failed.any()):
        warnings.warn(f"forced_align: no alignment for utterances {failed.nonzero().squeeze(1).tolist()}", stacklevel=2)
    scores = log_probs.gather(2, labels.clamp(min=0).long()[..., None]).squeeze(2)
    scores = scores.masked_fill(~inside, 0.0).masked_fill(failed[:, None], float("-inf"))
    return labels, scores


def _token_lists(targets: Targets, target_lengths: Tensor | None, N: int) -> tuple[Tensor, Tensor]:
    """(row_splits, tokens), int32 on the CPU."""
    if isinstance(targets, RaggedTensor):
        splits, tokens = targets.shape.row_splits(1), targets.values
    elif isinstance(targets, Tensor):
        if targets.ndim == 1 and target_lengths is None:
            raise ValueError("targets one after another need target_lengths")
        U = targets.shape[1] if targets.ndim == 2 else targets.numel()
        lens = torch.full((N,), U) if target_lengths is None else target_lengths.cpu().long()
        if targets.ndim not in (1, 2) or lens.shape != (N,) or bool(((lens < 0) | (lens > U)).any()):
            raise ValueError(
                f"targets must be (N, U) or 1-D with target_lengths (N,), got {tuple(targets.shape)}, {lens.tolist()}"
            )
        if targets.ndim == 2:
            targets = targets.cpu()[torch.arange(U) < lens[:, None]]
        splits, tokens = counts_to_splits(lens), targets
    else:
        splits = counts_to_splits(torch.tensor([len(t) for t in targets], dtype=torch.int64))
        tokens = torch.tensor(list(itertools.chain.from_iterable(targets)), dtype=torch.int32)
    if splits.numel() != N + 1 or int(splits[-1]) != tokens.numel():
        raise ValueError(
            f"{splits.numel() - 1} targets of {int(splits[-1])} tokens for {N} utterances, {tokens.numel()} tokens"
        )
    return splits.cpu().int().contiguous(), tokens.cpu().int().contiguous()


def merge_tokens(tokens: Tensor, scores: Tensor, blank: int = 0) -> list[TokenSpan]:
    """The tokens of one utterance's alignment (T,), with their frames and mean scores; blanks and -1 belong to none.

    Give scores.exp() for mean probabilities, as torchaudio's users do.
    """
    if tokens.ndim != 1 or tokens.shape != scores.shape:
        raise ValueError(f"tokens and scores must be (T,) each, got {tuple(tokens.shape)} and {tuple(scores.shape)}")
    spans, values, t = [], scores.detach().tolist(), 0
    for token, frames in itertools.groupby(tokens.tolist()):
        end = t + len(list(frames))
        if token not in (blank, -1):
            spans.append(TokenSpan(token, t, end, sum(values[t:end]) / (end - t)))
        t = end
    return spans
