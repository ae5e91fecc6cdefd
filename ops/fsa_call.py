"""Calling the compiled ops on the tensors of automata, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ops import build

if TYPE_CHECKING:
    from ops.fsa import Fsa


def call(name: str, *args: Any) -> Any:
    """Run a compiled op. On CUDA its PyTorch twin where there is one, else the CPU's op on a copy."""
    build.load()
    device = next(x.device for x in args if isinstance(x, Tensor))
    op = getattr(torch.ops.lattica, name)
    if device.type == "cpu":
        return op(*args)
    from ops import reference

    if hasattr(reference, name):
        return getattr(reference, name)(*args)
    ans = op(*[x.cpu() if isinstance(x, Tensor) else x for x in args])
    return ans.to(device) if isinstance(ans, Tensor) else tuple(x.to(device) for x in ans)


def scores64(fsa: Fsa) -> Tensor:
    return fsa.scores.detach().double().contiguous()
