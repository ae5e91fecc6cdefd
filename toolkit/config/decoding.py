"""Sections about searches, the tables made of them, and alignment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from toolkit.config.section import Section, one_of, require


@dataclass
class LatticeConfig(Section):
    """Methods of toolkit/search/lattice.py, which decode the CTC head by graphs.

    Language models are word n-grams as ARPA: of train_lm.py with lm=ngram lm.unit=word, or of any other origin.
    """

    ngram: Optional[str] = None  # inside HLG; its words, spelled by the model's tokens, are the vocabulary
    rescore_ngram: Optional[str] = None  # the larger one of nbest_rescoring and whole_lattice_rescoring
    search_beam: float = 20.0
    output_beam: float = 8.0
    min_active_states: int = 30
    max_active_states: int = 10000
    num_paths: int = 100  # n-best methods: paths drawn from a lattice
    nbest_scale: float = 1.0  # less draws more varied paths
    # All are tried in one run; the one with the lowest WER on the validation parts is reported for the test parts.
    lm_scales: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3])
    posterior_scale: float = 1.0  # of scores, for confidences

    def check(self) -> None:
        require(len(self.lm_scales) > 0, "decoding.lattice.lm_scales", self.lm_scales, "at least one")
        require(self.num_paths >= 1, "decoding.lattice.num_paths", self.num_paths, "at least 1")


@dataclass
class FastBeamConfig(Section):
    """The methods fast_beam_search…: see toolkit/search/fast_beam.py."""

    beam: float = 20.0
    max_states: int = 64
    max_contexts: int = 8
    num_paths: int = 100  # n-best methods: paths drawn from a lattice
    nbest_scale: float = 0.5  # less draws more varied paths
    # Methods …_LG: a graph saved by toolkit.search.graphs.save_graph, or a text file with a phrase a line.
    graph: Optional[str] = None
    graph_scale: float = 1.0  # of the graph's scores: an LG at full weight makes a weak model delete words
    repeat: bool = True  # any number of the phrases of a text file in a row
    allow_partial: bool = False  # where the graph's end cannot be reached, take what there is

    def check(self) -> None:
        require(self.beam > 0, "decoding.fast_beam.beam", self.beam, "more than 0")
        require(self.graph_scale >= 0, "decoding.fast_beam.graph_scale", self.graph_scale, "at least 0")
        for name in ("max_states", "max_contexts", "num_paths"):
            require(getattr(self, name) >= 1, f"decoding.fast_beam.{name}", getattr(self, name), "at least 1")


@dataclass
class CtcBeamConfig(Section):
    """The method ctc_beam: see ops.ctc_decoder for what each means, toolkit/search/ctc_beam.py for the lexicon's formats."""

    lm: Optional[str] = None  # ARPA, ARPA.gz or KenLM binary: of words, or of tokens without a lexicon
    lexicon: Optional[str] = None  # words with their tokens, or words alone
    nbest: int = 1
    beam_size: int = 50
    beam_threshold: float = 15.0
    beam_size_token: int = 0  # 0: all
    lm_weight: float = 1.5  # of log10 probabilities
    word_score: float = 0.0
    log_add: bool = False
    merge: str = "history"  # or "lm_state": quicker, n-best lists less varied
    blank_skip: float = 0.0  # frames with a blank more probable than this are skipped; 0: none
    tokens: list[str] = field(default_factory=list)  # filled in from the checkpoint
    # What recipes/librispeech/sweep_ctc_beam.py tries, all with all.
    sweep_lm_weight: list[float] = field(default_factory=lambda: [0.5, 1.0, 1.5, 2.0, 3.0])
    sweep_word_score: list[float] = field(default_factory=lambda: [-1.0, 0.0, 1.0, 2.0])
    sweep_beam_size: list[int] = field(default_factory=lambda: [5, 20, 100])

    def check(self) -> None:
        one_of("decoding.ctc_beam.merge", self.merge, ("history", "lm_state"))
        for name in ("nbest", "beam_size"):
            require(getattr(self, name) >= 1, f"decoding.ctc_beam.{name}", getattr(self, name), "at least 1")
        require(self.beam_size_token >= 0, "decoding.ctc_beam.beam_size_token", self.beam_size_token, "at least 0")
        require(self.beam_threshold > 0, "decoding.ctc_beam.beam_threshold", self.beam_threshold, "more than 0")
        require(0 <= self.blank_skip <= 1, "decoding.ctc_beam.blank_skip", self.blank_skip, "a probability")


