"""BasicNorm: brings every frame to about unit root mean square, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class _BasicNorm(torch.autograd.Function):
    """x / sqrt(mean(x²) + eps) with the gradient written out: only x and one number a frame are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: Tensor) -> Tensor:
        x = x.float()
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, scale = ctx.saved_tensors
        # With m = mean(x²): dy/dm = -x scale³ / 2, dm/dx = 2 x / D, dm/deps = 1.
        d_m = (grad * x).sum(dim=-1, keepdim=True).mul_(scale.pow(3)).mul_(-0.5)
        return torch.addcmul(grad * scale, x, d_m, value=2.0 / x.shape[-1]), d_m.sum()


class BasicNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) over the last dimension, eps learnt in the log domain.

    LayerNorm without its two weaknesses here: it subtracts no mean and multiplies no per-channel gain (the linear maps around
    it can do both), and eps is not a tiny constant but learnt, starting at 0.25, so a frame with small values comes out small:
    the network can say "nothing here" by magnitude, which LayerNorm would blow up to full size.
    """

    def __init__(self, eps: float = 0.25) -> None:
        super().__init__()
        self.log_eps = nn.Parameter(torch.tensor(math.log(eps)))

    def forward(self, x: Tensor) -> Tensor:
        return _BasicNorm.apply(x, self.log_eps.exp())
