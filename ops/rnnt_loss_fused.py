"""Transducer losses that contain the joiner and never hold its output: bounded memory, and no pass over it in vain.

The joiner is activation(am[t] + lm[s]) → linear → log-softmax, of which the loss needs two numbers for each (t, s):
the log-probabilities of the blank and of the next symbol. So the rows (n, t, s) are taken a tile at a time. The
forward pass keeps those two numbers and the softmax's denominator; the backward pass makes the tile's logits anew and
turns them into gradients at once. What saves time: rows of padding are never computed; rows that no likely path visits
have no backward pass; and `keep_bytes` may keep logits, so that these rows need not be computed anew.

N utterances, T frames, S symbols, R positions in a band, D joiner dimension, V classes, M rows of a tile; shapes are
suffixed to names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ops import build, reference
from ops.mutual_information import check_boundary
from ops.rnnt_lattice import band_to_lattice, check_type, to_lattice
from ops.rnnt_loss import _check_symbols, _full_precision, _loss

ACTIVATIONS = ("tanh", "swoosh_l", "swoosh_r", "identity")


def rnnt_loss_pruned_fused(
    am: Tensor,
    lm: Tensor,
    ranges: Tensor,
    joiner_weight: Tensor,
    joiner_bias: Tensor | None,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    activation: str = "tanh",
    reduction: str | None = "mean",
    use_hat_loss: bool = False,
    keep_bytes: int | None = None,
) -> Tensor:
    """`rnnt_loss_pruned` of linear(activation(am[t] + lm[s])), computed by tiles.

    Equal, values and gradients, to::

        am_pruned, lm_pruned = do_rnnt_pruning(am, lm, ranges)
        logits = F.linear(activation(am_pruned + lm_pruned), joiner_weight, joiner_bias)
        loss = rnnt_loss_pruned(logits, symbols, ranges, termination_symbol, boundary, rnnt_type, ...)

    Args:
      am: (N, T, D), the encoder's output after its projection to the joiner's dimension.
      lm: (N, S + 1, D), the decoder's; row s has seen the first s symbols. Same dtype as am.
      ranges: int64 (N, T, R) from `get_rnnt_prune_ranges`.
      joiner_weight: (V, D).
      joiner_bias: (V,) or None.
      symbols: int64 (N, S) in [0, V).
      termination_symbol: the blank, in [0, V).
      boundary, rnnt_type, delay_penalty, reduction, use_hat_loss: as in `rnnt_loss`.
      activation: "tanh", "swoosh_l", "swoosh_r" or "identity".
      keep_bytes: memory that may hold logits from the forward to the backward pass; None: a quarter of the logits, but
        at most 64 MiB. Rows whose logits do not fit take a fourth matrix product; in a trained model few rows get so
        far, see below.

    Returns:
      The loss, float32 (float64 for float64 inputs). +inf, with gradient 0, for an utterance without a path.

    float32 and float64, bfloat16 and float16 (logits are then rounded to that type, as a linear layer's are; all sums
    and the recursion are float32); under autocast the inputs are cast first. CPU and CUDA. Differentiable once, in am,
    lm, joiner_weight and joiner_bias. The gradient leaves out rows that together carry less than one rounding error of
    their frame's probability. Raises ValueError naming the argument that does not fit.

    Source: Kuang et al., arXiv 2206.13236; joiner and loss as one function: Li et al., arXiv 1909.12415.
    """
    N, T, _ = am.shape if am.ndim == 3 else (0, 0, 0)
    if ranges.ndim != 3 or ranges.shape[:2] != (N, T) or ranges.dtype != torch.int64:
        raise ValueError(f"ranges must be int64 of shape ({N}, {T}, R), got {ranges.dtype}, {tuple(ranges.shape)}")
    options = (activation, use_hat_loss, keep_bytes)
    symbol_NTR, blank_NTR = _joiner_log_probs(
        am, lm, ranges, (joiner_weight, joiner_bias), symbols, termination_symbol, boundary, *options
    )
    check_type(rnnt_type)
    px, py = band_to_lattice(symbol_NTR, blank_NTR, ranges, symbols.shape[1] + 1, boundary, rnnt_type)
    return _loss(px, py, boundary, delay_penalty, reduction, return_grad=False)


def rnnt_loss_fused(
    am: Tensor,
    lm: Tensor,
    joiner_weight: Tensor,
    joiner_bias: Tensor | None,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    activation: str = "tanh",
    reduction: str | None = "mean",
    use_hat_loss: bool = False,
    keep_bytes: int | None = None,
) -> Tensor:
    """The full (unpruned) transducer loss of linear(activation(am[t] + lm[s])) over every frame and position, by tiles.

    Equal to `rnnt_loss` of the joiner's (N, T, S + 1, V) output, which never exists here. Its time grows with T · S,
    its memory by a few numbers for each (t, s). Arguments, results and errors as in `rnnt_loss_pruned_fused`.
    Source: Graves, arXiv 1211.3711.
    """
    options = (activation, use_hat_loss, keep_bytes)
    symbol_NTS, blank_NTS = _joiner_log_probs(
        am, lm, None, (joiner_weight, joiner_bias), symbols, termination_symbol, boundary, *options
    )
    check_type(rnnt_type)
    px, py = to_lattice(symbol_NTS[:, :, :-1], blank_NTS, boundary, rnnt_type)
    return _loss(px, py, boundary, delay_penalty, reduction, return_grad=False)


def tile_rows(is_cpu: bool, joiner_dim: int, num_classes: int) -> int:
    """Rows computed at a time: on a CPU a tile should stay in its caches, on a GPU it should fill the device."""
    numbers = 1 << 19 if is_cpu else 1 << 23
    return max(128, min(1 << 14, numbers // (joiner_dim + num_classes)))


def rows_kept(num_rows: int, row_bytes: int, keep_bytes: int | None) -> int:
    """How many rows of logits are kept from the forward to the backward pass."""
    if keep_bytes is None:
        return min(num_rows // 4, (64 << 20) // row_bytes)
    return min(num_rows, keep_bytes // row_bytes)


# ------------------------------------------------------------------------------------------------------------- checks


def _joiner_log_probs(
    am: Tensor,
    lm: Tensor,
    ranges: Tensor | None,
    linear: tuple[Tensor, Tensor | None],
    symbols: Tensor,
    blank: int,
    boundary: Tensor | None,
    activation: str,
    hat: bool,
    keep_bytes: int | None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the next symbol and of the blank, both (N, T, R); 0 where no path of the lattice leads."""
    weight, bias = linear
    device = am.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        am, lm, weight = am.to(dtype), lm.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check_joiner(am, lm, weight, bias, symbols, blank, activation)
    N, T, _ = am.shape
    S1, V = lm.shape[1], weight.shape[0]
    boundary = check_boundary(boundary, N, S1 - 1, T, am.device)
    R = S1 if ranges is None else ranges.shape[2]
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (am, lm, weight, bias))
    keep_rows = rows_kept(N * T * R, V * am.element_size(), keep_bytes) if needs_grad else 0
    symbol, blank_, _, _ = _log_probs_op(
        am, lm, weight, bias, ranges, symbols, boundary, blank, activation, hat, keep_rows
    )
    return symbol, blank_


