"""Claims about word error rates and speeds, held against measurements by a rule.

Two systems are compared on the same utterances: whole utterances are resampled, for both systems together (paired
bootstrap, as in Bisani and Ney, ICASSP 2004), and the 95 % interval of the difference of their word error rates decides:

    "better":  reproduced if the interval lies below 0, not reproduced if it lies above 0
    "equal":   reproduced if it lies within ± MARGIN of the second system's rate, not reproduced if it lies outside
    otherwise, and where neither makes an error: not distinguishable

Speeds are compared by the best of the repeats; a ratio is reproduced if it is at least half of the paper's, not
reproduced if it is the other way round (below 1), not distinguishable between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MARGIN = 0.1  # "equal": a tenth of the word error rate
REPLICATIONS = 10000
YES, NO, UNCLEAR, MISSING = "reproduced", "not reproduced", "not distinguishable", "not measured"


@dataclass(frozen=True)
class Counts:
    """Word errors and reference words of each utterance, in a fixed order of utterances."""

    errors: list[int]
    words: list[int]

    @property
    def wer(self) -> float:
        return 100.0 * sum(self.errors) / max(sum(self.words), 1)


@dataclass(frozen=True)
class Verdict:
    """What was said, what was measured, and which of the four words above it comes to."""

    claim: str
    measured: str
    verdict: str


def difference(a: Counts, b: Counts, seed: int = 0) -> tuple[float, float, float]:
    """WER of a minus that of b, and its 95 % interval, in percent of words."""
    if a.words != b.words:
        raise ValueError("paired comparison: the two systems were not measured on the same utterances")
    if not sum(a.words):
        return 0.0, 0.0, 0.0
    rng = np.random.default_rng(seed)
    delta, words = np.array(a.errors) - np.array(b.errors), np.array(a.words)
    draws = np.empty(REPLICATIONS)
    step = max(1, 10_000_000 // len(words))
    for i in range(0, REPLICATIONS, step):
        chosen = rng.integers(len(words), size=(min(step, REPLICATIONS - i), len(words)))
        draws[i : i + step] = delta[chosen].sum(1) / np.maximum(words[chosen].sum(1), 1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return a.wer - b.wer, 100.0 * float(low), 100.0 * float(high)


def compare(claim: str, a: Counts | None, b: Counts | None, expected: str) -> Verdict:
    """expected: "better" (a has fewer errors than b) or "equal"."""
    if expected not in ("better", "equal"):
        raise ValueError(f"expected={expected!r}: 'better' or 'equal'")
    if a is None or b is None:
        return Verdict(claim, "", MISSING)
    delta, low, high = difference(a, b)
    measured = f"{a.wer:.2f} against {b.wer:.2f} %: {delta:+.2f} [{low:+.2f}, {high:+.2f}]"
    if expected == "better":
        verdict = YES if high < 0 else NO if low > 0 else UNCLEAR
    else:
        margin = MARGIN * b.wer
        inside, outside = -margin <= low and high <= margin, low > margin or high < -margin
        # Where neither makes any error there is nothing to tell them apart by.
        verdict = UNCLEAR if a.wer == b.wer == 0.0 else YES if inside else NO if outside else UNCLEAR
    return Verdict(claim, measured, verdict)


def compare_speed(claim: str, slow: Sequence[float] | None, fast: Sequence[float] | None, paper: float) -> Verdict:
    """Seconds of each repeat; paper: how many times as fast it was there."""
    if not slow or not fast:
        return Verdict(claim, "", MISSING)
    ratio = min(slow) / min(fast)
    verdict = YES if ratio >= max(paper / 2, 1.0) else NO if ratio < 1 else UNCLEAR
    return Verdict(claim, f"{ratio:.1f} times as fast (paper: {paper:.1f})", verdict)
