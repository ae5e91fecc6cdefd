"""Depthwise convolution over time by torch's own grouped convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See ops/depthwise_conv1d.py. x: (N, T, C); weight: (C, W); bias: (C,). Returns (N, T, C)."""
    C, W = weight.shape
    return F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=W // 2, groups=C).transpose(1, 2).contiguous()


def depthwise_conv1d_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    with torch.enable_grad():
        inputs = (
            x.detach().requires_grad_(),
            weight.detach().requires_grad_(),
            weight.new_zeros(len(weight), requires_grad=True),
        )
        x_grad, weight_grad, bias_grad = torch.autograd.grad(depthwise_conv1d(*inputs), inputs, grad)
    return x_grad, weight_grad, bias_grad
