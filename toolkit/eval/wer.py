"""Word errors: alignments and counts by kaldialign, with a bootstrap confidence interval.

kaldialign.bootstrap_wer_ci follows Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance
evaluation" (ICASSP 2004): whole utterances are resampled, so that errors which come together count as such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import kaldialign

GAP = ""  # stands for a missing word in an alignment; no word is empty


@dataclass(frozen=True)
class Utterance:
    """Reference and hypothesis of one utterance, as words. Either may be empty."""

    id: str
    ref: list[str]
    hyp: list[str]


@dataclass(frozen=True)
class WordErrors:
    """Error counts of a test set against `words` reference words; `ci95` in percent, None where it is not defined."""

    insertions: int
    deletions: int
    substitutions: int
    words: int
    utterances: int
    ci95: tuple[float, float] | None = None

    @property
    def errors(self) -> int:
        return self.insertions + self.deletions + self.substitutions

    @property
    def wer(self) -> float:
        """Percent. Without reference words: 0 if nothing was recognized, either, else infinite."""
        if self.words == 0:
            return math.inf if self.errors else 0.0
        return 100.0 * self.errors / self.words

    def __str__(self) -> str:
        """`2.66 [2.51, 2.81]`: the rate with its 95 % confidence interval."""
        if not math.isfinite(self.wer):
            return f"n/a ({self.errors} errors, no reference words)"
        interval = f" [{self.ci95[0]:.2f}, {self.ci95[1]:.2f}]" if self.ci95 else ""
        return f"{self.wer:.2f}{interval}"


def align(utterance: Utterance) -> list[tuple[str, str]]:
    """Pairs (reference word, hypothesis word) of a cheapest alignment; GAP where the other side has no word."""
    return kaldialign.align(utterance.ref, utterance.hyp, GAP)


def count_errors(utterances: Sequence[Utterance]) -> int:
    """Word errors, all kinds."""
    return sum(kaldialign.edit_distance(u.ref, u.hyp)["total"] for u in utterances)


def word_errors(utterances: Sequence[Utterance], replications: int = 10000, seed: int = 0) -> WordErrors:
    """Count errors and estimate the 95 % confidence interval; the same input gives the same interval."""
    counts = [kaldialign.edit_distance(u.ref, u.hyp) for u in utterances]
    return WordErrors(
        insertions=sum(c["ins"] for c in counts),
        deletions=sum(c["del"] for c in counts),
        substitutions=sum(c["sub"] for c in counts),
        words=sum(len(u.ref) for u in utterances),
        utterances=len(utterances),
        ci95=_confidence_interval(utterances, replications, seed),
    )


def _confidence_interval(utterances: Sequence[Utterance], replications: int, seed: int) -> tuple[float, float] | None:
    if not any(u.ref for u in utterances):
        return None
    # Resampling can draw nothing but empty references, a rate of infinity or nan: there is then no interval to give.
    ci = kaldialign.bootstrap_wer_ci([u.ref for u in utterances], [u.hyp for u in utterances], None, replications, seed)
    low, high = 100.0 * ci["ci95min"], 100.0 * ci["ci95max"]
    return (max(0.0, low), high) if math.isfinite(low) and math.isfinite(high) else None
