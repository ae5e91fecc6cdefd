"""Shapes of what the FSA ops return, without running them: what torch.compile, torch.export and fake tensors need.

Sizes that depend on the data (a lattice's arcs) are symbols of their own. The ops on handles (ngram_kenlm_*,
ctc_decoder_*), the reader of ARPA files and the frame steps of rnnt decoding and of online intersection have no fakes:
they keep a state that cannot be traced. `Fsa` is a Python object whose methods branch on sizes, so a traced function
may call these ops, not build graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ops import build


def _size() -> Any:
    return torch.library.get_ctx().new_dynamic_size()


def _automata(like: Tensor, fsa_splits: int, maps: int = 1, lists: bool = False) -> tuple[Tensor, ...]:
    """fsa_splits, state_splits, arcs and arc maps (or, as lists, map_splits and map) of an unknown number of arcs."""
    arcs = _size()
    head = like.new_empty(fsa_splits), like.new_empty(_size()), like.new_empty(arcs, 3)
    if lists:
        return (*head, like.new_empty(arcs + 1), like.new_empty(_size()))
    return (*head, *(like.new_empty(arcs) for _ in range(maps)))


def _unary(fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _automata(arcs, fsa_splits.shape[0])


def _unary_lists(fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _automata(arcs, fsa_splits.shape[0], lists=True)


def _state_scores(
    fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, scores: Tensor, forward: bool, log_semiring: bool,
    want_shares: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    states, made = state_splits.shape[0] - 1, want_shares and log_semiring and not forward
    return scores.new_empty(states), arcs.new_empty(states), scores.new_empty(arcs.shape[0] if made else 0)


def _levels(fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor) -> tuple[Tensor, Tensor]:
    return arcs.new_empty(state_splits.shape[0] - 1), arcs.new_empty(_size(), device="cpu")


def _state_scores_by_level(
    fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, order: Tensor, level_splits: Tensor,
    entering_splits: Tensor, entering: Tensor, scores: Tensor, forward: bool, log_semiring: bool, want_shares: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _state_scores(fsa_splits, state_splits, arcs, scores, forward, log_semiring, want_shares)


def _state_scores_by_level_grad(*args: Any) -> Tensor:
    return torch.empty_like(args[7])


def _like_scores(fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, scores: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(scores)


def _like_states(fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, scores: Tensor, *_: Any) -> Tensor:
    return scores.new_empty(state_splits.shape[0] - 1)


def _arc_post_grad(
    fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, forward: Tensor, post_grad: Tensor
) -> tuple[Tensor, ...]:
    return torch.empty_like(post_grad), torch.empty_like(forward), torch.empty_like(forward)


def _random_paths(
    fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, shares: Tensor, path_splits: Tensor, seed: int
) -> tuple[Tensor, ...]:
    return arcs.new_empty(_size()), arcs.new_empty(_size())


def _properties(fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor) -> Tensor:
    return arcs.new_empty(fsa_splits.shape[0] - 1)


def _ctc_graph(row_splits: Tensor, symbols: Tensor, modified: bool) -> tuple[Tensor, ...]:
    num_states, arcs = 2 * (symbols.shape[0] + row_splits.shape[0] - 1), _size()
    splits = torch.empty_like(row_splits), symbols.new_empty(num_states + 1)
    return (*splits, symbols.new_empty(arcs, 3), symbols.new_empty(arcs))


def _arc_sort(state_splits: Tensor, arcs: Tensor) -> Tensor:
    return arcs.new_empty(arcs.shape[0])


def _intersect(*args: Any) -> tuple[Tensor, ...]:
    a_arcs, a_index = args[2], args[7]
    return _automata(a_arcs, a_index.shape[0] + 1, maps=2)


def _intersect_dense(*args: Any) -> tuple[Tensor, ...]:
    arcs, scores, a_index, want_frame = args[2], args[3], args[6], args[-1]
    lattice = _automata(arcs, a_index.shape[0] + 1)
    num_arcs = lattice[3].shape[0]
    return (*lattice, arcs.new_empty(num_arcs if want_frame else 0), scores.new_empty(num_arcs))


def _ctc_read(fsa_splits: Tensor, state_splits: Tensor, arcs: Tensor, aux: Tensor | None) -> tuple[Tensor, ...]:
    tokens = _size()  # the first one is empty if a graph is no CTC graph
    return arcs.new_empty(_size()), arcs.new_empty(tokens), arcs.new_empty(tokens)


def _ctc_loss(log_probs: Tensor, segments: Tensor, *args: Any) -> tuple[Tensor, ...]:
    want_grad = args[-1]
    total = log_probs.new_empty(segments.shape[0], dtype=torch.float64)
    return total, log_probs.new_empty(_size() if want_grad else 0)


def _ctc_loss_grad(
    occupations: Tensor, total_grad: Tensor, segments: Tensor, token_splits: Tensor, tokens: Tensor, N: int, T: int, C: int
) -> Tensor:  # fmt: skip
    return occupations.new_empty(N, T, C)


def _ctc_align(log_probs: Tensor, segments: Tensor, *_: Any) -> Tensor:
    return segments.new_empty(segments.shape[0], log_probs.shape[1])


def _edit_distance(ref_splits: Tensor, refs: Tensor, hyp_splits: Tensor, hyps: Tensor, hyp_to_ref: Tensor) -> Tensor:
    return torch.empty_like(hyp_to_ref)


def _ngram_score(*args: Any) -> tuple[Tensor, Tensor]:
    states = args[-2]
    return states.new_empty(states.shape[0], dtype=torch.float32), torch.empty_like(states)


def _pick(src: Tensor, map: Tensor, filler: float) -> Tensor:
    return src.new_empty(map.shape[0])


def _pick_sum(src: Tensor, map_splits: Tensor, map: Tensor) -> Tensor:
    return src.new_empty(map_splits.shape[0] - 1)


def _pick_lists(src: Tensor, map_splits: Tensor, map: Tensor, filler: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(map_splits), src.new_empty(_size())


FAKES: dict[str, Callable[..., Any]] = {
    "fsa_state_scores": _state_scores,
    "fsa_state_scores_grad": _like_scores,
    "fsa_levels": _levels,
    "fsa_state_scores_by_level": _state_scores_by_level,
    "fsa_state_scores_by_level_grad": _state_scores_by_level_grad,
    "fsa_arc_post": _like_scores,
    "fsa_arc_post_grad": _arc_post_grad,
    "fsa_shortest_path": _unary,
    "fsa_random_paths": _random_paths,
    "fsa_properties": _properties,
    "fsa_ctc_graph": _ctc_graph,
    "fsa_connect": _unary,
    "fsa_keep": _unary,
    "fsa_top_sort": _unary,
    "fsa_arc_sort": _arc_sort,
    "fsa_intersect": _intersect,
    "fsa_remove_epsilon": _unary_lists,
    "fsa_determinize": _unary_lists,
    "fsa_minimize": _unary,
    "fsa_potentials": _like_states,
    "fsa_pick": _pick,
    "fsa_pick_sum": _pick_sum,
    "fsa_pick_lists": _pick_lists,
    "fsa_intersect_dense": _intersect_dense,
    "fsa_intersect_dense_batch": _intersect_dense,
    "fsa_ctc_read": _ctc_read,
    "fsa_ctc_loss": _ctc_loss,
    "fsa_ctc_loss_grad": _ctc_loss_grad,
    "fsa_ctc_align": _ctc_align,
    "fsa_edit_distance": _edit_distance,
    "ngram_score": _ngram_score,
}


@build.when_loaded
def _register() -> None:
    for name, fake in FAKES.items():
        torch.library.register_fake(f"lattica::{name}", fake)
