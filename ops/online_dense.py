"""OnlineDenseIntersecter: intersection of a decoding graph with frame scores that come in chunks, for many streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.dense import DenseFsaVec, intersect_dense_pruned
from ops.fsa import Fsa
from ops.ragged import RaggedTensor


@dataclass(frozen=True)
class DecodeStateInfo:
    """What a stream needs to go on: its frame scores so far, and the active states before the first and after each frame.

    log_probs: float32 (T, C). tokens: axes [frame][token], the states (int32); scores: float32, of their best paths.
    """

    log_probs: Tensor
    tokens: RaggedTensor
    scores: Tensor


class OnlineDenseIntersecter:
    """intersect_dense_pruned by chunks: after each, the lattice of everything so far, as if it had come at once.

    Args:
      decoding_graph: one Fsa (or FsaVec of one) for all streams.
      num_streams: how many streams `decode` takes at most at a time.
      search_beam ... max_active_states: see intersect_dense_pruned.
    Where no active state is final every one counts as final, so that there are partial results. A stream's state
    belongs to it alone: streams may join, leave and change places between calls.
    """

    def __init__(
        self,
        decoding_graph: Fsa,
        num_streams: int,
        search_beam: float,
        output_beam: float,
        min_active_states: int,
        max_active_states: int,
    ):
        if decoding_graph.as_vec()._shape.dim0 != 1 or num_streams <= 0:
            raise ValueError(f"need one decoding graph and num_streams > 0, got {decoding_graph.shape}, {num_streams}")
        self.decoding_graph = decoding_graph
        self.num_streams = num_streams
        self.limits = search_beam, output_beam, min_active_states, max_active_states

    def decode(
        self,
        dense_fsas: DenseFsaVec,
        decode_states: Sequence[DecodeStateInfo | None],
        frame_idx_name: str | None = None,
    ) -> tuple[Fsa, list[DecodeStateInfo]]:
        """Go on by the frames of dense_fsas, one segment a stream; None is the state of a new stream.

        Returns the lattices of all frames so far (no gradients), and the new states in the same order. frame_idx_name
        counts from the stream's beginning. A stream that no path survives has an FSA without states, now and later.
        """
        n = dense_fsas.dim0()
        if n > self.num_streams or len(decode_states) != n:
            raise ValueError(f"{n} segments and {len(decode_states)} states, for at most {self.num_streams} streams")
        pieces = [dense_fsas[i].detach().float() for i in range(n)]
        frames = [p if s is None else torch.cat([s.log_probs, p]) for p, s in zip(pieces, decode_states)]
        padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True) if n else dense_fsas.log_probs[:0]
        segments = torch.tensor([[i, 0, len(x)] for i, x in enumerate(frames)], dtype=torch.int32).reshape(-1, 3)
        nothing = RaggedTensor(torch.zeros(0, 0, dtype=torch.int32)), torch.zeros(0)
        history = [nothing if s is None else (s.tokens, s.scores) for s in decode_states]
        lattice, new = intersect_dense_pruned(
            self.decoding_graph.detach(), DenseFsaVec(padded, segments), *self.limits, frame_idx_name=frame_idx_name,
            allow_partial=True, history=history,
        )  # fmt: skip
        return lattice, [DecodeStateInfo(x, *h) for x, h in zip(frames, new)]
