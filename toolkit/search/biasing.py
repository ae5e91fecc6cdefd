"""Contextual biasing: phrases that are known to be likely (names, commands, titles) get a bonus wherever they come up.

The phrases make an Aho-Corasick automaton: a trie, and for each node the longest suffix of what it stands for that is a
node, too. With these failure links followed beforehand, an arc that differs from the root's is stored where it is used:
a step is one search in one sorted tensor of keys, whether there are ten phrases or ten thousand.

Legend: P phrases, K tokens of the longest, L lists, M nodes, A stored arcs, B rows, V vocabulary with blank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.data.tokenizer import WORD_START
from toolkit.search.scorers import AutomatonScorer, find


@dataclass(frozen=True)
class Phrase:
    """A phrase as token ids, and what each of its tokens is worth (nats; negative to discourage)."""

    tokens: tuple[int, ...]
    bonus: float


class BiasScorer(AutomatonScorer):
    """A bonus for each token of a phrase, taken back unless the phrase is completed.

    lists: one list of phrases for all utterances, or (`per_utterance`) several, of which `choose` says whose is whose.
    A whole token sequence scores the sum of bonus * length over all occurrences of phrases in it; an occurrence counts
    only if a new word begins after it or the utterance ends, so that ART is not found in ARTIST (`starts_V` says which
    tokens begin a word; None: all). On the way, a row has the bonus for as much of an unfinished phrase as it may still
    complete, which is what helps rare words through a narrow beam.

    Raises ValueError on an empty phrase, a token outside the vocabulary, or blank in a phrase.
    """

    def __init__(
        self,
        lists: Sequence[Sequence[Phrase]],
        vocab_size: int,
        blank_id: int = 0,
        starts_V: Tensor | None = None,
    ) -> None:
        if not lists:
            raise ValueError("lists: expected at least one list of phrases (it may be empty)")
        for phrase in (p for phrases in lists for p in phrases):
            bad = [v for v in phrase.tokens if not 0 <= v < vocab_size or v == blank_id]
            if not phrase.tokens or bad:
                raise ValueError(
                    f"phrase {phrase.tokens}: expected some tokens below {vocab_size} without blank {blank_id}"
                )
        trie = _Trie(lists, vocab_size)
        super().__init__(vocab_size, blank_id, num_states=trie.num_nodes)
        self.num_lists = len(lists)
        self.list_of_utterance: Tensor | None = None
        self.starts_V = torch.ones(vocab_size, dtype=torch.bool) if starts_V is None else starts_V.bool()
        self.keys_A, self.next_A = trie.resolved_arcs()
        self.root_M = trie.root_M
        self.completed_M, self.potential_M = trie.scores()
        self.history = int(trie.depth_M.max())

    def choose(self, list_of_utterance: Sequence[int] | None) -> BiasScorer:
        """The same automaton, started at list list_of_utterance[i] for utterance i; None: the first list for all."""
        if list_of_utterance is None:
            self.list_of_utterance = None
            return self
        bad = [i for i in list_of_utterance if not 0 <= i < self.num_lists]
        if bad:
            raise ValueError(f"list_of_utterance: {bad[0]}: expected list numbers below {self.num_lists}")
        self.list_of_utterance = torch.tensor(list(list_of_utterance), dtype=torch.int64)
        return self

    def to(self, device: torch.device) -> None:
        for name in ("starts_V", "keys_A", "next_A", "root_M", "completed_M", "potential_M"):
            setattr(self, name, getattr(self, name).to(device))

    def start(self, batch_size: int, device: torch.device) -> Tensor:
        if self.list_of_utterance is None:
            return torch.zeros(batch_size, dtype=torch.int64, device=device)
        if len(self.list_of_utterance) != batch_size:
            raise ValueError(
                f"biasing: lists were chosen for {len(self.list_of_utterance)} utterances, the search has {batch_size}"
            )
        return self.list_of_utterance.to(device)  # the root of list l is node l

    def arcs(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        root = self.root_M[states]
        following = root
        if len(self.keys_A):
            own, is_own = find(self.keys_A, states * self.vocab_size + tokens)
            roots, is_roots = find(self.keys_A, root * self.vocab_size + tokens)
            following = torch.where(is_own, self.next_A[own], torch.where(is_roots, self.next_A[roots], root))
        earned = torch.where(self.starts_V[tokens], self.completed_M[states], 0.0)
        return self.potential_M[following] - self.potential_M[states] + earned, following

    def final(self, state: Tensor) -> Tensor:
        return self.completed_M[state] - self.potential_M[state]


class _Trie:
    """The tries of all lists, level by level: node l is the root of list l, nodes of a level follow those above it."""

    def __init__(self, lists: Sequence[Sequence[Phrase]], vocab_size: int) -> None:
        self.v = vocab_size
        phrases = [p for some in lists for p in some]
        self.bonus_P = torch.tensor([p.bonus for p in phrases], dtype=torch.float64)
        lens_P = torch.tensor([len(p.tokens) for p in phrases], dtype=torch.int64)
        flat = torch.tensor([v for p in phrases for v in p.tokens], dtype=torch.int64)
        starts_P = lens_P.cumsum(0) - lens_P
        node_P = torch.tensor([i for i, some in enumerate(lists) for _ in some], dtype=torch.int64)
        roots = torch.arange(len(lists))
        self.levels: list[tuple[Tensor, Tensor, Tensor]] = []  # (nodes, parents, tokens), sorted by (parent, token)
        parts = {
            "depth": [torch.zeros_like(roots)],
            "root": [roots],
            "ends": [torch.zeros(len(lists), dtype=torch.float64)],
        }
        progress = [torch.full((len(lists),), -torch.inf, dtype=torch.float64)]
        self.num_nodes = len(lists)
        running_P = torch.arange(len(phrases))
        for depth in range(1, int(lens_P.max()) + 1 if len(phrases) else 1):
            running_P = running_P[lens_P[running_P] >= depth]
            keys = node_P[running_P] * self.v + flat[starts_P[running_P] + depth - 1]
            unique, place = keys.unique(return_inverse=True)
            nodes = torch.arange(self.num_nodes, self.num_nodes + len(unique))
            self.levels.append((nodes, unique // self.v, unique % self.v))
            self.num_nodes += len(unique)
            node_P[running_P] = nodes[place]
            bonus, ends = self.bonus_P[running_P], lens_P[running_P] == depth
            parts["depth"].append(torch.full_like(nodes, depth))
            parts["root"].append(torch.cat(parts["root"])[unique // self.v])
            # The same phrase given twice counts once, with the larger bonus.
            best = torch.full((len(unique),), -torch.inf, dtype=torch.float64)
            best = best.scatter_reduce(0, place[ends], bonus[ends], "amax")
            parts["ends"].append(torch.where(best.isinf(), 0.0, best * depth))
            longer = torch.full((len(unique),), -torch.inf, dtype=torch.float64)
            progress.append(longer.scatter_reduce(0, place[~ends], bonus[~ends], "amax"))
        self.depth_M, self.root_M, self.ends_M = (torch.cat(x) for x in parts.values())
        self.bonus_M = torch.cat(progress)  # a token of the best phrase that goes on through the node; -inf: none does

    def resolved_arcs(self) -> tuple[Tensor, Tensor]:
        """(node * V + token sorted, next node) of all arcs that are not as the root's; also sets the failure links."""
        self.fail_M = self.root_M.clone()
        keys, following = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        above = torch.arange(int((self.depth_M == 0).sum()))
        for level, (nodes, parents, tokens) in enumerate(self.levels):
            if level > 0:  # the failure link of a child: where the token leads from its parent's
                self.fail_M[nodes] = self._follow(keys, following, self.fail_M[parents], tokens)
            # Level `above` is complete once its children are known: what its failure links have, and its own on top.
            new_keys, new_next = self._inherited(keys, following, above)
            keys, following = _merged(keys, following, new_keys, new_next, parents * self.v + tokens, nodes)
            above = nodes
        return _merged(keys, following, *self._inherited(keys, following, above), keys[:0], following[:0])

    def _follow(self, keys: Tensor, following: Tensor, nodes: Tensor, tokens: Tensor) -> Tensor:
        own, is_own = find(keys, nodes * self.v + tokens)
        root = self.root_M[nodes]
        roots, is_roots = find(keys, root * self.v + tokens)
        return torch.where(is_own, following[own], torch.where(is_roots, following[roots], root))

    def _inherited(self, keys: Tensor, following: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The stored arcs of the failure links of `nodes`, as arcs of `nodes`; what the root has need not be stored."""
        nodes = nodes[self.depth_M[self.fail_M[nodes]] > 0]
        fail = self.fail_M[nodes]
        first, last = torch.searchsorted(keys, fail * self.v), torch.searchsorted(keys, (fail + 1) * self.v)
        counts = last - first
        owner = torch.arange(len(nodes)).repeat_interleave(counts)
        arcs = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner] + first[owner]
        return nodes[owner] * self.v + keys[arcs] % self.v, following[arcs]

    def scores(self) -> tuple[Tensor, Tensor]:
        """(completed_M: what the phrases that end here are worth, potential_M: what a row here has been given so far).

        The potential is what has been completed and, of the longest unfinished phrase, the tokens since the last place
        where a phrase ended on the way to it. Call after `resolved_arcs`.
        """
        completed_M = self.ends_M.clone()
        since_M = torch.zeros_like(self.depth_M)
        potential_M = torch.zeros_like(completed_M)
        for nodes, parents, _ in self.levels:
            fail = self.fail_M[nodes]
            completed_M[nodes] += completed_M[fail]
            since_M[nodes] = torch.where(self.ends_M[nodes] != 0, 0, since_M[parents] + 1)
            goes_on = ~self.bonus_M[nodes].isinf()
            unfinished = torch.where(
                goes_on, self.bonus_M[nodes] * since_M[nodes], potential_M[fail] - completed_M[fail]
            )
            potential_M[nodes] = completed_M[nodes] + unfinished
        return completed_M.float(), potential_M.float()


def _merged(
    keys: Tensor, following: Tensor, more_keys: Tensor, more_next: Tensor, own_keys: Tensor, own_next: Tensor
) -> tuple[Tensor, Tensor]:
    """All arcs sorted by key; where a node has an arc of its own, the inherited one gives way."""
    if len(own_keys) and len(more_keys):
        keep = ~find(own_keys, more_keys)[1]
        more_keys, more_next = more_keys[keep], more_next[keep]
    keys, order = torch.cat([keys, more_keys, own_keys]).sort()
    return keys, torch.cat([following, more_next, own_next])[order]


# ------------------------------------------------------------------------------------------------- lists from a config


class Biasing:
    """`decoding.biasing`: the phrases of a file or of a list, ready for any batch of utterances.

    source: a list of phrases; or a file with a phrase a line, optionally a tab and what a token of it is worth; or a
    .jsonl file of lines {"id": utterance, "phrases": [...]}, one list an utterance (those not in it get none).
    bonus: nats a token is worth where the file does not say. Spaces within a phrase separate words; letters are to be
    written as in the transcripts.
    Raises FileNotFoundError, or ValueError naming the phrase that cannot be spelt or the line that cannot be read.
    """

    def __init__(self, source: str | Sequence[str], tokenizer: Any, bonus: float) -> None:
        self.list_of_id: dict[str, int] = {}
        if not isinstance(source, str):
            lists: list[list[tuple[str, float]]] = [[(text, bonus) for text in source]]
        elif not Path(source).is_file():
            raise FileNotFoundError(
                f"decoding.biasing={source}: no such file (phrases themselves go as a list, [A B,C])"
            )
        elif source.endswith(".jsonl"):
            lists = [[]]
            for line in _json_lines(source):
                self.list_of_id[line["id"]] = len(lists)
                lists.append([(text, bonus) for text in line["phrases"]])
        else:
            lists = [[_phrase_line(line, bonus, source) for line in _lines(source)]]
        starts_V = torch.tensor([t.startswith(WORD_START) for t in tokenizer.tokens])
        self.scorer = BiasScorer(
            [[_spell(text, worth, tokenizer) for text, worth in some] for some in lists],
            tokenizer.vocab_size,
            tokenizer.blank_id,
            starts_V,
        )

    def for_utterances(self, ids: Sequence[str]) -> BiasScorer:
        """The scorer for a batch."""
        return self.scorer.choose([self.list_of_id.get(id, 0) for id in ids] if self.list_of_id else None)


def _spell(text: str, bonus: float, tokenizer: Any) -> Phrase:
    tokens = tokenizer.encode(" ".join(text.split()))
    if not tokens or tokenizer.unk_id in tokens:
        raise ValueError(
            f"decoding.biasing: phrase {text!r} cannot be spelt with the model's tokens: expected words written as the "
            "transcripts are, upper or lower case included"
        )
    return Phrase(tuple(tokens), bonus)


def _lines(path: str) -> list[str]:
    return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def _phrase_line(line: str, bonus: float, path: str) -> tuple[str, float]:
    text, tab, worth = line.partition("\t")
    try:
        return text, float(worth) if tab else bonus
    except ValueError:
        raise ValueError(f"{path}: {line!r}: expected a phrase, or a phrase, a tab and a number") from None


def _json_lines(path: str) -> list[dict[str, Any]]:
    lines = []
    for number, line in enumerate(_lines(path), 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            entry = None
        good = isinstance(entry, dict) and isinstance(entry.get("id"), str) and isinstance(entry.get("phrases"), list)
        if not good:
            raise ValueError(f'{path}, line {number}: expected {{"id": "…", "phrases": ["…", …]}}')
        lines.append(entry)
    return lines
