"""DenseFsaVec, frame scores of a network seen as automata, and their intersection with decoding graphs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ops import build
from ops.fsa import Fsa
from ops.fsa_attributes import arcs_of, fsa_from_unary_function_tensor, pick
from ops.ragged import RaggedShape, RaggedTensor
from ops.ragged.shape import counts_to_splits

History = tuple[RaggedTensor, Tensor]  # active states [frame][token], and their scores


class DenseFsaVec:
    """Segments of frames as linear automata: between frame t and t + 1 an arc for each label, scored by the network.

    Args:
      log_probs: float (N, T, C), log-probabilities, or any scores, of labels 0 ... C - 1.
      supervision_segments: int32 (S, 3) on the CPU or log_probs' device; rows [index in the batch, first frame, number
        of frames]. In any order, overlaps allowed; a segment without frames accepts only what needs none.
      allow_truncate: a segment may stick out of T by up to so many frames, which are cut off.
    Raises ValueError for segments that do not lie inside.
    """

    def __init__(self, log_probs: Tensor, supervision_segments: Tensor, allow_truncate: int = 0):
        if log_probs.ndim != 3 or not log_probs.is_floating_point():
            raise ValueError(f"log_probs must be float (N, T, C), got {log_probs.dtype} {tuple(log_probs.shape)}")
        if (
            supervision_segments.ndim != 2
            or supervision_segments.shape[1] != 3
            or supervision_segments.is_floating_point()
        ):
            raise ValueError(f"supervision_segments must be int32 (S, 3), got {tuple(supervision_segments.shape)}")
        N, T, _ = log_probs.shape
        segments = supervision_segments.detach().cpu().long().clone()
        index, start, duration = segments.unbind(1)
        over = start + duration - T
        if allow_truncate > 0:
            segments[:, 2] = torch.where((over > 0) & (over <= allow_truncate), T - start, duration)
            index, start, duration = segments.unbind(1)
        bad = (index < 0) | (index >= N) | (start < 0) | (duration < 0) | (start + duration > T)
        if bool(bad.any()):
            i = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"supervision_segments[{i}] = {segments[i].tolist()} ([index, first frame, frames]) does not lie "
                f"inside log_probs of {N} utterances x {T} frames (allow_truncate={allow_truncate})"
            )
        self.log_probs = log_probs
        self.segments = segments.int()  # on the CPU: loops are planned there

    @property
    def duration(self) -> Tensor:
        """(S,) int32 on the CPU: the frames of each segment."""
        return self.segments[:, 2]

    @property
    def device(self) -> torch.device:
        return self.log_probs.device

    @property
    def row_splits(self) -> Tensor:
        """Where each segment begins in `scores`: it has a row more than frames."""
        return counts_to_splits(self.segments[:, 2] + 1).to(self.device)

    def shape(self) -> RaggedShape:
        return RaggedShape(splits=[self.row_splits])

    def dim0(self) -> int:
        return self.segments.shape[0]

    @property
    def dense_fsa_vec(self) -> DenseFsaVec:
        return self

    @property
    def scores(self) -> Tensor:
        """k2's matrix (frames + segments, C + 1): column 0 is label -1, which only the last row of a segment allows."""
        shape = self.shape()
        rows = shape.row_ids(1).long()
        segments = self.segments.to(self.device).long()
        t = torch.arange(rows.numel(), device=self.device) - self.row_splits.long()[rows]
        is_end = (t == segments[rows, 2])[:, None]
        N, T, C = self.log_probs.shape
        frame = torch.where(is_end[:, 0], -1, segments[rows, 0] * T + segments[rows, 1] + t)
        body = pick(self.log_probs.reshape(N * T, C), frame, float("-inf"))
        end = torch.where(is_end, 0.0, float("-inf")).to(body.dtype)
        return torch.cat([end, body], dim=1)

    def __getitem__(self, i: int) -> Tensor:
        """The frame scores (frames, C) of segment i."""
        index, start, duration = self.segments[i].tolist()
        return self.log_probs[index, start : start + duration]

    def __len__(self) -> int:
        return self.dim0()

    def to(self, device: torch.device | str) -> DenseFsaVec:
        return DenseFsaVec(self.log_probs.to(device), self.segments)

    def __str__(self) -> str:
        return f"DenseFsaVec({self.dim0()} segments, frames {self.duration.tolist()}, {self.log_probs.shape[2]} labels)"


