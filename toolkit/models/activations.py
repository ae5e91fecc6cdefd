"""What stands between two linear maps of the encoder: DoubleSwish, dropout that costs little on a CPU, and the balancer.

Shapes: any, with the channel last.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.double_swish import double_swish, random_bytes


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout`, on a CPU with one random byte an element instead of torch's slower draws.

    There p is rounded to 1/256; the factor belongs to the rounded p, so the expectation is exact."""
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    drop = min(round(p * 256), 255)
    keep = random_bytes(x.numel())[: x.numel()].view(x.shape) >= drop
    return x * keep.to(x.dtype).mul_(256 / (256 - drop))


class DoubleSwish(nn.Module):
    """x · sigmoid(x - 1), followed by dropout where `p` > 0.

    Close to swish(swish(x)): like Swish it lets a gradient through on the negative side, but it is flatter around zero, so a
    unit can be "nearly off" without being stuck. Activation and dropout are one op, because both are bound by memory
    traffic: a single tensor, their common derivative, is kept for the backward pass.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return double_swish(x, self.p if self.training else 0.0)


class _Balance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sign_push_C: Tensor, scale_push_C: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0, sign_push_C, scale_push_C)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        positive, sign_push_C, scale_push_C = ctx.saved_tensors
        push = torch.where(positive, sign_push_C + scale_push_C, sign_push_C - scale_push_C)
        return torch.addcmul(grad, grad.abs(), push.to(grad.dtype)), None, None


class ActivationBalancer(nn.Module):
    """Identity whose backward pass nudges channels that have gone astray back to where they are useful.

    Without normalisation before every branch nothing else stops a channel from being always positive (then the
    non-linearity behind it is wasted), always negative (dead), vanishing or exploding. For each channel two statistics of the
    batch are looked at, the fraction of positive values and the mean absolute value. When one leaves [min_positive, max_positive]
    or [min_abs, max_abs], up to `max_factor` times the absolute gradient of each element is added to its gradient, in the
    direction that brings the channel back. Nothing happens to the values, so inference and the loss are untouched.

    The nudge need not come in every step: it is applied with `probability`, which makes it cheap.
    """

    def __init__(
        self,
        min_positive: float = 0.05,
        max_positive: float = 0.95,
        min_abs: float = 0.2,
        max_abs: float = 100.0,
        max_factor: float = 0.04,
        probability: float = 0.25,
    ) -> None:
        super().__init__()
        self.min_positive, self.max_positive = min_positive, max_positive
        self.min_abs, self.max_abs = min_abs, max_abs
        self.max_factor, self.probability = max_factor, probability

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and x.requires_grad) or torch.rand(()).item() >= self.probability:
            return x
        pushes = self._pushes(x.detach())
        # Mostly all is well. Finding out would make a GPU wait; there the nudges of zero are added instead.
        if x.device.type == "cpu" and not any(push.any() for push in pushes):
            return x
        return _Balance.apply(x, *pushes)

    def _pushes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Per channel, what to add to the gradient as a multiple of |gradient|: a constant, and one for the value's sign.

        A gradient is subtracted from the value in effect, so a negative push raises values."""
        x_MC = x.flatten(0, -2)[::4].float()  # a quarter of the frames tells enough
        positive_C = (x_MC > 0).float().mean(dim=0)
        abs_C = x_MC.abs().mean(dim=0)
        too_few = ((self.min_positive - positive_C) / self.min_positive).clamp_(0.0, 1.0)
        too_many = ((positive_C - self.max_positive) / (1.0 - self.max_positive)).clamp_(0.0, 1.0)
        too_small = ((self.min_abs - abs_C) / self.min_abs).clamp_(0.0, 1.0)
        too_large = ((abs_C - self.max_abs) / self.max_abs).clamp_(0.0, 1.0)
        return self.max_factor * (too_many - too_few), self.max_factor * (too_large - too_small)
