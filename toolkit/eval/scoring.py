"""From `decoding.lm`, `decoding.lodr` and `decoding.biasing` to scorers for each batch; a sweep is several `Variant`s."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.config import DecodingConfig, numbers
from toolkit.search.biasing import Biasing
from toolkit.search.lm_scorers import NeuralScorer, NgramScorer, WordNgramScorer
from toolkit.search.scorers import Scorer, SumScorer


@dataclass(frozen=True)
class Variant:
    """What is added to a search in one setting of the scales."""

    fused: tuple[Scorer, ...] = ()  # take part in the search
    rescoring: tuple[Scorer, ...] = ()  # rank its n-best list anew
    biasing: Biasing | None = None
    bias_scale: float = 0.0

    def scorers(self, ids: Sequence[str]) -> list[Scorer]:
        """For the search in a batch of these utterances."""
        if self.biasing is None or self.bias_scale == 0.0:
            return list(self.fused)
        return [*self.fused, _scaled(self.biasing.for_utterances(ids), self.bias_scale)]


def _grid(d: DecodingConfig) -> list[tuple[float | None, ...]]:
    """All combinations of the scales of LM, source LM and biasing; None for what there is none of."""
    pairs = ((d.lm, d.lm_scale), (d.lodr, d.lodr_scale), (d.biasing, d.bias_scale))
    return list(itertools.product(*([None] if what is None else numbers(scales) for what, scales in pairs)))


def scoring_settings(d: DecodingConfig) -> list[str]:
    """A name for each combination of scales that `d` lists; "" where there is nothing to scale."""
    lm = "rescored by lm" if d.lm_mode == "rescore" else "lm"
    words = (lm, "lodr", "biasing")
    return [", ".join(f"{w} {x:g}" for w, x in zip(words, scales) if x is not None) for scales in _grid(d)]


def variants(d: DecodingConfig, tokenizer: Any) -> dict[str, Variant]:
    """What each of `scoring_settings` adds to a search.

    Raises FileNotFoundError for what is not there, ValueError for what does not fit the tokens.
    """
    if d.lodr is not None and d.lm is None:
        raise ValueError("decoding.lodr takes a source model away from an external one: expected decoding.lm, too")
    lm = load_scorer(d.lm, tokenizer, d.lm_unit, "decoding.lm") if d.lm is not None else None
    source = load_scorer(d.lodr, tokenizer, "token", "decoding.lodr") if d.lodr is not None else None
    biasing = Biasing(d.biasing, tokenizer, 1.0) if d.biasing is not None else None
    made = {}
    for name, (lm_scale, lodr_scale, bias_scale) in zip(scoring_settings(d), _grid(d)):
        scorers: list[Scorer] = []
        if lm is not None and lm_scale is not None:
            scorers.append(_scaled(lm, lm_scale))
        if source is not None and lodr_scale is not None:
            scorers.append(_scaled(source, -lodr_scale))
        rescore = d.lm_mode == "rescore"
        fused, rescoring = ((), scorers) if rescore else (scorers, ())
        made[name] = Variant(tuple(fused), tuple(rescoring), biasing, bias_scale or 0.0)
    return made


def _scaled(scorer: Scorer, scale: float) -> Scorer:
    return scorer if scale == 1.0 else SumScorer([scorer], [scale])


def load_scorer(path: str, tokenizer: Any, unit: str, key: str) -> Scorer:
    """The scorer of an n-gram file (ARPA, KenLM), or of a neural LM (a checkpoint, the folder of a run).

    unit: "token", "word", or "auto": over tokens if the LM has a word for nearly each of them, else over words.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{key}={path}: no such file or folder; recipes/librispeech/train_lm.py makes them")
    if Path(path).is_dir() and not any(Path(path).glob("*.pt")):
        arpas = sorted(Path(path).glob("*.arpa"))
        if len(arpas) != 1:
            raise ValueError(f"{key}={path}: {len(arpas)} n-gram models and no checkpoint there: name the file to take")
        path = str(arpas[0])
    if Path(path).is_dir() or Path(path).suffix == ".pt":
        return _neural(path, tokenizer, key)
    from ops import NgramLM

    lm = NgramLM.load(path)
    if unit == "word":
        return WordNgramScorer(lm, tokenizer.tokens, tokenizer.blank_id)
    try:
        return NgramScorer(lm, tokenizer.tokens, tokenizer.blank_id)
    except ValueError as error:
        if unit == "token":
            raise ValueError(f"{key}={path}: {error}") from None
    return WordNgramScorer(lm, tokenizer.tokens, tokenizer.blank_id)


def _neural(path: str, tokenizer: Any, key: str) -> Scorer:
    from toolkit.train.lm import load_lm

    lm, own = load_lm(path)
    if own.tokens != tokenizer.tokens:
        pairs = itertools.zip_longest(own.tokens, tokenizer.tokens)
        first = next(i for i, (a, b) in enumerate(pairs) if a != b)
        raise ValueError(
            f"{key}={path}: an LM over {len(own.tokens)} tokens, the model has {len(tokenizer.tokens)}; the first "
            f"difference is at id {first}. Train it with the recognizer's tokens (the same experiment=)"
        )
    return NeuralScorer(lm)
