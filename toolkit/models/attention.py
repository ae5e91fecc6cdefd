"""Multi-head self-attention that knows how far two frames are apart (Transformer-XL, Dai et al. 2019, arXiv 1901.02860).

Shapes: N utterances, T frames, D model dimension, H heads, K dimension of a head, R = 2T - 1 relative positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.models.linear import scaled_linear


def relative_positions(num_frames: int, dim: int, device: torch.device) -> Tensor:
    """Sinusoids (2T - 1, D) for the distances -(T - 1) … T - 1 of a key from its query, in this order."""
    distance_R1 = torch.arange(1 - num_frames, num_frames, device=device, dtype=torch.float32)[:, None]
    rate_K = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / dim))
    angle_RK = distance_R1 * rate_K
    return torch.stack([angle_RK.sin(), angle_RK.cos()], dim=2).flatten(1)[:, :dim]


class _RelativeShift(torch.autograd.Function):
    """(B, T, 2T - 1) by distance → (B, T, T) by key: row i begins at distance -i, i.e. one column earlier than row i - 1.

    In memory each row of the result begins 2T - 2 elements after the one before, so it is a view of other strides and
    nothing is copied. Written as a function for the sake of its backward pass, which torch's general one makes slow.
    """

    @staticmethod
    def forward(ctx: Any, x_BTR: Tensor) -> Tensor:
        B, T, R = x_BTR.shape
        ctx.shape = x_BTR.shape
        return x_BTR.contiguous().as_strided((B, T, T), (T * R, R - 1, 1), T - 1)

    @staticmethod
    def backward(ctx: Any, grad_BTT: Tensor) -> Tensor:  # type: ignore[override]
        B, T, R = ctx.shape
        grad_BTR = grad_BTT.new_zeros(B, T, R)
        grad_BTR.as_strided((B, T, T), (T * R, R - 1, 1), T - 1).copy_(grad_BTT)
        return grad_BTR


class RelativeAttention(nn.Module):
    """score(i, j) = ((q_i + u) · k_j + (q_i + v) · p_{j-i}) / sqrt(K): content, and distance seen from the query.

    u and v are learnt per head: what to look for whatever the query says. The position products are the same for all
    utterances but for the query, so they are one large matrix product per head, over the queries of the whole batch.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = scaled_linear(dim, 3 * dim)
        self.pos_proj = scaled_linear(dim, dim, bias=False)
        self.out_proj = scaled_linear(dim, dim, scale=0.25)
        self.content_bias_HK = nn.Parameter(torch.empty(num_heads, dim // num_heads).uniform_(-0.1, 0.1))
        self.position_bias_HK = nn.Parameter(torch.empty(num_heads, dim // num_heads).uniform_(-0.1, 0.1))

    def forward(self, x_NTD: Tensor, positions_RD: Tensor, padding_NT: Tensor) -> Tensor:
        """padding_NT is True on frames behind the end: nobody looks at those. Their own output means nothing."""
        N, T, D = x_NTD.shape
        H, K = self.num_heads, D // self.num_heads
        q_HNTK, k_HNTK, v_HNTK = self.in_proj(x_NTD).view(N, T, 3, H, K).permute(2, 3, 0, 1, 4)
        p_HRK = self.pos_proj(positions_RD).view(-1, H, K).transpose(0, 1).to(q_HNTK.dtype)
        q_HNTK = q_HNTK * K**-0.5
        u_H11K = (self.content_bias_HK * K**-0.5)[:, None, None].to(q_HNTK.dtype)
        v_H11K = (self.position_bias_HK * K**-0.5)[:, None, None].to(q_HNTK.dtype)

        by_distance = torch.bmm((q_HNTK + v_H11K).reshape(H, N * T, K), p_HRK.transpose(1, 2))
        shifted_BTT = _RelativeShift.apply(by_distance.view(H * N, T, 2 * T - 1))
        content_k_BKT = k_HNTK.reshape(H * N, T, K).transpose(1, 2)
        scores_BTT = torch.baddbmm(shifted_BTT, (q_HNTK + u_H11K).reshape(H * N, T, K), content_k_BKT)
        # A very negative number, not -inf: a row without any frame to look at must not become nan.
        lowest = torch.finfo(scores_BTT.dtype).min
        scores_BTT.view(H, N, T, T).masked_fill_(padding_NT[None, :, None, :], lowest)
        weights_BTT = scores_BTT.softmax(dim=2).to(v_HNTK.dtype)
        out_BTK = torch.bmm(weights_BTT, v_HNTK.reshape(H * N, T, K))
        return self.out_proj(out_BTK.view(H, N, T, K).permute(1, 2, 0, 3).reshape(N, T, D))
