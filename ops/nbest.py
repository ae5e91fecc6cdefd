"""Nbest: for each utterance a list of paths of its lattice, with their scores, as an FsaVec of linear FSAs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ops.algorithms import compose, connect, top_sort
from ops.fsa import Fsa
from ops.fsa_attributes import call, fsa_from_unary_function_tensor
from ops.paths import random_paths, shortest_path
from ops.ragged import RaggedShape, RaggedTensor
from ops.ragged.shape import counts_to_splits, expand_ranges, ids_to_splits
from ops.topologies import levenshtein_graph, linear_fsa
from ops.utils import index_fsa

Labels = RaggedTensor | list[list[int]]


class Nbest:
    """Paths of utterances: `fsa` is an FsaVec with one linear FSA a path, `shape` a RaggedShape [utterance][path].

    An utterance whose lattice has no path has no row entries; a path that something composed with did not accept is an
    FSA without states and scores -inf.
    """

    def __init__(self, fsa: Fsa, shape: RaggedShape):
        if shape.num_axes != 2 or not fsa.is_vec() or shape.numel() != fsa._shape.dim0:
            raise ValueError(
                f"Nbest: need an FsaVec and a shape [utterance][path] of as many paths, got {fsa.shape}, {shape}"
            )
        self.fsa = fsa
        self.shape = shape

    @staticmethod
    def from_lattice(lattice: Fsa, num_paths: int, use_double_scores: bool = True, nbest_scale: float = 0.5) -> Nbest:
        """Draw num_paths paths of each FSA of the lattice, with probability proportional to exp(nbest_scale * score), and
        keep the best-scored one of those that have the same words (see `words`), best first.

        A smaller nbest_scale gives more varied paths. Seeded by torch.manual_seed. Scores and attributes are those of
        the lattice's arcs, with their gradients. use_double_scores is k2's; drawing is in float64 either way.
        """
        vec = lattice.as_vec()
        scaled = vec._with_shape(vec._shape)
        scaled.scores = vec.scores.detach() * nbest_scale
        return Nbest.from_arcs(vec, random_paths(scaled, use_double_scores, num_paths)).unique()

    @staticmethod
    def from_arcs(lattice: Fsa, paths: RaggedTensor) -> Nbest:
        """From lists of arcs, numbered over the whole lattice: axes [utterance][path][arc]. Empty lists are left out."""
        counts = paths.shape.counts(2).long()
        some = (counts > 0).nonzero().squeeze(1)
        shape = RaggedShape(splits=[ids_to_splits(paths.shape.row_ids(1)[some], paths.shape.dim0)])
        begin, src = expand_ranges(torch.zeros_like(some), counts[some])  # arc k of a path leaves its state k
        states = begin + torch.arange(begin.numel(), device=begin.device).int()  # one more than arcs
        leaving = torch.ones(int(states[-1]), dtype=torch.int32, device=src.device)
        leaving[states[1:].long() - 1] = 0
        arcs3 = torch.stack([src, src + 1, lattice.arcs3[paths.values.long(), 2]], dim=1)
        arcs = RaggedShape(splits=[states, counts_to_splits(leaving)]), arcs3
        return Nbest(fsa_from_unary_function_tensor(lattice, arcs, paths.values), shape)

    # ---- what the paths say and score ----
    def words(self) -> RaggedTensor:
        """What each path says: axes [path][word], see path_words."""
        return path_words(self.fsa)

    def _per_path(self, score_per_arc: Tensor) -> RaggedTensor:
        arcs = self.fsa._shape.remove_axis(1)
        sums = RaggedTensor(arcs, score_per_arc.double()).sum()
        return RaggedTensor(self.shape, sums.masked_fill(arcs.counts(1) == 0, float("-inf")))

    def tot_scores(self) -> RaggedTensor:
        """The score of each path: axes [utterance][path], float64."""
        return self._per_path(self.fsa.scores)

    total_scores = tot_scores  # k2's name for icefall's tot_scores

    def compute_lm_scores(self) -> RaggedTensor:
        """The sum of the arcs' attribute `lm_scores` of each path (0 without it): axes [utterance][path], float64."""
        scores = getattr(self.fsa, "lm_scores", None)
        return self._per_path(torch.zeros_like(self.fsa.scores) if scores is None else scores)

    def compute_am_scores(self) -> RaggedTensor:
        """The score of each path without its `lm_scores`: axes [utterance][path], float64."""
        return self._per_path(acoustic_scores(self.fsa))

    # ---- lists from lists ----
    def select(self, paths: Tensor) -> Nbest:
        """The paths with these numbers (over all utterances); those of one utterance must stay together, in order."""
        owner = self.shape.row_ids(1)[paths.long()]
        return Nbest(index_fsa(self.fsa, paths), RaggedShape(splits=[ids_to_splits(owner, self.shape.dim0)]))

    def sort(self) -> Nbest:
        """The paths of each utterance by score, best first."""
        order = self.tot_scores().clone().sort_(descending=True, need_new2old_indexes=True)
        assert order is not None
        return self.select(order)

    def unique(self) -> Nbest:
        """The best-scored path for each sequence of words of an utterance, best first."""
        ordered = self.sort()
        words = ordered.words()
        _, _, first = RaggedTensor(ordered.shape.compose(words.shape), words.values).unique(need_new2old_indexes=True)
        assert first is not None
        return ordered.select(first.sort().values)

    def shuffle(self) -> Nbest:
        """The paths of each utterance in a random order, seeded by torch.manual_seed."""
        order = torch.randperm(self.shape.numel()).to(self.fsa.device)
        return self.select(order[torch.argsort(self.shape.row_ids(1)[order], stable=True)])

    def top_k(self, k: int) -> Nbest:
        """Exactly k paths for each utterance, best first; the last is repeated where there are fewer.

        An utterance without paths gets FSAs without states.
        """
        if k <= 0:
            raise ValueError(f"top_k: k must be positive, got {k}")
        ordered, counts, splits = self.sort(), self.shape.counts(1).long(), self.shape.row_splits(1).long()
        place = torch.arange(k, device=self.fsa.device).minimum(counts[:, None] - 1)
        indexes = torch.where(counts[:, None] > 0, splits[:-1, None] + place, -1).reshape(-1)
        shape = RaggedShape.regular_ragged_shape(counts.numel(), k).to(self.fsa.device)
        return Nbest(index_fsa(ordered.fsa, indexes), shape)

    def intersect(self, lattice: Fsa, use_double_scores: bool = True) -> Nbest:
        """For each path the best path of the lattice with the same words, with the lattice's scores and attributes.

        Args:
          lattice: FsaVec with one FSA for each utterance, or one for all (an n-gram LM, for instance); words are its
            aux_labels, or its labels if it has none. Label 0 stands for nothing, so self-loops are not needed.
        A path whose words the lattice does not accept becomes an FSA without states.
        """
        vec = lattice.as_vec()
        num_lattices, num_utterances = vec._shape.dim0, self.shape.dim0
        if num_lattices not in (1, num_utterances):
            raise ValueError(
                f"Nbest.intersect: {num_lattices} lattices for {num_utterances} utterances: need one or as many"
            )
        if not hasattr(vec, "aux_labels"):
            vec = vec._with_shape(vec._shape)
            vec.aux_labels = vec.labels.clone()
        owner = self.shape.row_ids(1)
        owner = owner if num_lattices > 1 else torch.zeros_like(owner)
        found = compose(vec, linear_fsa(self.words()), b_to_a_map=owner)
        return Nbest(shortest_path(top_sort(connect(found)), use_double_scores), self.shape)

    def best(self, scores: RaggedTensor | None = None) -> Fsa:
        """FsaVec: for each utterance the path with the greatest score (default: tot_scores), or an FSA without states."""
        scores = self.tot_scores() if scores is None else scores
        best = scores.argmax().long()
        if best.numel() and scores.numel():
            best = torch.where(scores.values[best.clamp(min=0)] == float("-inf"), -1, best)
        return index_fsa(self.fsa, best)

    # ---- errors ----
    def build_levenshtein_graphs(self) -> Fsa:
        """The levenshtein_graph of each path's words, for levenshtein_alignment."""
        return levenshtein_graph(self.words())

    def num_errors(self, refs: Labels) -> RaggedTensor:
        """The edit distance of each path's words from the utterance's reference: axes [utterance][path], int32."""
        refs = refs if isinstance(refs, RaggedTensor) else RaggedTensor(refs, dtype=torch.int32)
        if refs.num_axes != 2 or refs.dim0 != self.shape.dim0:
            raise ValueError(f"{refs.dim0} references for {self.shape.dim0} utterances")
        return RaggedTensor(self.shape, edit_distance(refs, self.words(), self.shape.row_ids(1)))


