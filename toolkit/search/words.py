"""From tokens with frames to words with times and confidences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from toolkit.search.result import FEATURE_FRAME_SECONDS, Hypothesis

WORD_START = "\u2581"  # how sentencepiece, and our character tokens, write the beginning of a word


@dataclass(frozen=True)
class Word:
    """A recognized word: `start` and `end` in seconds, `confidence` in [0, 1].

    start: where the frame of its first token begins; end: where that of its last token ends. A transducer emits a token
    when it is sure of it, so these lie inside the spoken word or a little behind it, more so with few, long tokens.
    confidence: of its least certain token, as a word is wrong if any part of it is: the token's posterior where the search
    knows it (`Hypothesis.confidences`), else the probability that the model gave it.
    """

    text: str
    start: float
    end: float
    confidence: float


def to_words(hypothesis: Hypothesis, tokenizer: Any, subsampling_factor: int) -> list[Word]:
    """The words of `hypothesis`: joined by spaces they are `tokenizer.decode(hypothesis.tokens)`.

    tokenizer: has `.tokens` (written forms, words beginning with `▁`), `.unk_id` (a word of its own) and `.decode`.
    """
    seconds = subsampling_factor * FEATURE_FRAME_SECONDS
    ends = hypothesis.ends or [frame + 1 for frame in hypothesis.frames]
    confidences = hypothesis.confidences or [math.exp(min(0.0, x)) for x in hypothesis.log_probs]
    found = []
    for first, end in _spans(hypothesis.tokens, tokenizer):
        text = tokenizer.decode(hypothesis.tokens[first:end])
        if text:  # a lone ▁ is no word
            start_time = round(hypothesis.frames[first] * seconds, 3)
            end_time = round(ends[end - 1] * seconds, 3)
            confidence = min(confidences[first:end])
            found.append(Word(text, start_time, end_time, round(confidence, 4)))
    return found


def _spans(tokens: list[int], tokenizer: Any) -> Iterator[tuple[int, int]]:
    """[first, end) of the tokens of each word."""
    first = 0
    for i in range(1, len(tokens) + 1 if tokens else 0):
        if (
            i == len(tokens)
            or tokenizer.tokens[tokens[i]].startswith(WORD_START)
            or tokenizer.unk_id in (tokens[i], tokens[i - 1])
        ):
            yield first, i
            first = i
