"""The Conformer's convolution module: what a frame's neighbours say, channel by channel.

Shapes: N utterances, T frames, D channels, W kernel width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ops.depthwise_conv1d import depthwise_conv1d
from toolkit.models.activations import ActivationBalancer, DoubleSwish
from toolkit.models.linear import init_weight, scaled_linear


class ConvolutionModule(nn.Module):
    """Linear to 2D → gated linear unit → depthwise convolution over time → balancer, DoubleSwish → linear.

    BatchNorm, which the original Conformer has after the convolution, makes an utterance depend on the batch and inference
    differ from training; the balancer keeps the channels in range instead.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.in_proj = scaled_linear(dim, 2 * dim)
        self.gate_balancer = ActivationBalancer(max_abs=10.0)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim)  # holds the parameters only
        init_weight(self.depthwise)
        self.balancer = ActivationBalancer()
        self.activation = DoubleSwish()
        self.out_proj = scaled_linear(dim, dim, scale=0.25)

    def forward(self, x_NTD: Tensor, padding_NT: Tensor) -> Tensor:
        """padding_NT is True on frames behind the end; for the others those count as zero, as beyond the batch's edge."""
        x_NTD = F.glu(self.gate_balancer(self.in_proj(x_NTD)), dim=2)
        x_NTD = x_NTD.masked_fill(padding_NT[..., None], 0.0)
        assert self.depthwise.bias is not None
        x_NTD = depthwise_conv1d(x_NTD, self.depthwise.weight[:, 0], self.depthwise.bias)
        return self.out_proj(self.activation(self.balancer(x_NTD)))