@dataclass
class DecodingConfig(Section):
    methods: list[str] = field(default_factory=lambda: ["greedy_search", "modified_beam_search"])
    max_symbols: int = 1  # greedy_search, beam_search: symbols per frame; 0 means no limit
    beam: int = 4  # modified_beam_search, beam_search: hypotheses kept
    temperature: float = 1.0  # all transducer searches: logits are divided by it
    blank_penalty: float = 0.0  # all transducer searches: taken off the logit of blank
    merge: str = "log_add"  # alignments of the same tokens: "log_add" or "max"
    length_norm: bool = False  # rank the n-best list by score / (tokens + context size)
    fast_beam: FastBeamConfig = field(default_factory=FastBeamConfig)
    # Scorers, in all transducer searches (docs/language-models.md). A list of scales: all are tried in one run.
    lm: Optional[str] = None  # an n-gram (ARPA, KenLM), or a run or checkpoint of train_lm.py
    lm_unit: str = "auto"  # of an n-gram: "token", "word", or found out
    lm_mode: str = "fusion"  # in the search; "rescore": its n-best list is ranked anew
    lm_scale: Any = 0.3
    lodr: Optional[str] = None  # a low-order n-gram over tokens of the training transcripts, to be taken away
    lodr_scale: Any = 0.1
    biasing: Any = None  # a list of phrases, or a file of them (toolkit/search/biasing.py)
    bias_scale: Any = 1.0  # nats for each token of a phrase
    max_duration: float = 200.0
    cuda_graphs: bool = (
        True  # on a GPU: greedy and modified beam search record their frames (toolkit/search/cuda_graph.py)
    )
    # Which model: "best", "last", an epoch number, or a path; `avg` averages that many epochs up to it.
    checkpoint: str = "best"
    avg: int = 1
    use_averaged_model: bool = True
    lattice: LatticeConfig = field(default_factory=LatticeConfig)
    ctc_beam: CtcBeamConfig = field(default_factory=CtcBeamConfig)

    def check(self) -> None:
        require(self.avg >= 1, "decoding.avg", self.avg, "at least 1")
        one_of("decoding.lm_unit", self.lm_unit, ("auto", "token", "word"))
        one_of("decoding.lm_mode", self.lm_mode, ("fusion", "rescore"))
        for key in ("lm_scale", "lodr_scale", "bias_scale"):
            value = getattr(self, key)
            good = bool(value != []) and all(
                isinstance(x, (int, float)) for x in (value if isinstance(value, list) else [value])
            )
            require(good, f"decoding.{key}", value, "a number or a list of numbers")
        texts = self.biasing if isinstance(self.biasing, list) else [self.biasing or ""]
        require(all(isinstance(x, str) for x in texts), "decoding.biasing", self.biasing, "a file or a list of phrases")
        require(self.temperature > 0, "decoding.temperature", self.temperature, "more than 0")
        one_of("decoding.merge", self.merge, ("log_add", "max"))


@dataclass
class TablesConfig(Section):
    """recipes/librispeech/tables.py: the tables of arXiv 2211.00484 from one run a transducer type and lm_only_scale.

    The runs are exp_root/<name>-<type>-<scale>, where <scale> is lm_only_scale in percent.
    """

    types: list[str] = field(default_factory=lambda: ["regular", "modified", "constrained"])
    lm_only_scales: list[float] = field(default_factory=lambda: [0.0, 0.25])
    tables: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5, 6])
    train: bool = False  # train the runs that are missing or unfinished, with the given config
    train_minutes: Optional[float] = None  # for each of them, in one call
    max_utterances: Optional[int] = None  # of each test part, from its beginning
    timing_utterances: int = 64  # for real-time factors one utterance at a time
    timing_repeats: int = 3  # the best counts

    def check(self) -> None:
        for kind in self.types:
            one_of("tables.types", kind, ("regular", "modified", "constrained"))
        require(set(self.tables) <= set(range(1, 7)), "tables.tables", self.tables, "some of 1 … 6")
        require(self.timing_repeats >= 1, "tables.timing_repeats", self.timing_repeats, "at least 1")


@dataclass
class AlignConfig(Section):
    """recipes/librispeech/align.py; which checkpoint is said in `decoding`."""

    method: str = "auto"  # ctc, transducer; auto: the transducer where there is one
    textgrid: bool = True  # a file an utterance, besides the CTM files

    def check(self) -> None:
        one_of("align.method", self.method, ("auto", "ctc", "transducer"))
