"""DoubleSwish: equal to its formula with and without dropout, gradients, opcheck, bad input."""

from __future__ import annotations

import pytest
import torch

import ops
from ops import build, reference
from ops.double_swish import random_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_its_formula_everywhere(dtype: torch.dtype, device: torch.device) -> None:
    x = torch.cat([torch.linspace(-120, 120, 4999), torch.linspace(-3, 5, 4999), torch.tensor([0.0, 1.0, -3e38, 3e38])])
    x = x.to(device, dtype).requires_grad_()
    y, exact = ops.double_swish(x), x.double() * torch.sigmoid(x.double() - 1)
    # In float32, x - 1 rounded at x = -80 alone is a relative error of 4e-6; beyond, sigmoids below 1e-37 become zero.
    tolerance = {"atol": 1e-37, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-300, "rtol": 1e-12}
    near = x.detach().abs() < 80
    torch.testing.assert_close(y.double()[near], exact[near], **tolerance)
    torch.testing.assert_close(y.double(), exact, atol=1e-30, rtol=1e-5)
    (ours,), (theirs,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(exact.sum(), x)
    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=1e-5)


def test_nan_stays_nan() -> None:
    assert ops.double_swish(torch.tensor([float("nan")])).isnan().all()


def test_gradcheck(device: torch.device) -> None:
    x = torch.linspace(-6, 6, 33, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(ops.double_swish, x)


def test_with_bytes_equals_the_reference() -> None:
    build.load()
    x, bytes_ = torch.randn(5, 2001), random_bytes(5 * 2001)
    for drop in (0, 1, 26, 128):
        for ours, theirs in zip(
            torch.ops.lattica.double_swish(x, bytes_, drop), reference.double_swish(x, bytes_, drop)
        ):
            torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_p_and_keeps_the_mean(p: float, device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.full((400_000,), 2.0, device=device, requires_grad=True)
    y = ops.double_swish(x, p)
    dropped = y == 0
    assert abs(float(dropped.float().mean()) - p) < 0.01
    assert float(y.mean().detach()) == pytest.approx(float(ops.double_swish(x[:1]).detach()), rel=0.02)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad == 0, dropped)


def test_random_bytes_are_uniform() -> None:
    torch.manual_seed(0)
    counts = torch.bincount(random_bytes(1_000_000).long(), minlength=256)
    assert counts.min() > 3500 and counts.max() < 4320  # 3906 expected, standard deviation 62


def test_opcheck() -> None:
    build.load()
    x = torch.randn(3, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.lattica.double_swish.default, (x, None, 0))
    torch.library.opcheck(torch.ops.lattica.double_swish.default, (x, random_bytes(15), 20))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\), got 1.0"):
        ops.double_swish(torch.zeros(3), 1.0)
