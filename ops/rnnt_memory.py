"""How many bytes a transducer loss will take, told before the batch is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ops.rnnt_loss_fused import rows_kept, tile_rows


def rnnt_loss_memory(
    num_utterances: int,
    num_frames: int,
    num_symbols: int,
    num_classes: int,
    joiner_dim: int,
    s_range: int | None = None,
    dtype: torch.dtype = torch.float32,
    fused: bool = True,
    keep_bytes: int | None = None,
    is_cpu: bool = True,
) -> int:
    """Peak memory in bytes of forward and backward of the joiner and its loss, on top of am, lm and the weights.

    Args:
      num_utterances, num_frames, num_symbols: N, T, S of the padded batch. Padding is counted as if it were real, as
        it is in the unfused losses; the fused ones skip it, so for them this is an upper estimate.
      num_classes, joiner_dim: V, D.
      s_range: positions in a band of the pruned losses; None: the full loss.
      dtype: of am, lm and the weights (under autocast: the type it casts to).
      fused: for `rnnt_loss_pruned_fused` and `rnnt_loss_fused`; False: for `do_rnnt_pruning`, a joiner of PyTorch
        layers and `rnnt_loss_pruned`, or `rnnt_loss`.
      keep_bytes: as given to the fused loss.
      is_cpu: tiles are larger on a GPU.

    The gradients of am, lm and the weights are included. It is within 20 % of what the allocator hands out on the CPU
    (tests/ops/test_rnnt_memory.py). On a GPU the allocator's rounding and fragmentation and cuBLAS's workspace come on
    top.
    """
    for name, value in (("num_utterances", num_utterances), ("num_frames", num_frames), ("num_symbols", num_symbols)):
        if value < 0:
            raise ValueError(f"{name}={value}: expected at least 0")
    N, T, S1, V, D = num_utterances, num_frames, num_symbols + 1, num_classes, joiner_dim
    R = S1 if s_range is None else min(s_range, S1)
    rows, element = N * T * R, dtype.itemsize
    wide = max(4, element)  # of sums and the recursion
    lattice, per_row = N * T * S1 * wide, rows * wide
    gradients = (N * T * D + N * S1 * D + V * D + V) * wide
    # How many tensors of each size are alive at once was found by measuring; the larger of the two peaks counts: the
    # recursion, with what the joiner keeps for later, or the joiner's backward pass.
    if fused:
        kept = rows_kept(rows, V * element, keep_bytes) * V * element
        # On a GPU, and in half precision, PyTorch's own steps make wide copies of a tile.
        copies = 0 if is_cpu and element >= 4 else 3 * wide
        tile = min(rows, tile_rows(is_cpu, D, V)) * ((2 * D + V) * element + (D + V) * copies)
        return kept + max(6 * lattice + 3 * per_row, 2 * lattice + 9 * per_row + tile + gradients)
    # While the logits' sums of exponentials are made: their inputs (pruned: a row of lm for each position), logits, one
    # copy of these. Later logits and their gradient beside the activations; then the gradients of activations and of
    # their argument.
    inputs = 0 if s_range is None else D
    kept = rows * (D + V) * element
    forward = rows * (inputs + D + 2 * V) * element
    joiner = rows * max(D + 2 * V, 2 * D + V, (2 if s_range is None else 3) * D) * element
    return max(forward, kept + 6 * lattice + 3 * per_row, joiner + 2 * lattice + 4 * per_row)


def measured_peak(run: Callable[[], object], device: str = "cpu") -> int:
    """Peak bytes that torch's allocator handed out during run(), on top of what was there before."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak
