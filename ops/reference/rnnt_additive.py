"""Log-probabilities of the joiner-free transducer in PyTorch: what runs on CUDA, too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.rnnt_lattice import to_lattice


def rnnt_additive_log_probs(
    am: Tensor,
    lm: Tensor,
    log_unigram: Tensor | None,
    symbols: Tensor,
    boundary: Tensor | None,
    blank: int,
    lm_only_scale: float,
    am_only_scale: float,
    rnnt_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ops/rnnt_additive.py. Returns px, py and, for the backward pass, am_max, lm_max, lm_sum, products."""
    N, T, _ = am.shape
    S1 = lm.shape[1]
    joint_scale = 1.0 - lm_only_scale - am_only_scale
    # The unigram is one row more of lm: its product with exp(am) normalises the am-only part.
    rows_NPC = lm if log_unigram is None else torch.cat([lm, log_unigram.expand(N, 1, -1)], 1)
    # Less the maxima, the exponentials are in (0, 1]; `tiny` keeps the log finite should a product underflow.
    am_max_NT, lm_max_NP = am.detach().amax(2), rows_NPC.detach().amax(2)
    am_probs_NTC, lm_probs_NPC = (am - am_max_NT[..., None]).exp(), (rows_NPC - lm_max_NP[..., None]).exp()
    products_NTP = torch.matmul(am_probs_NTC, lm_probs_NPC.transpose(1, 2))
    normalizer_NTP = products_NTP.add(torch.finfo(am.dtype).tiny).log() + am_max_NT[..., None] + lm_max_NP[:, None]
    normalizer_NTS = normalizer_NTP[..., :S1] * joint_scale
    if log_unigram is not None:
        normalizer_NTS = normalizer_NTS + normalizer_NTP[..., S1:] * am_only_scale

    symbol_am_NTS = am.gather(2, symbols[:, None, :].expand(N, T, S1 - 1)) * (joint_scale + am_only_scale)
    blank_am_NT1 = am[:, :, blank, None] * (joint_scale + am_only_scale)
    symbol_lm_NS = lm[:, :-1].gather(2, symbols[:, :, None]).squeeze(2) * (joint_scale + lm_only_scale)
    blank_lm_NS = lm[:, :, blank] * (joint_scale + lm_only_scale)
    lm_sum_NP = lm_probs_NPC.sum(2)
    lm_normalizer_NS = (lm_sum_NP.log() + lm_max_NP)[:, :S1] * lm_only_scale
    symbol_lm_NS, blank_lm_NS = symbol_lm_NS - lm_normalizer_NS[:, :-1], blank_lm_NS - lm_normalizer_NS
    if log_unigram is not None:
        symbol_lm_NS = symbol_lm_NS + log_unigram[symbols] * am_only_scale
        blank_lm_NS = blank_lm_NS + log_unigram[blank] * am_only_scale

    px, py = to_lattice(
        symbol_am_NTS + symbol_lm_NS[:, None, :] - normalizer_NTS[:, :, :-1],
        blank_am_NT1 + blank_lm_NS[:, None, :] - normalizer_NTS,
        boundary,
        rnnt_type,
    )
    return px, py, am_max_NT, lm_max_NP, lm_sum_NP, F.pad(products_NTP, (0, -products_NTP.shape[2] % 8))


def rnnt_additive_log_probs_backward(
    px_grad: Tensor,
    py_grad: Tensor,
    am: Tensor,
    lm: Tensor,
    log_unigram: Tensor | None,
    symbols: Tensor,
    boundary: Tensor | None,
    am_max: Tensor,
    lm_max: Tensor,
    lm_sum: Tensor,
    products: Tensor,
    blank: int,
    lm_only_scale: float,
    am_only_scale: float,
    rnnt_type: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of am, lm and log_unigram, the latter (N, C), by utterance, or (0, C). By autograd, from the start."""
    N, C = len(am), am.shape[2]
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (am, lm)]
        unigram_NC = None if log_unigram is None else log_unigram.detach().repeat(N, 1).requires_grad_()
        scales = lm_only_scale, am_only_scale, rnnt_type
        losses = []
        for n in range(N):
            one = slice(n, n + 1)
            row = None if unigram_NC is None else unigram_NC[n]
            end = None if boundary is None else boundary[one]
            outputs = rnnt_additive_log_probs(leaves[0][one], leaves[1][one], row, symbols[one], end, blank, *scales)
            for output, grad in zip(outputs[:2], (px_grad[one], py_grad[one])):
                # Where nothing may be said, px is the constant -inf: 0 times that would be nan.
                losses.append((torch.where(output.isinf(), 0.0, output) * grad).sum())
        total = torch.stack(losses).sum() if losses else leaves[0].sum() * 0
    if unigram_NC is None:
        am_grad, lm_grad = torch.autograd.grad(total, leaves, materialize_grads=True)
        return am_grad, lm_grad, am.new_empty(0, C)
    am_grad, lm_grad, unigram_grad = torch.autograd.grad(total, (*leaves, unigram_NC), materialize_grads=True)
    return am_grad, lm_grad, unigram_grad
