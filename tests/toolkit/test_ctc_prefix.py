"""CTC prefix beam search against sums over all alignments, and with scorers against re-ranking by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.search.ctc_prefix import ctc_prefix_beam_search

VOCAB = 4


def model_of(log_probs_NTV: Tensor, blank_id: int = 0) -> Any:
    return SimpleNamespace(ctc_log_probs=lambda _: log_probs_NTV, blank_id=blank_id)


def random_log_probs(n: int, t: int, seed: int, vocab: int = VOCAB) -> Tensor:
    return (torch.randn(n, t, vocab, generator=torch.Generator().manual_seed(seed)) * 2).log_softmax(2)


def totals(log_probs_TV: Tensor, blank: int = 0) -> dict[tuple[int, ...], float]:
    """log-probability of every sequence, by going through all alignments."""
    ans: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs_TV.shape[1]), repeat=len(log_probs_TV)):
        score = sum(float(log_probs_TV[t, c]) for t, c in enumerate(path))
        tokens = tuple(c for c, _ in itertools.groupby(path) if c != blank)
        a = ans.get(tokens, -math.inf)
        ans[tokens] = max(a, score) + math.log1p(math.exp(-abs(a - score)))
    return ans


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_every_sequence_and_its_total(seed: int, blank: int) -> None:
    log_probs_NTV = random_log_probs(2, 5, seed)
    lens = [5, 3]
    results = ctc_prefix_beam_search(model_of(log_probs_NTV, blank), log_probs_NTV, torch.tensor(lens), beam=400)
    for log_probs_TV, length, result in zip(log_probs_NTV, lens, results):
        expected = totals(log_probs_TV[:length], blank)
        assert len(result.nbest) == len(expected)
        for h in result.nbest:
            assert h.score == pytest.approx(expected[tuple(h.tokens)], abs=1e-4)
            assert len(h.frames) == len(h.tokens) == len(h.log_probs)
            assert h.frames == sorted(set(h.frames)) and all(0 <= f < length for f in h.frames)
        scores = [h.score for h in result.nbest]
        assert scores == sorted(scores, reverse=True)


def test_a_narrow_beam_never_counts_more_than_there_is() -> None:
    for seed in range(5):
        log_probs_NTV = random_log_probs(1, 6, seed)
        expected = totals(log_probs_NTV[0])
        nbest = ctc_prefix_beam_search(model_of(log_probs_NTV), log_probs_NTV, torch.tensor([6]), beam=3)[0].nbest
        assert len({tuple(h.tokens) for h in nbest}) == 3
        assert all(h.score <= expected[tuple(h.tokens)] + 1e-4 for h in nbest)


def test_batch_equals_one_by_one_and_no_frames_give_the_empty_sequence() -> None:
    log_probs_NTV, lens = random_log_probs(4, 12, 7), [12, 0, 5, 1]
    together = ctc_prefix_beam_search(model_of(log_probs_NTV), log_probs_NTV, torch.tensor(lens), beam=4)
    for i, length in enumerate(lens):
        alone_NTV = log_probs_NTV[i : i + 1, : max(length, 1)]
        alone = ctc_prefix_beam_search(model_of(alone_NTV), alone_NTV, torch.tensor([length]), beam=4)[0]
        assert [(h.tokens, h.frames) for h in alone.nbest] == [(h.tokens, h.frames) for h in together[i].nbest]
        assert [h.score for h in alone.nbest] == pytest.approx([h.score for h in together[i].nbest], abs=1e-4)
    assert [h.tokens for h in together[1].nbest] == [[]] and together[1].best.score == 0.0


class BigramScorer:
    """The scorer protocol over a table; a state is the last token of each row."""

    def __init__(self, table: Tensor, final: Tensor) -> None:
        self.table, self.last_scores = table, final
        self.vocab_size, self.blank_id, self.history = len(table), 0, 1

    def init(self, batch_size: int, device: Any) -> Tensor:
        return torch.zeros(batch_size, dtype=torch.int64)

    def advance(self, state: Tensor, parents_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, Tensor]:
        last = state[parents_B]
        stays = tokens_B == 0
        return torch.where(stays, 0.0, self.table[last, tokens_B]), torch.where(stays, last, tokens_B)

    def log_probs(self, state: Tensor) -> Tensor:
        return self.table[state]

    def final(self, state: Tensor) -> Tensor:
        return self.last_scores[state]

    def total(self, tokens: Sequence[int]) -> float:
        last, ans = 0, 0.0
        for token in tokens:
            ans, last = ans + float(self.table[last, token]), token
        return ans + float(self.last_scores[last])


def test_scorers_add_to_every_sequence() -> None:
    g = torch.Generator().manual_seed(3)
    scorer = BigramScorer(torch.randn(VOCAB, VOCAB, generator=g), torch.randn(VOCAB, generator=g))
    log_probs_NTV = random_log_probs(1, 5, 11)
    expected = {tokens: score + scorer.total(tokens) for tokens, score in totals(log_probs_NTV[0]).items()}
    nbest = ctc_prefix_beam_search(
        model_of(log_probs_NTV), log_probs_NTV, torch.tensor([5]), beam=400, scorers=[scorer]
    )[0].nbest
    assert nbest[0].tokens == list(max(expected, key=lambda k: expected[k]))
    for h in nbest:
        assert h.score == pytest.approx(expected[tuple(h.tokens)], abs=1e-4)


def test_bad_arguments_are_named() -> None:
    log_probs_NTV = random_log_probs(1, 5, 0)
    with pytest.raises(ValueError, match="beam=0"):
        ctc_prefix_beam_search(model_of(log_probs_NTV), log_probs_NTV, torch.tensor([5]), beam=0)
    with pytest.raises(ValueError, match="lens_N"):
        ctc_prefix_beam_search(model_of(log_probs_NTV), log_probs_NTV, torch.tensor([6]))
