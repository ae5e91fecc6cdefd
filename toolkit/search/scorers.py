"""Scorers: what a search adds to the model's log-probabilities of tokens: language models, their combinations, biasing.

A scorer sees token sequences only, never frames. It keeps one row of state a hypothesis, all rows in one batch of
tensors, so a search with scorers stays a program of tensor operations on whichever device. Blank is no token: it leaves
a row as it is and costs nothing. All scores are natural logs.

scorers.py     the protocol; `SumScorer`, `lodr`; `score_sequences`; the base of scorers that are automata
lm_scorers.py  `NgramScorer`, `WordNgramScorer`, `NeuralScorer`
biasing.py     `BiasScorer`: lists of phrases

Legend: B rows (hypotheses), V vocabulary with blank, R rows of a table, A arcs, S states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from toolkit.search.waits import waiting_is_free

TABLE = 1 << 25  # entries (rows times V) up to which rows of an automaton are kept


class Scorer(Protocol):
    """What a search asks. A state is whatever the scorer likes; only the scorer looks into it.

    vocab_size, blank_id: of the tokens that it scores. history: the number of last tokens that a row's future scores
    depend on, where there is such a number; None where all of them matter.
    """

    vocab_size: int
    blank_id: int
    history: int | None

    def init(self, batch_size: int, device: torch.device | str) -> Any:
        """The state before any token, a row an utterance."""

    def advance(self, state: Any, parents_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, Any]:
        """(log_prob_B, new state): row i continues row parents_B[i] of `state` by tokens_B[i].

        There may be more or fewer rows afterwards than before. A blank adds 0 and changes nothing.
        """

    def log_probs(self, state: Any) -> Tensor:
        """(B, V): what `advance` would add for each token."""

    def final(self, state: Any) -> Tensor:
        """(B,): what the end of the utterance adds."""


def reorder(scorer: Scorer, state: Any, rows_B: Tensor) -> Any:
    """The state whose row i is row rows_B[i] of `state`."""
    return scorer.advance(state, rows_B, torch.full_like(rows_B, scorer.blank_id))[1]


def padded(sequences: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Sequences of tokens as (B, U), int64."""
    tokens_BU = torch.full((len(sequences), max(map(len, sequences), default=0)), fill)
    for i, s in enumerate(sequences):
        tokens_BU[i, : len(s)] = torch.tensor(s, dtype=torch.int64)
    return tokens_BU


@torch.inference_mode()
def score_sequences(
    scorer: Scorer,
    sequences: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
    utterances: Sequence[int] | None = None,
) -> Tensor:
    """The scorer's total (B,) of whole token sequences, their ends included; what re-ranking an n-best list needs.

    utterances: the utterance of each sequence, counted from 0, the last one's being the last; default: one each.
    """
    tokens_BU = padded(sequences, scorer.blank_id).to(device)
    if utterances is None:
        state = scorer.init(len(sequences), device)
    else:
        whose_B = torch.tensor(list(utterances), dtype=torch.int64, device=device)
        state = reorder(scorer, scorer.init(max(utterances, default=-1) + 1, device), whose_B)
    rows_B = torch.arange(len(sequences), device=device)
    total_B = torch.zeros(len(sequences), device=device)
    for tokens_B in tokens_BU.unbind(1):
        log_prob_B, state = scorer.advance(state, rows_B, tokens_B)
        total_B = total_B + log_prob_B
    return total_B + scorer.final(state)


class SumScorer:
    """sum_k scale_k * scorer_k. Negative scales are allowed, see `lodr`."""

    def __init__(self, scorers: Sequence[Scorer], scales: Sequence[float]) -> None:
        if not scorers or len(scorers) != len(scales):
            raise ValueError(f"scales: {len(scales)} of them for {len(scorers)} scorers: expected one each, and some")
        sizes = {(s.vocab_size, s.blank_id) for s in scorers}
        if len(sizes) > 1:
            raise ValueError(f"scorers: (vocab_size, blank_id) are {sorted(sizes)}: expected all the same")
        self.scorers, self.scales = list(scorers), [float(x) for x in scales]
        self.vocab_size, self.blank_id = scorers[0].vocab_size, scorers[0].blank_id
        histories = [s.history for s in scorers]
        self.history = None if None in histories else max(h for h in histories if h is not None)

    def init(self, batch_size: int, device: torch.device | str) -> Any:
        return [s.init(batch_size, device) for s in self.scorers]

    def advance(self, state: Any, parents_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, Any]:
        parts, states = zip(*(s.advance(x, parents_B, tokens_B) for s, x in zip(self.scorers, state)))
        return self._sum(parts), list(states)

    def log_probs(self, state: Any) -> Tensor:
        return self._sum([s.log_probs(x) for s, x in zip(self.scorers, state)])

    def final(self, state: Any) -> Tensor:
        return self._sum([s.final(x) for s, x in zip(self.scorers, state)])

    def _sum(self, parts: Sequence[Tensor]) -> Tensor:
        # A scale of 0 turns a scorer off, even one that says -inf.
        used = [scale * x for scale, x in zip(self.scales, parts) if scale != 0.0]
        return torch.stack(used).sum(dim=0) if used else torch.zeros_like(parts[0])


