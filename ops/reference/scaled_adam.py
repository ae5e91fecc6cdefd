"""One step of ScaledAdam for one tensor, operation by operation."""

from __future__ import annotations

from torch import Tensor


def scaled_adam(
    param: Tensor,
    grad: Tensor,
    momentum: Tensor,
    second: Tensor,
    grad_factor: float,
    beta1: float,
    beta2: float,
    rate: float,
    eps: float,
    scale_step: float,
) -> None:
    """See ops/scaled_adam.py. Changes param, momentum and second in place."""
    grad = grad * grad_factor
    second.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
    direction = scale_step * param - rate * grad / (second.sqrt() + eps)
    momentum.mul_(beta1).add_(direction, alpha=1.0 - beta1)
    param.add_(momentum)
