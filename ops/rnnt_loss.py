"""The transducer (RNN-T) losses under k2's names.

All of them bring log-probabilities into the form that `mutual_information_recursion` wants, px (symbols) and py
(blanks), and negate its score. They differ only in where the log-probabilities come from:

  simple    am[t] + lm[s], without a joiner; normalised by one matrix product
  smoothed  the same, interpolated with the probabilities of am alone and lm alone
  joint     a joiner's output for every (t, s):                          rnnt_loss
  pruned    a joiner's output for the few s of each t worth looking at:  rnnt_loss_pruned

Three lattices (rnnt_type), see docs/transducer-losses.md for their pictures:

  regular      any number of symbols in a frame; blank goes to the next frame
  modified     a symbol, too, goes to the next frame: at most one symbol in a frame
  constrained  as modified, but a symbol pays for the blank after it as well: the paths of a regular lattice that emit
               at most one symbol in a frame

N utterances, T frames, S symbols, R positions in a band, C classes; shapes are suffixed to names.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.mutual_information import mutual_information_recursion
from ops.rnnt_additive import additive_log_probs
from ops.rnnt_lattice import LogProbs, band_to_lattice, check_type, to_lattice

Loss = Tensor | tuple[Tensor, LogProbs]


# ------------------------------------------------------------------------------------------------ log-probabilities


def get_rnnt_logprobs(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
) -> LogProbs:
    """(px, py) of the joiner-free transducer, P(c | t, s) = softmax_c(am[t] + lm[s]).

    The normalisers log Σ_c exp(am[t, c] + lm[s, c]) are one product of exp(am) with exp(lm), so nothing of size T × S
    × C exists. See `rnnt_loss_simple` for the arguments.

    Returns:
      px: (N, S, T + 1) if rnnt_type is "regular", with -inf where t >= the utterance's end, else (N, S, T).
      py: (N, S + 1, T).
    """
    return get_rnnt_logprobs_smoothed(lm, am, symbols, termination_symbol, 0.0, 0.0, boundary, rnnt_type)


def get_rnnt_logprobs_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
) -> LogProbs:
    """(px, py) = (1 - lm_only_scale - am_only_scale) · joint + lm_only_scale · lm-only + am_only_scale · am-only.

    joint is as in `get_rnnt_logprobs`; lm-only is log-softmax of lm; am-only is log-softmax of am + log u, where the
    unigram u is the mean of softmax(lm) over ALL rows of the batch, padding too, as in k2: with am_only_scale > 0 an
    utterance's loss depends, a little, on the batch it is in. See `rnnt_loss_smoothed`.
    """
    _check_additive(lm, am, symbols, termination_symbol)
    check_type(rnnt_type)
    with torch.autocast(am.device.type, enabled=False):
        return additive_log_probs(
            lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type
        )


def get_rnnt_logprobs_joint(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    use_hat_loss: bool = False,
) -> LogProbs:
    """(px, py) of a joiner's output for every frame and position. See `rnnt_loss` for the arguments."""
    N, T, S1, _ = _check_logits(logits, symbols, termination_symbol)
    if symbols.shape[1] != S1 - 1:
        raise ValueError(
            f"logits must be (N, T, S + 1, C) with S = {symbols.shape[1]} of symbols, got {tuple(logits.shape)}"
        )
    check_type(rnnt_type)
    symbols_NS1 = F.pad(symbols, (0, 1), value=termination_symbol)
    symbol_NTS, blank_NTS = _symbol_and_blank(
        logits, symbols_NS1[:, None, :].expand(N, T, S1), termination_symbol, use_hat_loss
    )
    return to_lattice(symbol_NTS[:, :, :-1], blank_NTS, boundary, rnnt_type)


def get_rnnt_logprobs_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    use_hat_loss: bool = False,
) -> LogProbs:
    """(px, py) of a joiner's output inside the bands `ranges`, -inf outside. Arguments as in `rnnt_loss_pruned`."""
    N, T, R, _ = _check_logits(logits, symbols, termination_symbol)
    if ranges.shape != (N, T, R) or ranges.dtype != torch.int64:
        raise ValueError(
            f"ranges must be int64 of shape {(N, T, R)}, got {ranges.dtype} of shape {tuple(ranges.shape)}"
        )
    check_type(rnnt_type)
    S1 = symbols.shape[1] + 1
    symbols_NS1 = F.pad(symbols, (0, 1), value=termination_symbol)
    symbols_NTR = symbols_NS1[:, None, :].expand(N, T, S1).gather(2, ranges)
    symbol_NTR, blank_NTR = _symbol_and_blank(logits, symbols_NTR, termination_symbol, use_hat_loss)
    return band_to_lattice(symbol_NTR, blank_NTR, ranges, S1, boundary, rnnt_type)


