"""pruned_ranges_to_lattice: the paths that a pruned transducer loss sums over, as automata."""

from __future__ import annotations

import torch
from torch import Tensor

from ops.fsa import Fsa
from ops.fsa_arcs import RaggedArcs
from ops.ragged import RaggedShape
from ops.ragged.shape import counts_to_splits


def pruned_ranges_to_lattice(
    ranges: Tensor, frames: Tensor, symbols: Tensor, logits: Tensor
) -> tuple[RaggedArcs, Tensor]:
    """One FSA for each utterance: state t * s_range + r stands for frame t and symbol position ranges[t, r].

    An arc to r + 1 emits the position's symbol, an arc (label 0) to the same position of the next frame a blank; from
    the last position of the last frame an arc with score 0 leads to the final state.

    Args:
      ranges: int (B, T, s_range), from get_rnnt_prune_ranges. frames: int (B,), between 1 and T.
      symbols: int (B, S). logits: float (B, T, s_range, C), the scores.
    Returns the arcs, for `Fsa(arcs)`, and an int32 map from them to logits.reshape(-1) (-1: none).
    """
    if ranges.ndim != 3 or logits.ndim != 4 or ranges.shape != logits.shape[:3]:
        raise ValueError(f"need ranges (B, T, s_range) and logits (B, T, s_range, C), got {tuple(ranges.shape)} and "
                         f"{tuple(logits.shape)}")  # fmt: skip
    B, T, R, C = logits.shape
    if symbols.ndim != 2 or symbols.shape[0] != B or frames.shape != (B,):
        raise ValueError(f"need symbols (B, S) and frames (B,), got {tuple(symbols.shape)} and {tuple(frames.shape)}")
    if B and not 1 <= int(frames.min()) <= int(frames.max()) <= T:
        raise ValueError(f"frames must lie in [1, {T}], got {frames.tolist()}")
    device = logits.device
    ranges, frames, symbols = ranges.long(), frames.long(), symbols.long()
    t = torch.arange(T, device=device)[None, :, None]
    r = torch.arange(R, device=device)[None, None, :]
    state = (t * R + r).expand(B, T, R)
    inside = (t < frames[:, None, None]).expand(B, T, R)
    # Two places for each state, its symbol and its blank (in the last frame: the way to the end), then what is there.
    position = ranges.clamp(max=max(symbols.shape[1] - 1, 0)).reshape(B, -1)
    symbol = symbols.gather(1, position).reshape(B, T, R) if symbols.shape[1] else torch.zeros_like(ranges)
    has_symbol = inside & (r < R - 1) & (ranges < symbols.shape[1])
    shift = torch.nn.functional.pad(ranges[:, 1:, 0] - ranges[:, :-1, 0], (0, 1))[:, :, None]
    is_last = t == frames[:, None, None] - 1
    has_blank = inside & ~is_last & (r >= shift)
    ends = inside & is_last & (r == R - 1)
    final = (frames * R)[:, None, None].expand(B, T, R)
    dest = torch.stack([state + 1, torch.where(ends, final, state + R - shift)], dim=3)
    label = torch.stack([symbol, torch.where(ends, -1, 0)], dim=3)
    here = torch.stack([has_symbol, has_blank | ends], dim=3)
    number = torch.arange(B * T * R, device=device).reshape(B, T, R) * C
    source = torch.stack([number + symbol, torch.where(ends, -1, number)], dim=3)
    arcs3 = torch.stack([state[..., None].expand(B, T, R, 2), dest, label], dim=4)[here].int()
    arc_map = source[here].int()
    states = torch.cat([here.sum(3).reshape(B, -1), frames.new_zeros(B, 1)], dim=1)  # arcs of each, the final one's: 0
    kept = torch.cat([inside.reshape(B, -1), torch.ones(B, 1, dtype=torch.bool, device=device)], dim=1)
    shape = RaggedShape(splits=[counts_to_splits(frames * R + 1), counts_to_splits(states[kept])])
    flat = logits.detach().reshape(-1).float()
    scores = torch.where(arc_map >= 0, flat[arc_map.long().clamp(min=0)], 0.0)
    return Fsa.from_arcs(shape, arcs3, scores).arcs, arc_map
