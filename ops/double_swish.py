"""DoubleSwish, x · sigmoid(x - 1), with the dropout behind it, in one pass over memory on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ops import build


def random_bytes(count: int) -> Tensor:
    """`count` uniform random bytes, and up to seven more, uint8 on the CPU.

    They are cut from 64-bit numbers, which makes them some ten times as fast as a Bernoulli draw for each element."""
    return torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)


def double_swish(x: Tensor, p: float = 0.0) -> Tensor:
    """dropout(x · sigmoid(x - 1), p), of x's shape and dtype; differentiable in x.

    Args:
      x: any shape, any floating dtype, any device.
      p: in [0, 1): elements are zeroed with this probability, rounded to 1/256 on the CPU, and the others divided by
        1 - p, so that the expectation stays.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must lie in [0, 1), got {p}")
    if x.device.type != "cpu":
        return F.dropout(x * torch.sigmoid(x - 1.0), p)
    build.load()
    drop = min(round(p * 256), 255)
    # Half precision gains nothing on a CPU: the way over float32 is exact enough and simple.
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    y, _ = torch.ops.lattica.double_swish(wide.contiguous(), random_bytes(x.numel()) if drop else None, drop)
    return y.to(x.dtype)


@build.when_loaded
def _register() -> None:
    @torch.library.register_fake("lattica::double_swish")
    def fake(x: Tensor, bytes: Tensor | None, drop: int) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x)

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    def backward(ctx: Any, grad: Tensor, _derivative: Tensor) -> tuple[Tensor, None, None]:
        # The derivative is all that is needed: neither x nor the random bytes are kept.
        return grad * ctx.saved_tensors[0], None, None

    torch.library.register_autograd("lattica::double_swish", backward, setup_context=setup_context)
