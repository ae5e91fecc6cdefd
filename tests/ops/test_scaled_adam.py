"""The optimizer's step in one pass: equal to its twin, opcheck, bad input."""

from __future__ import annotations

import pytest
import torch

from ops import build, reference
from ops.scaled_adam import scaled_adam_

NUMBERS = {"grad_factor": 0.7, "beta1": 0.9, "beta2": 0.98, "rate": 0.03, "eps": 1e-8, "scale_step": -0.01}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (40, 1001), (0,)])
def test_equals_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours = [torch.randn(shape, dtype=dtype) for _ in range(3)] + [torch.rand(shape, dtype=dtype)]
    theirs = [x.clone() for x in ours]
    for _ in range(3):
        scaled_adam_(*ours, **NUMBERS)
        reference.scaled_adam(*theirs, **NUMBERS)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_opcheck() -> None:
    build.load()
    tensors = [torch.rand(3, 4) for _ in range(4)]
    torch.library.opcheck(torch.ops.lattica.scaled_adam.default, (*tensors, *NUMBERS.values()))


def test_bad_input_is_refused() -> None:
    x, other = torch.rand(3, 4), torch.rand(3, 5)
    with pytest.raises(RuntimeError, match="of param's size and dtype"):
        scaled_adam_(x, other, x.clone(), x.clone(), **NUMBERS)
    with pytest.raises(RuntimeError, match="of param's size and dtype"):
        scaled_adam_(x, x.double(), x.clone(), x.clone(), **NUMBERS)
