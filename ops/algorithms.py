"""Algorithms on automata that pick or pair arcs: connect, sort, intersect, compose, union, closure, reverse, replace.

Each takes an Fsa or an FsaVec (then works on every FSA) and returns the same kind; scores and attributes follow the
arcs (see fsa_attributes.py), gradients too. Inputs stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    na, nb = a.as_vec()._shape.dim0, b.as_vec()._shape.dim0
    if na != nb and 1 not in (na, nb):
        raise ValueError(f"{what}: a_fsa has {na} FSAs and b_fsa {nb}; need equal numbers, or one of either")
    n = 0 if 0 in (na, nb) else max(na, nb)
    return torch.arange(n) % max(na, 1), torch.arange(n) % max(nb, 1)


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


def keep(fsa: Fsa, arc_mask: Tensor, state_mask: Tensor | None = None) -> tuple[Fsa, Tensor]:
    """Keep the masked arcs and states (all by default); kept arcs must link kept states. Returns the Fsa and arc
    map.
    """
    vec = fsa.as_vec()
    if state_mask is None:
        state_mask = torch.ones(vec._shape.tot_size(1), dtype=torch.bool, device=fsa.device)
    arc_map = arc_mask.nonzero().squeeze(1)
    rank = state_mask.cumsum(0) - 1  # new number over the whole vector
    fsa_ids = vec._shape.row_ids(1).long()
    fsa_splits = counts_to_splits(torch.bincount(fsa_ids[state_mask], minlength=vec._shape.dim0))
    src = vec._shape.row_ids(2).long()[arc_map]
    arc_fsa = fsa_ids[src]
    dest = vec._shape.row_splits(1).long()[arc_fsa] + vec.arcs3[arc_map, 1]
    begin = fsa_splits.long()[arc_fsa]
    arcs3 = torch.stack([rank[src] - begin, rank[dest] - begin, vec.arcs3[arc_map, 2]], dim=1).int()
    state_splits = ids_to_splits(rank[src].int(), int(fsa_splits[-1]))
    ans = fsa_from_unary_function_tensor(fsa, arcs_of((fsa_splits, state_splits, arcs3), fsa.is_vec()), arc_map.int())
    return ans, arc_map.int()


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
    from ops.scores import arc_places

    post = fsas.get_arc_post(use_double_scores, True).detach()
    arc_mask = post > torch.tensor(threshold_prob, dtype=torch.float64).log().item()
    _, src, dest = arc_places(fsas)
    vec = fsas.as_vec()
    states = torch.zeros(vec._shape.tot_size(1), dtype=torch.bool, device=fsas.device)
    states[src[arc_mask]] = True
    states[dest[arc_mask]] = True
    fsa_splits = vec._shape.row_splits(1).long()
    some = fsa_splits[1:] > fsa_splits[:-1]
    states[fsa_splits[:-1][some]] = True
    states[fsa_splits[1:][some] - 1] = True
    return keep(fsas, arc_mask, states)[0]


# ---- automata from automata ----


def _rebuild(
    src: Fsa, arcs: Tensor, state_of: Tensor, fsa_splits: Tensor, arc_map: Tensor, vec: bool
) -> tuple[Fsa, Tensor]:
    """An Fsa from unordered arcs whose source states, over the whole vector, are `state_of`."""
    order = torch.argsort(state_of, stable=True)
    state_splits = ids_to_splits(state_of[order].int(), int(fsa_splits[-1]))
    arc_map = arc_map[order].int()
    ans = fsa_from_unary_function_tensor(src, arcs_of((fsa_splits, state_splits, arcs[order].int()), vec), arc_map)
    return ans, arc_map


def _plain_final_aux(ans: Fsa, src: Fsa, arc_map: Tensor) -> None:
    """Where a final arc became an ordinary one, its aux label -1 becomes 0 (in a ragged one: disappears)."""
    changed = (arc_map >= 0) & (ans.labels != -1) & (src.labels[arc_map.long().clamp(min=0)] == -1) \
        if src.num_arcs else arc_map < -1  # fmt: skip
    for name, value in list(ans.named_tensor_attr(include_scores=False)):
        if not name.startswith("aux_labels"):
            continue
        if isinstance(value, RaggedTensor):
            drop = changed[value.shape.row_ids(1).long()] & (value.values == -1)
            setattr(ans, name, value.keep(~drop))
        else:
            setattr(ans, name, torch.where(changed & (value == -1), 0, value))


def _new_final_aux(ans: Fsa, arc_map: Tensor) -> None:
    """The aux labels of final arcs that come from no arc are -1, too."""
    new = (arc_map < 0) & (ans.labels == -1)
    for name, value in list(ans.named_tensor_attr(include_scores=False)):
        if name.startswith("aux_labels"):
            if isinstance(value, Tensor):
                setattr(ans, name, torch.where(new, -1, value))
            else:
                extra = RaggedTensor(
                    RaggedShape(splits=[counts_to_splits(new)]), value.values.new_full((int(new.sum()),), -1)
                )
                setattr(ans, name, RaggedTensor.cat([value, extra], axis=1))


def union(fsas: Fsa) -> Fsa:
    """Accepts what any of the FSAs of the vector accepts: a new start leads to each of theirs by an epsilon, finals
    are one.
    """
    if not fsas.is_vec():
        raise ValueError("union takes an FsaVec: create_fsa_vec([a, b])")
    fsa_splits = fsas._shape.row_splits(1).long()
    counts = fsa_splits[1:] - fsa_splits[:-1]
    some = counts > 0
    body = (counts - 1).clamp(min=0)  # states other than the final one
    begin = 1 + torch.cumsum(body, 0) - body
    total = int(body.sum()) + 2
    arc_fsa = fsas._shape.row_ids(1).long()[fsas._shape.row_ids(2).long()]
    src, dest, label = fsas.arcs3.long().unbind(1)
    final = dest == counts[arc_fsa] - 1
    moved = torch.stack([src + begin[arc_fsa], torch.where(final, total - 1, dest + begin[arc_fsa]), label], dim=1)
    starts = torch.where(body > 0, begin, total - 1)[some]
    starts = starts[starts < total - 1]
    opening = torch.stack([torch.zeros_like(starts), starts, torch.zeros_like(starts)], dim=1)
    arcs = torch.cat([opening, moved])
    arc_map = torch.cat([torch.full_like(starts, -1), torch.arange(fsas.num_arcs, device=fsas.device)])
    splits = torch.tensor([0, total if bool(some.any()) else 0], dtype=torch.int32, device=fsas.device)
    return _rebuild(fsas, arcs, arcs[:, 0], splits, arc_map, vec=False)[0]


def closure(fsa: Fsa) -> Fsa:
    """Accepts any number of repeats of what fsa accepts, none included: arcs to the final state lead back to the start.

    They become epsilons. If other arcs enter the start, a new start is put before it, so that nothing ends in the
    midst.
    """
    if fsa.is_vec():
        raise ValueError("closure takes a single FSA")
    num_states = max(fsa.shape[0] or 0, 2)  # without states it accepts nothing, its closure the empty string
    src, dest, label = fsa.arcs3.long().unbind(1)
    shift = int(bool((dest == 0).any()))
    final = dest == num_states - 1
    back = torch.stack([src + shift, torch.where(final, 0, dest + shift), torch.where(final, 0, label)], dim=1)
    extra = [[0, num_states - 1 + shift, -1]] + ([[0, 1, 0]] if shift else [])
    arcs = torch.cat([back, torch.tensor(extra, device=fsa.device)])
    arc_map = torch.cat([torch.arange(fsa.num_arcs), torch.full((len(extra),), -1)]).to(fsa.device)
    splits = torch.tensor([0, num_states + shift], dtype=torch.int32, device=fsa.device)
    ans, arc_map = _rebuild(fsa, arcs, arcs[:, 0], splits, arc_map, vec=False)
    _plain_final_aux(ans, fsa, arc_map)
    _new_final_aux(ans, arc_map)
    return ans


def reverse(fsa: Fsa) -> Fsa:
    """Accepts the reversed strings: arcs turn round, the old final state starts (by epsilons), the old start ends."""
    vec = fsa.as_vec()
    fsa_splits = vec._shape.row_splits(1).long()
    counts = fsa_splits[1:] - fsa_splits[:-1]
    some = (counts > 0).long()
    new_splits = counts_to_splits(counts + some)
    arc_fsa = vec._shape.row_ids(1).long()[vec._shape.row_ids(2).long()]
    src, dest, label = vec.arcs3.long().unbind(1)
    last = counts[arc_fsa] - 1
    turned = torch.stack([torch.where(dest == last, 0, dest + 1), src + 1, torch.where(label == -1, 0, label)], dim=1)
    which = some.nonzero().squeeze(1)
    # An FSA of one state accepts nothing; its old start is its old final state.
    ends = torch.stack([torch.where(counts[which] > 1, 1, 0), counts[which], torch.full_like(which, -1)], dim=1)
    arcs, of = torch.cat([turned, ends]), torch.cat([arc_fsa, which])
    arc_map = torch.cat([torch.arange(fsa.num_arcs, device=fsa.device), torch.full_like(which, -1)])
    keep_arcs = torch.cat([torch.ones_like(arc_fsa, dtype=torch.bool), counts[which] > 1])
    arcs, of, arc_map = arcs[keep_arcs], of[keep_arcs], arc_map[keep_arcs]
    ans, arc_map = _rebuild(fsa, arcs, arcs[:, 0] + new_splits.long()[of], new_splits, arc_map, fsa.is_vec())
    _plain_final_aux(ans, fsa, arc_map)
    _new_final_aux(ans, arc_map)
    return ans


def cat(srcs: Sequence[Fsa]) -> Fsa:
    """One FsaVec of the FSAs of several, one after another."""
    return Fsa.from_fsas(srcs)


def replace_fsa(src: Fsa, index: Fsa, symbol_begin_range: int = 1, ret_arc_map: bool = False) -> Any:
    """`index` with every arc whose label is symbol_begin_range + k replaced by a copy of FSA k of the vector `src`.

    Such an arc becomes an epsilon into the copy's start; the copy's final arcs become epsilons to the arc's
    destination. An FSA of no or one state, which accepts nothing, cuts the arc. Returns (Fsa, map to src, map to index)
    if ret_arc_map.
    """
    if not src.is_vec():
        raise ValueError("replace_fsa: src must be an FsaVec")
    if symbol_begin_range <= 0:
        raise ValueError(f"symbol_begin_range must be positive, got {symbol_begin_range}")
    device = index.device
    vec = index.as_vec()
    num_src = src._shape.dim0
    src_splits, src_arcs = src._shape.row_splits(1).long(), src._shape.row_splits(2).long()
    sizes = src_splits[1:] - src_splits[:-1]
    label = vec.labels.long()
    which = label - symbol_begin_range
    replaced = (which >= 0) & (which < num_src)
    which = torch.where(replaced, which, 0)
    cut = replaced & ((sizes[which] <= 1) if num_src else replaced)  # a copy that accepts nothing
    inner_states = torch.where(replaced & ~cut, (sizes[which] if num_src else which) - 1, 0)
    # The copy's states come right after the state that the arc leaves: what is top-sorted stays so.
    arc_state = vec._shape.row_ids(2).long()
    per_state = torch.zeros(vec._shape.tot_size(1), dtype=torch.int64, device=device)
    per_state = per_state.index_add(0, arc_state, inner_states) + 1
    new_of = torch.cumsum(per_state, 0) - per_state  # over the whole vector
    before = torch.cumsum(inner_states, 0) - inner_states
    first_arc = vec._shape.row_splits(2).long()[:-1][arc_state]
    copy_of = new_of[arc_state] + 1 + before - (before[first_arc] if first_arc.numel() else before)
    fsa_ids = vec._shape.row_ids(1).long()
    fsa_splits = counts_to_splits(
        torch.zeros(vec._shape.dim0, dtype=torch.int64, device=device).index_add(0, fsa_ids, per_state)
    )
    arc_fsa = fsa_ids[arc_state]
    dest = new_of[vec._shape.row_splits(1).long()[arc_fsa] + vec.arcs3[:, 1]] if index.num_arcs else arc_state
    ids = torch.arange(index.num_arcs, device=device)[~cut]
    outer = torch.stack([new_of[arc_state], torch.where(replaced, copy_of, dest), torch.where(replaced, 0, label)], 1)[
        ids
    ]
    copies = (replaced & ~cut).nonzero().squeeze(1)
    first, last = src_arcs[src_splits[which[copies]]], src_arcs[src_splits[which[copies] + 1]]
    lengths = last - first
    of = torch.repeat_interleave(copies, lengths)
    total = int(lengths.sum())
    within = torch.arange(total, device=device) - torch.repeat_interleave(torch.cumsum(lengths, 0) - lengths, lengths)
    inner_ids = torch.repeat_interleave(first, lengths) + within
    a = src.arcs3.long()[inner_ids]
    ends = a[:, 1] == sizes[which[of]] - 1 if total else a[:, 1] < 0
    inner = torch.stack([copy_of[of] + a[:, 0], torch.where(ends, dest[of], copy_of[of] + a[:, 1]),
                         torch.where(ends, 0, a[:, 2])], dim=1)  # fmt: skip
    arcs, owner = torch.cat([outer, inner]), torch.cat([arc_fsa[ids], arc_fsa[of]])
    maps = torch.cat([torch.full_like(ids, -1), inner_ids]), torch.cat([ids, torch.full_like(inner_ids, -1)])
    order = torch.argsort(arcs[:, 0], stable=True)
    state_splits = ids_to_splits(arcs[order, 0].int(), int(fsa_splits[-1]))
    begin = fsa_splits.long()[owner]
    local = torch.stack([arcs[:, 0] - begin, arcs[:, 1] - begin, arcs[:, 2]], dim=1)[order].int()
    map_src, map_index = (m[order].int() for m in maps)
    ans = fsa_from_binary_function_tensor(
        src, index, arcs_of((fsa_splits, state_splits, local), index.is_vec()), map_src, map_index
    )
    _plain_final_aux(ans, src, map_src)
    return (ans, map_src, map_index) if ret_arc_map else ans


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
    vec, device = fsas.as_vec(), fsas.device
    num_arcs = fsas.num_arcs
    final = fsas.labels == -1
    length = torch.ones(num_arcs, dtype=torch.int64, device=device)
    lists: list[tuple[str, RaggedTensor, Tensor]] = []
    for name in names:
        value: RaggedTensor = fsas._tensor_attr[name]  # type: ignore[assignment]
        counts = value.shape.counts(1).long()
        last = value.shape.row_splits(1)[1:].long() - 1
        ends = final & (counts > 0)
        if value.numel():
            ends &= value.values[last.clamp(min=0)] == -1
        lists.append((name, value, ends))
        # On a final arc the last place is for -1 alone.
        length = torch.maximum(length, counts + (final & ~ends & (counts > 0)).long())
    arc_state = vec._shape.row_ids(2).long()
    extra = torch.zeros(vec._shape.tot_size(1), dtype=torch.int64, device=device).index_add(0, arc_state, length - 1)
    new_of = torch.cumsum(extra + 1, 0) - extra - 1
    fsa_ids = vec._shape.row_ids(1).long()
    fsa_splits = counts_to_splits(
        torch.zeros(vec._shape.dim0, dtype=torch.int64, device=device).index_add(0, fsa_ids, extra + 1)
    )
    before = torch.cumsum(length - 1, 0) - (length - 1)
    first_arc = vec._shape.row_splits(2).long()[:-1][arc_state]
    chain = new_of[arc_state] + 1 + before - (before[first_arc] if num_arcs else before)
    arc_fsa = fsa_ids[arc_state]
    dest = new_of[vec._shape.row_splits(1).long()[arc_fsa] + vec.arcs3[:, 1]] if num_arcs else arc_state
    of = torch.repeat_interleave(torch.arange(num_arcs, device=device), length)
    begin = torch.cumsum(length, 0) - length
    j = torch.arange(of.numel(), device=device) - begin[of]
    is_first, is_last = j == 0, j == length[of] - 1
    src = torch.where(is_first, new_of[arc_state[of]], chain[of] + j - 1)
    end = torch.where(is_last, dest[of], chain[of] + j)
    label = torch.where(torch.where(final[of], is_last, is_first), fsas.labels[of], 0)
    order = torch.argsort(src, stable=True)
    state_splits = ids_to_splits(src[order].int(), int(fsa_splits[-1]))
    offset = fsa_splits.long()[arc_fsa[of]]
    arcs3 = torch.stack([src - offset, end - offset, label], dim=1)[order].int()
    arc_map = torch.where(is_first, of, -1)[order].int()
    kept = fsas._with_shape(fsas._shape)
    for name in names:
        delattr(kept, name)
    ans = fsa_from_unary_function_tensor(kept, arcs_of((fsa_splits, state_splits, arcs3), fsas.is_vec()), arc_map)
    for name, value, ends in lists:
        flat = value.values.new_zeros(of.numel())
        rows = value.shape.row_ids(1).long()
        position = torch.arange(value.numel(), device=device) - value.shape.row_splits(1).long()[rows]
        at_end = ends[rows] & (position == value.shape.counts(1).long()[rows] - 1)
        flat[begin[rows] + torch.where(at_end, length[rows] - 1, position)] = value.values
        if name.startswith("aux_labels"):
            flat = torch.where(final[of] & is_last, -1, flat)
        setattr(ans, name, flat[order])
    return (ans, arc_map) if ret_arc_map else ans


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
