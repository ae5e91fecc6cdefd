"""The log-probabilities of the joiner-free transducer: the core of `rnnt_loss_simple` and `rnnt_loss_smoothed`.

N utterances, T frames, S symbols, C classes; shapes are suffixed to names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ops import build, reference
from ops.mutual_information import check_boundary
from ops.rnnt_lattice import LogProbs


def additive_log_probs(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    blank: int,
    lm_only_scale: float,
    am_only_scale: float,
    boundary: Tensor | None,
    rnnt_type: str,
) -> LogProbs:
    """(px, py) of (1 - lm_only_scale - am_only_scale) · joint + lm_only_scale · lm-only + am_only_scale · am-only::

        joint(c | t, s) = am[t, c] + lm[s, c] - log Σ_c' exp(am[t, c'] + lm[s, c'])
        lm-only(c | s)  = lm[s, c] - log Σ_c' exp(lm[s, c'])
        am-only(c | t)  = am[t, c] + log u[c] - log Σ_c' exp(am[t, c']) u[c'],   u = mean over n, s of softmax(lm[n, s])

    Arguments, already checked, and results as in `get_rnnt_logprobs_smoothed`. float32 and float64; half precision is
    computed in float32. CPU; CUDA by PyTorch's ops. Differentiable once in am and lm; the gradient leaves out arcs that
    together carry less than one rounding error of their frame's gradient and of their position's.
    """
    am, lm = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (am, lm))
    boundary = check_boundary(boundary, am.shape[0], symbols.shape[1], am.shape[1], am.device)
    log_unigram_C = None
    if am_only_scale != 0.0:
        log_unigram_C = (lm.softmax(2).mean(dim=(0, 1)) + torch.finfo(lm.dtype).tiny).log()
    options = (blank, lm_only_scale, am_only_scale, rnnt_type)
    if not am.is_cpu:
        return reference.rnnt_additive_log_probs(am, lm, log_unigram_C, symbols, boundary, *options)[:2]
    build.load()
    px, py, *_ = torch.ops.lattica.rnnt_additive_log_probs(
        am.contiguous(), lm.contiguous(), log_unigram_C, symbols.contiguous(), boundary, *options
    )
    return px, py


@build.when_loaded
def _register() -> None:
    @torch.library.register_fake("lattica::rnnt_additive_log_probs")
    def fake(
        am: Tensor, lm: Tensor, log_unigram: Tensor | None, symbols: Tensor, boundary: Tensor | None, blank: int,
        lm_only_scale: float, am_only_scale: float, rnnt_type: str,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        N, T, _ = am.shape
        S1 = lm.shape[1]
        rows = S1 + (log_unigram is not None)
        lattice = [(N, S1 - 1, T + 1 if rnnt_type == "regular" else T), (N, S1, T)]
        shapes = [*lattice, (N, T), (N, rows), (N, rows), (N, T, (rows + 7) // 8 * 8)]
        return tuple(am.new_empty(shape) for shape in shapes)

    @torch.library.register_fake("lattica::rnnt_additive_log_probs_backward")
    def fake_backward(
        px_grad: Tensor, py_grad: Tensor, am: Tensor, lm: Tensor, log_unigram: Tensor | None, *_: Any
    ) -> tuple[Tensor, ...]:
        rows = 0 if log_unigram is None else am.shape[0]
        return am.new_empty(am.shape), lm.new_empty(lm.shape), am.new_empty(rows, am.shape[2])

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, blank, lm_only_scale, am_only_scale, rnnt_type = inputs
        _, _, *saved = output
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *saved)
        ctx.options = (blank, lm_only_scale, am_only_scale, rnnt_type)

    def backward(ctx: Any, px_grad: Tensor | None, py_grad: Tensor | None, *_: None) -> tuple:
        am, lm, log_unigram, symbols, boundary, *saved = ctx.saved_tensors
        N, S1, T = am.shape[0], lm.shape[1], am.shape[1]
        if px_grad is None:
            px_grad = am.new_zeros(N, S1 - 1, T + 1 if ctx.options[-1] == "regular" else T)
        if py_grad is None:
            py_grad = am.new_zeros(N, S1, T)
        am_grad, lm_grad, unigram_grad_NC = torch.ops.lattica.rnnt_additive_log_probs_backward(
            px_grad.contiguous(), py_grad.contiguous(), am, lm, log_unigram, symbols, boundary, *saved, *ctx.options
        )
        unigram_grad = None if log_unigram is None else unigram_grad_NC.sum(0)
        return am_grad, lm_grad, unigram_grad, *(None,) * 6

    torch.library.register_autograd("lattica::rnnt_additive_log_probs", backward, setup_context=setup_context)
