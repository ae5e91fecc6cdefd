"""The re-worked Conformer encoder: the paper's (arXiv 2211.00484), after icefall's pruned_transducer_stateless2–5.

A Conformer (Gulati et al. 2020, arXiv 2005.08100) with other means of keeping activations in range, so that it trains
fast from the first step, in half precision too:

  BasicNorm            one at the end of each layer instead of a LayerNorm in front of each branch   normalization.py
  ActivationBalancer   looks after the channels in between, in the backward pass only                 activations.py
  DoubleSwish          the non-linearity                                                              activations.py
  scaled modules       became the optimizer's business (ScaledAdam); small starts of branches remain  linear.py
  layer dropout        whole layers left out at random, so that none relies on exactly its predecessor

An utterance's output does not depend on what it is batched or padded with. Nothing is estimated over a batch, frames behind
the end are never looked at and count as zeros in convolutions, just as what lies beyond the edge of the tensor.

Shapes: N utterances, T frames, F mel bins, D encoder dimension, W angular frequencies of positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.config import EncoderConfig
from toolkit.models.activations import ActivationBalancer, DoubleSwish, dropout
from toolkit.models.attention import RelativeAttention, position_angles
from toolkit.models.convolution import ConvolutionModule
from toolkit.models.linear import scaled_linear
from toolkit.models.masks import frame_mask
from toolkit.models.normalization import BasicNorm
from toolkit.models.subsampling import Subsampling


class Conformer(nn.Module):
    """Filterbanks (N, T, F) → encoder output (N, T', D), T' = ((T - 1) // 2 - 1) // 2, and its lengths."""

    subsampling_factor = 4

    def __init__(self, config: EncoderConfig, num_features: int = 80) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.subsampling = Subsampling(num_features, config.subsampling_channels, config.dim)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.num_layers))

    def forward(self, x_NTF: Tensor, lens_N: Tensor) -> tuple[Tensor, Tensor]:
        x_NTD, lens_N = self.subsampling(x_NTF, lens_N)
        x_NTD = dropout(x_NTD, self.dropout, self.training)
        angles_TW = position_angles(x_NTD.shape[1], x_NTD.device)
        padding_NT = ~frame_mask(lens_N, x_NTD.shape[1])
        for layer in self.layers:
            x_NTD = layer(x_NTD, angles_TW, lens_N, padding_NT)
        return x_NTD, lens_N


def feed_forward(dim: int, hidden_dim: int, p: float) -> nn.Sequential:
    return nn.Sequential(
        scaled_linear(dim, hidden_dim),
        ActivationBalancer(max_abs=10.0),
        DoubleSwish(p),
        scaled_linear(hidden_dim, dim, scale=0.25),
    )


class ConformerLayer(nn.Module):
    """Feed-forward, attention, convolution, feed-forward ("macaron"), each added to its input; BasicNorm at the end.

    In training the layer is left out with probability `layer_dropout`: what comes in goes out. Each layer so learns to refine
    what it is given instead of recoding it, and a left-out layer costs no time.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dropout, self.layer_dropout = config.dropout, config.layer_dropout
        self.feed_forward1 = feed_forward(config.dim, config.feedforward_dim, config.dropout)
        self.attention = RelativeAttention(config.dim, config.num_heads)
        self.convolution = ConvolutionModule(config.dim, config.conv_kernel)
        self.feed_forward2 = feed_forward(config.dim, config.feedforward_dim, config.dropout)
        # Behind the sum nothing else would stop a channel that is always positive or ever growing.
        self.balancer = ActivationBalancer(min_positive=0.45, max_positive=0.55, max_abs=6.0)
        self.norm = BasicNorm()

    def forward(self, x_NTD: Tensor, angles_TW: Tensor, lens_N: Tensor, padding_NT: Tensor) -> Tensor:
        if self.training and self.layer_dropout > 0.0 and torch.rand(()).item() < self.layer_dropout:
            return x_NTD
        x_NTD = x_NTD + self._drop(self.feed_forward1(x_NTD))
        x_NTD = x_NTD + self._drop(self.attention(x_NTD, angles_TW, lens_N))
        x_NTD = x_NTD + self._drop(self.convolution(x_NTD, padding_NT))
        x_NTD = x_NTD + self._drop(self.feed_forward2(x_NTD))
        return self.norm(self.balancer(x_NTD))

    def _drop(self, x_NTD: Tensor) -> Tensor:
        return dropout(x_NTD, self.dropout, self.training)
