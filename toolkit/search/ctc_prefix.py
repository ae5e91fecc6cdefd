"""CTC prefix beam search: sums over the alignments of each token sequence, all utterances in one batch of tensors.

Legend: N utterances, T encoder frames, D encoder dim, B beam, V vocabulary with blank, C = B + B * V candidates: each prefix
as it is, and each prefix with each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolkit.search.beam import EMPTY, INCREMENT, MULTIPLIER, NONE
from toolkit.search.predictor import check_encoder_out
from toolkit.search.result import Hypothesis, SearchResult


@dataclass
class _Prefixes:
    """B token sequences of each utterance; a slot whose two scores are -inf is unused."""

    blank_NB: Tensor  # log-probability of the alignments that end in a blank
    token_NB: Tensor  # and of those that end in the last token
    outer_NB: Tensor  # what scorers gave to the sequence
    hashes_NB: Tensor  # of the sequence
    parents_NB: Tensor  # of the sequence without its last token
    last_NB: Tensor  # its last token, or blank

    @property
    def total_NB(self) -> Tensor:
        return torch.logaddexp(self.blank_NB, self.token_NB) + self.outer_NB


@torch.inference_mode()
def ctc_prefix_beam_search(
    model: Any, encoder_out_NTD: Tensor, lens_N: Tensor, beam: int = 8, scorers: Sequence[Any] = ()
) -> list[SearchResult]:
    """The `beam` token sequences whose alignments are most probable together, as far as the beam saw them.

    model: has `ctc_log_probs(encoder_out_NTD) -> (N, T, V)` and `blank_id`. lens_N: frames of each that count, 0 allowed.
    scorers: language models and the like (toolkit/search/scorers.py), added to each token as it is appended, and at the end.
    Returns N results of up to `beam` different hypotheses, best first; `score` is the log-probability of the sequence
    plus the scorers'. A token's frame is that at which it was appended, its log-probability the model's there.
    Raises ValueError on shapes that do not fit or a beam below 1.
    Source: Graves and Jaitly, "Towards end-to-end speech recognition with recurrent neural networks", 2014; Hannun et al.,
    arXiv 1408.2873.
    """
    if beam < 1:
        raise ValueError(f"beam={beam}: expected at least 1")
    check_encoder_out(encoder_out_NTD, lens_N)
    n, t, _ = encoder_out_NTD.shape
    if n == 0 or t == 0:
        return [SearchResult([Hypothesis([], [], [], 0.0)]) for _ in range(n)]
    log_probs_NTV = model.ctc_log_probs(encoder_out_NTD).float()
    device, blank = log_probs_NTV.device, int(model.blank_id)
    lens_N = lens_N.to(device)

    zero_NB = torch.zeros(n, beam, dtype=torch.int64, device=device)
    never_NB = torch.full((n, beam), -torch.inf, device=device)
    prefixes = _Prefixes(
        never_NB.clone(), never_NB, torch.zeros_like(never_NB), zero_NB + EMPTY, zero_NB + NONE, zero_NB + blank
    )
    prefixes.blank_NB[:, 0] = 0.0
    states = [scorer.init(n * beam, device) for scorer in scorers]
    steps: list[tuple[Tensor, Tensor]] = []  # the slot each one came from, the token it got or blank
    for frame in range(int(lens_N.max())):
        running_N1 = (frame < lens_N)[:, None]
        outer_NBV = None
        if scorers:
            outer_NBV = sum(s.log_probs(state) for s, state in zip(scorers, states)).view(n, beam, -1)
        new, previous_NB, token_NB = _advance(log_probs_NTV[:, frame], prefixes, blank, outer_NBV)
        slots_NB = torch.arange(beam, device=device).expand(n, beam)
        previous_NB = torch.where(running_N1, previous_NB, slots_NB)
        token_NB = torch.where(running_N1, token_NB, blank)
        prefixes = _Prefixes(
            *(torch.where(running_N1, a, b) for a, b in zip(vars(new).values(), vars(prefixes).values()))
        )
        steps.append((previous_NB, token_NB))
        rows = (torch.arange(n, device=device)[:, None] * beam + previous_NB).view(-1)
        states = [scorer.advance(state, rows, token_NB.view(-1))[1] for scorer, state in zip(scorers, states)]
    total_NB = prefixes.total_NB
    for scorer, state in zip(scorers, states):
        total_NB = total_NB + scorer.final(state).view(n, beam)
    return _trace_back(steps, total_NB.cpu(), log_probs_NTV.cpu(), blank)


def _advance(
    log_probs_NV: Tensor, old: _Prefixes, blank: int, outer_NBV: Tensor | None
) -> tuple[_Prefixes, Tensor, Tensor]:
    """Read one frame. Returns the new prefixes, the slot each came from, and its new token (blank: none)."""
    n, b = old.blank_NB.shape
    v = log_probs_NV.shape[1]
    either_NB = torch.logaddexp(old.blank_NB, old.token_NB)
    last_log_prob_NB = log_probs_NV.gather(1, old.last_NB)
    stay_blank_NB = either_NB + log_probs_NV[:, blank, None]
    # The last token goes on; the empty sequence has none, and its token_NB is -inf.
    stay_token_NB = old.token_NB + last_log_prob_NB

    # To append the token that came last, again, takes a blank in between.
    append_NBV = either_NB[:, :, None] + log_probs_NV[:, None, :]
    append_NBV.scatter_(2, old.last_NB[:, :, None], (old.blank_NB + last_log_prob_NB)[:, :, None])
    append_NBV[:, :, blank] = -torch.inf

    # Sequence j may be sequence i with a token more; then what reaches it from i counts for j, and is no candidate.
    used_NB = either_NB > -torch.inf
    is_parent_NBB = old.parents_NB[:, :, None] == old.hashes_NB[:, None, :]
    is_parent_NBB &= used_NB[:, :, None] & used_NB[:, None, :]
    has_parent_NB, parent_NB = is_parent_NBB.max(dim=2)
    place_NB = torch.where(has_parent_NB, parent_NB * v + old.last_NB, blank)  # (slot 0, blank) is -inf already
    append_NC = append_NBV.view(n, b * v)
    stay_token_NB = torch.logaddexp(stay_token_NB, append_NC.gather(1, place_NB))
    append_NC.scatter_(1, place_NB, -torch.inf)

    stay_total_NB = torch.logaddexp(stay_blank_NB, stay_token_NB) + old.outer_NB
    outer_NBV = old.outer_NB[:, :, None] if outer_NBV is None else old.outer_NB[:, :, None] + outer_NBV
    append_total_NC = (append_NBV + outer_NBV).view(n, b * v)
    _, chosen_NB = torch.cat([stay_total_NB, append_total_NC], dim=1).topk(b, dim=1)
    stays_NB = chosen_NB < b
    appended_NB = (chosen_NB - b).clamp(min=0)
    previous_NB = torch.where(stays_NB, chosen_NB, appended_NB // v)
    token_NB = torch.where(stays_NB, blank, appended_NB % v)

    def kept(x_NB: Tensor) -> Tensor:
        return x_NB.gather(1, previous_NB)

    hashes_NB = kept(old.hashes_NB)
    outer_NB = outer_NBV.expand(n, b, v).reshape(n, b * v).gather(1, appended_NB)
    new = _Prefixes(
        torch.where(stays_NB, kept(stay_blank_NB), -torch.inf),
        torch.where(stays_NB, kept(stay_token_NB), append_NC.gather(1, appended_NB)),
        torch.where(stays_NB, kept(old.outer_NB), outer_NB),
        torch.where(stays_NB, hashes_NB, hashes_NB * MULTIPLIER + (token_NB + 1) * INCREMENT),
        torch.where(stays_NB, kept(old.parents_NB), hashes_NB),
        torch.where(stays_NB, kept(old.last_NB), token_NB),
    )
    return new, previous_NB, token_NB


def _trace_back(
    steps: list[tuple[Tensor, Tensor]], total_NB: Tensor, log_probs_NTV: Tensor, blank: int
) -> list[SearchResult]:
    """Follow the slots back in time, all at once, and read off tokens and frames."""
    n, b = total_NB.shape
    slot_NB = torch.arange(b).repeat(n, 1)
    tokens_TNB = torch.full((len(steps), n, b), blank)
    for t in reversed(range(len(steps))):
        previous_NB, token_NB = (x.cpu() for x in steps[t])
        tokens_TNB[t] = token_NB.gather(1, slot_NB)
        slot_NB = previous_NB.gather(1, slot_NB)
    results = []
    for i in range(n):
        nbest: list[Hypothesis] = []
        for j in total_NB[i].argsort(descending=True, stable=True).tolist():
            if total_NB[i, j] == -torch.inf and nbest:
                break
            frames_U = (tokens_TNB[:, i, j] != blank).nonzero()[:, 0]
            tokens_U = tokens_TNB[frames_U, i, j]
            log_probs = log_probs_NTV[i, frames_U, tokens_U].tolist()
            nbest.append(Hypothesis(tokens_U.tolist(), frames_U.tolist(), log_probs, float(total_NB[i, j])))
        results.append(SearchResult(nbest))
    return results
