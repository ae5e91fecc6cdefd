"""Language models in Python for the CTC decoder, under torchaudio's names."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

FINISH = -1  # in place of a word: the end of the sentence
CHUNK = 4096  # questions put to a model at once


class CTCDecoderLMState:
    """A node in the tree of what has been said; a model keeps what it knows of each under the object itself."""

    def __init__(self) -> None:
        self.children: dict[int, CTCDecoderLMState] = {}

    def child(self, usr_index: int) -> CTCDecoderLMState:
        """The state after `usr_index`, always the same object."""
        if usr_index not in self.children:
            self.children[usr_index] = CTCDecoderLMState()
        return self.children[usr_index]

    def compare(self, state: CTCDecoderLMState) -> int:
        """0 if both are the same."""
        return 0 if self is state else (-1 if id(self) < id(state) else 1)


class CTCDecoderLM(ABC):
    """A language model of your own: three methods for one hypothesis, and two more to answer for many at once.

    Words (tokens, without a lexicon) are numbers in the order of the lexicon, of `lm_dict`, or of the tokens. The decoder
    collects the questions of a frame, of all hypotheses of all utterances, and asks `score_batch` once; so a neural
    model overrides it. The decoder never asks the same twice for an utterance. The larger the scores, the better.
    """

    @abstractmethod
    def start(self, start_with_nothing: bool) -> CTCDecoderLMState:
        """The state before the first word (with nothing: not even the beginning of a sentence)."""

    @abstractmethod
    def score(self, state: CTCDecoderLMState, usr_token_idx: int) -> tuple[CTCDecoderLMState, float]:
        """The state after the word, and the word's score."""

    @abstractmethod
    def finish(self, state: CTCDecoderLMState) -> tuple[CTCDecoderLMState, float]:
        """The state after the end of the sentence, and the end's score."""

    def score_batch(
        self, states: list[CTCDecoderLMState], usr_token_idxs: list[int]
    ) -> list[tuple[CTCDecoderLMState, float]]:
        """`score` for many; override it where a batch costs less than one by one."""
        return [self.score(state, word) for state, word in zip(states, usr_token_idxs)]

    def finish_batch(self, states: list[CTCDecoderLMState]) -> list[tuple[CTCDecoderLMState, float]]:
        """`finish` for many."""
        return [self.finish(state) for state in states]


class AnswerDesk:
    """Carries questions from decoders' streams to a model and answers back. States are numbers there, objects here."""

    def __init__(self, lm: CTCDecoderLM) -> None:
        self._lm = lm
        self._states: list[CTCDecoderLMState] = []
        self._numbers: dict[int, int] = {}
        self.start_state = self._number(lm.start(False))

    def _number(self, state: CTCDecoderLMState) -> int:
        number = self._numbers.setdefault(id(state), len(self._states))
        if number == len(self._states):
            self._states.append(state)  # kept, so that its id stays its own
        return number

    def answer(self, streams: list[int]) -> None:
        """Answer whatever these streams ask."""
        like = torch.empty(0)
        asked = [torch.ops.lattica.ctc_decoder_stream_questions(like, stream) for stream in streams]
        questions = [(s, w) for states, words in asked for s, w in zip(states.tolist(), words.tolist())]
        unique = list(dict.fromkeys(questions))
        answers: dict[tuple[int, int], tuple[int, float]] = {}
        for finishing in (False, True):
            some = [q for q in unique if (q[1] == FINISH) == finishing]
            for i in range(0, len(some), CHUNK):
                part = some[i : i + CHUNK]
                states = [self._states[s] for s, _ in part]
                scored = (
                    self._lm.finish_batch(states) if finishing else self._lm.score_batch(states, [w for _, w in part])
                )
                if len(scored) != len(part):
                    raise ValueError(f"{type(self._lm).__name__} gave {len(scored)} answers to {len(part)} questions")
                answers |= {q: (self._number(state), float(score)) for q, (state, score) in zip(part, scored)}
        for stream, (states, words) in zip(streams, asked):
            found = [answers[q] for q in zip(states.tolist(), words.tolist())]
            scores = torch.tensor([score for _, score in found], dtype=torch.float32)
            numbers = torch.tensor([number for number, _ in found], dtype=torch.int32)
            torch.ops.lattica.ctc_decoder_stream_answer(scores, numbers, stream)
