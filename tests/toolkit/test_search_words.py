"""Tokens with frames → words with times, with the real tokenizer."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from toolkit.config import TokenConfig
from toolkit.data.tokenizer import Tokenizer
from toolkit.search.result import Hypothesis
from toolkit.search.words import Word, to_words

TEXTS = ["THE CAT SAT ON THE MAT", "A CAT IS A CAT", "THE MATS ARE ON THE FLOOR", "SAT AT THE TABLE"]


@pytest.fixture(scope="module", params=["char", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(TEXTS, TokenConfig(kind=request.param, vocab_size=30))


def hypothesis(tokens: list[int]) -> Hypothesis:
    n = len(tokens)
    return Hypothesis(tokens, [10 * (i + 1) for i in range(n)], [-0.1 * (i + 1) for i in range(n)], 0.0)


def test_words_have_the_times_of_their_tokens(tokenizer: Tokenizer) -> None:
    first, second = (tokenizer.encode(text) for text in ("CAT", "ON"))
    n, m = len(first), len(second)
    assert to_words(hypothesis(first + second), tokenizer, subsampling_factor=4) == [
        Word("CAT", 0.4, pytest.approx(0.4 * n + 0.04), pytest.approx(math.exp(-0.1 * n), abs=1e-4)),
        Word(
            "ON",
            pytest.approx(0.4 * (n + 1)),
            pytest.approx(0.4 * (n + m) + 0.04),
            pytest.approx(math.exp(-0.1 * (n + m)), abs=1e-4),
        ),
    ]


def test_words_are_those_of_the_transcript_whatever_the_tokens(tokenizer: Tokenizer) -> None:
    """Also for what no transcript has: unknown tokens, a word start alone, none at the beginning."""
    rng = random.Random(0)
    for _ in range(300):
        tokens = [rng.randrange(2, tokenizer.vocab_size) for _ in range(rng.randint(0, 9))]
        found = to_words(hypothesis(tokens), tokenizer, 4)
        assert " ".join(word.text for word in found) == tokenizer.decode(tokens)
        assert all(a.end <= b.start and a.start < a.end for a, b in pairwise(found))
    assert to_words(hypothesis([]), tokenizer, 4) == []
