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
from ops.ragged import RaggedShape, RaggedTensor, index_and_sum

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


def pick(value: Tensor | RaggedTensor, arc_map: Tensor, filler: float = 0, complete: bool | None = None) -> Any:
    """value[arc_map], with the filler (a ragged tensor: an empty row) where the map is -1. `complete`: it is nowhere."""
    if isinstance(value, RaggedTensor):
        return value.index(arc_map)[0]
    if _complete(arc_map) if complete is None else complete:
        return value.index_select(0, arc_map)
    if value.shape[0] == 0:
        return value.new_full((arc_map.numel(), *value.shape[1:]), filler)
    ans = value.index_select(0, arc_map.clamp(min=0))
    return ans.masked_fill((arc_map < 0).reshape(-1, *[1] * (value.ndim - 1)), filler)


def _complete(arc_map: Tensor) -> bool:
    """Whether the map is nowhere -1; on CUDA nobody asks, since an answer would have to be waited for."""
    return not arc_map.is_cuda and (arc_map.numel() == 0 or int(arc_map.min()) >= 0)


def _bare(dest: Arcs | RaggedArcs | Fsa, scores: Tensor) -> Fsa:
    if isinstance(dest, RaggedArcs):
        dest = dest._fsa
    shape, arcs3 = (dest._shape, dest.arcs3) if isinstance(dest, Fsa) else dest
    return Fsa.from_arcs(shape, arcs3, scores)


def fsa_from_unary_function_tensor(
    src: Fsa, dest_arcs: Arcs | RaggedArcs | Fsa, arc_map: Tensor, scores: Tensor | None = None
) -> Fsa:
    """An Fsa with the given arcs whose scores (unless given) and attributes come from src by a one-to-one arc map."""
    complete = _complete(arc_map)
    ans = _bare(dest_arcs, pick(src.scores, arc_map, 0, complete) if scores is None else scores)
    for name, value in src._tensor_attr.items():
        ans._tensor_attr[name] = pick(value, arc_map, src.get_filler(name), complete)
    ans._non_tensor_attr.update(src._non_tensor_attr)
    return ans


def fsa_from_unary_function_ragged(
    src: Fsa, dest_arcs: Arcs | RaggedArcs | Fsa, arc_map: RaggedTensor, remove_filler: bool = True
) -> Fsa:
    """An Fsa whose arcs stand for lists of src's arcs: scores and float attributes are summed, int attributes are
    listed.

    Int attributes become ragged, without their filler values unless `remove_filler` is False.
    """
    ans = _bare(dest_arcs, index_and_sum(src.scores, arc_map))
    for name, value in src.named_tensor_attr(include_scores=False):
        if isinstance(value, RaggedTensor):
            new: Any = value.index(arc_map).remove_axis(1)
        elif value.is_floating_point():
            new = RaggedTensor(arc_map.shape, pick(value, arc_map.values)).sum()
        else:
            new = RaggedTensor(arc_map.shape, pick(value, arc_map.values, src.get_filler(name)))
        if remove_filler and isinstance(new, RaggedTensor):
            new = new.remove_values_eq(src.get_filler(name))
        setattr(ans, name, new)
    ans._non_tensor_attr.update(src._non_tensor_attr)
    return ans


def fsa_from_binary_function_tensor(
    a_fsa: Fsa, b_fsa: Fsa, dest_arcs: Arcs | RaggedArcs | Fsa, arc_map_a: Tensor, arc_map_b: Tensor
) -> Fsa:
    """An Fsa made from two. Scores add up, and so do float attributes that both have; other attributes that both have
    are left out, as in k2, because neither value would be right."""
    a_complete, b_complete = _complete(arc_map_a), _complete(arc_map_b)
    a_scores, b_scores = pick(a_fsa.scores, arc_map_a, 0, a_complete), pick(b_fsa.scores, arc_map_b, 0, b_complete)
    ans = _bare(dest_arcs, a_scores + b_scores)
    both = a_fsa._tensor_attr.keys() & b_fsa._tensor_attr.keys()
    for src, arc_map, complete in ((a_fsa, arc_map_a, a_complete), (b_fsa, arc_map_b, b_complete)):
        for name, value in src._tensor_attr.items():
            if name not in both:
                ans._tensor_attr[name] = pick(value, arc_map, src.get_filler(name), complete)
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
