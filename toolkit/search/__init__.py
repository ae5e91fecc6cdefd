"""Searches: from encoder outputs to token sequences, all with one result type.

result.py     Hypothesis, SearchResult
predictor.py  decoder and joiner as the searches use them (decoder outputs cached by context)
waits.py      a counter of what makes the host wait for a GPU; cuda_graph.py: frames recorded as CUDA graphs
greedy.py     greedy_search (S symbols a frame), ctc_greedy_search
beam.py       modified_beam_search
ctc_prefix.py ctc_prefix_beam_search
lattice.py    LatticeSearch: 1best, 1best_hlg, nbest, nbest_rescoring, whole_lattice_rescoring, nbest_oracle
posteriors.py confidences from lattices and n-best lists
best_first.py beam_search (Graves'; S symbols a frame)
fast_beam.py  fast_beam_search, …_nbest, …_nbest_oracle: on decoding graphs, to lattices
ctc_beam.py   ctc_beam: the CTC head with a lexicon and an n-gram model (ops.ctc_decoder)
graphs.py     decoding graphs from lists of phrases, and in files
scorers.py    what may be added to a search: the protocol, sums; lm_scorers.py: language models; biasing.py: phrases
guide.py, rescoring.py  scorers in the FSA-based search; n-best lists ranked anew
words.py      tokens with times → words with times

`SEARCHES` names them for configs: a new search is one function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ops import Fsa
from toolkit.config import DecodingConfig, LatticeConfig
from toolkit.search.beam import modified_beam_search
from toolkit.search.best_first import beam_search
from toolkit.search.ctc_beam import ctc_beam
from toolkit.search.ctc_prefix import ctc_prefix_beam_search
from toolkit.search.fast_beam import (
    FastBeam,
    fast_beam_search,
    fast_beam_search_lattice,
    fast_beam_search_nbest,
    fast_beam_search_nbest_oracle,
)
from toolkit.search.graphs import load_graph, phrase_graph, save_graph
from toolkit.search.greedy import ctc_greedy_search, greedy_search
from toolkit.search.lattice import LATTICE_METHODS, LatticeSearch, check_graphs
from toolkit.search.result import Hypothesis, SearchResult
from toolkit.search.words import Word, to_words

__all__ = [
    "CTC_SEARCHES",
    "LATTICE_METHODS",
    "ORACLES",
    "SEARCHES",
    "FastBeam",
    "Hypothesis",
    "LatticeSearch",
    "SearchResult",
    "Word",
    "beam_search",
    "check_methods",
    "ctc_beam",
    "ctc_greedy_search",
    "ctc_prefix_beam_search",
    "fast_beam_search",
    "fast_beam_search_lattice",
    "fast_beam_search_nbest",
    "fast_beam_search_nbest_oracle",
    "greedy_search",
    "load_graph",
    "modified_beam_search",
    "phrase_graph",
    "save_graph",
    "to_words",
]

# Of (model, encoder output, lengths, config); those that are not in CTC_SEARCHES also take `scorers`.
Search = Callable[..., list[SearchResult]]


def _softmax(config: DecodingConfig) -> dict[str, Any]:
    """The options of every transducer search."""
    return {"temperature": config.temperature, "blank_penalty": config.blank_penalty}


def _bounds(config: DecodingConfig) -> FastBeam:
    return FastBeam(config.fast_beam.beam, config.fast_beam.max_states, config.fast_beam.max_contexts)


def _graph(config: DecodingConfig) -> Fsa:
    if config.fast_beam.graph is None:
        raise ValueError("decoding.fast_beam.graph: the methods …_LG need a decoding graph")
    return load_graph(config.fast_beam.graph)


def _fsa(config: DecodingConfig) -> dict[str, Any]:
    """The options of the searches on graphs."""
    return {"allow_partial": config.fast_beam.allow_partial, **_softmax(config)}


def _nbest(config: DecodingConfig) -> dict[str, Any]:
    return {
        "num_paths": config.fast_beam.num_paths,
        "nbest_scale": config.fast_beam.nbest_scale,
        "merge": config.merge,
        "length_norm": config.length_norm,
        **_fsa(config),
    }


SEARCHES: dict[str, Search] = {
    "greedy_search": lambda model, enc, lens, config, scorers=(): greedy_search(
        model, enc, lens, config.max_symbols, **_softmax(config), scorers=scorers, cuda_graphs=config.cuda_graphs
    ),
    "modified_beam_search": lambda model, enc, lens, config, scorers=(): modified_beam_search(
        model,
        enc,
        lens,
        config.beam,
        config.length_norm,
        merge=config.merge,
        **_softmax(config),
        scorers=scorers,
        cuda_graphs=config.cuda_graphs,
    ),
    "beam_search": lambda model, enc, lens, config, scorers=(): beam_search(
        model,
        enc,
        lens,
        config.beam,
        config.max_symbols,
        config.length_norm,
        merge=config.merge,
        **_softmax(config),
        scorers=scorers,
    ),
    "fast_beam_search": lambda model, enc, lens, config, scorers=(): fast_beam_search(
        model, enc, lens, None, _bounds(config), **_fsa(config), scorers=scorers
    ),
    "fast_beam_search_nbest": lambda model, enc, lens, config, scorers=(): fast_beam_search_nbest(
        model, enc, lens, None, _bounds(config), **_nbest(config), scorers=scorers
    ),
    "fast_beam_search_LG": lambda model, enc, lens, config, scorers=(): fast_beam_search(
        model, enc, lens, _graph(config), _bounds(config), **_fsa(config), scorers=scorers
    ),
    "fast_beam_search_nbest_LG": lambda model, enc, lens, config, scorers=(): fast_beam_search_nbest(
        model, enc, lens, _graph(config), _bounds(config), **_nbest(config), scorers=scorers
    ),
    "ctc_greedy_search": lambda model, enc, lens, config: ctc_greedy_search(model, enc, lens),
    "ctc_prefix_beam_search": lambda model, enc, lens, config: ctc_prefix_beam_search(model, enc, lens, config.beam),
    "ctc_beam": lambda model, enc, lens, config: ctc_beam(model, enc, lens, config.ctc_beam),
}
CTC_SEARCHES = {
    "ctc_greedy_search",
    "ctc_prefix_beam_search",
    "ctc_beam",
    *LATTICE_METHODS,
}  # those that read the CTC head
# Those that are told what was said (token ids of each utterance): how good a lattice is.
ORACLES: dict[str, Callable[[Any, Tensor, Tensor, DecodingConfig, list[list[int]]], list[SearchResult]]] = {
    "fast_beam_search_nbest_oracle": lambda model, enc, lens, config, references: fast_beam_search_nbest_oracle(
        model, enc, lens, references, None, _bounds(config), **_nbest(config)
    ),
}


def check_methods(
    methods: list[str], has_ctc: bool, has_transducer: bool = True, lattice: LatticeConfig | None = None
) -> None:
    """Raise ValueError naming what is wrong with `decoding.methods`, so that it is said before an hour of decoding."""
    known = [*SEARCHES, *ORACLES, *LATTICE_METHODS]
    if not methods:
        raise ValueError(f"decoding.methods is empty: expected some of {', '.join(known)}")
    for method in methods:
        if method not in known:
            raise ValueError(f"decoding.methods: {method!r} is not a search; known: {', '.join(known)}")
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
