"""Swoosh activations: values against their formula in float64, derivatives, and k2's variants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ops
from ops.swoosh import _swoosh

FORMULAS = {
    "swoosh_l": lambda x: math.log1p(math.exp(x - 4.0)) - 0.08 * x - 0.035,
    "swoosh_r": lambda x: math.log1p(math.exp(x - 1.0)) - 0.08 * x - 0.313261687,
}
KINDS = list(FORMULAS)


def points(dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.linspace(-60.0, 60.0, 241), torch.tensor([0.0, 1.0, 4.0, 1e-6, -1e-6])]).to(dtype)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-14), (torch.float32, 3e-7), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("kind", KINDS)
def test_values(kind: str, dtype: torch.dtype, tolerance: float, device: torch.device) -> None:
    x = points(dtype)
    expected = torch.tensor([FORMULAS[kind](v) for v in x.double().tolist()], dtype=torch.float64)
    for function in (getattr(ops, kind), getattr(ops, kind + "_forward")):
        y = function(x.to(device))
        assert y.dtype == dtype
        torch.testing.assert_close(y.cpu().double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_derivative(kind: str) -> None:
    x = points(torch.float64).requires_grad_()
    y = getattr(ops, kind)(x)
    y.sum().backward()
    slope = torch.sigmoid(x.detach() - {"swoosh_l": 4.0, "swoosh_r": 1.0}[kind]) - 0.08
    torch.testing.assert_close(x.grad, slope)
    value, deriv = getattr(ops, kind + "_forward_and_deriv")(x)
    torch.testing.assert_close(value, y.detach())
    torch.testing.assert_close(deriv, slope)
    assert not value.requires_grad and not deriv.requires_grad and not getattr(ops, kind + "_forward")(x).requires_grad
    single = getattr(ops, kind + "_forward_and_deriv")(points(torch.float32))
    torch.testing.assert_close(single[1].double(), slope, rtol=1e-6, atol=3e-7)
    assert torch.autograd.gradcheck(getattr(ops, kind), torch.randn(7, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("kind", KINDS)
def test_infinities_and_nan(kind: str) -> None:
    y, deriv = getattr(ops, kind + "_forward_and_deriv")(torch.tensor([math.inf, -math.inf, math.nan]))
    assert y[0] == math.inf and y[1] == math.inf and y[2].isnan()
    torch.testing.assert_close(deriv[:2], torch.tensor([0.92, -0.08]))
    assert deriv[2].isnan()


def test_any_shape_and_strides() -> None:
    x = torch.randn(4, 5, 6)[:, ::2].transpose(0, 2)
    torch.testing.assert_close(ops.swoosh_l(x), ops.swoosh_l(x.contiguous()))
    assert ops.swoosh_r(torch.empty(0, 3)).shape == (0, 3)
    assert ops.swoosh_r(torch.tensor(0.0)).item() == pytest.approx(0.0, abs=1e-7)
    with pytest.raises(ValueError, match="x must be"):
        ops.swoosh_l(torch.arange(3))


@pytest.mark.parametrize("want_deriv", [False, True])
def test_opcheck(want_deriv: bool, device: torch.device) -> None:
    x = torch.randn(5, 4, device=device, requires_grad=True)
    torch.library.opcheck(_swoosh, (x, "swoosh_l", want_deriv))
    torch.library.opcheck(_swoosh, (x.detach().double(), "swoosh_r", want_deriv))


def test_torch_compile() -> None:
    x = torch.randn(6, 3, requires_grad=True)
    function = torch.compile(lambda x: ops.swoosh_l(x) * ops.swoosh_r(x), backend="aot_eager", fullgraph=True)
    expected = ops.swoosh_l(x) * ops.swoosh_r(x)
    torch.testing.assert_close(function(x), expected)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (function(x), expected)]
    torch.testing.assert_close(*gradients)
