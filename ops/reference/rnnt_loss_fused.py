"""The steps of a tile of the fused transducer loss in plain PyTorch: they serve GPUs and half precision, too.

Each step computes in float32 (or float64) and rounds once, when it writes its result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.reference.swoosh import swoosh_derivative, swoosh_value


def full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "tanh":
        return x.tanh()
    if activation == "identity":
        return x
    return swoosh_value(x, activation)


def activation_derivative(x: Tensor, y: Tensor, activation: str) -> Tensor:
    """Where y = activate(x)."""
    if activation == "tanh":
        return 1.0 - y * y
    if activation == "identity":
        return torch.ones_like(x)
    return swoosh_derivative(x, activation)


def joiner_hidden(am: Tensor, lm: Tensor, am_rows: Tensor, lm_rows: Tensor, activation: str, hidden: Tensor) -> None:
    """hidden[i] = activation(am[am_rows[i]] + lm[lm_rows[i]])."""
    hidden.copy_(activate(full_precision(am[am_rows]) + lm[lm_rows], activation))


def joiner_hidden_grad(
    am: Tensor,
    lm: Tensor,
    am_rows: Tensor,
    lm_rows: Tensor,
    activation: str,
    hidden: Tensor,
    hidden_grad: Tensor,
    am_grad: Tensor,
    lm_grad: Tensor,
) -> None:
    """Add the gradient of joiner_hidden to am_grad and lm_grad, which are float32 for half-precision inputs."""
    x = full_precision(am[am_rows]) + lm[lm_rows]
    grad = full_precision(hidden_grad) * activation_derivative(x, full_precision(hidden), activation)
    am_grad.index_add_(0, am_rows, grad)
    lm_grad.index_add_(0, lm_rows, grad)


def joiner_log_probs(logits: Tensor, symbols: Tensor, blank: int, hat: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probability of symbols[i], of blank, log of the softmax's denominator) of each row of logits.

    With `hat` the softmax is over all classes but the blank, whose probability is its logit's sigmoid.
    """
    logits = full_precision(logits)
    blank_logit = logits[:, blank]
    symbol_logit = logits.gather(1, symbols[:, None]).squeeze(1)
    if not hat:
        normalizer = logits.logsumexp(1)
        return symbol_logit - normalizer, blank_logit - normalizer, normalizer
    normalizer = torch.cat([logits[:, :blank], logits[:, blank + 1 :]], dim=1).logsumexp(1)
    return symbol_logit - normalizer + F.logsigmoid(-blank_logit), F.logsigmoid(blank_logit), normalizer


def joiner_logits_grad(
    logits: Tensor,
    logits_rows: Tensor | None,
    normalizer: Tensor,
    symbols: Tensor,
    blank: int,
    hat: bool,
    symbol_grad: Tensor,
    blank_grad: Tensor,
    grad: Tensor,
) -> None:
    """grad = gradient with respect to logits (their rows logits_rows, if given). `grad` may be `logits` itself."""
    x = full_precision(logits if logits_rows is None else logits[logits_rows])
    if hat:
        blank_value = blank_grad * torch.sigmoid(-x[:, blank]) - symbol_grad * torch.sigmoid(x[:, blank])
        x = (x - normalizer[:, None]).exp_().mul_(-symbol_grad[:, None])
        x[:, blank] = blank_value
    else:
        x = (x - normalizer[:, None]).exp_().mul_(-(symbol_grad + blank_grad)[:, None])
        x[:, blank] += blank_grad
    x.scatter_add_(1, symbols[:, None], symbol_grad[:, None])
    grad.copy_(x)
