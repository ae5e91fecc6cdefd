"""Relative attention: equal to its formula and to torch's attention, gradients, padding, opcheck, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ops
from ops import build, reference
from ops.reference.relative_attention import fused_attention


def sample(N: int, T: int, H: int, K: int, W: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(N + T + H + K + W)
    x = torch.randn(N, T, H * (3 * K + 2 * W), generator=g, dtype=torch.float64)
    rates = torch.rand(W, generator=g, dtype=torch.float64) * 2
    return x.to(device, dtype).requires_grad_(), (torch.arange(T)[:, None] * rates).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("N", "T", "H", "K", "W", "lens"),
    [
        (3, 37, 2, 5, 3, [37, 18, 0]),
        (2, 130, 4, 36, 16, [129, 97]),
        (1, 1, 1, 8, 4, [1]),
        (2, 16, 1, 16, 8, [16, 2]),
        (1, 49, 3, 24, 1, [48]),
    ],
)
def test_equals_torch_attention(
    N: int, T: int, H: int, K: int, W: int, lens: list[int], dtype: torch.dtype, device: torch.device
) -> None:
    x, angles = sample(N, T, H, K, W, dtype, device)
    lens_N = torch.tensor(lens, device=device)
    y = ops.relative_attention(x, angles, lens_N, H)
    expected = fused_attention(x, angles.cos(), angles.sin(), lens_N, H)
    assert y.shape == (N, T, H * K) and y.dtype == dtype
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-11, "rtol": 1e-9}
    torch.testing.assert_close(y, expected, **tolerance)
    weight = torch.randn_like(y)
    (ours,), (theirs,) = torch.autograd.grad(y, x, weight), torch.autograd.grad(expected, x, weight)
    torch.testing.assert_close(ours, theirs, **tolerance)
    for n, length in enumerate(lens):
        assert (y[n, length:] == 0).all() and (ours[n, length:] == 0).all()


def test_is_the_formula_with_distances() -> None:
    """Not the rotated form that every implementation uses, but sinusoids of j - i."""
    K, W, T = 4, 3, 6
    x, angles = sample(1, T, 1, K, W, torch.float64, torch.device("cpu"))
    q, a, b, k, v = x[0].split([K, W, W, K, K], dim=1)
    rates = angles[1]
    scores = torch.empty(T, T, dtype=torch.float64)
    for i in range(T):
        for j in range(T):
            where = a[i] @ torch.cos(rates * (j - i)) + b[i] @ torch.sin(rates * (j - i))
            scores[i, j] = q[i] @ k[j] / K**0.5 + where / W**0.5
    torch.testing.assert_close(ops.relative_attention(x, angles, torch.tensor([T]), 1)[0], scores.softmax(1) @ v)


def test_moving_all_frames_changes_nothing() -> None:
    x, angles = sample(1, 20, 2, 8, 4, torch.float64, torch.device("cpu"))
    lens = torch.tensor([20])
    torch.testing.assert_close(
        ops.relative_attention(x, angles, lens, 2), ops.relative_attention(x, angles + 7 * angles[1], lens, 2)
    )


def test_what_lies_behind_the_end_does_not_matter(device: torch.device) -> None:
    x, angles = sample(2, 40, 2, 8, 4, torch.float32, device)
    lens = torch.tensor([23, 40], device=device)
    y = ops.relative_attention(x, angles, lens, 2)
    other = x.detach().clone()
    other[0, 23:] = 1e4
    torch.testing.assert_close(ops.relative_attention(other, angles, lens, 2), y)
    alone = ops.relative_attention(x[:1, :23], angles[:23], lens[:1], 2)
    torch.testing.assert_close(alone, y[:1, :23], atol=1e-6, rtol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    x, angles = sample(1, 20, 1, 8, 4, torch.float32, torch.device("cpu"))
    y = ops.relative_attention(x * 1e3, angles, torch.tensor([20]), 1)
    assert y.isfinite().all()


def test_gradcheck(device: torch.device) -> None:
    x, angles = sample(2, 5, 2, 3, 2, torch.float64, device)
    lens = torch.tensor([5, 3], device=device)
    assert torch.autograd.gradcheck(lambda x: ops.relative_attention(x, angles, lens, 2), x)


def test_opcheck_and_the_weights() -> None:
    build.load()
    x, angles = sample(2, 18, 2, 3, 2, torch.float32, torch.device("cpu"))
    inputs = (x, angles.cos(), angles.sin(), torch.tensor([18, 18]), 2)
    torch.library.opcheck(torch.ops.lattica.relative_attention.default, inputs)
    out, weights = torch.ops.lattica.relative_attention(*inputs)
    for ours, theirs in zip((out, weights), reference.relative_attention(*inputs)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    detached = tuple(i.detach() if isinstance(i, Tensor) else i for i in inputs)
    torch.library.opcheck(
        torch.ops.lattica.relative_attention_backward.default,
        (torch.ones(2, 18, 6), detached[0], weights.detach(), *detached[1:]),
    )


def test_bad_input_is_named() -> None:
    x, angles = sample(2, 5, 2, 3, 2, torch.float32, torch.device("cpu"))
    lens = torch.tensor([5, 3])
    with pytest.raises(ValueError, match=r"x must be \(N, T, H \* \(3 K \+ 2 W\)\) with H = 2 and W = 2"):
        ops.relative_attention(x[..., :-2], angles, lens, 2)
    with pytest.raises(ValueError, match=r"angles must be \(T, W\) with T = 5"):
        ops.relative_attention(x, angles[:4], lens, 2)
    with pytest.raises(ValueError, match="lens must be int64"):
        ops.relative_attention(x, angles, lens.int(), 2)
    with pytest.raises(RuntimeError, match=r"lens\[1\] = 6 must lie in \[0, T = 5\]"):
        ops.relative_attention(x, angles, torch.tensor([5, 6]), 2)
