"""Depthwise convolution: equal to torch's grouped convolution, its gradients, opcheck, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ops
from ops import build, reference


def sample(N: int, T: int, C: int, W: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    g = torch.Generator().manual_seed(N + T + C + W)
    shapes = ((N, T, C), (C, W), (C,))
    return [
        torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype).requires_grad_() for shape in shapes
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("N", "T", "C", "W"), [(3, 37, 50, 31), (2, 5, 16, 31), (1, 1, 1, 1), (2, 8, 33, 3), (0, 4, 3, 3), (2, 0, 3, 3)]
)
def test_equals_the_reference(N: int, T: int, C: int, W: int, dtype: torch.dtype, device: torch.device) -> None:
    inputs = sample(N, T, C, W, dtype, device)
    y = ops.depthwise_conv1d(*inputs)
    assert y.shape == (N, T, C) and y.dtype == dtype
    if N * T == 0:  # torch's own refuses these
        return
    expected = reference.depthwise_conv1d(*inputs)
    tolerance = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-10, "rtol": 1e-10}
    torch.testing.assert_close(y, expected, **tolerance)
    weight = torch.randn_like(y)
    for ours, theirs in zip(torch.autograd.grad(y, inputs, weight), torch.autograd.grad(expected, inputs, weight)):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_gradcheck(device: torch.device) -> None:
    assert torch.autograd.gradcheck(ops.depthwise_conv1d, sample(2, 6, 5, 3, torch.float64, device))


def test_is_the_same_with_more_threads() -> None:
    inputs = sample(4, 50, 70, 15, torch.float32, torch.device("cpu"))
    results = []
    threads = torch.get_num_threads()
    for count in (1, 4):
        torch.set_num_threads(count)
        y = ops.depthwise_conv1d(*inputs)
        results.append([y, *torch.autograd.grad(y.sum(), inputs)])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_half_precision_on_the_cpu_is_computed_in_float32() -> None:
    inputs = [x.detach().bfloat16() for x in sample(2, 9, 8, 5, torch.float32, torch.device("cpu"))]
    y = ops.depthwise_conv1d(*inputs)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, ops.depthwise_conv1d(*(x.float() for x in inputs)))


def test_opcheck() -> None:
    build.load()
    inputs = sample(2, 6, 5, 3, torch.float32, torch.device("cpu"))
    torch.library.opcheck(torch.ops.lattica.depthwise_conv1d.default, tuple(inputs))
    detached = tuple(x.detach() for x in inputs)
    torch.library.opcheck(torch.ops.lattica.depthwise_conv1d_backward.default, (torch.ones(2, 6, 5), *detached[:2]))


def test_bad_input_is_named() -> None:
    x, weight, bias = sample(2, 6, 5, 3, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"weight \(C, W\) with W odd.*\(5, 2\)"):
        ops.depthwise_conv1d(x, weight[:, :2], bias)
    with pytest.raises(ValueError, match=r"bias must be \(C,\) with C = 5"):
        ops.depthwise_conv1d(x, weight, bias[:4])
