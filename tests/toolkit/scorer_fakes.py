"""A small n-gram with the interface of ops.NgramLM, a naive one beside it, and sequences to score."""

from __future__ import annotations

import itertools
import math
import random

import torch
from torch import Tensor

NgramTable = dict[tuple[str, ...], tuple[float, float]]  # n-gram → (log-probability, back-off), natural logs


def random_ngram(words: list[str], order: int, seed: int, share: float = 0.4) -> NgramTable:
    """A back-off model: all unigrams, and of the longer n-grams `share` of those whose parts are there."""
    rng = random.Random(seed)
    table: NgramTable = {(w,): (-rng.uniform(0.5, 4.0), -rng.uniform(0.0, 1.0)) for w in ["<unk>", "</s>", *words]}
    table[("<s>",)] = (-99.0, -rng.uniform(0.0, 1.0))
    shorter = [k for k in table if k != ("<unk>",)]
    for _ in range(order - 1):
        longer = []
        for history in shorter:
            for w in ["</s>", *words]:
                if history[-1] != "</s>" and (*history[1:], w) in table and rng.random() < share:
                    longer.append((*history, w))
        for ngram in longer:
            table[ngram] = (-rng.uniform(0.1, 3.0), -rng.uniform(0.0, 1.0))
        shorter = longer
    return table


def naive_word(table: NgramTable, order: int, history: tuple[str, ...], word: str) -> float:
    """log P(word | history) by the definition of back-off."""
    history = history[-(order - 1) :] if order > 1 else ()
    if (word,) not in table:
        word = "<unk>"
    if (*history, word) in table:
        return table[(*history, word)][0]
    return (
        table[history][1]
        if not history
        else table.get(history, (0.0, 0.0))[1] + naive_word(table, order, history[1:], word)
    )


def naive_sentence(table: NgramTable, order: int, words: list[str], end: bool = True) -> float:
    history: tuple[str, ...] = ("<s>",)
    total = 0.0
    for word in [*words, "</s>"] if end else words:
        total += naive_word(table, order, history, word)
        history += (word if (word,) in table else "<unk>",)
    return total


def to_arpa(table: NgramTable, order: int) -> str:
    lines = ["\\data\\"]
    by_order = [[k for k in table if len(k) == n] for n in range(1, order + 1)]
    lines += [f"ngram {n}={len(keys)}" for n, keys in enumerate(by_order, 1)]
    for n, keys in enumerate(by_order, 1):
        lines += ["", f"\\{n}-grams:"]
        for k in keys:
            log_prob, backoff = (x / math.log(10) for x in table[k])
            tail = f"\t{backoff:.7f}" if n < order and k[-1] != "</s>" else ""
            lines.append(f"{log_prob:.7f}\t{' '.join(k)}{tail}")
    return "\n".join([*lines, "", "\\end\\", ""])


def random_sequences(vocab_size: int, count: int, longest: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, vocab_size) for _ in range(rng.randrange(longest + 1))] for _ in range(count)]


def naive_bias(
    phrases: list[tuple[tuple[int, ...], float]], tokens: list[int], starts: list[bool] | None = None
) -> float:
    """Sum of bonus * length over all occurrences of phrases, at ends of words only."""
    total = 0.0
    for phrase, bonus in dict(sorted(phrases, key=lambda p: p[1])).items():  # of equal ones the last, the largest bonus
        for i in range(len(tokens) - len(phrase) + 1):
            end = i + len(phrase)
            at_end = end == len(tokens) or starts is None or starts[tokens[end]]
            total += bonus * len(phrase) * (tuple(tokens[i:end]) == phrase and at_end)
    return total


def all_phrases(vocab_size: int, longest: int) -> list[tuple[int, ...]]:
    tokens = range(1, vocab_size)
    return [p for n in range(1, longest + 1) for p in itertools.product(tokens, repeat=n)]


def stepwise(scorer, sequences: list[list[int]]) -> Tensor:  # type: ignore[no-untyped-def]
    """Totals (B, U + 1) after each token, taken from `log_probs`; the last column has the end in it."""
    longest = max(map(len, sequences), default=0)
    state = scorer.init(len(sequences), "cpu")
    rows = torch.arange(len(sequences))
    total = torch.zeros(len(sequences))
    for u in range(longest):
        tokens = torch.tensor([s[u] if u < len(s) else scorer.blank_id for s in sequences])
        total = total + scorer.log_probs(state)[rows, tokens]
        state = scorer.advance(state, rows, tokens)[1]
    return total + scorer.final(state)