def lodr(external: Scorer, source: Scorer, scale: float, source_scale: float) -> SumScorer:
    """Low-order density ratio (Zheng et al. 2022, arXiv 2203.16776): scale * log P_ext - source_scale * log P_source.

    `source` is an n-gram of low order (usually a bigram of the training transcripts' tokens): what the transducer has
    learnt of its transcripts as a language model, of which the external one should not count a second time.
    """
    return SumScorer([external, source], [scale, -source_scale])


def combine(scorers: Sequence[Scorer], vocab_size: int, blank_id: int) -> Scorer | None:
    """One scorer for all of `scorers`, added up as they are; None for none. Raises ValueError if one is of another model."""
    for s in scorers:
        if (s.vocab_size, s.blank_id) != (vocab_size, blank_id):
            raise ValueError(
                f"scorers: a {type(s).__name__} is for {s.vocab_size} tokens with blank {s.blank_id}; the model has "
                f"{vocab_size} with blank {blank_id}. Make it with this model's tokenizer"
            )
    if len(scorers) <= 1:
        return scorers[0] if scorers else None
    return SumScorer(scorers, [1.0] * len(scorers))


class ScorerPool:
    """Rows of a scorer by (utterance, tokens), for searches on the host: made as they are asked for, each from the row
    of the tokens before its last one. Beyond `limit` rows those that have not been asked for the longest are dropped.
    """

    def __init__(self, scorer: Scorer, num_utterances: int, device: torch.device, limit: int = 4096) -> None:
        self.scorer, self.limit, self.device = scorer, limit + num_utterances, device
        self.state = scorer.init(num_utterances, device)
        self.roots: dict[tuple[int, tuple[int, ...]], int] = {(i, ()): i for i in range(num_utterances)}
        self.row = dict(self.roots)  # the latest asked for stand last

    def rows(self, keys: Sequence[tuple[int, tuple[int, ...]]]) -> Tensor:
        """The row of each key in `state`."""
        if len(self.row) + len(keys) > self.limit:
            kept = self.roots | dict(list(self.row.items())[-self.limit // 2 :])
            self.state = reorder(self.scorer, self.state, torch.tensor(list(kept.values()), device=self.device))
            self.row = {key: i for i, key in enumerate(kept)}
            self.roots = {key: self.row[key] for key in self.roots}
        missing: dict[int, dict[tuple[int, tuple[int, ...]], None]] = {}  # by length
        for i, tokens in keys:
            while (i, tokens) not in self.row and (i, tokens) not in missing.setdefault(len(tokens), {}):
                missing[len(tokens)][i, tokens] = None
                tokens = tokens[:-1]
        for length in sorted(missing):
            new = list(missing[length])
            if new:
                old = len(self.row)
                parents = [*range(old), *(self.row[i, tokens[:-1]] for i, tokens in new)]
                last = [self.scorer.blank_id] * old + [tokens[-1] for _, tokens in new]
                _, self.state = self.scorer.advance(
                    self.state, torch.tensor(parents, device=self.device), torch.tensor(last, device=self.device)
                )
                self.row |= {key: old + i for i, key in enumerate(new)}
        for key in keys:
            self.row[key] = self.row.pop(key)
        return torch.tensor([self.row[key] for key in keys], dtype=torch.int64, device=self.device)


# --------------------------------------------------------------------------------------------------------- automata


class AutomatonScorer:
    """Base of scorers that are deterministic automata over tokens: a row of state is the number of a state.

    A subclass says what an arc is (`arcs`). Whole rows of arcs are then kept, by state, as they are needed: hypotheses
    of all utterances share them, and a step costs an index operation, however large the automaton. On CUDA, where
    looking whether a row is known would make the host wait in every frame, all rows of a small automaton are made
    beforehand, and arcs of a large one are looked up anew.
    """

    history: int | None = None

    def __init__(self, vocab_size: int, blank_id: int, num_states: int | None) -> None:
        self.vocab_size, self.blank_id, self.num_states = vocab_size, blank_id, num_states
        self.table: _Table | None = None

    def arcs(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probability, next state) of each pair; `tokens` broadcasts against `states`; blanks may give anything."""
        raise TypeError("AutomatonScorer is a base class")

    def start(self, batch_size: int, device: torch.device) -> Tensor:
        raise TypeError("AutomatonScorer is a base class")

    def final(self, state: Tensor) -> Tensor:
        raise TypeError("AutomatonScorer is a base class")

    def to(self, device: torch.device) -> None:
        """Move what `arcs` and `final` read to `device`."""

    def init(self, batch_size: int, device: torch.device | str) -> Tensor:
        device = torch.device(device)
        self.to(device)
        if self.table is None or (self.table.device, self.table.on_demand) != (device, waiting_is_free(device)):
            self.table = _Table(self, device)
        return self.start(batch_size, device)

    def advance(self, state: Tensor, parents_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, Tensor]:
        old_B = state[parents_B]
        assert self.table is not None  # made by init
        if self.table.used:
            slots_B = self.table.slots(old_B)
            return self.table.log_probs_RV[slots_B, tokens_B], self.table.next_RV[slots_B, tokens_B]
        log_prob_B, next_B = self.arcs(old_B, tokens_B)
        blank_B = tokens_B == self.blank_id
        return log_prob_B.masked_fill(blank_B, 0.0), torch.where(blank_B, old_B, next_B)

    def log_probs(self, state: Tensor) -> Tensor:
        assert self.table is not None
        if self.table.used:
            slots_B = self.table.slots(state)  # first, for it may make rows
            return self.table.log_probs_RV[slots_B]
        return self.rows(state)[0]

    def rows(self, states_R: Tensor) -> tuple[Tensor, Tensor]:
        """All arcs of states: (R, V) log-probabilities and next states."""
        tokens_V = torch.arange(self.vocab_size, device=states_R.device)
        log_probs_RV, next_RV = self.arcs(
            states_R[:, None].expand(-1, self.vocab_size), tokens_V.expand(len(states_R), -1)
        )
        log_probs_RV[:, self.blank_id] = 0.0
        next_RV[:, self.blank_id] = states_R
        return log_probs_RV, next_RV


class _Table:
    """Rows of an automaton by state. `used` is False where keeping none is better."""

    def __init__(self, automaton: AutomatonScorer, device: torch.device) -> None:
        self.automaton, self.device = automaton, device
        self.capacity = max(TABLE // automaton.vocab_size, 1)
        self.on_demand = waiting_is_free(device)
        self.slot_S = torch.zeros(0, dtype=torch.int64)
        self.forget()
        self.used = self.on_demand
        if not self.on_demand and automaton.num_states is not None and automaton.num_states <= self.capacity:
            self.log_probs_RV, self.next_RV = automaton.rows(torch.arange(automaton.num_states, device=device))
            self.used = True

    def forget(self) -> None:
        self.slot_S = torch.full_like(self.slot_S, -1)
        self.count = 0
        self.log_probs_RV = torch.zeros(0, self.automaton.vocab_size)
        self.next_RV = torch.zeros(0, self.automaton.vocab_size, dtype=torch.int64)

    def slots(self, states_B: Tensor) -> Tensor:
        """The row of each state, made where it is not there yet."""
        if not self.on_demand or not len(states_B):
            return states_B
        highest = int(states_B.max())
        if highest >= len(self.slot_S):
            more = max(highest + 1, 2 * len(self.slot_S)) - len(self.slot_S)
            self.slot_S = torch.cat([self.slot_S, self.slot_S.new_full((more,), -1)])
        slots_B = self.slot_S[states_B]
        if bool((slots_B < 0).any()):
            new_R = states_B[slots_B < 0].unique()
            if self.count + len(new_R) > self.capacity:
                self.forget()
                new_R = states_B.unique()
            self.add(new_R)
            slots_B = self.slot_S[states_B]
        return slots_B

    def add(self, new_R: Tensor) -> None:
        log_probs_RV, next_RV = self.automaton.rows(new_R)
        end = self.count + len(new_R)
        if end > len(self.log_probs_RV):
            size = max(end, 2 * len(self.log_probs_RV), 16)
            self.log_probs_RV = _grown(self.log_probs_RV, size)
            self.next_RV = _grown(self.next_RV, size)
        self.log_probs_RV[self.count : end] = log_probs_RV
        self.next_RV[self.count : end] = next_RV
        self.slot_S[new_R] = torch.arange(self.count, end)
        self.count = end


def _grown(x_RV: Tensor, size: int) -> Tensor:
    grown = x_RV.new_empty(size, x_RV.shape[1])
    grown[: len(x_RV)] = x_RV
    return grown


def find(sorted_keys_A: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """(place of each key in the sorted keys, whether it is there); the place is some valid one where it is not."""
    place = torch.searchsorted(sorted_keys_A, keys).clamp_(max=len(sorted_keys_A) - 1)
    return place, sorted_keys_A[place] == keys
