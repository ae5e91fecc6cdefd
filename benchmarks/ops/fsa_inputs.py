"""Automata to measure on: lexicons, n-gram-like grammars, label lists, lattices. The same for every run and every peer.

Automata are made as k2's packed tensors, so that `ops` and k2 read the same input.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHARED = Path(os.environ.get("LATTICA_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def pronunciations(num_words: int) -> tuple[list[list[int]], int]:
    """num_words lists of phones 1 ... P, and P: words spread over cmudict's, then (or without it) made-up ones."""
    path = SHARED / "data" / "cmudict-en-us.dict.gz"
    prons: list[list[int]] = []
    ids: dict[str, int] = {}
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            entries = [line.split()[1:] for line in file]
        step = max(1, len(entries) // num_words)
        for phones in entries[::step][:num_words]:
            prons.append([ids.setdefault(phone, len(ids) + 1) for phone in phones])
    num_phones = max(len(ids), 40)
    rng = np.random.default_rng(0)
    while len(prons) < num_words:
        prons.append(rng.integers(1, num_phones + 1, rng.integers(3, 11)).tolist())
    return prons, num_phones


@dataclass
class Lexicon:
    """Phones to words, as a loop: word w + 1 leaves with its first phone. Labels above `num_phones` tell words apart that
    sound alike or begin alike; the first of them, `backoff`, loops on the start, for the grammar's back-off arcs."""

    tensor: Tensor  # int32 (A, 4), k2's arcs
    aux_labels: Tensor
    num_words: int
    backoff: int  # label among the phones; among the words it is num_words + 1

    def fsa(self, k2: Any) -> Any:
        return k2.Fsa(self.tensor, self.aux_labels)


def lexicon(num_words: int) -> Lexicon:
    prons, num_phones = pronunciations(num_words)
    prefixes = {tuple(p[:i]) for p in prons for i in range(1, len(p))}
    seen: dict[tuple[int, ...], int] = {}
    for p in prons:
        key = tuple(p)
        count = seen[key] = seen.get(key, 0) + 1
        if count > 1 or key in prefixes:
            p.append(num_phones + 1 + count)
    lens = np.array([len(p) for p in prons])
    labels = np.concatenate([np.array(p) for p in prons])
    begin = np.cumsum(lens) - lens
    position = np.arange(len(labels)) - np.repeat(begin, lens)
    # A word of n phones has n - 1 states of its own, numbered one after another.
    state = np.repeat(1 + begin - np.arange(num_words), lens) + position - 1
    src = np.where(position == 0, 0, state)
    dest = np.where(position == np.repeat(lens, lens) - 1, 0, state + 1)
    aux = np.where(position == 0, np.repeat(np.arange(num_words), lens) + 1, 0)
    backoff = num_phones + 1
    final = int(lens.sum()) - num_words + 1
    rows = np.stack([np.append(src, [0, 0]), np.append(dest, [0, final]), np.append(labels, [backoff, -1]),
                     np.append(aux, [num_words + 1, -1])], axis=1)  # fmt: skip
    rows = torch.from_numpy(rows[np.argsort(rows[:, 0], kind="stable")]).int()
    aux_labels = rows[:, 3].clone()
    rows[:, 3] = 0  # the bits of the float 0
    return Lexicon(rows, aux_labels, num_words, backoff)


def packed(src: np.ndarray, dest: np.ndarray, label: np.ndarray, score: np.ndarray) -> Tensor:
    """k2's int32 (A, 4), ordered by source."""
    bits = score.astype(np.float32).view(np.int32)
    rows = np.stack([src, dest, label, bits], axis=1).astype(np.int32)
    return torch.from_numpy(rows[np.argsort(src, kind="stable")])


def grammar(num_words: int, num_bigrams: int, num_trigrams: int = 0) -> Tensor:
    """An acceptor like a back-off n-gram, as k2's arcs: state 0 knows no history, state w word w, later ones two words.

    Words come from a Zipf distribution; back-off arcs have the label num_words + 1.
    """
    rng = np.random.default_rng(1)
    weights = 1 / np.arange(1, num_words + 1)
    draw = lambda n: rng.choice(num_words, n, p=weights / weights.sum()) + 1  # noqa: E731
    words = np.arange(1, num_words + 1)

    def distinct(draws: list[np.ndarray], limit: int) -> np.ndarray:
        rows = np.unique(np.stack(draws, axis=1), axis=0)
        return rows if len(rows) <= limit else rows[np.sort(rng.permutation(len(rows))[:limit])]

    pairs = (
        distinct([draw(2 * num_bigrams), draw(2 * num_bigrams)], num_bigrams) if num_bigrams else np.zeros((0, 2), int)
    )
    picked = rng.integers(0, max(len(pairs), 1), 2 * num_trigrams)
    triples = distinct([picked, draw(2 * num_trigrams)], num_trigrams) if num_trigrams else np.zeros((0, 2), int)
    has_state = np.unique(triples[:, 0])  # bigrams that are histories
    state_of = np.full(len(pairs), -1)
    state_of[has_state] = num_words + 1 + np.arange(len(has_state))
    pair_dest = np.where(state_of >= 0, state_of, pairs[:, 1])
    index = {(u, w): i for i, (u, w) in enumerate(pairs.tolist())}
    follow = [index.get((pairs[t, 1], w), -1) for t, w in triples.tolist()]  # a trigram leads to its last two words
    triple_dest = np.array([pair_dest[i] if i >= 0 else w for i, (_, w) in zip(follow, triples.tolist())], dtype=int)
    histories = np.concatenate([words, state_of[has_state]])
    lower = np.concatenate([np.zeros(num_words, int), pairs[has_state, 1]])
    final = num_words + 1 + len(has_state)
    ends = np.concatenate([[0], histories])
    src = np.concatenate([np.zeros(num_words, int), pairs[:, 0], state_of[triples[:, 0]], histories, ends])
    dest = np.concatenate([words, pair_dest, triple_dest, lower, np.full(len(ends), final)])
    label = np.concatenate([words, pairs[:, 1], triples[:, 1], np.full(len(histories), num_words + 1),
                            np.full(len(ends), -1)])  # fmt: skip
    return packed(src, dest, label, -rng.exponential(3.0, len(src)))


def transcripts(num: int, length: int, num_symbols: int) -> list[list[int]]:
    return np.random.default_rng(2).integers(1, num_symbols + 1, (num, length)).tolist()


def frame_scores(num: int, num_frames: int, num_labels: int) -> Tensor:
    """Log-probabilities of a network that is fairly sure, (N, T, C)."""
    logits = torch.randn(num, num_frames, num_labels, generator=torch.Generator().manual_seed(3))
    return (2 * logits).log_softmax(-1)


def lattices(k2: Any, num: int = 16, num_frames: int = 150, num_labels: int = 99, beam: float = 10.0) -> Any:
    """All good paths of a standard CTC topology through random frame scores."""
    log_probs = frame_scores(num, num_frames, num_labels)
    segments = torch.tensor([[i, 0, num_frames] for i in range(num)], dtype=torch.int32)
    topology = k2.create_fsa_vec([k2.arc_sort(k2.ctc_topo(num_labels - 1))])
    return k2.intersect_dense_pruned(topology, k2.DenseFsaVec(log_probs, segments), 20.0, beam, 30, 10000)
