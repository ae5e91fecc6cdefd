"""Scorers in the FSA-based search, whose states know the last few tokens and no more.

The search asks for log-probabilities by context, the last H tokens read as a number in base V. A scorer that depends on
the last tokens only (an n-gram of order n on the last n - 1, phrases on as many as the longest has) is a function of such
a context, if H is large enough: then its scores are simply added to the model's, and the search is exact with it. H is
bounded by what fits into 64 bits (6 for 500 tokens); a scorer that looks further back sees the last H tokens as if the
utterance had begun with them, which guides the search nearly as well. Its exact scores are put in their place afterwards.

Legend: N utterances, C contexts, H tokens of context, V vocabulary with blank, B hypotheses, U tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from toolkit.search.result import Hypothesis
from toolkit.search.scorers import Scorer, combine, padded, reorder


class Guide:
    """`scorer` as a function of (utterance, context); `history` is H."""

    def __init__(self, scorer: Scorer, history: int, num_utterances: int, device: torch.device) -> None:
        self.scorer, self.history, self.device = scorer, history, device
        self.start = scorer.init(num_utterances, device)

    def _states(self, utterance_C: Tensor, context_C: Tensor) -> Any:
        state = reorder(self.scorer, self.start, utterance_C)
        rows_C = torch.arange(len(context_C), device=self.device)
        for k in reversed(range(self.history)):  # zeros on the left, before the first token, are blanks: no tokens
            token_C = context_C // self.scorer.vocab_size**k % self.scorer.vocab_size
            state = self.scorer.advance(state, rows_C, token_C)[1]
        return state

    def log_probs(self, utterance_C: Tensor, context_C: Tensor) -> Tensor:
        """(C, V): what is added for each token; 0 for blank."""
        return self.scorer.log_probs(self._states(utterance_C, context_C))

    def taken_off(self, hypotheses: Sequence[Hypothesis], utterances: Sequence[int]) -> list[Hypothesis]:
        """The hypotheses with what was added for their tokens taken off again; utterances: whose each one is."""
        tokens_BU = padded([h.tokens for h in hypotheses], self.scorer.blank_id).to(self.device)
        b, u = tokens_BU.shape
        contexts = [torch.zeros(b, dtype=torch.int64, device=self.device)]
        for tokens_B in tokens_BU.unbind(1):
            contexts.append((contexts[-1] * self.scorer.vocab_size + tokens_B) % self.scorer.vocab_size**self.history)
        context_BU = torch.stack(contexts[:-1], 1) if u else tokens_BU
        whose_B = torch.tensor(list(utterances), dtype=torch.int64, device=self.device)
        state = self._states(whose_B.repeat_interleave(u), context_BU.reshape(-1))
        rows = torch.arange(b * u, device=self.device)
        added_BU = self.scorer.advance(state, rows, tokens_BU.reshape(-1))[0].view(b, u).tolist()
        cleaned = []
        for h, added_U in zip(hypotheses, added_BU):
            log_probs = [x - y for x, y in zip(h.log_probs, added_U)]
            cleaned.append(replace(h, log_probs=log_probs, score=h.score - sum(added_U[: len(h.tokens)])))
        return cleaned


def guiding(scorers: Sequence[Scorer], num_utterances: int, model: Any, device: torch.device) -> Guide | None:
    """The guide made of those of `scorers` that can guide; None without any."""
    able = [s for s in scorers if s.history is not None]
    scorer = combine(able, model.vocab_size, model.blank_id)
    if scorer is None:
        return None
    fits = 1
    while model.vocab_size ** (fits + 2) < 2**63:
        fits += 1
    assert scorer.history is not None
    history = max(model.decoder.context_size, min(scorer.history, fits))
    return Guide(scorer, history, num_utterances, device)
