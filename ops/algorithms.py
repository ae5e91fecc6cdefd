"""Algorithms on automata that pick, pair or split arcs: connect, sort, intersect, compose, expand, invert.

Each takes an Fsa or an FsaVec (then works on every FSA) and returns the same kind; scores and attributes follow the
arcs (see fsa_attributes.py), gradients too. Inputs stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ops.fsa import Fsa
from ops.fsa_attributes import (
    arcs_of,
    call,
    fsa_from_binary_function_tensor,
    fsa_from_unary_function_tensor,
)
from ops.fsa_call import has_kernel
from ops.ragged import RaggedShape, RaggedTensor
from ops.ragged.shape import counts_to_splits, ids_to_splits


def connect(fsa: Fsa) -> Fsa:
    """Accepts the same; without the states that lie on no path from start to final. No path: an FSA without states."""
    *arcs, arc_map = call("fsa_connect", *fsa.splits(), fsa.arcs3)
    return fsa_from_unary_function_tensor(fsa, arcs_of(arcs, fsa.is_vec()), arc_map)


def top_sort(fsa: Fsa) -> Fsa:
    """Accepts the same; states are numbered so that arcs go up (self-loops stay), unreached states are dropped.

    Raises RuntimeError for an FSA with a longer cycle.
    """
    *arcs, arc_map = call("fsa_top_sort", *fsa.splits(), fsa.arcs3)
    return fsa_from_unary_function_tensor(fsa, arcs_of(arcs, fsa.is_vec()), arc_map)


def arc_sort(fsa: Fsa, ret_arc_map: bool = False) -> Any:
    """Accepts the same; the arcs of each state are ordered by label, then destination; label -1 comes last."""
    arc_map = call("fsa_arc_sort", fsa.splits()[1], fsa.arcs3)
    ans = fsa_from_unary_function_tensor(fsa, (fsa._shape, fsa.arcs3.index_select(0, arc_map)), arc_map)
    return (ans, arc_map) if ret_arc_map else ans


def intersects_batches(device: torch.device) -> bool:
    """Whether pairs of FSAs are intersected all at once, as GPUs need it, not a pair a thread."""
    return device.type != "cpu" and has_kernel("fsa_intersect_states", device.type)


def _intersect_batch(a: Fsa, b: Fsa, a_labels: Tensor, index: list[Tensor]) -> tuple[Tensor, ...]:
    """(fsa_splits, state_splits, arcs3, arc map of a, arc map of b): a result state has a number that says which states
    of a and b it stands for; the numbers that can be reached are found, sorted, and given their arcs."""
    sides, sizes = [], []
    for fsa, labels, which in ((a, a_labels, index[0]), (b, b.labels.contiguous(), index[1])):
        fsa_splits, state_splits = fsa.splits()
        keyed = torch.cat([fsa.arcs3[:, :2], labels[:, None]], dim=1)
        sides += [fsa_splits, state_splits, fsa.arcs3, labels, call("fsa_arc_sort", state_splits, keyed)]
        counts = torch.cat([(fsa_splits[1:] - fsa_splits[:-1]).long(), which.new_zeros(1)])
        sizes.append(counts[which.long().clamp(0, counts.numel() - 1)])  # the op complains about wrong numbers
    offsets = torch.cat([sizes[0].new_zeros(1), torch.cumsum(sizes[0] * sizes[1], 0)])
    keys = call("fsa_intersect_states", *sides, *index, offsets)
    return call("fsa_intersect_arcs", *sides, *index, offsets, torch.sort(keys).values)


def _intersect(
    a: Fsa, b: Fsa, a_labels: Tensor, a_index: Tensor, b_index: Tensor, epsilons: bool, vec: bool
) -> tuple[Fsa, Tensor, Tensor]:
    index = [i.to(device=a.device, dtype=torch.int32).contiguous() for i in (a_index, b_index)]
    if not epsilons and intersects_batches(a.device):
        *arcs, map_a, map_b = _intersect_batch(a, b, a_labels.contiguous(), index)
    else:
        *arcs, map_a, map_b = call(
            "fsa_intersect", *a.splits(), a.arcs3, a_labels.contiguous(), *b.splits(), b.arcs3, *index, epsilons
        )
    return fsa_from_binary_function_tensor(a, b, arcs_of(arcs, vec), map_a, map_b), map_a, map_b


def _pairs(a: Fsa, b: Fsa, what: str) -> tuple[Tensor, Tensor]:
    """FSA i of one with FSA i of the other; a single one goes with all."""
    if a.device != b.device:
        raise ValueError(f"{what}: a_fsa is on {a.device}, b_fsa on {b.device}")
    na, nb = (f._shape.dim0 if f.is_vec() else 1 for f in (a, b))
    if na != nb and 1 not in (na, nb):
        raise ValueError(f"{what}: a_fsa has {na} FSAs and b_fsa {nb}; need equal numbers, or one of either")
    n = 0 if 0 in (na, nb) else max(na, nb)
    each, first = torch.arange(n, dtype=torch.int32), torch.zeros(n, dtype=torch.int32)
    return first if na == 1 else each, first if nb == 1 else each


def intersect(a_fsa: Fsa, b_fsa: Fsa, treat_epsilons_specially: bool = True, ret_arc_maps: bool = False) -> Any:
    """Accepts what both accept, with the sum of the scores.

    Args:
      treat_epsilons_specially: label 0 moves one side alone; a pair of paths counts once however their epsilons fall.
        False: 0 is a label like others.
      ret_arc_maps: also return the arc maps to a_fsa and b_fsa (-1 where one moved alone).
    The inputs need not be sorted by label (sorted ones save time). The result is not connected; it is an Fsa if both
    are.
    """
    vec = a_fsa.is_vec() or b_fsa.is_vec()
    a_index, b_index = _pairs(a_fsa, b_fsa, "intersect")
    ans, *maps = _intersect(a_fsa, b_fsa, a_fsa.labels, a_index, b_index, treat_epsilons_specially, vec)
    return (ans, *maps) if ret_arc_maps else ans


def intersect_device(
    a_fsas: Fsa, b_fsas: Fsa, b_to_a_map: Tensor, sorted_match_a: bool = False, ret_arc_maps: bool = False
) -> Any:
    """FSA i of the result accepts what b_fsas[i] and a_fsas[b_to_a_map[i]] both accept. Label 0 is a label like others.

    sorted_match_a: k2's promise that a_fsas is sorted by label; not needed here.
    """
    if not (a_fsas.is_vec() and b_fsas.is_vec()):
        raise ValueError("intersect_device takes two FsaVecs")
    num_b = b_fsas.shape[0]
    if b_to_a_map.shape != (num_b,) or b_to_a_map.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"b_to_a_map must be int32 of shape ({num_b},), got {b_to_a_map.dtype} {tuple(b_to_a_map.shape)}"
        )
    ans, *maps = _intersect(a_fsas, b_fsas, a_fsas.labels, b_to_a_map, torch.arange(len(b_to_a_map)), False, True)
    return (ans, *maps) if ret_arc_maps else ans


def compose(
    a_fsa: Fsa,
    b_fsa: Fsa,
    treat_epsilons_specially: bool = True,
    inner_labels: str | None = None,
    b_to_a_map: Tensor | None = None,
) -> Fsa:
    """Transduces x to z if a_fsa transduces x to some y and b_fsa that y to z. Not connected.

    a_fsa needs aux_labels (ragged ones are expanded first); a b_fsa without aux_labels gives y itself.
    inner_labels: the name under which to keep y.
    b_to_a_map: int32, which FSA of a_fsa each FSA of b_fsa goes with; default: the same number, or the only one.
    """
    if not hasattr(a_fsa, "aux_labels"):
        raise ValueError("compose: a_fsa has no aux_labels; for acceptors use intersect")
    if isinstance(a_fsa.aux_labels, RaggedTensor):
        a_fsa = expand_ragged_attributes(a_fsa, ragged_attribute_names=["aux_labels"])
    if not hasattr(b_fsa, "aux_labels"):
        b_fsa = b_fsa._with_shape(b_fsa._shape)
        b_fsa.aux_labels = b_fsa.labels.clone()
    num_b = b_fsa.as_vec()._shape.dim0
    if b_to_a_map is None:
        a_index, b_index = _pairs(a_fsa, b_fsa, "compose")
    elif b_to_a_map.shape == (num_b,):
        a_index, b_index = b_to_a_map, torch.arange(num_b)
    else:
        raise ValueError(f"compose: b_to_a_map must have shape ({num_b},), got {tuple(b_to_a_map.shape)}")
    inner = torch.where(a_fsa.labels == -1, -1, a_fsa.aux_labels.int())  # type: ignore[union-attr]
    a = a_fsa._with_shape(a_fsa._shape)
    del a.aux_labels
    ans, map_a, map_b = _intersect(
        a, b_fsa, inner, a_index, b_index, treat_epsilons_specially, a_fsa.is_vec() or b_fsa.is_vec()
    )
    if inner_labels is not None:
        matched = torch.zeros_like(map_a)
        for labels, arc_map in ((inner, map_a), (b_fsa.labels, map_b)):
            if labels.numel():
                matched = torch.where(arc_map >= 0, labels[arc_map.long().clamp(min=0)], matched)
        setattr(ans, inner_labels, matched)
    return ans


# ---- states and arcs taken out or put in ----


def keep(fsa: Fsa, arc_mask: Tensor, all_states: bool = True) -> tuple[Fsa, Tensor]:
    """Keep the masked arcs, and all states or only those that they touch, the start and the final state. Also returns
    the arc map.
    """
    *arcs, arc_map = call("fsa_keep", *fsa.splits(), fsa.arcs3, arc_mask, all_states)
    return fsa_from_unary_function_tensor(fsa, arcs_of(arcs, fsa.is_vec()), arc_map), arc_map


def remove_epsilon_self_loops(fsa: Fsa) -> Fsa:
    """Accepts the same (if no epsilon self-loop has a positive score): without arcs from a state to itself with
    label 0.
    """
    src, dest, label = fsa.arcs3.unbind(1)
    return keep(fsa, (src != dest) | (label != 0))[0]


def add_epsilon_self_loops(fsa: Fsa, ret_arc_map: bool = False) -> Any:
    """Accepts the same; every state but the final one gets an arc with label 0 and score 0 to itself, its first."""
    vec = fsa.as_vec()
    num_states, num_arcs = vec._shape.tot_size(1), fsa.num_arcs
    fsa_splits, state_splits = (s.long() for s in vec.splits())
    looped = torch.ones(num_states, dtype=torch.bool, device=fsa.device)
    looped[fsa_splits[1:][fsa_splits[1:] > fsa_splits[:-1]] - 1] = False
    states = torch.arange(num_states, device=fsa.device)
    before = torch.cat([looped.cumsum(0), looped.new_zeros(1, dtype=torch.int64)]).roll(1)  # loops of lower states
    place = torch.arange(num_arcs, device=fsa.device) + before[1:][vec._shape.row_ids(2).long()]
    arc_map = torch.full((num_arcs + int(before[-1] if num_states else 0),), -1, dtype=torch.int32, device=fsa.device)
    arc_map[place] = torch.arange(num_arcs, dtype=torch.int32, device=fsa.device)
    local = (states - fsa_splits[vec._shape.row_ids(1).long()]).int()
    arcs3 = torch.zeros(arc_map.numel(), 3, dtype=torch.int32, device=fsa.device)
    arcs3[place] = fsa.arcs3
    loop_place = (state_splits[:-1] + before[:-1])[looped]
    arcs3[loop_place, :2] = local[looped][:, None].expand(-1, 2)
    ans = fsa_from_unary_function_tensor(
        fsa, arcs_of((vec.splits()[0], (state_splits + before).int(), arcs3), fsa.is_vec()), arc_map
    )
    return (ans, arc_map) if ret_arc_map else ans


def prune_on_arc_post(fsas: Fsa, threshold_prob: float, use_double_scores: bool) -> Fsa:
    """Only arcs with a posterior (log semiring) above threshold_prob, and the states they touch, start and final
    state.
    """
    if not 0 < threshold_prob < 1:
        raise ValueError(f"threshold_prob must lie between 0 and 1, got {threshold_prob}")
    with torch.no_grad():
        post = fsas.get_arc_post(use_double_scores, True)
    return keep(fsas, post > math.log(threshold_prob), all_states=False)[0]


# ---- lists on arcs to chains of arcs ----


@dataclass
class InnerStates:
    """Where states and arcs are, over the whole vector, once every arc has got states of its own: see place_inner_states."""

    fsa_splits: Tensor  # int32; all others int64, one entry an arc
    arc_fsa: Tensor
    src: Tensor
    inner: Tensor  # the first of the arc's own states
    dest: Tensor


def place_inner_states(fsa: Fsa, num_inner: Tensor) -> InnerStates:
    """Put num_inner[i] new states for each arc right after the state that it leaves: what is top-sorted stays so."""
    vec, device = fsa.as_vec(), fsa.device
    state, fsa_of_state = vec._shape.row_ids(2).long(), vec._shape.row_ids(1).long()
    arc_fsa = fsa_of_state[state]
    per_state = torch.ones(vec._shape.tot_size(1), dtype=torch.int64, device=device).index_add(0, state, num_inner)
    new_of = torch.cumsum(per_state, 0) - per_state
    per_fsa = torch.zeros(vec._shape.dim0, dtype=torch.int64, device=device).index_add(0, fsa_of_state, per_state)
    before = torch.cumsum(num_inner, 0) - num_inner
    first_arc = vec._shape.row_splits(2).long()[state]
    return InnerStates(
        counts_to_splits(per_fsa),
        arc_fsa,
        new_of[state],
        new_of[state] + 1 + before - before[first_arc],
        new_of[vec._shape.row_splits(1).long()[arc_fsa] + vec.arcs3[:, 1]],
    )


def expand_ragged_attributes(
    fsas: Fsa, ret_arc_map: bool = False, ragged_attribute_names: Sequence[str] | None = None
) -> Any:
    """Turn ragged int attributes into plain ones: an arc with lists of up to k entries becomes a chain of k arcs.

    The first arc of a chain has the label, the score and the other attributes, the others label 0, score 0 and
    fillers; but label -1 goes to the last one, and so does an entry -1 at the end of a list. Missing entries become 0.
    """
    ragged = [n for n, v in fsas.named_tensor_attr(include_scores=False) if isinstance(v, RaggedTensor)]
    names = ragged if ragged_attribute_names is None else list(ragged_attribute_names)
    for name in names:
        if name not in ragged:
            raise ValueError(f"expand_ragged_attributes: {name!r} is no ragged attribute of this FSA (it has {ragged})")
    final = fsas.labels == -1
    length, ends = _chain_lengths([fsas._tensor_attr[name] for name in names], final)  # type: ignore[misc]
    new = place_inner_states(fsas, length - 1)
    splits = counts_to_splits(length)
    of = RaggedShape(splits=[splits]).row_ids(1).long()
    begin = splits.long()[:-1]
    j = torch.arange(of.numel(), device=fsas.device) - begin[of]
    is_first, is_last = j == 0, j == length[of] - 1
    src = torch.where(is_first, new.src[of], new.inner[of] + j - 1)
    end = torch.where(is_last, new.dest[of], new.inner[of] + j)
    label = torch.where(torch.where(final[of], is_last, is_first), fsas.labels[of], 0)
    order = torch.argsort(src, stable=True)
    state_splits = ids_to_splits(src[order].int(), int(new.fsa_splits[-1]))
    offset = new.fsa_splits.long()[new.arc_fsa[of]]
    arcs3 = torch.stack([src - offset, end - offset, label], dim=1)[order].int()
    arc_map = torch.where(is_first, of, -1)[order].int()
    kept = fsas._with_shape(fsas._shape)
    for name in names:
        delattr(kept, name)
    ans = fsa_from_unary_function_tensor(kept, arcs_of((new.fsa_splits, state_splits, arcs3), fsas.is_vec()), arc_map)
    for name, end_of_list in zip(names, ends):
        flat = _along_chains(fsas._tensor_attr[name], end_of_list, begin, length)  # type: ignore[arg-type]
        if name.startswith("aux_labels"):
            flat = torch.where(final[of] & is_last, -1, flat)
        setattr(ans, name, flat[order])
    return (ans, arc_map) if ret_arc_map else ans


def _chain_lengths(values: Sequence[RaggedTensor], final: Tensor) -> tuple[Tensor, list[Tensor]]:
    """How many arcs the lists of each arc need, and for each attribute which lists have a -1 that goes to the end."""
    length, ends = torch.ones_like(final, dtype=torch.int64), []
    for value in values:
        counts = value.shape.counts(1).long()
        at_end = final & (counts > 0)
        if value.numel():
            last = value.shape.row_splits(1)[1:].long() - 1
            at_end &= value.values[last.clamp(min=0)] == -1
        ends.append(at_end)
        # On a final arc the last place is for -1 alone.
        length = torch.maximum(length, counts + (final & ~at_end & (counts > 0)).long())
    return length, ends


def _along_chains(value: RaggedTensor, ends: Tensor, begin: Tensor, length: Tensor) -> Tensor:
    """The lists laid along chains of `length` arcs from `begin` on; where `ends`, the last entry goes to the end."""
    flat = value.values.new_zeros(int(length.sum()))
    rows = value.shape.row_ids(1).long()
    position = torch.arange(value.numel(), device=flat.device) - value.shape.row_splits(1).long()[rows]
    at_end = ends[rows] & (position == value.shape.counts(1).long()[rows] - 1)
    flat[begin[rows] + torch.where(at_end, length[rows] - 1, position)] = value.values
    return flat


def invert(fsa: Fsa, ret_arc_map: bool = False) -> Any:
    """Transduces y to x if fsa transduces x to y: swaps labels and aux_labels. Ragged aux_labels are expanded first."""
    if not hasattr(fsa, "aux_labels"):
        raise ValueError("invert: this FSA has no aux_labels, it is an acceptor")
    arc_map = torch.arange(fsa.num_arcs, dtype=torch.int32, device=fsa.device)
    if isinstance(fsa.aux_labels, RaggedTensor):
        fsa, arc_map = expand_ragged_attributes(fsa, ret_arc_map=True, ragged_attribute_names=["aux_labels"])
    ans = fsa._with_shape(fsa._shape)
    ans.invert_()
    return (ans, arc_map) if ret_arc_map else ans
