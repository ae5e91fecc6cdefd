"""Scores of states by levels: all states as far from the start (in arcs, longest way) as each other at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ops.ragged.shape import splits_to_ids


def _levels(splits: tuple[Tensor, Tensor], arcs3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Source and destination state of each arc over the whole vector, and the level of each state."""
    fsa_splits, state_splits = (s.long() for s in splits)
    num_states = state_splits.numel() - 1
    states = torch.arange(num_states, device=arcs3.device)
    first = torch.repeat_interleave(fsa_splits[:-1], fsa_splits[1:] - fsa_splits[:-1])
    src = torch.repeat_interleave(states, state_splits[1:] - state_splits[:-1])
    dest = first[src] + arcs3[:, 1]
    if bool((dest <= src).any()):
        raise RuntimeError("an FSA is cyclic or not top-sorted: call top_sort first")
    level = torch.zeros_like(states)
    while not torch.equal(new := level.scatter_reduce(0, dest, level[src] + 1, "amax"), level):
        level = new
    return src, dest, level


def fsa_state_scores(
    fsa_splits: Tensor,
    state_splits: Tensor,
    arcs: Tensor,
    scores: Tensor,
    forward: bool,
    log_semiring: bool,
    want_shares: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    src, dest, level = _levels((fsa_splits, state_splits), arcs)
    has_states = fsa_splits[1:] > fsa_splits[:-1]
    known = (fsa_splits[:-1] if forward else fsa_splits[1:] - 1)[has_states].long()
    if not forward:
        src, dest = dest, src
    out = torch.full((level.numel(),), float("-inf"), dtype=scores.dtype, device=scores.device)
    out[known] = 0
    best = torch.full_like(level, -1)
    top = int(level.max()) if level.numel() else 0
    for k in range(1, top + 1) if forward else range(top - 1, -1, -1):
        into = (level[dest] == k).nonzero().squeeze(1)
        if into.numel() == 0:
            continue
        x, d = out[src[into]] + scores[into], dest[into]
        peak = torch.full_like(out, float("-inf")).scatter_reduce(0, d, x, "amax")
        if log_semiring:
            safe = torch.where(torch.isfinite(peak), peak, 0.0)
            total = torch.zeros_like(out).index_add(0, d, (x - safe[d]).exp()).log() + safe
        else:
            total = peak
            wins = (x == peak[d]) & (x > float("-inf"))
            first = torch.full_like(level, arcs.shape[0]).scatter_reduce(0, d[wins], into[wins], "amin")
            best = torch.where(first < arcs.shape[0], first, best)
        here = (level == k).scatter(0, known, False) if k == 0 or not forward else level == k
        out = torch.where(here, total, out)
    made = want_shares and log_semiring and not forward
    return out, best.int(), _shares(out, src, dest, scores) if made else scores[:0]


def _shares(out: Tensor, src: Tensor, dest: Tensor, scores: Tensor) -> Tensor:
    """The part of each arc in the sum of the state that it contributes to; 0 where nothing was summed."""
    total = out[dest]
    return torch.where(total > float("-inf"), out[src] + scores - total, float("-inf")).exp()


def fsa_state_scores_grad(
    fsa_splits: Tensor,
    state_splits: Tensor,
    arcs: Tensor,
    scores: Tensor,
    forward: bool,
    log_semiring: bool,
    state_scores: Tensor,
    best: Tensor,
    shares: Tensor,
    state_grad: Tensor,
) -> Tensor:
    src, dest, level = _levels((fsa_splits, state_splits), arcs)
    if not forward:
        src, dest = dest, src
    if log_semiring:
        part = _shares(state_scores, src, dest, scores)
    else:
        part = (best[dest] == torch.arange(arcs.shape[0], device=arcs.device)).to(scores.dtype)
    grad, arc_grad = state_grad.clone(), torch.zeros_like(scores)
    top = int(level.max()) if level.numel() else 0
    for k in range(top, -1, -1) if forward else range(top + 1):
        into = (level[dest] == k).nonzero().squeeze(1)
        arc_grad[into] = grad[dest[into]] * part[into]
        grad = grad.index_add(0, src[into], arc_grad[into])
    return arc_grad


def _places(fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The FSA, the source and the destination state of each arc, numbered over the whole vector."""
    splits = fsa_splits.long()
    src = splits_to_ids(state_splits, arcs.shape[0]).long()
    fsa = splits_to_ids(fsa_splits, state_splits.numel() - 1).long()[src]
    return fsa, src, splits[fsa] + arcs[:, 1]


def fsa_arc_post(
    fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, scores: Tensor, forward: Tensor, backward: Tensor
) -> Tensor:
    fsa, src, dest = _places(fsa_splits, state_splits, arcs)
    total = forward[fsa_splits.long()[fsa + 1] - 1]
    some = torch.isfinite(total)
    return torch.where(some, forward[src] + scores + backward[dest] - torch.where(some, total, 0.0), float("-inf"))


def fsa_arc_post_grad(
    fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, forward: Tensor, post_grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    fsa, src, dest = _places(fsa_splits, state_splits, arcs)
    final = fsa_splits.long()[fsa + 1] - 1
    arc_grad = torch.where(torch.isfinite(forward[final]), post_grad, 0.0)
    forward_grad = torch.zeros_like(forward).index_add(0, src, arc_grad).index_add(0, final, -arc_grad)
    return arc_grad, forward_grad, torch.zeros_like(forward).index_add(0, dest, arc_grad)
