"""Automata built from whole automata: union, closure, reverse, one put into another.

Each takes an Fsa or an FsaVec as it says; scores and attributes follow the arcs (see fsa_attributes.py), gradients too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ops.algorithms import place_inner_states
from ops.fsa import Fsa
from ops.fsa_attributes import arcs_of, fsa_from_binary_function_tensor, fsa_from_unary_function_tensor
from ops.ragged import RaggedShape, RaggedTensor
from ops.ragged.shape import counts_to_splits, expand_ranges, ids_to_splits


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
    num_src, label = src._shape.dim0, index.labels.long()
    which = label - symbol_begin_range
    replaced = (which >= 0) & (which < num_src)
    which = torch.where(replaced, which, 0)
    sizes = src._shape.counts(1).long() if num_src else which.new_zeros(1)
    kept = ~(replaced & (sizes[which] <= 1))  # else the copy would accept nothing
    copied = replaced & kept
    new = place_inner_states(index, torch.where(copied, sizes[which] - 1, 0))

    ids = kept.nonzero().squeeze(1)
    end, label = torch.where(replaced, new.inner, new.dest), torch.where(replaced, 0, label)
    outer = torch.stack([new.src, end, label], dim=1)[ids]
    of = copied.nonzero().squeeze(1)
    inner, inner_ids, of = _copies(src, which[of], sizes, new.inner[of], new.dest[of], of)
    arcs, owner = torch.cat([outer, inner]), torch.cat([new.arc_fsa[ids], new.arc_fsa[of]])
    order = torch.argsort(arcs[:, 0], stable=True)
    begin = new.fsa_splits.long()[owner][:, None]
    local = torch.cat([arcs[:, :2] - begin, arcs[:, 2:]], dim=1)[order].int()
    state_splits = ids_to_splits(arcs[order, 0].int(), int(new.fsa_splits[-1]))
    map_src = torch.cat([torch.full_like(ids, -1), inner_ids])[order].int()
    map_index = torch.cat([ids, torch.full_like(inner_ids, -1)])[order].int()
    ans = fsa_from_binary_function_tensor(
        src, index, arcs_of((new.fsa_splits, state_splits, local), index.is_vec()), map_src, map_index
    )
    _plain_final_aux(ans, src, map_src)
    return (ans, map_src, map_index) if ret_arc_map else ans


def _copies(
    src: Fsa, which: Tensor, sizes: Tensor, starts: Tensor, ends: Tensor, of: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The arcs of copies of FSAs `which`, with start states `starts` and final states `ends`; which arcs of src they
    are, and the entry of `of` for each.
    """
    first_state, first_arc = (splits.long() for splits in src.splits())
    begin = first_arc[first_state[which]]
    splits, ids = expand_ranges(begin, first_arc[first_state[which + 1]] - begin)
    copy = RaggedShape(splits=[splits]).row_ids(1).long()
    arcs = src.arcs3.long()[ids.long()]
    last = arcs[:, 1] == sizes[which[copy]] - 1
    dest = torch.where(last, ends[copy], starts[copy] + arcs[:, 1])
    moved = torch.stack([starts[copy] + arcs[:, 0], dest, torch.where(last, 0, arcs[:, 2])], dim=1)
    return moved, ids.long(), of[copy]
