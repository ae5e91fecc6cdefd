"""Are confidences right? Calibration of words and tokens: of those with confidence 0.8, are 80 % correct?

The expected calibration error (Naeini et al., 2015) is the mean, over bins of confidence weighted by their sizes, of
|accuracy - mean confidence|; 0 is perfect. Normalised cross entropy (Siu et al., 1997) says how much the confidences tell
beyond the overall accuracy: 1 is everything, 0 nothing, below 0 they mislead.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import kaldialign

from toolkit.eval.reports import write_text
from toolkit.search.result import Hypothesis
from toolkit.search.words import Word

log = logging.getLogger(__name__)

Pair = tuple[float, bool]  # a confidence and whether what it belongs to was correct
NOTHING = ""  # stands for a missing unit in an alignment
LEAST = 1e-6  # confidences are kept this far from 0 and 1 where a logarithm is taken


@dataclass(frozen=True)
class Bin:
    """Units with low <= confidence < high (the last bin has those of 1, too)."""

    low: float
    high: float
    count: int
    confidence: float  # mean; 0 in an empty bin
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """`ece` and `nce` are None where they are not defined: without units, or if all or none are correct."""

    count: int
    accuracy: float
    confidence: float
    ece: float | None
    nce: float | None
    bins: list[Bin]

    def __str__(self) -> str:
        if self.ece is None:
            return "nothing recognized, no calibration"
        nce = "n/a" if self.nce is None else f"{self.nce:.3f}"
        return (
            f"{100 * self.accuracy:.1f} % correct, mean confidence {self.confidence:.3f}, ECE {self.ece:.3f}, NCE {nce}"
        )


def calibration(pairs: Sequence[Pair], num_bins: int = 10) -> Calibration:
    """Calibration of confidences in [0, 1], in bins of equal width; ValueError for one that lies outside."""
    wrong = next((c for c, _ in pairs if not 0.0 <= c <= 1.0), None)
    if wrong is not None:
        raise ValueError(f"confidence {wrong}: expected a number in [0, 1]")
    bins = []
    for i in range(num_bins):
        here = [(c, ok) for c, ok in pairs if min(int(c * num_bins), num_bins - 1) == i]
        bins.append(
            Bin(i / num_bins, (i + 1) / num_bins, len(here), _mean(c for c, _ in here), _mean(o for _, o in here))
        )
    n = len(pairs)
    accuracy = _mean(ok for _, ok in pairs)
    ece = sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / n if n else None
    nce = None
    if 0.0 < accuracy < 1.0:
        before = -n * (accuracy * math.log(accuracy) + (1 - accuracy) * math.log(1 - accuracy))
        kept = ((min(max(c, LEAST), 1 - LEAST), ok) for c, ok in pairs)
        nce = 1.0 + sum(math.log(c if ok else 1.0 - c) for c, ok in kept) / before
    return Calibration(n, accuracy, _mean(c for c, _ in pairs), ece, nce, bins)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def word_pairs(reference: Sequence[str], words: Sequence[Word]) -> list[Pair]:
    """Each recognized word's confidence, and whether an alignment with the reference finds the same word there."""
    return _pairs(reference, [w.text for w in words], [w.confidence for w in words])


def token_pairs(reference: Sequence[int], hypothesis: Hypothesis) -> list[Pair]:
    """The same for tokens: posteriors where the search knows them, else the probabilities that the model gave."""
    given = hypothesis.confidences or [math.exp(min(0.0, x)) for x in hypothesis.log_probs]
    return _pairs([str(t) for t in reference], [str(t) for t in hypothesis.tokens], given)


def _pairs(reference: Sequence[str], found: Sequence[str], confidences: Sequence[float]) -> list[Pair]:
    aligned = [(ref, hyp) for ref, hyp in kaldialign.align(list(reference), list(found), NOTHING) if hyp != NOTHING]
    return [(confidence, ref == hyp) for confidence, (ref, hyp) in zip(confidences, aligned, strict=True)]


def write_calibration(folder: Path, name: str, words: Sequence[Pair], tokens: Sequence[Pair]) -> dict[str, Calibration]:
    """`confidence-<name>.json` and, if there is matplotlib, the reliability diagram `confidence-<name>.png`."""
    found = {"words": calibration(words), "tokens": calibration(tokens)}
    write_text(
        folder / f"confidence-{name}.json", json.dumps({k: asdict(v) for k, v in found.items()}, indent=1) + "\n"
    )
    try:
        draw(found, folder / f"confidence-{name}.png", name)
    except ImportError:
        log.warning("no reliability diagrams without matplotlib: pip install 'lattica[plots]'")
    return found


def draw(calibrations: dict[str, Calibration], path: Path, title: str) -> None:
    """Reliability diagrams side by side: accuracy by confidence, and below how many there are. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(calibrations), 5), layout="constrained")
    axes: Any = figure.subplots(2, len(calibrations), height_ratios=[3, 1], sharex=True, squeeze=False)
    for (name, c), (above, below) in zip(calibrations.items(), axes.T):
        used = [b for b in c.bins if b.count]
        places, width = [(b.low + b.high) / 2 for b in used], 1 / max(len(c.bins), 1)
        above.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
        above.bar(places, [b.accuracy for b in used], width, edgecolor="white", color="tab:blue")
        above.plot([b.confidence for b in used], [b.accuracy for b in used], "o", color="tab:orange", markersize=4)
        above.set(
            title=f"{name}: ECE {c.ece:.3f}" if c.ece is not None else f"{name}: none", ylabel="correct", ylim=(0, 1)
        )
        below.bar(places, [b.count for b in used], width, edgecolor="white", color="tab:gray")
        below.set(xlabel="confidence", ylabel="count", xlim=(0, 1))
    figure.suptitle(title)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=100, format="png")
    partial.replace(path)
