"""Self-attention with relative positions through torch's scaled_dot_product_attention: what runs on CUDA, too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def query_key_value(x: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, T, H * (3 K + 2 W)) → query and key (N, H, T, K + 2 W), scaled so that their product is the score; value."""
    N, T, D = x.shape
    W = cos.shape[1]
    K = (D // num_heads - 2 * W) // 3
    q, a, b, k, v = x.view(N, T, num_heads, -1).transpose(1, 2).split([K, W, W, K, K], dim=3)
    rotated = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=3) * W**-0.5
    query = torch.cat([q * K**-0.5, rotated.to(q.dtype)], dim=3)
    key = torch.cat([k, torch.cat([cos, sin], dim=1).to(k.dtype).expand(N, num_heads, T, 2 * W)], dim=3)
    return query, key, v


def padding_mask(lens: Tensor, T: int, dtype: torch.dtype) -> Tensor:
    """(N, 1, 1, T) to add to scores: a large negative number behind the end; with -inf, empty utterances would get nan."""
    padding_NT = torch.arange(T, device=lens.device) >= lens[:, None]
    return torch.zeros_like(padding_NT, dtype=dtype).masked_fill_(padding_NT, -1e9)[:, None, None]


def fused_attention(x: Tensor, cos: Tensor, sin: Tensor, lens: Tensor, num_heads: int) -> Tensor:
    """As `relative_attention`, without the weights, by torch's fused kernels; differentiable."""
    query, key, value = query_key_value(x, cos, sin, num_heads)
    N, T = x.shape[:2]
    out = F.scaled_dot_product_attention(query, key, value, padding_mask(lens, T, query.dtype), scale=1.0)
    real_NT = torch.arange(T, device=lens.device) < lens[:, None]
    return out.transpose(1, 2).reshape(N, T, -1) * real_NT[:, :, None]


def relative_attention(x: Tensor, cos: Tensor, sin: Tensor, lens: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """See ops/relative_attention.py. Returns (N, T, H * K), and weights (N, H, T, T rounded up to 16) for the backward pass."""
    query, key, _ = query_key_value(x, cos, sin, num_heads)
    T = x.shape[1]
    weights = (query @ key.transpose(2, 3) + padding_mask(lens, T, query.dtype)).softmax(dim=3)
    return fused_attention(x, cos, sin, lens, num_heads), F.pad(weights, (0, -T % 16))


def relative_attention_backward(
    grad: Tensor, x: Tensor, weights: Tensor, cos: Tensor, sin: Tensor, lens: Tensor, num_heads: int
) -> Tensor:
    """The gradient of x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(fused_attention(x, cos, sin, lens, num_heads), x, grad)[0]
