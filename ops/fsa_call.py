"""Calling the compiled ops on the tensors of automata, on any device."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ops import build

if TYPE_CHECKING:
    from ops.fsa import Fsa


@functools.cache
def has_kernel(name: str, device_type: str) -> bool:
    """Whether an op is compiled for a type of device ("cpu", "cuda")."""
    key = device_type.upper()
    return build.load() != "reference" and torch._C._dispatch_has_kernel_for_dispatch_key(f"lattica::{name}", key)


def call(name: str, *args: Any) -> Any:
    """Run a compiled op. Where it is not compiled for the device: its PyTorch twin if there is one, else the CPU's op on a
    copy."""
    build.load()
    device = next(x.device for x in args if isinstance(x, Tensor))
    op = getattr(torch.ops.lattica, name)
    if device.type == "cpu" or has_kernel(name, device.type):
        return op(*args)
    from ops import reference

    if hasattr(reference, name):
        return getattr(reference, name)(*args)
    ans = op(*[x.cpu() if isinstance(x, Tensor) else x for x in args])
    return ans.to(device) if isinstance(ans, Tensor) else tuple(x.to(device) for x in ans)


def scores64(fsa: Fsa) -> Tensor:
    return fsa.scores.detach().double().contiguous()
