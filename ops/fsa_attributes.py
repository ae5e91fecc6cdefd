"""How the attributes and scores of arcs follow an operation, given its arc maps; gradients follow the same way.

An arc map says which input arc made each output arc (-1: none), or, as a RaggedTensor, which list of input arcs.
Picking scores by an arc map is plain torch indexing, so its derivative is the sparse one that k2 computes by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ops.fsa import Fsa, RaggedArcs
from ops.fsa_call import call, scores64
from ops.fsa_pick import pick, pick_lists, pick_sum
from ops.ragged import RaggedShape, RaggedTensor

__all__ = [
    "arcs_of",
    "call",
    "compose_arc_maps",
    "fsa_from_binary_function_tensor",
    "fsa_from_unary_function_ragged",
    "fsa_from_unary_function_tensor",
    "pick",
    "scores64",
]

Arcs = tuple[RaggedShape, Tensor]  # where the arcs are, and (A, 3) int32


def arcs_of(arcs: Sequence[Tensor], vec: bool) -> Arcs:
    """What an op returned (fsa_splits, state_splits, arcs3), as arcs of an FsaVec or (vec=False, one FSA) of an Fsa."""
    fsa_splits, state_splits, arcs3 = arcs
    return RaggedShape(splits=[fsa_splits, state_splits] if vec else [state_splits]), arcs3


def _bare(dest: Arcs | RaggedArcs | Fsa, scores: Tensor) -> Fsa:
    if isinstance(dest, RaggedArcs):
        dest = dest._fsa
    shape, arcs3 = (dest._shape, dest.arcs3) if isinstance(dest, Fsa) else dest
    return Fsa.from_arcs(shape, arcs3, scores)


def fsa_from_unary_function_tensor(
    src: Fsa, dest_arcs: Arcs | RaggedArcs | Fsa, arc_map: Tensor, scores: Tensor | None = None
) -> Fsa:
    """An Fsa with the given arcs whose scores (unless given) and attributes come from src by a one-to-one arc map."""
    ans = _bare(dest_arcs, pick(src.scores, arc_map) if scores is None else scores)
    for name, value in src._tensor_attr.items():
        ans._tensor_attr[name] = pick(value, arc_map, src.get_filler(name))
    ans._non_tensor_attr.update(src._non_tensor_attr)
    return ans


def fsa_from_unary_function_ragged(
    src: Fsa, dest_arcs: Arcs | RaggedArcs | Fsa, arc_map: RaggedTensor, remove_filler: bool = True
) -> Fsa:
    """An Fsa whose arcs stand for lists of src's arcs: scores and float attributes are summed, int attributes are
    listed.

    Int attributes become ragged, without their filler values unless `remove_filler` is False.
    """
    ans = _bare(dest_arcs, pick_sum(src.scores, arc_map))
    for name, value in src._tensor_attr.items():
        filler = src.get_filler(name)
        if isinstance(value, RaggedTensor):
            listed = value.index(arc_map).remove_axis(1)
            new: Any = listed.remove_values_eq(filler) if remove_filler else listed
        elif value.is_floating_point():
            new = pick_sum(value, arc_map)
        elif remove_filler:
            new = pick_lists(value, arc_map, filler)
        else:
            new = RaggedTensor(arc_map.shape, pick(value, arc_map.values, filler))
        setattr(ans, name, new)
    ans._non_tensor_attr.update(src._non_tensor_attr)
    return ans


def fsa_from_binary_function_tensor(
    a_fsa: Fsa, b_fsa: Fsa, dest_arcs: Arcs | RaggedArcs | Fsa, arc_map_a: Tensor, arc_map_b: Tensor
) -> Fsa:
    """An Fsa made from two. Scores add up, and so do float attributes that both have; other attributes that both have
    are left out, as in k2, because neither value would be right."""
    ans = _bare(dest_arcs, pick(a_fsa.scores, arc_map_a) + pick(b_fsa.scores, arc_map_b))
    both = a_fsa._tensor_attr.keys() & b_fsa._tensor_attr.keys()
    for src, arc_map in ((a_fsa, arc_map_a), (b_fsa, arc_map_b)):
        for name, value in src._tensor_attr.items():
            if name not in both:
                ans._tensor_attr[name] = pick(value, arc_map, src.get_filler(name))
    for name in sorted(both):
        values = a_fsa._tensor_attr[name], b_fsa._tensor_attr[name]
        if all(isinstance(v, Tensor) and v.is_floating_point() for v in values):
            total = pick(values[0], arc_map_a, a_fsa.get_filler(name)) + pick(
                values[1], arc_map_b, b_fsa.get_filler(name)
            )
            setattr(ans, name, total)
    ans._non_tensor_attr.update({**b_fsa._non_tensor_attr, **a_fsa._non_tensor_attr})
    return ans


def compose_arc_maps(
    step1_arc_map: Tensor | RaggedTensor, step2_arc_map: Tensor | RaggedTensor
) -> Tensor | RaggedTensor:
    """The arc map of two operations, one after the other: step1[step2[i]]; -1 and lists carry over."""
    if isinstance(step2_arc_map, Tensor):
        if isinstance(step1_arc_map, Tensor):
            return pick(step1_arc_map, step2_arc_map, -1)
        return step1_arc_map.index(step2_arc_map)[0]
    if isinstance(step1_arc_map, Tensor):
        return RaggedTensor(step2_arc_map.shape, pick(step1_arc_map, step2_arc_map.values, -1))
    return step1_arc_map.index(step2_arc_map).remove_axis(1)
