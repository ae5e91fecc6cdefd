"""Language models as scorers: n-grams over tokens or words, and neural ones.

Legend: B rows (hypotheses), V vocabulary with blank, A arcs, S states and W words of an n-gram.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.data.tokenizer import SPECIAL, WORD_START
from toolkit.search.scorers import AutomatonScorer, find
from toolkit.search.waits import waiting_is_free

# ------------------------------------------------------------------------------------------------------ n-gram models


class _Ngram:
    """Questions to an `ops.NgramLM`: its own routine on CPU; elsewhere its arcs as tensors and a search for keys."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.by_keys = False
        self.keys_A: Tensor | None = None

    def to(self, device: torch.device) -> None:
        self.by_keys = not waiting_is_free(device)
        if self.by_keys and (self.keys_A is None or self.keys_A.device != device):
            self.make_keys(device)

    def make_keys(self, device: torch.device) -> None:
        """The arcs as sorted keys, state * W + word."""
        lm = self.lm
        if not lm.has_arcs:
            raise ValueError(f"decoding.lm: a KenLM binary shows no arcs: on {device} take the ARPA file instead")
        counts_S = lm.arc_splits_S1.long().diff()
        states_A = torch.arange(len(counts_S)).repeat_interleave(counts_S)
        self.keys_A = (states_A * len(lm.words) + lm.arc_words_A.long()).to(device)
        self.log_probs_A = lm.arc_log_probs_A.to(device)
        self.next_A = lm.arc_next_A.long().to(device)
        self.backoff_S = lm.backoff_state_S.long().clamp(min=0).to(device)
        self.backoff_log_prob_S = lm.backoff_log_prob_S.to(device)

    def score(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probability, next state) of words after states of the same shape."""
        if self.by_keys:
            return self.score_by_keys(states, words)
        log_prob, following = self.lm.score(states, words)
        return log_prob, following.long()

    def score_by_keys(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """The same on any device, without asking the host anything."""
        assert self.keys_A is not None
        total = torch.zeros(states.shape, device=states.device)
        following, found = torch.zeros_like(states), torch.zeros_like(states, dtype=torch.bool)
        for _ in range(self.lm.order):  # each state that is backed off to is shorter
            place, there = find(self.keys_A, states * len(self.lm.words) + words)
            there &= ~found
            total += torch.where(
                there, self.log_probs_A[place], torch.where(found, 0.0, self.backoff_log_prob_S[states])
            )
            following = torch.where(there, self.next_A[place], following)
            found |= there
            states = torch.where(found, states, self.backoff_S[states])
        return total, following

    def final(self, states: Tensor) -> Tensor:
        return self.score(states, torch.full_like(states, self.lm.end_word))[0]


class NgramScorer(AutomatonScorer):
    """An n-gram model over tokens: shallow fusion in every search.

    lm: `ops.NgramLM` whose words are the written forms of the tokens (`▁THE`, `S`), as train_lm.py lm=ngram makes it.
    tokens: the model's tokens by id. Those that the LM does not have count as its <unk>. The end of an utterance adds
    log P(</s>).
    Raises ValueError if more than a tenth of the tokens, special symbols apart, are not words of the LM.
    """

    def __init__(self, lm: Any, tokens: Sequence[str], blank_id: int = 0) -> None:
        super().__init__(len(tokens), blank_id, num_states=len(lm.backoff_state_S) if lm.has_arcs else None)
        words = torch.tensor([lm.word_id(token) for token in tokens])
        unknown = [t for t, w in zip(tokens, words.tolist()) if w == 0 and t not in SPECIAL]
        if len(unknown) > 0.1 * len(tokens):
            raise ValueError(
                f"the LM has no word for {len(unknown)} of the model's {len(tokens)} tokens ({', '.join(unknown[:5])}, …); "
                f"its own are {_some(lm.words)}: expected an LM over these tokens, or decoding.lm_unit=word"
            )
        self.ngram, self.words_V = _Ngram(lm), words
        self.history = lm.order - 1

    def to(self, device: torch.device) -> None:
        self.ngram.to(device)
        self.words_V = self.words_V.to(device)

    def start(self, batch_size: int, device: torch.device) -> Tensor:
        return torch.full((batch_size,), self.ngram.lm.start_state, dtype=torch.int64, device=device)

    def arcs(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.ngram.score(states, self.words_V[tokens])

    def final(self, state: Tensor) -> Tensor:
        return self.ngram.final(state)


# Spellings are known by a 64-bit hash, h(yc) = h(y) * 31^(characters of c) + (what the characters of c make), mod 2^64.
BASE = 1099511628211
NO_WORD, EMPTY_WORD = 0, 1469598103934665603


def _signed(x: int) -> int:
    x %= 1 << 64
    return x - (1 << 64) if x >= 1 << 63 else x


def spelling(text: str) -> tuple[int, int]:
    """(m, a): appending `text` to a word of hash h gives h * m + a, mod 2^64, in int64."""
    multiplier, addend = 1, 0
    for c in text:
        multiplier, addend = multiplier * BASE, addend * BASE + ord(c) * 0x9E3779B97F4A7C15 + 1
    return _signed(multiplier), _signed(addend)


class WordNgramScorer:
    """An n-gram model over words in a search over tokens: a word is scored when the next one begins, or at the end.

    A word begins with a token whose written form begins with `▁`. Spellings are compared by hash, so words need no
    lexicon and may be cut into tokens in any way. Words that the LM does not have count as its <unk>, whose
    log-probability is `unk_log_prob` where given.
    Raises ValueError if no word of the LM can be spelt with the tokens.
    """

    history: int | None = None  # words can be of any length

    def __init__(self, lm: Any, tokens: Sequence[str], blank_id: int = 0, unk_log_prob: float | None = None) -> None:
        self.vocab_size, self.blank_id, self.unk_log_prob = len(tokens), blank_id, unk_log_prob
        self.ngram = _Ngram(lm)
        plain = ["" if t in SPECIAL else t.removeprefix(WORD_START) for t in tokens]
        letters = set("".join(plain))
        words = [(w, i) for i, w in enumerate(lm.words) if i > 0 and w not in ("<s>", "</s>")]
        if not any(set(w) <= letters for w, _ in words):
            raise ValueError(
                f"no word of the LM ({_some(lm.words)}) can be spelt with the model's tokens ({_some(tokens)}): "
                "expected words written as the training transcripts were, upper or lower case included"
            )
        multipliers, addends = zip(*(spelling(t) for t in plain))
        self.multiplier_V, self.addend_V = torch.tensor(multipliers), torch.tensor(addends)
        self.starts_V = torch.tensor([t.startswith(WORD_START) for t in tokens])
        hashes = [_signed(EMPTY_WORD * m + a) for m, a in (spelling(w) for w, _ in words)]
        self.hashes_W, order_W = torch.tensor(hashes).sort()
        self.ids_W = torch.tensor([i for _, i in words])[order_W]

    def init(self, batch_size: int, device: torch.device | str) -> Any:
        device = torch.device(device)
        self.ngram.to(device)
        for name in ("multiplier_V", "addend_V", "starts_V", "hashes_W", "ids_W"):
            setattr(self, name, getattr(self, name).to(device))
        start_B = torch.full((batch_size,), self.ngram.lm.start_state, dtype=torch.int64, device=device)
        return self._state(start_B, torch.full_like(start_B, NO_WORD))

    def _state(self, lm_state_B: Tensor, hash_B: Tensor) -> Any:
        """(LM state before the word that is being spelt, its hash, and what its end would add and lead to)."""
        place_B, known_B = find(self.hashes_W, hash_B)
        log_prob_B, next_B = self.ngram.score(lm_state_B, torch.where(known_B, self.ids_W[place_B], 0))
        if self.unk_log_prob is not None:
            log_prob_B = torch.where(known_B, log_prob_B, self.unk_log_prob)
        open_B = (hash_B != NO_WORD) & (hash_B != EMPTY_WORD)
        return lm_state_B, hash_B, torch.where(open_B, log_prob_B, 0.0), torch.where(open_B, next_B, lm_state_B)

    def advance(self, state: Any, parents_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, Any]:
        lm_state_B, hash_B, end_B, next_B = (x[parents_B] for x in state)
        emit_B = tokens_B != self.blank_id
        begins_B = emit_B & self.starts_V[tokens_B]
        spelt_B = torch.where(begins_B | (hash_B == NO_WORD), EMPTY_WORD, hash_B)
        spelt_B = spelt_B * self.multiplier_V[tokens_B] + self.addend_V[tokens_B]
        new = self._state(torch.where(begins_B, next_B, lm_state_B), torch.where(emit_B, spelt_B, hash_B))
        return torch.where(begins_B, end_B, 0.0), new

    def log_probs(self, state: Any) -> Tensor:
        return torch.where(self.starts_V, state[2][:, None], 0.0)

    def final(self, state: Any) -> Tensor:
        return state[2] + self.ngram.final(state[3])


def _some(words: Sequence[str]) -> str:
    shown = [w for w in words if w not in SPECIAL and not w.startswith("<")][:5]
    return ", ".join(shown) + ", …"


# ----------------------------------------------------------------------------------------------------- neural models


class NeuralScorer:
    """A neural LM (toolkit/models/language_model.py), one step a token, its hidden states carried along by row.

    lm: has `vocab_size`, `blank_id`, `sos_eos_id`, `initial(batch_size, device) -> caches` and
    `step(tokens_B, caches, longest) -> (log_probs_BV, caches)`; caches are tensors whose first dimension is the row;
    longest: no row has read more tokens than that (None: not known).
    A state is what comes next, log-probabilities (B, V) with 0 for blank and of the end (B,); the caches; `longest`.
    """

    history: int | None = None

    def __init__(self, lm: Any) -> None:
        self.lm = lm.eval()
        self.vocab_size, self.blank_id = lm.vocab_size, lm.blank_id

    @torch.inference_mode()
    def init(self, batch_size: int, device: torch.device | str) -> Any:
        self.lm.to(device)
        sos_B = torch.full((batch_size,), self.lm.sos_eos_id, device=device)
        return [*self._step(sos_B, self.lm.initial(batch_size, torch.device(device)), 0), 1]

    def _step(self, tokens_B: Tensor, caches: Any, longest: int | None) -> Sequence[Tensor]:
        log_probs_BV, caches = self.lm.step(tokens_B, caches, longest)
        end_B = log_probs_BV[:, self.lm.sos_eos_id].clone()
        log_probs_BV[:, self.blank_id] = 0.0
        return log_probs_BV, end_B, *caches

    @torch.inference_mode()
    def advance(self, state: Any, parents_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, Any]:
        *state, longest = state
        log_prob_B = state[0][parents_B, tokens_B]
        old = [x[parents_B] for x in state]
        emit_B = tokens_B != self.blank_id
        if waiting_is_free(tokens_B.device):  # only rows that have something new are worth evaluating
            rows = emit_B.nonzero()[:, 0]
            if not len(rows):
                return log_prob_B, [*old, longest]
            new = self._step(tokens_B[rows], [x[rows] for x in old[2:]], None)
            return log_prob_B, [*(_fitting(x, y).index_copy_(0, rows, y) for x, y in zip(old, new)), longest + 1]
        new = self._step(tokens_B, old[2:], longest)
        merged: list[Any] = []
        for x, y in zip(old, new):
            mask = emit_B.view(-1, *[1] * (x.dim() - 1))
            merged.append(torch.where(mask, y, _fitting(x, y)))
        return log_prob_B, [*merged, longest + 1]

    def log_probs(self, state: Any) -> Tensor:
        return state[0]

    def final(self, state: Any) -> Tensor:
        return state[1]


def _fitting(x: Tensor, like: Tensor) -> Tensor:
    """`x` padded to the shape of `like` after the first dimension: a cache of keys grows with the longest row."""
    if x.shape[1:] == like.shape[1:]:
        return x
    pad = [n for a, b in zip(reversed(like.shape[1:]), reversed(x.shape[1:])) for n in (0, a - b)]
    return torch.nn.functional.pad(x, pad)
