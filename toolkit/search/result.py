"""The one result type of every search method."""

from __future__ import annotations

from dataclasses import dataclass

FEATURE_FRAME_SECONDS = 0.01  # feature frames come 100 a second


@dataclass(frozen=True)
class Hypothesis:
    """One transcription of one utterance.

    tokens: ids without blanks. frames: the encoder frame at which each token was emitted. log_probs: the model's
    log-probability of each token where it was emitted (natural log, without LM or biasing). score: what the search
    ranked hypotheses by (total log-probability, with whatever scorers took part).

    What only some searches know is None elsewhere. ends: the encoder frame at which each token ends, exclusive (a CTC
    token lasts, a transducer's is a moment). confidences: the posterior of each token among what else might have been
    said, in [0, 1]. words: as a lexicon spelled them, where the tokens alone do not tell.
    """

    tokens: list[int]
    frames: list[int]
    log_probs: list[float]
    score: float
    ends: list[int] | None = None
    confidences: list[float] | None = None
    words: list[str] | None = None

    def seconds(self, subsampling_factor: int) -> list[float]:
        """When each token was emitted, in seconds from the start of the utterance: the start of its encoder frame."""
        return [round(frame * subsampling_factor * FEATURE_FRAME_SECONDS, 3) for frame in self.frames]


@dataclass(frozen=True)
class SearchResult:
    """What a search found for one utterance: hypotheses, best first; at least one, which may be empty."""

    nbest: list[Hypothesis]

    @property
    def best(self) -> Hypothesis:
        return self.nbest[0]
