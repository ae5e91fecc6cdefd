"""Decoding graphs of the user's own for `fast_beam_search`: lists of phrases, and graphs kept in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ops import Fsa
from ops.ragged import RaggedShape
from ops.ragged.shape import ids_to_splits


def phrase_graph(
    phrases: Sequence[str],
    encode: Callable[[str], Iterable[int]],
    repeat: bool = False,
    scores: Sequence[float] | None = None,
    unk_id: int | None = None,
) -> Fsa:
    """An acceptor of token sequences that spell one of the phrases or, with `repeat`, any number of them in a row.

    So `phrase_graph(["one", "two", ...], tokenizer.encode, repeat=True)` is a grammar of digit strings. Phrases with
    equal beginnings share states. aux_labels: at the last token of a phrase its number in the list, counted from 1.

    encode: text to token ids. scores: natural logs added for each phrase, 0 by default.
    unk_id: a token that no phrase may contain.
    Raises ValueError naming a phrase that has no tokens or one that cannot be spelled.
    """
    if not phrases:
        raise ValueError("phrases: the list is empty")
    if scores is not None and len(scores) != len(phrases):
        raise ValueError(f"scores: {len(scores)} for {len(phrases)} phrases")
    nodes: dict[tuple[int, int], int] = {}  # a trie: (state, token) to state; state 0 starts, 1 is the end of a phrase
    count = 1 if repeat else 2
    arcs: dict[tuple[int, int, int], tuple[int, float]] = {}  # (src, dest, token) to (phrase number, score)
    for number, phrase in enumerate(phrases, start=1):
        tokens = list(encode(phrase))
        if not tokens or 0 in tokens or unk_id in tokens:
            raise ValueError(f"phrases: {phrase!r} cannot be spelled: its tokens are {tokens}")
        state = 0
        for token in tokens[:-1]:
            if (state, token) not in nodes:
                nodes[state, token] = count
                arcs[state, count, token] = (0, 0.0)
                count += 1
            state = nodes[state, token]
        last = (state, 0 if repeat else 1, tokens[-1])
        score = 0.0 if scores is None else scores[number - 1]
        if last not in arcs or arcs[last][1] < score:
            arcs[last] = (number, score)
    arcs[0 if repeat else 1, count, -1] = (-1, 0.0)
    ordered = sorted(arcs, key=lambda arc: arc[0])
    arcs3 = torch.tensor(ordered, dtype=torch.int32)
    values = [arcs[arc] for arc in ordered]
    shape = RaggedShape(splits=[ids_to_splits(arcs3[:, 0], count + 1)])
    graph = Fsa.from_arcs(shape, arcs3, torch.tensor([score for _, score in values], dtype=torch.float32))
    graph.aux_labels = torch.tensor([number for number, _ in values], dtype=torch.int32)
    return graph


def read_phrases(path: str | Path) -> tuple[list[str], list[float]]:
    """A line a phrase, optionally a tab and a score (natural log) behind it; empty lines are skipped."""
    phrases, scores = [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        phrase, _, score = line.partition("\t")
        if not phrase.strip():
            continue
        try:
            scores.append(float(score) if score.strip() else 0.0)
        except ValueError:
            raise ValueError(f"{path}, line {number}: {score!r} is not a score") from None
        phrases.append(phrase.strip())
    return phrases, scores


def save_graph(graph: Fsa, path: str | Path) -> None:
    """For `load_graph`."""
    torch.save(graph.as_dict(), path)


@lru_cache(maxsize=4)
def _load(path: str, changed: float) -> Fsa:
    kept: Any = torch.load(path, map_location="cpu", weights_only=True)
    graph = kept if isinstance(kept, Fsa) else Fsa.from_dict(kept)
    if graph.is_vec():
        if graph.shape[0] != 1:
            raise ValueError(f"{path}: holds {graph.shape[0]} graphs: expected one")
        graph = graph[0]
    return graph


def load_graph(path: str | Path) -> Fsa:
    """A graph from `save_graph`, `torch.save(fsa)` or `torch.save(fsa.as_dict())`; read once as long as it is in use."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"decoding graph: no {path}")
    return _load(str(path), Path(path).stat().st_mtime)
