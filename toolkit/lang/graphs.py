"""Decoding graphs: G from an n-gram model, and H, L and G composed to HL, LG and HLG, made once and kept on disk.

Labels of H are the network's outputs (0 is blank), its aux_labels and L's labels are tokens, L's aux_labels and G's labels
are words. So HLG's labels are network outputs and its aux_labels words. Source: Mohri, Pereira and Riley, "Weighted
finite-state transducers in speech recognition", 2002.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import ops
from ops import Fsa, NgramLM, SymbolTable
from ops.ragged import RaggedTensor
from toolkit.lang.arcs import fsa_of_arcs
from toolkit.lang.cache import cached_fsa, lexicon_digest, lm_digest, tokens_digest
from toolkit.lang.lexicon import Lexicon, Tokens

BACKOFF = "#0"


# --------------------------------------------------------------------------------------------------------------------- G


def ngram_to_fsa(lm: NgramLM, words: SymbolTable, backoff_label: str | None = BACKOFF, aux_labels: bool = False) -> Fsa:
    """G: accepts word sequences; a path that backs off only where it must has the score log P(sentence) of the model.

    States are the model's contexts, 0 the start of a sentence. P(</s> | context) is on the arcs into the final state.
    A back-off arc leads to the shorter context with the back-off weight. Going it without need is possible, and may, rarely,
    score better than the model says; no automaton without failure arcs avoids that.

    Args:
      lm: a model with arcs, so no KenLM binary.
      words: numbers of words. Words of the model that it lacks are left out, which the log says, <unk> among them unless
        `words` has <unk> or <UNK>.
      backoff_label: symbol of back-off arcs in `words`. It passes through L_disambig, so that LG can be determinised.
        None: label 0, for rescoring lattices.
      aux_labels: add aux_labels: the words, 0 on back-off arcs.
    """
    if not lm.has_arcs:
        raise ValueError("ngram_to_fsa: a KenLM binary does not list its n-grams; load the ARPA file it was made of")
    if backoff_label is not None and backoff_label not in words:
        raise ValueError(f"ngram_to_fsa: the word table has no {backoff_label!r} for back-off arcs")
    label_of = _labels_of(lm, words)
    splits = lm.arc_splits_S1.numpy().astype(np.int64)
    num_states = lm.num_states
    src = np.repeat(np.arange(num_states), np.diff(splits))
    word, dest, score = (x.numpy() for x in (lm.arc_words_A, lm.arc_next_A, lm.arc_log_probs_A))
    label = label_of[word]
    ends = word == lm.end_word
    keep = (label > 0) | ends
    backoff = lm.backoff_state_S.numpy().astype(np.int64)
    longer = np.flatnonzero(backoff >= 0)
    number = 0 if backoff_label is None else words[backoff_label]
    columns = (
        (src[keep], longer),
        (np.where(ends, num_states, dest)[keep], backoff[longer]),
        (np.where(ends, -1, label)[keep], np.full(longer.size, number)),
        (score[keep], lm.backoff_log_prob_S.numpy()[longer]),
    )
    src, dest, label, score = (np.concatenate(pair) for pair in columns)
    place = np.arange(num_states + 1)  # the start becomes state 0
    place[[0, lm.start_state]] = place[[lm.start_state, 0]]
    aux = np.where(label == number, 0, label) if aux_labels else None
    return ops.connect(fsa_of_arcs(place[src], place[dest], label, score, num_states + 1, aux))


def _labels_of(lm: NgramLM, words: SymbolTable) -> np.ndarray:
    """The label of each word of the model, 0 for those without one, which are counted and named."""
    ids = dict(words._sym2id)
    if "<unk>" not in ids and "<UNK>" in ids:
        ids["<unk>"] = ids["<UNK>"]
    labels = np.array([ids.get(word, 0) for word in lm.words], dtype=np.int64)
    special = {"<s>", "</s>", "<unk>", "<UNK>", "<eps>", BACKOFF, "!SIL", "<SPOKEN_NOISE>"}
    labels[[i for i, word in enumerate(lm.words) if word in ("<s>", "</s>", "<eps>", BACKOFF)]] = 0
    without = [word for word, label in zip(lm.words, labels) if label == 0 and word not in special]
    known = set(lm.words)
    unseen = [word for word in words.symbols if word not in known and word not in special]
    if len(without) == len(set(lm.words) - special) > 0:
        raise ValueError(
            f"G: none of the {len(without)} words of the language model is among the {len(words)} words "
            f"(e.g. {without[0]!r} and {unseen[-1] if unseen else ''!r}): upper and lower case?"
        )
    _report("words of the language model have no spelling and are left out", without)
    _report("words are not in the language model and cannot be recognised", unseen)
    return labels


def _report(what: str, words: list[str]) -> None:
    if words:
        logging.warning("G: %d %s: %s%s", len(words), what, ", ".join(words[:10]), ", ..." if len(words) > 10 else "")


# ------------------------------------------------------------------------------------------------------- H, L, G together


def make_hl(
    lexicon: Lexicon,
    tokens: Tokens,
    words: SymbolTable | None = None,
    modified: bool = False,
    silence: str | None = None,
    silence_prob: float = 0.5,
    cache: str | Path | None = None,
) -> Fsa:
    """H∘L: any sequence of the lexicon's words, without a language model. Arguments as for make_hlg."""

    def make() -> Fsa:
        step = _Steps("HL")
        graph = step("L", lambda: lexicon.fsa(tokens, words, silence=silence, silence_prob=silence_prob))
        if silence is not None:
            graph = step("without epsilons", lambda: ops.remove_epsilon(graph))
        return _with_topology(graph, tokens, modified, step)

    options = {"modified": modified, "silence": silence, "silence_prob": silence_prob}
    return cached_fsa(cache, {"graph": "HL", **_inputs(lexicon, tokens, words), **options}, make)


