"""Multi-head self-attention that knows how far two frames are apart (after Transformer-XL, Dai et al., arXiv 1901.02860).

Shapes: N utterances, T frames, D model dimension, W angular frequencies of positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ops.relative_attention import relative_attention
from toolkit.models.linear import scaled_linear

NUM_FREQUENCIES = 16
FASTEST, SLOWEST = math.pi / 2, math.pi / 500  # radians a frame: wavelengths of 4 frames and of 1000 (40 s)


def position_angles(num_frames: int, device: torch.device) -> Tensor:
    """(T, W) angles t · w of each frame for geometrically spaced frequencies w."""
    rates_W = torch.logspace(math.log10(FASTEST), math.log10(SLOWEST), NUM_FREQUENCIES, device=device)
    return torch.arange(num_frames, device=device)[:, None] * rates_W


class RelativeAttention(nn.Module):
    """score(i, j) = q_i · k_j / sqrt(K) + r_i · p_{j-i} / sqrt(W), p_d the sinusoids of the distance d.

    q and r are linear maps of the query's frame: what it looks for, and where, relative to itself. Their biases are
    Transformer-XL's u and v, what to look for whatever the frame. ops/relative_attention.py tells how it is computed.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = scaled_linear(dim, 3 * dim + num_heads * 2 * NUM_FREQUENCIES)
        self.out_proj = scaled_linear(dim, dim, scale=0.25)

    def forward(self, x_NTD: Tensor, angles_TW: Tensor, lens_N: Tensor) -> Tensor:
        """Frames from lens_N on are not looked at, and their own output means nothing."""
        return self.out_proj(relative_attention(self.in_proj(x_NTD), angles_TW, lens_N, self.num_heads))
