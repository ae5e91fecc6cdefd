"""Ranking n-best lists anew, by what scorers say of whole hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from toolkit.search.result import SearchResult
from toolkit.search.scorers import Scorer, combine, score_sequences


def add_scores(
    results: Sequence[SearchResult],
    scorers: Sequence[Scorer],
    model: Any,
    length_norm: bool = False,
    device: torch.device | str = "cpu",
) -> list[SearchResult]:
    """Every hypothesis with the scores of `scorers`, of its tokens and its end, added to its own; best first.

    results: of N utterances, in the order in which per-utterance scorers know them. model: says vocab_size, blank_id and
    decoder.context_size. length_norm: rank by score / (tokens + context size).
    """
    scorer = combine(scorers, model.vocab_size, model.blank_id)
    flat = [(i, h) for i, result in enumerate(results) for h in result.nbest]
    totals = [h.score for _, h in flat]
    if scorer is not None and flat:
        added = score_sequences(scorer, [h.tokens for _, h in flat], device, [i for i, _ in flat])
        totals = [score + x for score, x in zip(totals, added.tolist())]
    nbests: list[list[Any]] = [[] for _ in results]
    for (i, h), total in zip(flat, totals):
        score = total / (len(h.tokens) + model.decoder.context_size) if length_norm else total
        nbests[i].append(replace(h, score=score))
    return [SearchResult(sorted(nbest, key=lambda h: -h.score)) for nbest in nbests]