def make_lg(
    lexicon: Lexicon,
    lm: NgramLM,
    tokens: Tokens,
    words: SymbolTable | None = None,
    silence: str | None = None,
    silence_prob: float = 0.5,
    minimize: bool = True,
    cache: str | Path | None = None,
) -> Fsa:
    """L∘G: transduces the tokens of sentences to their words, scored by the lexicon and the language model.

    Composed with disambiguation symbols, determinised, minimised, then the symbols and epsilons removed: labels are
    tokens only, and every arc consumes one. Arguments as for make_hlg.
    """

    def make() -> Fsa:
        step = _Steps("LG")
        table = lexicon.word_table() if words is None else words
        l_fsa = step("L", lambda: lexicon.fsa(tokens, table, True, silence, silence_prob))
        g_fsa = step("G", lambda: ngram_to_fsa(lm, table))
        graph = step("composed", lambda: ops.connect(ops.compose(l_fsa, g_fsa)))
        if graph.num_arcs == 0:
            raise ValueError("LG: no word of the language model has a spelling in the lexicon")
        graph = step("determinised", lambda: ops.determinize(graph))
        if minimize:
            graph = step("minimised", lambda: ops.minimize(graph, delta=1e-5, push_scores=False))
        graph = _without_symbols(graph, _num_tokens(tokens), table[BACKOFF])
        graph = step("without epsilons", lambda: ops.remove_epsilon(graph))
        return step("connected", lambda: ops.connect(graph))

    options = {"silence": silence, "silence_prob": silence_prob, "minimize": minimize}
    inputs = {"graph": "LG", **_inputs(lexicon, tokens, words), "language model": lm_digest(lm), **options}
    return cached_fsa(cache, inputs, make)


def make_hlg(
    lexicon: Lexicon,
    lm: NgramLM,
    tokens: Tokens,
    words: SymbolTable | None = None,
    modified: bool = False,
    silence: str | None = None,
    silence_prob: float = 0.5,
    minimize: bool = True,
    cache: str | Path | None = None,
) -> Fsa:
    """H∘L∘G: transduces the frame labels of a CTC network to words; for get_lattice and the like.

    Arc attributes: aux_labels (words, ragged), tokens, and lm_scores: a copy of the scores, which all come from the language
    model and the lexicon, so that rescoring can tell them from the network's.

    Args:
      lexicon: how words are spelled; those that the language model lacks are counted, named and left out.
      lm: an n-gram model with arcs (`NgramLM.load` of an ARPA file).
      tokens: the network's outputs by number, blank first; a token of the lexicon that is not there is a ValueError.
      words: numbers of words, default lexicon.word_table().
      modified: H is the modified CTC topology: equal tokens in a row need no blank between them (ops.ctc_topo).
      silence, silence_prob: see Lexicon.fsa.
      minimize: merge states with equal futures: smaller, a little slower to make.
      cache: a file to keep it in; used again as long as all of the above, and the code, are the same.
    """

    def make() -> Fsa:
        graph = make_lg(lexicon, lm, tokens, words, silence, silence_prob, minimize)
        hlg = _with_topology(graph, tokens, modified, _Steps("HLG"))
        hlg.lm_scores = hlg.scores.clone()
        return hlg

    options = {"modified": modified, "silence": silence, "silence_prob": silence_prob, "minimize": minimize}
    inputs = {"graph": "HLG", **_inputs(lexicon, tokens, words), "language model": lm_digest(lm), **options}
    return cached_fsa(cache, inputs, make)


def _with_topology(graph: Fsa, tokens: Tokens, modified: bool, step: _Steps) -> Fsa:
    topology = ops.ctc_topo(_num_tokens(tokens) - 1, modified)
    composed = step("composed with H", lambda: ops.compose(topology, graph, inner_labels="tokens"))
    return step("connected", lambda: ops.connect(composed))


def _num_tokens(tokens: Tokens) -> int:
    return max(tokens.ids) + 1 if isinstance(tokens, SymbolTable) else len(tokens)


def _without_symbols(graph: Fsa, num_tokens: int, first_word: int) -> Fsa:
    """`graph` with the labels of disambiguation symbols and back-off words made 0."""
    graph.labels = torch.where(graph.labels >= num_tokens, 0, graph.labels)
    aux: RaggedTensor = graph.aux_labels  # type: ignore[assignment]
    graph.aux_labels = RaggedTensor(aux.shape, torch.where(aux.values == first_word, 0, aux.values)).remove_values_eq(0)
    return graph


def _inputs(lexicon: Lexicon, tokens: Tokens, words: SymbolTable | None) -> dict[str, object]:
    table = None if words is None else tokens_digest(words)
    return {"lexicon": lexicon_digest(lexicon), "tokens": tokens_digest(tokens), "words": table}


class _Steps:
    """Runs steps and logs what each made, and its seconds."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, what: str, make: Callable[[], Fsa]) -> Fsa:
        begin = time.perf_counter()
        fsa = make()
        seconds = time.perf_counter() - begin
        logging.info("%s: %s, %d states, %d arcs, %.1f s", self.name, what, fsa.shape[0] or 0, fsa.num_arcs, seconds)
        return fsa
