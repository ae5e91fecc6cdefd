"""Depthwise convolution over time with channels last, for models on a CPU, where torch's own is slow."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ops import build


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y[n, t, c] = bias[c] + Σ_k weight[c, k] · x[n, t + k - W // 2, c], x being zero outside its T frames.

    Args:
      x: (N, T, C) float32 or float64 on the CPU, any floating dtype on CUDA (where this is torch's own convolution).
      weight: (C, W), W odd. bias: (C,). Of x's dtype and device.

    Returns:
      (N, T, C), differentiable in all three. Half-precision inputs on a CPU are computed, and returned, in float32.
    """
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[2] or weight.shape[1] % 2 != 1:
        raise ValueError(
            f"x must be (N, T, C) and weight (C, W) with W odd, got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if bias.shape != (x.shape[2],):
        raise ValueError(f"bias must be (C,) with C = {x.shape[2]} of x, got {tuple(bias.shape)}")
    if x.device.type != "cpu":
        C, W = weight.shape
        return F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=W // 2, groups=C).transpose(1, 2)
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    build.load()
    return torch.ops.lattica.depthwise_conv1d(
        x.contiguous(), weight.to(x.dtype).contiguous(), bias.to(x.dtype).contiguous()
    )


@build.when_loaded
def _register() -> None:
    @torch.library.register_fake("lattica::depthwise_conv1d")
    def fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x.new_empty(x.shape)

    @torch.library.register_fake("lattica::depthwise_conv1d_backward")
    def fake_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.lattica.depthwise_conv1d_backward(grad.contiguous(), *ctx.saved_tensors)

    torch.library.register_autograd("lattica::depthwise_conv1d", backward, setup_context=setup_context)