# ---------------------------------------------------------------------------------------------------------- losses


def rnnt_loss_simple(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
) -> Loss:
    """Transducer loss whose joiner is an addition: -log P(symbols) with P(c | t, s) = softmax_c(am[t] + lm[s]).

    Args:
      lm: (N, S + 1, C), unnormalised, the decoder's part; row s has seen the first s symbols.
      am: (N, T, C), unnormalised, the encoder's part.
      symbols: int64 (N, S) in [0, C); entries past an utterance's end are ignored but must lie in that range, too.
      termination_symbol: the blank, in [0, C).
      boundary: int64 (N, 4), rows [0, 0, S_n, T_n]; None: all utterances fill the batch.
      rnnt_type: "regular", "modified" or "constrained", see the top of this file.
      delay_penalty: λ of FastEmit-like regularisation: a symbol at frame t gets the bonus λ · ((T_n - 1) / 2 - t).
      reduction: "none": (N,); "mean": mean over utterances; "sum".
      return_grad: also return (px_grad, py_grad), the occupations, for `get_rnnt_prune_ranges`.

    Returns:
      The loss, or (loss, (px_grad, py_grad)). +inf for an utterance without a path (modified or constrained with T < S,
      T = 0); its gradient is 0. With bf16 or fp16 inputs, or under autocast, it is computed in fp32.

    Raises ValueError naming the argument that does not fit.

    Source: Kuang et al., arXiv 2206.13236; rnnt_type and lm_only_scale: Kang et al., arXiv 2211.00484; delay_penalty:
    Kang et al., arXiv 2211.00490.
    """
    px, py = get_rnnt_logprobs(lm, am, symbols, termination_symbol, boundary, rnnt_type)
    return _loss(px, py, boundary, delay_penalty, reduction, return_grad)


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
) -> Loss:
    """`rnnt_loss_simple` with log-probabilities interpolated with those of lm alone and of am alone.

    (1 - lm_only_scale - am_only_scale) · log P + lm_only_scale · log P_lm + am_only_scale · log P_am keeps lm and am
    sensible each by itself, which makes for better pruning bounds. The paper uses lm_only_scale = 0.25 and
    am_only_scale = 0.
    Other arguments, results and errors as in `rnnt_loss_simple`; P_am as in `get_rnnt_logprobs_smoothed`.
    """
    px, py = get_rnnt_logprobs_smoothed(
        lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type
    )
    return _loss(px, py, boundary, delay_penalty, reduction, return_grad)


def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    use_hat_loss: bool = False,
) -> Tensor:
    """The full transducer loss of a joiner's output for every frame and position.

    Args:
      logits: (N, T, S + 1, C), unnormalised.
      use_hat_loss: the hybrid autoregressive transducer's factors: P(blank) = sigmoid(logit of blank), the other
        symbols share the rest by a softmax among themselves.

    Other arguments, results and errors as in `rnnt_loss_simple`.
    Source: Graves, arXiv 1211.3711; HAT: Variani et al., arXiv 2003.07705.
    """
    px, py = get_rnnt_logprobs_joint(logits, symbols, termination_symbol, boundary, rnnt_type, use_hat_loss)
    return _loss(px, py, boundary, delay_penalty, reduction, return_grad=False)


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    use_hat_loss: bool = False,
) -> Tensor:
    """The transducer loss of a joiner's output inside the bands `ranges`; paths that leave them do not count.

    Args:
      logits: (N, T, R, C), unnormalised, the joiner's output for `do_rnnt_pruning(am, lm, ranges)`.
      ranges: int64 (N, T, R) from `get_rnnt_prune_ranges`.

    Other arguments as in `rnnt_loss`. With R = S + 1 it is `rnnt_loss`.
    Source: Kuang et al., arXiv 2206.13236.
    """
    px, py = get_rnnt_logprobs_pruned(logits, symbols, ranges, termination_symbol, boundary, rnnt_type, use_hat_loss)
    return _loss(px, py, boundary, delay_penalty, reduction, return_grad=False)


# ------------------------------------------------------------------------------------------------------------ parts