def intersect_dense(
    a_fsas: Fsa,
    b_fsas: DenseFsaVec,
    output_beam: float,
    max_states: int = 15_000_000,
    max_arcs: int = 1_073_741_824,
    a_to_b_map: Tensor | None = None,
    seqframe_idx_name: str | None = None,
    frame_idx_name: str | None = None,
    ret_arc_maps: bool = False,
) -> Any:
    """All paths of graph i through the frames of its segment whose score is within output_beam of the best (exact
    search).

    Args:
      a_fsas: FsaVec of graphs, labels are columns of the scores (0, too), or one Fsa for all segments.
      a_to_b_map: int32, the segment of each graph; default: the same number.
      max_states, max_arcs: k2's limits; the search needs none, larger results raise RuntimeError.
      seqframe_idx_name, frame_idx_name: attributes to make: the row in `b_fsas.scores`, the frame within the segment.
      ret_arc_maps: also return arc maps to a_fsas' arcs and to b_fsas.scores.reshape(-1).
    Returns an FsaVec, top-sorted and connected; an FSA without states where there is no path. Gradients go to the
    scores of both.
    """
    ans = _intersect_dense(a_fsas, b_fsas, float("inf"), output_beam, 0, 2**31 - 1, False, a_to_b_map,
                           seqframe_idx_name, frame_idx_name, ret_arc_maps)  # fmt: skip
    fsa = ans[0] if ret_arc_maps else ans
    if fsa._shape.tot_size(1) > max_states or fsa.num_arcs > max_arcs:
        raise RuntimeError(
            f"intersect_dense: {fsa._shape.tot_size(1)} states and {fsa.num_arcs} arcs are more than max_states="
            f"{max_states} or max_arcs={max_arcs}: use a smaller output_beam (now {output_beam})"
        )
    return ans


def intersect_dense_pruned(
    a_fsas: Fsa,
    b_fsas: DenseFsaVec,
    search_beam: float,
    output_beam: float,
    min_active_states: int,
    max_active_states: int,
    seqframe_idx_name: str | None = None,
    frame_idx_name: str | None = None,
    allow_partial: bool = False,
    ret_arc_maps: bool = False,
    history: Sequence[History] | None = None,
) -> Any:
    """As intersect_dense with a beam search, for large graphs: one for all segments, or one for each.

    Args:
      search_beam: states that fall more than this behind the best at a frame are dropped,
      min_active_states, max_active_states: but at least and at most so many are kept.
      output_beam: how far behind the best whole path a path may fall in the result.
      allow_partial: where no path is complete, let every state that is active after the last frame be final.
      history: for each segment what an earlier search over its first frames found (see OnlineDenseIntersecter); then
        the result is (the usual one, the history of all frames).
    """
    return _intersect_dense(a_fsas, b_fsas, search_beam, output_beam, min_active_states, max_active_states,
                            allow_partial, None, seqframe_idx_name, frame_idx_name, ret_arc_maps, history)  # fmt: skip


def _intersect_dense(
    a_fsas: Fsa, b_fsas: DenseFsaVec, search_beam: float, output_beam: float, min_active: int, max_active: int,
    allow_partial: bool, a_to_b_map: Tensor | None, seqframe_idx_name: str | None, frame_idx_name: str | None,
    ret_arc_maps: bool, history: Sequence[History] | None = None,
) -> Any:  # fmt: skip
    graphs = a_fsas.as_vec()
    num_a, num_b = graphs._shape.dim0, b_fsas.dim0()
    if graphs.device != b_fsas.device:
        raise ValueError(f"intersect_dense: the graphs are on {graphs.device}, the scores on {b_fsas.device}")
    if not (search_beam > 0 and output_beam > 0):
        raise ValueError(f"beams must be positive, got search_beam={search_beam}, output_beam={output_beam}")
    if not (0 <= min_active <= max_active and max_active > 0):
        raise ValueError(f"need 0 <= min_active_states <= max_active_states, got {min_active}, {max_active}")
    if a_to_b_map is not None:
        if a_to_b_map.shape != (num_a,) or (num_a and not 0 <= int(a_to_b_map.min()) <= int(a_to_b_map.max()) < num_b):
            raise ValueError(
                f"a_to_b_map must name one of {num_b} segments for each of {num_a} graphs, got {a_to_b_map}"
            )
        a_index, b_index = torch.arange(num_a), a_to_b_map.cpu().contiguous()
    elif num_a in (1, num_b):
        a_index, b_index = torch.arange(num_b) % max(num_a, 1), torch.arange(num_b)
    else:
        raise ValueError(f"intersect_dense: {num_a} graphs for {num_b} segments: need one, or one for each")
    log_probs = b_fsas.log_probs
    float32 = graphs.scores.dtype == log_probs.dtype == torch.float32
    inputs = (
        *graphs.splits(), graphs.arcs3, graphs.scores.detach().float().contiguous(),
        log_probs.detach().float().contiguous(), b_fsas.segments, a_index.int(), b_index.int(),
        search_beam, output_beam, min_active, max_active, allow_partial,
    )  # fmt: skip
    if history is None:
        names = seqframe_idx_name is not None or frame_idx_name is not None
        want_frame = names or ret_arc_maps or graphs.requires_grad or log_probs.requires_grad or not float32
        *arcs, map_a, frame, values = _search(graphs.device, "")(*inputs, want_frame)
    else:
        *arcs, map_a, frame, values, history = _go_on(inputs, history)
    shape, arcs3 = arcs_of(arcs, vec=True)
    _, T, C = log_probs.shape

    b_index = b_index.to(graphs.device)

    def segment() -> Tensor:
        return b_index[shape.row_ids(1).long()[shape.row_ids(2).long()]]

    def place() -> Tensor:
        """Where in log_probs.reshape(-1) each arc's frame score is; -1: it takes no frame."""
        index, start, _ = b_fsas.segments.to(graphs.device).long()[segment()].unbind(1)
        label = arcs3[:, 2].long()
        return torch.where(label >= 0, ((index * T + start) + frame) * C + label, -1)

    if float32:
        scores = _ArcScores.apply(graphs.scores, log_probs, values, map_a, place)
    else:
        scores = pick(graphs.scores, map_a) + pick(log_probs.reshape(-1), place())
    ans = fsa_from_unary_function_tensor(graphs, (shape, arcs3), map_a, scores)
    if seqframe_idx_name is not None or ret_arc_maps:
        seqframe = b_fsas.row_splits[segment()] + frame
    if seqframe_idx_name is not None:
        setattr(ans, seqframe_idx_name, seqframe)
    if frame_idx_name is not None:
        setattr(ans, frame_idx_name, frame)
        setattr(ans, frame_idx_name + "_filler", -1)  # arcs that come in later, from an LM for instance, take no frame
    result = (ans, map_a, (seqframe.long() * (C + 1) + arcs3[:, 2] + 1).int()) if ret_arc_maps else ans
    return result if history is None else (result, history)