def path_words(fsa: Fsa) -> RaggedTensor:
    """The aux_labels of each linear FSA (the labels, if it has none) without 0 and -1: axes [fsa][word], int32."""
    aux: Any = getattr(fsa, "aux_labels", None)
    arcs = fsa._shape.remove_axis(1)
    if isinstance(aux, RaggedTensor):
        words = RaggedTensor(arcs.compose(aux.shape).remove_axis(1), aux.values)
    else:
        words = RaggedTensor(arcs, (fsa.labels if aux is None else aux).contiguous())
    return words.remove_values_leq(0)


def acoustic_scores(fsa: Fsa) -> Tensor:
    """The scores of the arcs without their `lm_scores`, if there are such."""
    return fsa.scores - fsa.lm_scores if hasattr(fsa, "lm_scores") else fsa.scores


def edit_distance(refs: RaggedTensor, hyps: RaggedTensor, hyp_to_ref_map: Tensor | None = None) -> Tensor:
    """(number of hyps,) int32: the fewest insertions, deletions and substitutions between each row of hyps and its
    reference, the row of the same number or hyp_to_ref_map[i]. Source: Levenshtein, 1966."""
    if hyp_to_ref_map is None:
        hyp_to_ref_map = torch.arange(hyps.dim0, device=hyps.device)
    ints = [x.to(hyps.device).int().contiguous() for x in
            (refs.shape.row_splits(1), refs.values, hyps.shape.row_splits(1), hyps.values, hyp_to_ref_map)]  # fmt: skip
    return call("fsa_edit_distance", *ints)
