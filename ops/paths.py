"""Paths through automata: the best, random ones, alignments; whether two automata agree on random paths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ops.algorithms import connect, intersect, intersect_device, remove_epsilon_self_loops, top_sort
from ops.fsa import Fsa, create_fsa_vec
from ops.fsa_attributes import arcs_of, call, fsa_from_unary_function_tensor
from ops.fsa_properties import TOPSORTED_AND_ACYCLIC
from ops.ragged import RaggedShape, RaggedTensor
from ops.ragged.shape import counts_to_splits
from ops.scores import best_entering_arcs, leaving_probabilities


def shortest_path(fsa: Fsa, use_double_scores: bool) -> Fsa:
    """The path with the greatest score of each FSA, as a linear FSA (the first of equals); no states if there is none.

    FSAs must be top-sorted. use_double_scores is k2's; the search is in float64 either way.
    """
    *arcs, arc_map = call("fsa_shortest_path", *fsa.splits(), fsa.arcs3, best_entering_arcs(fsa))
    return fsa_from_unary_function_tensor(fsa, arcs_of(arcs, fsa.is_vec()), arc_map)


def random_paths(fsas: Fsa, use_double_scores: bool, num_paths: int | Tensor) -> RaggedTensor:
    """Draw paths with probability proportional to exp(score), as lists of arcs: axes [fsa][path][arc], int32.

    Arcs are numbered over the whole vector. An FSA without a path gives empty ones. Seeded by torch.manual_seed.
    num_paths: for every FSA, or (a tensor) for each.
    """
    vec = fsas.as_vec()
    n = vec._shape.dim0
    counts = num_paths.to(fsas.device) if isinstance(num_paths, Tensor) else torch.full((n,), num_paths)
    if counts.shape != (n,) or bool((counts < 0).any()):
        raise ValueError(f"num_paths must be a number >= 0, or one for each of the {n} FSAs, got {num_paths}")
    splits = counts_to_splits(counts).to(fsas.device)
    seed = int(torch.randint(2**62, (1,)))
    ends, arcs = call("fsa_random_paths", *vec.splits(), vec.arcs3, leaving_probabilities(vec), splits, seed)
    return RaggedTensor(RaggedShape(splits=[splits, ends]), arcs)


def levenshtein_alignment(refs: Fsa, hyps: Fsa, hyp_to_ref_map: Tensor, sorted_match_ref: bool = False) -> Fsa:
    """The alignment with the fewest errors of each hypothesis with its reference, from levenshtein_graph of both.

    Returns linear FSAs with attributes ref_labels and hyp_labels: equal in a match, 0 where a side has nothing; the
    total score is minus the number of errors.
    """
    if not all(hasattr(fsa, "aux_labels") and hasattr(fsa, "__ins_del_score_internal_attr_") for fsa in (refs, hyps)):
        raise ValueError("levenshtein_alignment: refs and hyps must come from levenshtein_graph")
    renamed = []
    for fsa, name in ((refs, "ref_labels"), (hyps, "hyp_labels")):
        copy = fsa._with_shape(fsa._shape)
        renamed.append(copy.rename_tensor_attribute_("aux_labels", name))
    ans = intersect_device(renamed[0], renamed[1], b_to_a_map=hyp_to_ref_map, sorted_match_a=sorted_match_ref)
    ans = shortest_path(remove_epsilon_self_loops(ans), use_double_scores=True)
    ans.scores = ans.scores - ans.__ins_del_score_internal_attr_
    return ans


def path_labels(fsa: Fsa, paths: RaggedTensor) -> RaggedTensor:
    """The labels of paths from random_paths, without epsilons and -1: axes [fsa][path][label]."""
    labels = RaggedTensor(paths.shape, fsa.labels[paths.values.long()].contiguous())
    return labels.remove_values_leq(0)


def is_rand_equivalent(
    a: Fsa,
    b: Fsa,
    log_semiring: bool,
    beam: float = float("inf"),
    treat_epsilons_specially: bool = True,
    delta: float = 1e-6,
    npath: int = 100,
) -> bool:
    """Whether a and b give the same scores to strings drawn from either: False is certain, True is likely.

    Args:
      beam: strings scored worse than the best of the FSA by more than this are left out.
      treat_epsilons_specially: label 0 stands for nothing; False: for itself.
      delta: the difference, relative to 1 + |score|, that counts as none.
      npath: how many strings to draw from each.
    FSAs may have cycles, though none of epsilons alone (self-loops aside) where those stand for nothing: RuntimeError.
    Strings then come from random walks, and `beam` counts from the best of them. For FsaVecs: whether all pairs are.
    """
    if a.is_vec() != b.is_vec() or (a.is_vec() and a.shape[0] != b.shape[0]):
        return False
    if a.is_vec():
        return all(
            is_rand_equivalent(x, y, log_semiring, beam, treat_epsilons_specially, delta, npath) for x, y in zip(a, b)
        )
    a, b = (connect(x).detach() for x in (a, b))
    if not a.shape[0] or not b.shape[0]:
        return a.shape[0] == b.shape[0]
    a_sorted, b_sorted = _top_sorted(a), _top_sorted(b)
    acyclic = a_sorted is not None and b_sorted is not None
    if a_sorted is not None and b_sorted is not None:
        a, b = a_sorted, b_sorted
    strings: set[tuple[int, ...]] = set()
    for fsa in (a, b):
        if acyclic:
            paths = random_paths(create_fsa_vec([fsa]), True, npath).remove_axis(0)
        else:
            paths = RaggedTensor(_random_walks(fsa, npath)).to(fsa.device)
        labels = RaggedTensor(paths.shape, fsa.labels[paths.values.long()].contiguous())
        labels = labels.remove_values_leq(0 if treat_epsilons_specially else -1)
        strings |= {tuple(x) for x in labels.tolist()}
    scores = [string_scores(fsa, sorted(strings), log_semiring, treat_epsilons_specially) for fsa in (a, b)]
    if acyclic:
        best = [create_fsa_vec([fsa]).get_tot_scores(True, log_semiring).item() for fsa in (a, b)]
    else:
        best = [score.max().item() for score in scores]
    inside = (scores[0] >= best[0] - beam) | (scores[1] >= best[1] - beam)
    same = (scores[0] - scores[1]).abs() <= delta * (1 + scores[0].abs())
    return bool((same | ~inside | (scores[0] == scores[1])).all())


def _top_sorted(fsa: Fsa) -> Fsa | None:
    """The same states in topological order; None if there is a cycle."""
    try:
        fsa = top_sort(fsa)
    except RuntimeError:
        return None
    return fsa if fsa.properties & TOPSORTED_AND_ACYCLIC else None


def _random_walks(fsa: Fsa, count: int, most_arcs: int = 30) -> list[list[int]]:
    """`count` paths as lists of arcs, each arc chosen evenly; after most_arcs arcs each goes on by a shortest way to the end.

    For connected FSAs, cyclic or not. Seeded by torch.manual_seed.
    """
    ends = fsa.splits()[1].tolist()
    src, dest, _ = fsa.arcs3.T.tolist()
    entering: list[list[int]] = [[] for _ in ends[1:]]
    for arc, d in enumerate(dest):
        entering[d].append(arc)
    final = len(entering) - 1
    way_out = {final: -1}  # by state, the first arc of a shortest way to the end
    states = [final]
    for state in states:  # grows while it is read: breadth first
        for arc in entering[state]:
            if src[arc] not in way_out:
                way_out[src[arc]] = arc
                states.append(src[arc])
    walks = []
    for choices in torch.rand(count, most_arcs).tolist():
        state = 0
        walk: list[int] = []
        while state != final:
            if len(walk) < most_arcs:
                arc = ends[state] + int(choices[len(walk)] * (ends[state + 1] - ends[state]))
            else:
                arc = way_out[state]
            walk.append(arc)
            state = dest[arc]
        walks.append(walk)
    return walks


def string_scores(fsa: Fsa, strings: Any, log_semiring: bool, treat_epsilons_specially: bool = True) -> Tensor:
    """float64 (number of strings,): the total score that an FSA gives to each list of labels; -inf if it is not accepted.

    RuntimeError if epsilons that stand for nothing form a cycle of several states.
    """
    from ops.topologies import linear_fsa

    linear = linear_fsa([list(s) for s in strings], device=fsa.device)
    both = intersect(linear, fsa, treat_epsilons_specially)
    return top_sort(connect(both)).get_tot_scores(True, log_semiring)
