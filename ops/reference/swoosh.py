"""The Swoosh activations and their derivatives in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# name: (shift of the argument, offset of the value)
CONSTANTS = {"swoosh_l": (4.0, 0.035), "swoosh_r": (1.0, 0.313261687)}


def swoosh_value(x: Tensor, kind: str) -> Tensor:
    shift, offset = CONSTANTS[kind]
    z = x - shift
    line = torch.where(z > 0, 0.92 * x - shift, -0.08 * x)  # one linear term, so that infinities do not meet
    return line + F.softplus(-z.abs()) - offset


def swoosh_derivative(x: Tensor, kind: str) -> Tensor:
    return torch.sigmoid(x - CONSTANTS[kind][0]) - 0.08


def swoosh(x: Tensor, kind: str, want_deriv: bool) -> tuple[Tensor, Tensor]:
    """(value, derivative); the derivative is empty unless wanted. Half precision is computed in float32."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    y = swoosh_value(wide, kind).to(x.dtype).contiguous()
    return y, swoosh_derivative(wide, kind).to(x.dtype).contiguous() if want_deriv else x.new_empty(0)
