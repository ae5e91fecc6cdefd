"""Searches: from encoder outputs to token sequences, all with one result type.

result.py     Hypothesis, SearchResult
predictor.py  decoder and joiner as the searches use them (decoder outputs cached by context)
greedy.py     greedy_search (S symbols a frame), ctc_greedy_search
beam.py       modified_beam_search
ctc_prefix.py ctc_prefix_beam_search
lattice.py    LatticeSearch: 1best, 1best_hlg, nbest, nbest_rescoring, whole_lattice_rescoring, nbest_oracle
posteriors.py confidences from lattices and n-best lists
words.py      tokens with times → words with times

`SEARCHES` names them for configs: a new search is one function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from toolkit.config import DecodingConfig, LatticeConfig
from toolkit.search.beam import modified_beam_search
from toolkit.search.ctc_prefix import ctc_prefix_beam_search
from toolkit.search.greedy import ctc_greedy_search, greedy_search
from toolkit.search.lattice import LATTICE_METHODS, LatticeSearch, check_graphs
from toolkit.search.result import Hypothesis, SearchResult
from toolkit.search.words import Word, to_words

__all__ = [
    "LATTICE_METHODS",
    "SEARCHES",
    "Hypothesis",
    "LatticeSearch",
    "SearchResult",
    "Word",
    "check_methods",
    "ctc_greedy_search",
    "ctc_prefix_beam_search",
    "greedy_search",
    "modified_beam_search",
    "to_words",
]

Search = Callable[[Any, Tensor, Tensor, DecodingConfig], list[SearchResult]]


def _softmax(config: DecodingConfig) -> dict[str, float]:
    """The options of every transducer search."""
    return {"temperature": config.temperature, "blank_penalty": config.blank_penalty}


SEARCHES: dict[str, Search] = {
    "greedy_search": lambda model, enc, lens, config: greedy_search(
        model, enc, lens, config.max_symbols, **_softmax(config)
    ),
    "modified_beam_search": lambda model, enc, lens, config: modified_beam_search(
        model, enc, lens, config.beam, config.length_norm, merge=config.merge, **_softmax(config)
    ),
    "ctc_greedy_search": lambda model, enc, lens, config: ctc_greedy_search(model, enc, lens),
    "ctc_prefix_beam_search": lambda model, enc, lens, config: ctc_prefix_beam_search(model, enc, lens, config.beam),
}
CTC_SEARCHES = {"ctc_greedy_search", "ctc_prefix_beam_search", *LATTICE_METHODS}  # those that read the CTC head


def check_methods(
    methods: list[str], has_ctc: bool, has_transducer: bool = True, lattice: LatticeConfig | None = None
) -> None:
    """Raise ValueError naming what is wrong with `decoding.methods`, so that it is said before an hour of decoding."""
    if not methods:
        raise ValueError(f"decoding.methods is empty: expected some of {', '.join([*SEARCHES, *LATTICE_METHODS])}")
    for method in methods:
        if method not in SEARCHES and method not in LATTICE_METHODS:
            known = ", ".join([*SEARCHES, *LATTICE_METHODS])
            raise ValueError(f"decoding.methods: {method!r} is not a search; known: {known}")
        if method in CTC_SEARCHES and not has_ctc:
            raise ValueError(
                f"decoding.methods: {method!r} needs a CTC head; this model has none (model.ctc_head=false)"
            )
        if method not in CTC_SEARCHES and not has_transducer:
            raise ValueError(
                f"decoding.methods: {method!r} needs a transducer; this model was trained by CTC alone (loss.pruned): "
                f"take {', '.join(sorted(CTC_SEARCHES))}"
            )
    if lattice is not None:
        check_graphs(methods, lattice)
