"""One step of the optimizer ScaledAdam for one tensor, in one pass over memory, on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ops import build


def scaled_adam_(
    param: Tensor,
    grad: Tensor,
    momentum: Tensor,
    second: Tensor,
    *,
    grad_factor: float,
    beta1: float,
    beta2: float,
    rate: float,
    eps: float,
    scale_step: float,
) -> None:
    """In place, with g = grad_factor · grad:

      second   ← beta2 · second + (1 - beta2) · g²
      momentum ← beta1 · momentum + (1 - beta1) · (scale_step · param - rate · g / (sqrt(second) + eps))
      param    ← param + momentum

    All tensors are contiguous, of one shape, float32 or float64, on the CPU. Not differentiable. What the numbers are made
    of is said in toolkit/optim/scaled_adam.py.
    """
    build.load()
    torch.ops.lattica.scaled_adam(param, grad, momentum, second, grad_factor, beta1, beta2, rate, eps, scale_step)


@build.when_loaded
def _register() -> None:
    @torch.library.register_fake("lattica::scaled_adam")
    def fake(
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
        return None
