"""Scores of words guessed from the same words in other sentences: get_best_matching_stats."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from ops.ragged import RaggedTensor


def get_best_matching_stats(
    tokens: RaggedTensor, scores: Tensor, counts: Tensor, eos: int, min_token: int, max_token: int, max_order: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each token, the mean and variance of the scores of the "key" tokens that match it with the most context.

    Two tokens match with order n if they and the n - 1 tokens before them are equal; before a sentence there is only
    eos, so that a match which reaches the beginnings of both sentences has any order. Of the orders up to max_order the
    highest counts at which a key matches and the token does not match itself alone.

    Args:
      tokens: int32, 2 axes (sentences, each ending in eos), or 3 (sets of sentences that are matched among themselves).
      scores: float (tokens.numel(),). counts: int32 (tokens.numel(),), 1 for keys, 0 for queries.
      min_token, max_token: the range of the tokens.
    Returns (mean, variance, number of matching keys int32, order int32). Where no key matches: order 0, count 0, and
    mean and variance of all keys of the set (0 if it has none).
    """
    if tokens.num_axes not in (2, 3) or tokens.dtype != torch.int32:
        raise ValueError(f"tokens must be int32 with 2 or 3 axes, got {tokens.dtype} with {tokens.num_axes}")
    for name, value in (("scores", scores), ("counts", counts)):
        if value.shape != (tokens.numel(),):
            raise ValueError(f"{name} must have shape ({tokens.numel()},), got {tuple(value.shape)}")
    if max_order < 1:
        raise ValueError(f"max_order must be at least 1, got {max_order}")
    if tokens.numel() and not min_token <= int(tokens.values.min()) <= int(tokens.values.max()) <= max_token:
        raise ValueError(f"tokens must lie in [{min_token}, {max_token}], got {tokens.values.tolist()[:20]}")
    sets = tokens.tolist() if tokens.num_axes == 3 else [tokens.tolist()]
    key_counts, key_scores = counts.tolist(), scores.double().tolist()
    rows: list[tuple[float, float, int, int]] = []
    for sentences in sets:
        histories = []
        for sentence in sentences:
            padded = [eos] * (max_order - 1) + sentence
            histories += [tuple(padded[i : i + max_order]) for i in range(len(sentence))]
        rows += _match(histories, key_counts[len(rows) :], key_scores[len(rows) :], max_order)
    mean, variance, matched, order = zip(*rows) if rows else ((), (), (), ())
    floats = [torch.tensor(x, dtype=scores.dtype, device=scores.device) for x in (mean, variance)]
    ints = [torch.tensor(x, dtype=torch.int32, device=scores.device) for x in (matched, order)]
    return floats[0], floats[1], ints[0], ints[1]


def _match(
    histories: list[tuple[int, ...]], counts: list[int], scores: list[float], max_order: int
) -> list[tuple[float, float, int, int]]:
    """histories: each token of a set with the max_order - 1 tokens before it."""
    size: dict[tuple[int, ...], int] = defaultdict(int)
    keys: dict[tuple[int, ...], int] = defaultdict(int)
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    squares: dict[tuple[int, ...], float] = defaultdict(float)
    for i, history in enumerate(histories):
        for n in range(max_order + 1):
            context = history[max_order - n :]
            size[context] += 1
            keys[context] += counts[i]
            sums[context] += counts[i] * scores[i]
            squares[context] += counts[i] * scores[i] ** 2
    rows = []
    for history in histories:
        n = max_order
        while n > 0 and (keys[history[max_order - n :]] == 0 or size[history[max_order - n :]] == 1):
            n -= 1
        context = history[max_order - n :]
        total = max(keys[context], 1)
        mean = sums[context] / total
        rows.append((mean, squares[context] / total - mean**2, keys[context] if n else 0, n))
    return rows
