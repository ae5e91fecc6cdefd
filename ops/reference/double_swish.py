"""DoubleSwish with dropout from random bytes, formula by formula."""

from __future__ import annotations

import torch
from torch import Tensor


def double_swish(x: Tensor, bytes: Tensor | None, drop: int) -> tuple[Tensor, Tensor]:
    """See ops/double_swish.py. Returns (y, dy/dx), both of x's shape."""
    sigmoid = torch.sigmoid(x - 1.0)
    y = x * sigmoid
    derivative = sigmoid + y * (1.0 - sigmoid)
    if bytes is None:
        return y, derivative
    scale = (bytes[: x.numel()].view(x.shape) >= drop).to(x.dtype) * (256 / (256 - drop))
    return y * scale, derivative * scale
