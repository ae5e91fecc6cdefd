"""Self-attention that knows how far two frames are apart, straight from one linear map's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ops import build
from ops.reference.relative_attention import fused_attention


def relative_attention(x: Tensor, angles: Tensor, lens: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention with score(i, j) = q_i · k_j / sqrt(K) + r_i · p_{j-i} / sqrt(W), as in Transformer-XL.

    p_d is (cos w_1 d … cos w_W d, sin w_1 d … sin w_W d), the sinusoids of the distance d; r_i = [a_i, b_i] says which
    distances query i likes. Transformer-XL multiplies each r_i with all 2T - 1 vectors p_d and shifts row i by i. A theorem
    saves that: cos w(j - i) and sin w(j - i) come of cos wj and sin wj by a rotation through -wi, and instead of
    rotating all keys' sinusoids one can rotate r_i through wi. Then (q_i, rotated r_i) and (k_j, sinusoids of j) are query and
    key of ordinary attention.

    Args:
      x: (N, T, H * (3 K + 2 W)), for each frame and head q (K), a (W), b (W), k (K), v (K), in this order: the output
        of one linear map.
        float32 or float64 on the CPU (half precision is computed in float32), any floating dtype on CUDA.
      angles: (T, W), w · t for each frame t and frequency w.
      lens: int64 (N,), how many frames of each utterance are real: nobody looks at the others, and their output is 0.
      num_heads: H.

    Returns:
      (N, T, H * K), of x's dtype; differentiable in x. The backward pass on a CPU keeps the weights, N · H · T² numbers.

    Source: Dai et al., arXiv 1901.02860, section 3.3; the rotation is Su et al.'s (arXiv 2104.09864), applied to one side.
    """
    N, T, D = x.shape
    if D % num_heads or (D // num_heads - 2 * angles.shape[-1]) % 3 or D // num_heads <= 2 * angles.shape[-1]:
        raise ValueError(
            f"x must be (N, T, H * (3 K + 2 W)) with H = {num_heads} and W = {angles.shape[-1]} of angles, got {tuple(x.shape)}"
        )
    if angles.ndim != 2 or angles.shape[0] != T:
        raise ValueError(f"angles must be (T, W) with T = {T} of x, got {tuple(angles.shape)}")
    if lens.shape != (N,) or lens.dtype != torch.int64:
        raise ValueError(f"lens must be int64 of shape ({N},), got {lens.dtype} of shape {tuple(lens.shape)}")
    if x.device.type != "cpu":
        return fused_attention(x, angles.cos(), angles.sin(), lens, num_heads)
    build.load()
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    cos, sin = angles.cos().to(wide.dtype), angles.sin().to(wide.dtype)
    out, _ = torch.ops.lattica.relative_attention(wide.contiguous(), cos, sin, lens, num_heads)
    return out.to(x.dtype)


@build.when_loaded
def _register() -> None:
    @torch.library.register_fake("lattica::relative_attention")
    def fake(x: Tensor, cos: Tensor, sin: Tensor, lens: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
        N, T, D = x.shape
        K = (D // num_heads - 2 * cos.shape[1]) // 3
        return x.new_empty(N, T, num_heads * K), x.new_empty(N, num_heads, T, (T + 15) // 16 * 16)

    @torch.library.register_fake("lattica::relative_attention_backward")
    def fake_backward(
        grad: Tensor, x: Tensor, weights: Tensor, cos: Tensor, sin: Tensor, lens: Tensor, num_heads: int
    ) -> Tensor:
        return x.new_empty(x.shape)

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, cos, sin, lens, ctx.num_heads = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1], cos, sin, lens)

    def backward(ctx: Any, grad: Tensor, _weights: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_grad = torch.ops.lattica.relative_attention_backward(grad.contiguous(), *ctx.saved_tensors, ctx.num_heads)
        return x_grad, None, None, None, None

    torch.library.register_autograd("lattica::relative_attention", backward, setup_context=setup_context)
