"""The Swoosh activations of the Zipformer: a shifted softplus less a slope, with the names of k2.

    swoosh_l(x) = log(1 + exp(x - 4)) - 0.08 x - 0.035
    swoosh_r(x) = log(1 + exp(x - 1)) - 0.08 x - 0.313261687

so that swoosh_r(0) = 0. Both are like a leaky rectifier with a smooth corner; their derivative is
sigmoid(x - shift) - 0.08. Elementwise, any shape; CPU and CUDA. float32 and float64; half precision is computed in
float32 and rounded once.

`swoosh_l` and `swoosh_r` are differentiable (once) and keep their input for the backward pass. The `_forward` variants
give the value alone, `_forward_and_deriv` the value and dy/dx; neither takes part in autograd. They are for autograd
functions that join an activation with what follows it and make the activation anew in their backward pass.

Source: Yao et al., "Zipformer: A faster and better encoder for automatic speech recognition", arXiv 2310.11230.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ops import build
from ops.reference.swoosh import swoosh as swoosh_in_pytorch


def swoosh_l(x: Tensor) -> Tensor:
    """log(1 + exp(x - 4)) - 0.08 x - 0.035, differentiable."""
    return _apply(x, "swoosh_l", want_deriv=False)[0]


def swoosh_r(x: Tensor) -> Tensor:
    """log(1 + exp(x - 1)) - 0.08 x - 0.313261687, differentiable."""
    return _apply(x, "swoosh_r", want_deriv=False)[0]


def swoosh_l_forward(x: Tensor) -> Tensor:
    """`swoosh_l` without autograd."""
    return _apply(x.detach(), "swoosh_l", want_deriv=False)[0]


def swoosh_r_forward(x: Tensor) -> Tensor:
    """`swoosh_r` without autograd."""
    return _apply(x.detach(), "swoosh_r", want_deriv=False)[0]


def swoosh_l_forward_and_deriv(x: Tensor) -> tuple[Tensor, Tensor]:
    """(swoosh_l(x), its derivative), both shaped like x, without autograd."""
    return _apply(x.detach(), "swoosh_l", want_deriv=True)


def swoosh_r_forward_and_deriv(x: Tensor) -> tuple[Tensor, Tensor]:
    """(swoosh_r(x), its derivative), both shaped like x, without autograd."""
    return _apply(x.detach(), "swoosh_r", want_deriv=True)


def _apply(x: Tensor, kind: str, want_deriv: bool) -> tuple[Tensor, Tensor]:
    if not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, got {x.dtype}")
    return _swoosh(x, kind, want_deriv)


@torch.library.custom_op("lattica::swoosh_activation", mutates_args=())
def _swoosh(x: Tensor, kind: str, want_deriv: bool) -> tuple[Tensor, Tensor]:
    """(value, derivative, which is empty unless wanted)."""
    build.load()
    if x.is_cpu and x.dtype in (torch.float32, torch.float64):
        y, deriv = torch.ops.lattica.swoosh(x.contiguous(), kind, want_deriv)
        return y, deriv
    return swoosh_in_pytorch(x, kind, want_deriv)


@_swoosh.register_fake
def _(x: Tensor, kind: str, want_deriv: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape if want_deriv else 0)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, kind, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x)
    ctx.kind = kind


def _backward(ctx: Any, y_grad: Tensor | None, _deriv_grad: None) -> tuple[Tensor | None, None, None]:
    if y_grad is None:
        return None, None, None
    (x,) = ctx.saved_tensors
    return y_grad * _swoosh(x, ctx.kind, True)[1], None, None


_swoosh.register_autograd(_backward, setup_context=_setup_context)