def _search(device: torch.device, suffix: str) -> Any:
    """The op for the device: an utterance a thread on the CPU, all utterances frame by frame on a GPU. Plans lie on the CPU."""
    build.load()
    kind = "_batch" if device.type == "cuda" else ""
    return getattr(torch.ops.lattica, f"fsa_intersect_dense{kind}{suffix}")


class _ArcScores(torch.autograd.Function):
    """`values`, which are pick(graph_scores, map_a) + pick(log_probs.reshape(-1), place()), with the gradients of that."""

    @staticmethod
    def forward(ctx: Any, graph_scores: Tensor, log_probs: Tensor, values: Tensor, map_a: Tensor, place: Any) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(map_a)
        ctx.shapes, ctx.place = (graph_scores.shape, log_probs.shape), place
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        def spread(index: Tensor, shape: torch.Size) -> Tensor:
            ans = grad.new_zeros(shape)
            some = index >= 0
            ans.reshape(-1).index_add_(0, index[some], grad[some])
            return ans

        (map_a,) = ctx.saved_tensors
        wanted, (graph, dense) = ctx.needs_input_grad, ctx.shapes
        return (
            spread(map_a, graph) if wanted[0] else None,
            spread(ctx.place(), dense) if wanted[1] else None,
            None,
            None,
            None,
        )


def _go_on(inputs: tuple, history: Sequence[History]) -> Any:
    """The search from where histories end: its six tensors and the new histories, on the graphs' device."""
    device = inputs[0].device
    lists = [tokens for tokens, _ in history]
    frames = counts_to_splits(torch.tensor([x.dim0 for x in lists], dtype=torch.int64))
    empty = torch.zeros(0, dtype=torch.int64)
    sizes, states, scores = (
        torch.cat([empty.to(device), *(x.to(device) for x in parts)])
        for parts in ([x.shape.counts(1) for x in lists], [x.values for x in lists], [scores for _, scores in history])
    )
    *result, frames, tokens, states, scores = _search(device, "_online")(
        *inputs, frames, counts_to_splits(sizes), states.int(), scores.float()
    )
    new, all_tokens = [], RaggedTensor(RaggedShape(splits=[frames.to(device), tokens]), states)
    begin = tokens.long()[frames.to(device).long()].tolist()
    for i, (a, b) in enumerate(itertools.pairwise(begin)):
        row = all_tokens.index(torch.tensor([i], device=device))[0].remove_axis(0)
        new.append((row, scores[a:b]))
    return *result, new


def convert_dense_to_fsa_vec(dense_fsa_vec: DenseFsaVec) -> Fsa:
    """The segments as ordinary FSAs: frame t gives arcs t -> t + 1 with every label, then the arc into the final
    state.
    """
    C = dense_fsa_vec.log_probs.shape[2]
    device = dense_fsa_vec.device
    duration = dense_fsa_vec.duration.to(device).long()
    states = duration + 2
    shape1 = RaggedShape(splits=[counts_to_splits(states)])
    owner = shape1.row_ids(1).long()
    state = torch.arange(owner.numel(), device=device) - shape1.row_splits(1).long()[owner]
    counts = torch.where(state < duration[owner], C, (state == duration[owner]).long())
    shape = shape1.compose(RaggedShape(splits=[counts_to_splits(counts)]))
    of = shape.row_ids(2).long()
    src = state[of]
    final = src == duration[owner[of]]
    label = torch.arange(of.numel(), device=device) - shape.row_splits(2).long()[of]
    label = torch.where(final, -1, label)
    row = dense_fsa_vec.row_splits.long()[owner[of]] + src
    scores = dense_fsa_vec.scores.reshape(-1).index_select(0, row * (C + 1) + label + 1)
    return Fsa.from_arcs(shape, torch.stack([src, src + 1, label], dim=1).int(), scores)


torch.serialization.add_safe_globals([DenseFsaVec])