def _check_joiner(
    am: Tensor, lm: Tensor, weight: Tensor, bias: Tensor | None, symbols: Tensor, blank: int, activation: str
) -> None:
    if lm.ndim != 3 or am.ndim != 3 or lm.shape[0] != am.shape[0] or lm.shape[2] != am.shape[2]:
        raise ValueError(f"lm must be (N, S + 1, D) and am (N, T, D), got {tuple(lm.shape)} and {tuple(am.shape)}")
    if weight.ndim != 2 or weight.shape[1] != am.shape[2]:
        raise ValueError(f"joiner_weight must be (V, D) with D = {am.shape[2]} of am, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"joiner_bias must be (V,) with V = {weight.shape[0]}, got {tuple(bias.shape)}")
    _check_symbols(symbols, blank, am.shape[0], weight.shape[0])
    if lm.shape[1] != symbols.shape[1] + 1:
        raise ValueError(f"lm must be (N, S + 1, D) with S = {symbols.shape[1]} of symbols, got {tuple(lm.shape)}")
    kinds = {(x.dtype, x.device) for x in (am, lm, weight, bias) if x is not None}
    if len(kinds) > 1 or not am.is_floating_point():
        raise ValueError(f"am, lm, joiner_weight, joiner_bias must have one floating dtype and device, got {kinds}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}")


# -------------------------------------------------------------------------------------------------------------- tiles


class _Rows:
    """The rows (n, t, r) of a batch in flat form, and where the inputs of each lie."""

    def __init__(
        self, am: Tensor, lm: Tensor, ranges: Tensor | None, symbols: Tensor, boundary: Tensor | None, blank: int
    ):
        self.N, self.T, _ = am.shape
        self.S1 = lm.shape[1]
        self.ranges = ranges
        self.R = self.S1 if ranges is None else ranges.shape[2]
        self.symbols = F.pad(symbols, (0, 1), value=blank).reshape(-1)
        self.boundary = boundary

    def in_lattice_NTR(self, device: torch.device) -> Tensor:
        """Which rows a path can visit; the rest is padding."""
        if self.boundary is None:
            return torch.ones(self.N, self.T, self.R, dtype=torch.bool, device=device)
        s_begin, t_begin, s_end, t_end = self.boundary[:, :, None, None].unbind(1)
        frame_T1 = torch.arange(self.T, device=device)[:, None]
        position = torch.arange(self.R, device=device) if self.ranges is None else self.ranges
        return (frame_T1 >= t_begin) & (frame_T1 < t_end) & (position >= s_begin) & (position <= s_end)

    def locate(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For flat indexes of rows: the row of am, the row of lm, the next symbol."""
        am_rows = rows // self.R
        position = rows % self.R if self.ranges is None else self.ranges.reshape(-1)[rows]
        lm_rows = am_rows // self.T * self.S1 + position
        return am_rows, lm_rows, self.symbols[lm_rows]


def _tiles(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(begin, end, size):
        yield start, min(end, start + size)


def _steps(x: Tensor) -> Any:
    """The compiled steps where they serve, else their twins in PyTorch."""
    build.load()
    compiled = x.is_cpu and x.dtype in (torch.float32, torch.float64)
    steps: Any = torch.ops.lattica if compiled else reference
    return steps


@torch.library.custom_op("lattica::rnnt_fused_log_probs", mutates_args=())
def _log_probs_op(
    am: Tensor,
    lm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ranges: Tensor | None,
    symbols: Tensor,
    boundary: Tensor | None,
    blank: int,
    activation: str,
    hat: bool,
    keep_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(symbol_NTR, blank_NTR, normalizer_NTR, logits of the first keep_rows rows)."""
    rows_of = _Rows(am, lm, ranges, symbols, boundary, blank)
    steps = _steps(am)
    am_flat, lm_flat = am.reshape(-1, am.shape[2]), lm.reshape(-1, lm.shape[2])
    V, D = weight.shape
    wide = _full_precision(am.new_empty(0))
    symbol_out, blank_out, normalizer_out = (wide.new_zeros(rows_of.N * rows_of.T * rows_of.R) for _ in range(3))
    kept = am.new_empty(keep_rows, V)

    rows = rows_of.in_lattice_NTR(am.device).reshape(-1).nonzero().squeeze(1)
    num_kept = min(keep_rows, len(rows))
    tile = max(1, min(tile_rows(am.is_cpu, D, V), len(rows)))
    hidden_buffer = am.new_empty(tile, D)
    logits_buffer = am.new_empty(tile if num_kept < len(rows) else 0, V)
    for begin, end in [*_tiles(0, num_kept, tile), *_tiles(num_kept, len(rows), tile)]:
        rows_M = rows[begin:end]
        am_rows_M, lm_rows_M, symbols_M = rows_of.locate(rows_M)
        hidden_MD = hidden_buffer[: end - begin]
        logits_MV = kept[begin:end] if end <= num_kept else logits_buffer[: end - begin]
        steps.joiner_hidden(am_flat, lm_flat, am_rows_M, lm_rows_M, activation, hidden_MD)
        _linear(hidden_MD, weight, bias, logits_MV)
        symbol_out[rows_M], blank_out[rows_M], normalizer_out[rows_M] = steps.joiner_log_probs(
            logits_MV, symbols_M, blank, hat
        )
    shape = (rows_of.N, rows_of.T, rows_of.R)
    return symbol_out.view(shape), blank_out.view(shape), normalizer_out.view(shape), kept


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


@_log_probs_op.register_fake
def _(am, lm, weight, bias, ranges, symbols, boundary, blank, activation, hat, keep_rows):  # type: ignore
    R = lm.shape[1] if ranges is None else ranges.shape[2]
    wide = torch.float32 if am.dtype in (torch.float16, torch.bfloat16) else am.dtype
    like_NTR = am.new_empty((am.shape[0], am.shape[1], R), dtype=wide)
    return like_NTR, like_NTR.clone(), like_NTR.clone(), am.new_empty(keep_rows, weight.shape[0])


@torch.library.custom_op("lattica::rnnt_fused_log_probs_backward", mutates_args=())
def _backward_op(
    symbol_grad_NTR: Tensor,
    blank_grad_NTR: Tensor,
    normalizer_NTR: Tensor,
    kept: Tensor,
    am: Tensor,
    lm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ranges: Tensor | None,
    symbols: Tensor,
    boundary: Tensor | None,
    blank: int,
    activation: str,
    hat: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of am, lm, weight and, if there is one, bias."""
    rows_of = _Rows(am, lm, ranges, symbols, boundary, blank)
    steps = _steps(am)
    am_flat, lm_flat = am.reshape(-1, am.shape[2]), lm.reshape(-1, lm.shape[2])
    V, D = weight.shape
    # Sums over tiles are float32 for half-precision inputs.
    wide = _full_precision(am.new_empty(0))
    am_grad, lm_grad, weight_grad = (wide.new_zeros(x.shape) for x in (am_flat, lm_flat, weight))
    bias_grad = wide.new_zeros(V)

    in_lattice_NTR = rows_of.in_lattice_NTR(am.device)
    rows = (in_lattice_NTR & _matters(symbol_grad_NTR, blank_grad_NTR)).reshape(-1).nonzero().squeeze(1)
    kept_index = (in_lattice_NTR.reshape(-1).cumsum(0) - 1)[rows]
    num_kept = int((kept_index < len(kept)).sum())
    symbol_grad, blank_grad, normalizer = (x.reshape(-1) for x in (symbol_grad_NTR, blank_grad_NTR, normalizer_NTR))
    tile = max(1, min(tile_rows(am.is_cpu, D, V), len(rows)))
    buffers = am.new_empty(tile, D), am.new_empty(tile, D), am.new_empty(tile, V)
    for begin, end in [*_tiles(0, num_kept, tile), *_tiles(num_kept, len(rows), tile)]:
        rows_M = rows[begin:end]
        am_rows_M, lm_rows_M, symbols_M = rows_of.locate(rows_M)
        hidden_MD, hidden_grad_MD, grad_MV = (buffer[: end - begin] for buffer in buffers)
        steps.joiner_hidden(am_flat, lm_flat, am_rows_M, lm_rows_M, activation, hidden_MD)
        if end <= num_kept:
            logits, logits_rows = kept, kept_index[begin:end]
        else:
            _linear(hidden_MD, weight, bias, grad_MV)
            logits, logits_rows = grad_MV, None
        row_grads = symbol_grad[rows_M], blank_grad[rows_M]
        steps.joiner_logits_grad(logits, logits_rows, normalizer[rows_M], symbols_M, blank, hat, *row_grads, grad_MV)
        if weight_grad.dtype == weight.dtype:
            weight_grad.addmm_(grad_MV.t(), hidden_MD)
        else:
            weight_grad += grad_MV.t() @ hidden_MD
        bias_grad += grad_MV.sum(0, dtype=wide.dtype)
        torch.mm(grad_MV, weight, out=hidden_grad_MD)
        steps.joiner_hidden_grad(
            am_flat, lm_flat, am_rows_M, lm_rows_M, activation, hidden_MD, hidden_grad_MD, am_grad, lm_grad
        )
    grads = am_grad.view(am.shape), lm_grad.view(lm.shape), weight_grad, bias_grad
    return tuple(grad.to(am.dtype) for grad in grads)  # type: ignore[return-value]


def _matters(symbol_grad_NTR: Tensor, blank_grad_NTR: Tensor) -> Tensor:
    """Rows whose share in their frame's gradient is more than rounding error: in a trained model, few of a band."""
    weight_NTR = symbol_grad_NTR.abs() + blank_grad_NTR.abs()
    threshold = torch.finfo(weight_NTR.dtype).eps / max(1, weight_NTR.shape[2])
    # Written with `not <=`, so that a nan matters.
    return ~(weight_NTR <= weight_NTR.sum(2, keepdim=True) * threshold)


@_backward_op.register_fake
def _(  # type: ignore
    symbol_grad, blank_grad, normalizer, kept, am, lm, weight, bias, ranges, symbols, boundary, blank, activation, hat
):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (am, lm, weight, weight[:, 0]))


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, blank, activation, hat, _ = inputs
    _, _, normalizer, kept = output
    ctx.mark_non_differentiable(normalizer, kept)
    ctx.set_materialize_grads(False)  # or autograd makes zeros of the size of `kept`
    ctx.save_for_backward(normalizer, kept, *tensors)
    ctx.scalars = (blank, activation, hat)


def _backward(ctx: Any, symbol_grad: Tensor | None, blank_grad: Tensor | None, _normalizer: None, _kept: None) -> tuple:
    normalizer, kept, *tensors = ctx.saved_tensors
    symbol_grad = torch.zeros_like(normalizer) if symbol_grad is None else symbol_grad
    blank_grad = torch.zeros_like(normalizer) if blank_grad is None else blank_grad
    grads = _backward_op(symbol_grad, blank_grad, normalizer, kept, *tensors, *ctx.scalars)
    am_grad, lm_grad, weight_grad, bias_grad = grads
    bias = tensors[3]
    return am_grad, lm_grad, weight_grad, None if bias is None else bias_grad, *(None,) * 7


_log_probs_op.register_autograd(_backward, setup_context=_setup_context)
