"""Decoding with graphs: a lattice from a network's output, its best path, n-best lists, rescoring with an n-gram LM.

Names and arguments are icefall's and k2's. Throughout, `lm_scores` is an arc attribute: the part of `scores` that comes from
a language model, the rest is acoustic; with an LM scale s a path counts acoustic + s * LM. Where an utterance has no path
its result is an FSA without states, whose total score is -inf, and `without_path` names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ops.algorithms import compose, connect, remove_epsilon_self_loops, top_sort
from ops.dense import DenseFsaVec, intersect_dense_pruned
from ops.fsa import Fsa
from ops.nbest import Nbest, acoustic_scores, path_words
from ops.paths import shortest_path
from ops.ragged import RaggedTensor
from ops.symbol_table import SymbolTable


def get_lattice(
    log_prob: Tensor,
    log_prob_len: Tensor,
    decoding_graph: Fsa,
    search_beam: float = 20,
    output_beam: float = 8,
    min_active_states: int = 30,
    max_active_states: int = 10000,
    subsampling_factor: int = 1,
    frame_idx_name: str | None = None,
    allow_partial: bool = False,
) -> Fsa:
    """The lattice of each utterance: the good paths of the decoding graph through its frames.

    Args:
      log_prob: float (N, T, C) log-probabilities.
      log_prob_len: (N,) frames of each utterance; up to subsampling_factor - 1 more than T are cut off.
      decoding_graph: for instance `ctc_topo(max_token)` or HLG; one for all, or an FsaVec with one for each.
      search_beam ... max_active_states, frame_idx_name, allow_partial: see intersect_dense_pruned.
    """
    N = log_prob.shape[0]
    if log_prob_len.shape != (N,):
        raise ValueError(f"log_prob_len must have shape ({N},), got {tuple(log_prob_len.shape)}")
    lens = log_prob_len.cpu().int()
    segments = torch.stack([torch.arange(N, dtype=torch.int32), torch.zeros_like(lens), lens], dim=1)
    dense = DenseFsaVec(log_prob, segments, allow_truncate=subsampling_factor - 1)
    return intersect_dense_pruned(decoding_graph, dense, search_beam, output_beam, min_active_states, max_active_states,
                                  frame_idx_name=frame_idx_name, allow_partial=allow_partial)  # fmt: skip


def without_path(fsas: Fsa) -> list[int]:
    """The numbers of the FSAs that have no states: utterances that no path survived."""
    counts = fsas.as_vec()._shape.counts(1)
    return (counts == 0).nonzero().squeeze(1).tolist()


def get_aux_labels(best_paths: Fsa, return_ragged: bool = False) -> Any:
    """The aux_labels of linear FSAs without 0 and -1, in the order of the arcs: one list an FSA (or a RaggedTensor)."""
    if not hasattr(best_paths, "aux_labels"):
        raise ValueError("get_aux_labels: these FSAs have no aux_labels, they are acceptors")
    words = path_words(best_paths.as_vec())
    return words if return_ragged else words.tolist()


def _scaled(lattice: Fsa, lm_scale: float) -> Fsa:
    """The lattice with scores acoustic + lm_scale * LM; `lm_scores` stays as it is."""
    ans = lattice._with_shape(lattice._shape)
    ans.scores = acoustic_scores(lattice) + lm_scale * lattice.lm_scores
    return ans


def _need_lm_scores(lattice: Fsa, what: str) -> None:
    if not hasattr(lattice, "lm_scores"):
        raise ValueError(f"{what}: the lattice has no arc attribute lm_scores, so there is nothing to scale")


def one_best_decoding(
    lattice: Fsa, use_double_scores: bool = True, lm_scale_list: Sequence[float] | None = None
) -> Fsa | dict[str, Fsa]:
    """The best path of each lattice as an FsaVec of linear FSAs; with lm_scale_list a dict "lm_scale_<s>" -> FsaVec."""
    if lm_scale_list is None:
        return shortest_path(lattice, use_double_scores)
    _need_lm_scores(lattice, "one_best_decoding")
    return {f"lm_scale_{s}": shortest_path(_scaled(lattice, s), use_double_scores) for s in lm_scale_list}


def nbest_decoding(lattice: Fsa, num_paths: int, use_double_scores: bool = True, nbest_scale: float = 1.0) -> Fsa:
    """The best path among the words of num_paths random paths (see Nbest.from_lattice): an FsaVec of linear FSAs."""
    nbest = Nbest.from_lattice(lattice, num_paths, use_double_scores, nbest_scale)
    return nbest.intersect(lattice, use_double_scores).best()


def nbest_oracle(
    lattice: Fsa,
    num_paths: int,
    ref_texts: Sequence[str],
    word_table: SymbolTable,
    use_double_scores: bool = True,
    nbest_scale: float = 0.5,
    oov: str = "<UNK>",
) -> dict[str, list[list[int]]]:
    """The path with the fewest word errors among num_paths random ones: what a perfect rescoring could reach.

    Args:
      ref_texts: the words of each utterance, separated by spaces. Words that are not in the table count as `oov`.
      oov: symbol for them; if it is not in the table either, such a word matches no hypothesis.
    Returns {"nbest_<num_paths>_nbest_scale_<nbest_scale>": word numbers for each utterance}. Source: icefall.
    """
    nbest = Nbest.from_lattice(lattice, num_paths, use_double_scores, nbest_scale)
    id_of = {symbol: word_table[symbol] for symbol in word_table.symbols}
    refs = [[id_of.get(word, id_of.get(oov, -2)) for word in text.split()] for text in ref_texts]
    errors = nbest.num_errors(refs)
    best = nbest.best(RaggedTensor(errors.shape, -errors.values.double()))
    return {f"nbest_{num_paths}_nbest_scale_{nbest_scale}": path_words(best).tolist()}


def rescore_with_n_best_list(
    lattice: Fsa,
    G: Fsa,
    num_paths: int,
    lm_scale_list: Sequence[float],
    nbest_scale: float = 1.0,
    use_double_scores: bool = True,
) -> dict[str, Fsa]:
    """Replace the LM scores of an n-best list by those of G, and pick the best path for each LM scale.

    Args:
      lattice: with aux_labels (words), and lm_scores where its graph had an LM.
      G: an n-gram LM over words, one Fsa (or an FsaVec of one); back-off arcs have label 0.
    Returns {"lm_scale_<s>": FsaVec of the best paths}. Their scores are acoustic, on the final arc with s * G's score of
    the whole path, which is also the final arc's `lm_scores`.
    """
    nbest = Nbest.from_lattice(lattice, num_paths, use_double_scores, nbest_scale).intersect(lattice, use_double_scores)
    am = nbest.compute_am_scores()
    lm = nbest.intersect(G, use_double_scores).tot_scores()
    paths = nbest.fsa._with_shape(nbest.fsa._shape)
    acoustic, path = acoustic_scores(paths), paths._shape.remove_axis(1).row_ids(1).long()
    paths.lm_scores = torch.where(paths.labels == -1, lm.values[path], 0.0).to(acoustic.dtype)
    ans = {}
    for scale in lm_scale_list:
        # 0 * -inf would be nan: a path that G does not know is out, whatever the scale
        tot = am.values + torch.where(lm.values == float("-inf"), lm.values, scale * lm.values)
        paths.scores = acoustic + torch.where(paths.labels == -1, (tot - am.values)[path], 0.0).to(acoustic.dtype)
        ans[f"lm_scale_{scale}"] = Nbest(paths, nbest.shape).best(RaggedTensor(nbest.shape, tot))
    return ans


def rescore_with_whole_lattice(
    lattice: Fsa,
    G_with_epsilon_loops: Fsa,
    lm_scale_list: Sequence[float] | None = None,
    use_double_scores: bool = True,
) -> Fsa | dict[str, Fsa]:
    """Replace the LM scores of a whole lattice by those of G, and pick the best path for each LM scale.

    Args:
      lattice: with aux_labels (words), and lm_scores where its graph had an LM.
      G_with_epsilon_loops: an n-gram LM over words, one Fsa (or an FsaVec of one). Back-off arcs have label 0 and are taken
        whenever needed; k2's epsilon self-loops may be there but are not needed.
    Returns, without lm_scale_list, the new lattice: scores = acoustic + LM, lm_scores = G's; else a dict
    "lm_scale_<s>" -> FsaVec of the best paths.
    """
    bare = lattice._with_shape(lattice._shape)
    bare.scores = acoustic_scores(lattice)
    G = remove_epsilon_self_loops(G_with_epsilon_loops)
    G.lm_scores = G.scores
    if hasattr(bare, "lm_scores"):
        del bare.lm_scores
    if hasattr(G, "aux_labels"):
        del G.aux_labels
    rescored = top_sort(connect(compose(bare, G)))
    if lm_scale_list is None:
        return rescored
    return one_best_decoding(rescored, use_double_scores, lm_scale_list)
