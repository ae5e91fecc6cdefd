"""Multi-head self-attention that knows how far two frames are apart (after Transformer-XL, Dai et al., arXiv 1901.02860).

Shapes: N utterances, T frames, D model dimension, H heads, K dimension of a head, P dimension of positions, W = P / 2
angular frequencies.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.models.linear import scaled_linear

POSITION_DIM = 48
FASTEST, SLOWEST = math.pi / 2, math.pi / 2000  # radians a frame: wavelengths of 4 frames and of 4000 (160 s)


def position_angles(num_frames: int, device: torch.device) -> Tensor:
    """(T, W) angles t · w of each frame for geometrically spaced frequencies w."""
    rate_W = torch.logspace(math.log10(FASTEST), math.log10(SLOWEST), POSITION_DIM // 2, device=device)
    return torch.arange(num_frames, device=device)[:, None] * rate_W


class RelativeAttention(nn.Module):
    """score(i, j) = q_i · k_j / sqrt(K) + r_i · p_{j-i} / sqrt(W), p_d the sinusoids of the distance d.

    q and r are both learnt linear maps of the query's frame: what it looks for, and where, relative to itself. Their
    biases are Transformer-XL's u and v.

    Transformer-XL makes all 2T - 1 vectors p_d, multiplies each query with each, and shifts row i by i. Here a theorem saves
    all that: cos w(j - i) and sin w(j - i) are what rotating a pair of numbers by the angle -wi makes of cos wj and sin wj,
    and to rotate the key's sinusoids back is to rotate r_i forward. So with r_i rotated by its own position, (q_i, r_i) and
    (k_j, sinusoids of j) are the query and the key of ordinary attention: one matrix product, and any fused
    attention kernel will do.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = scaled_linear(dim, 3 * dim + num_heads * POSITION_DIM)
        self.out_proj = scaled_linear(dim, dim, scale=0.25)

    def forward(self, x_NTD: Tensor, angles_TW: Tensor, padding_NT: Tensor) -> Tensor:
        """padding_NT is True on frames behind the end: nobody looks at those. Their own output means nothing."""
        N, T, D = x_NTD.shape
        H, K, P = self.num_heads, D // self.num_heads, POSITION_DIM
        parts = self.in_proj(x_NTD).view(N, T, H, 3 * K + P).transpose(1, 2).split([K, P // 2, P // 2, K, K], dim=3)
        q_NHTK, a_NHTW, b_NHTW, k_NHTK, v_NHTK = parts
        cos_TW, sin_TW = angles_TW.cos().to(x_NTD.dtype), angles_TW.sin().to(x_NTD.dtype)
        scale = (2.0 * K / P) ** 0.5  # the kernel divides by sqrt(K)
        rotated = (a_NHTW * cos_TW - b_NHTW * sin_TW) * scale, (a_NHTW * sin_TW + b_NHTW * cos_TW) * scale
        query = torch.cat([q_NHTK, *(part.to(q_NHTK.dtype) for part in rotated)], dim=3)
        sinusoids = torch.cat([cos_TW, sin_TW], dim=1).to(k_NHTK.dtype)
        key = torch.cat([k_NHTK, sinusoids.expand(N, H, T, P)], dim=3)
        # A large number, not infinity: a row without any frame to look at must not become nan.
        mask_N11T = torch.zeros_like(padding_NT, dtype=query.dtype).masked_fill_(padding_NT, -1e9)[:, None, None]
        out_NHTK = F.scaled_dot_product_attention(query, key, v_NHTK, attn_mask=mask_N11T, scale=K**-0.5)
        return self.out_proj(out_NHTK.transpose(1, 2).reshape(N, T, D))