class _GatherLogSoftmax(torch.autograd.Function):
    """log_softmax(logits)[symbols] and log_softmax(logits)[blank] without storing the log-softmax.

    Autograd's own chain would keep a second tensor as large as logits and make several passes over it.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, symbols: Tensor, blank: int) -> LogProbs:
        normalizer = logits.logsumexp(-1)
        ctx.save_for_backward(logits, symbols, normalizer)
        ctx.blank = blank
        return logits.gather(-1, symbols[..., None]).squeeze(-1) - normalizer, logits[..., blank] - normalizer

    @staticmethod
    def backward(ctx: Any, symbol_grad: Tensor, blank_grad: Tensor) -> tuple[Tensor, None, None]:
        logits, symbols, normalizer = ctx.saved_tensors
        grad = (logits - normalizer[..., None]).exp_().mul_(-(symbol_grad + blank_grad)[..., None])
        grad.scatter_add_(-1, symbols[..., None], symbol_grad[..., None])
        grad[..., ctx.blank] += blank_grad
        return grad, None, None


def _symbol_and_blank(logits: Tensor, symbols: Tensor, blank: int, use_hat_loss: bool) -> LogProbs:
    """Log-probabilities of symbols[...] and of blank under logits[..., C]; both shaped like symbols."""
    with torch.autocast(logits.device.type, enabled=False):
        logits = _full_precision(logits)
        if not use_hat_loss:
            return _GatherLogSoftmax.apply(logits, symbols, blank)
        is_blank = torch.arange(logits.shape[-1], device=logits.device) == blank
        normalizer = logits.masked_fill(is_blank, float("-inf")).logsumexp(-1)
        blank_logit = logits[..., blank]
        symbol = logits.gather(-1, symbols[..., None]).squeeze(-1) - normalizer + F.logsigmoid(-blank_logit)
        return symbol, F.logsigmoid(blank_logit)


def _loss(
    px: Tensor, py: Tensor, boundary: Tensor | None, delay_penalty: float, reduction: str | None, return_grad: bool
) -> Any:
    if reduction not in ("none", "mean", "sum", None):
        raise ValueError(f"reduction={reduction!r}: expected 'none', 'mean' or 'sum'")
    if delay_penalty != 0.0:
        N, T = px.shape[0], py.shape[2]
        ends_N = torch.full((N,), T, device=px.device) if boundary is None else boundary[:, 3].to(px.device)
        frame_T = torch.arange(px.shape[2], device=px.device)
        px = px + (((ends_N[:, None, None] - 1) / 2 - frame_T) * delay_penalty).to(px.dtype)
    occupations = None
    if return_grad:
        scores, occupations = mutual_information_recursion(px, py, boundary, return_grad=True)
    else:
        scores = mutual_information_recursion(px, py, boundary)
    loss = -scores
    if reduction == "mean":
        loss = loss.mean()
    elif reduction == "sum":
        loss = loss.sum()
    return (loss, occupations) if return_grad else loss


def _full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check_additive(lm: Tensor, am: Tensor, symbols: Tensor, termination_symbol: int) -> None:
    if lm.ndim != 3 or am.ndim != 3 or lm.shape[0] != am.shape[0] or lm.shape[2] != am.shape[2]:
        raise ValueError(f"lm must be (N, S + 1, C) and am (N, T, C), got {tuple(lm.shape)} and {tuple(am.shape)}")
    _check_symbols(symbols, termination_symbol, am.shape[0], am.shape[2])
    if lm.shape[1] != symbols.shape[1] + 1:
        raise ValueError(f"lm must be (N, S + 1, C) with S = {symbols.shape[1]} of symbols, got {tuple(lm.shape)}")


def _check_logits(logits: Tensor, symbols: Tensor, termination_symbol: int) -> tuple[int, int, int, int]:
    if logits.ndim != 4:
        raise ValueError(f"logits must have 4 dimensions (N, T, S + 1 or R, C), got {tuple(logits.shape)}")
    _check_symbols(symbols, termination_symbol, logits.shape[0], logits.shape[3])
    N, T, R, C = logits.shape
    return N, T, R, C


def _check_symbols(symbols: Tensor, termination_symbol: int, N: int, C: int) -> None:
    if symbols.ndim != 2 or symbols.shape[0] != N or symbols.dtype != torch.int64:
        raise ValueError(
            f"symbols must be int64 of shape ({N}, S), got {symbols.dtype} of shape {tuple(symbols.shape)}"
        )
    if not 0 <= termination_symbol < C:
        raise ValueError(f"termination_symbol={termination_symbol}: expected a class in [0, {C})")
    if symbols.is_cpu and symbols.numel() > 0 and not torch.compiler.is_compiling():
        lowest, highest = int(symbols.min()), int(symbols.max())
        if lowest < 0 or highest >= C:
            raise ValueError(f"symbols must lie in [0, {C}), padding too; found {lowest if lowest < 0 else highest}")
