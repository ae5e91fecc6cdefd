"""How the weights of all linear maps start."""

from __future__ import annotations

import torch
from torch import nn


def init_weight(module: nn.Linear | nn.Conv1d | nn.Conv2d, scale: float = 1.0) -> None:
    """Normal weights of standard deviation scale / sqrt(fan-in), small uniform biases.

    So the output of a layer with unit input has root mean square `scale`. icefall's first Conformers wrapped linear maps and
    convolutions into "scaled" modules, W · exp(s) with s learnt, so that Adam, whose steps do not know how large a weight
    is, could change its magnitude quickly. Here `ScaledAdam` does that job for every parameter, without a product in each
    forward pass. It makes steps in proportion to a parameter's size, which is why biases must not start at exactly zero.
    """
    fan_in = module.weight[0].numel()
    nn.init.normal_(module.weight, std=scale * fan_in**-0.5)
    if module.bias is not None:
        nn.init.uniform_(module.bias, -0.1 * scale, 0.1 * scale)


def scaled_linear(in_dim: int, out_dim: int, scale: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear map whose output starts with root mean square `scale` on unit input.

    The last map of each residual branch starts small (0.25), so that a new, deep stack is close to the identity and its
    gradient reaches the first layer."""
    linear = nn.Linear(in_dim, out_dim, bias=bias)
    with torch.no_grad():
        init_weight(linear, scale)
    return linear
