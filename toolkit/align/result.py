"""What an alignment says: which token was spoken in which frames."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.search.result import Hypothesis


@dataclass(frozen=True)
class Alignment:
    """The best path of a transcript through its utterance.

    tokens: ids without blanks. starts, ends: the encoder frames [start, end) of each; a transducer emits a token in one
    frame, so there end = start + 1. log_probs: the largest the model gave to each in its frames. score: of the whole path,
    blanks included. states: for each frame where the path stood when it had been read: CTC state 2k is the blank before
    token k, 2k + 1 token k itself; for a transducer the number of tokens emitted so far.
    """

    tokens: list[int]
    starts: list[int]
    ends: list[int]
    log_probs: list[float]
    score: float
    states: list[int]

    @property
    def hypothesis(self) -> Hypothesis:
        """The same as a search would have found it, for `to_words`."""
        return Hypothesis(self.tokens, self.starts, self.log_probs, self.score, ends=self.ends)
