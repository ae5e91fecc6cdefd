"""Telling what went wrong with a batch: utterances without a finite loss, exhausted memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The CUDA allocator has an exception of its own, the CPU's only words.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def describe_bad(batch: Any, terms: dict[str, Tensor], finite_N: Tensor) -> str:
    """The ids of the utterances without a finite loss, with the terms that are to blame; the first five."""
    bad = (~finite_N).nonzero().squeeze(1).tolist()
    named = []
    for i in bad[:5]:
        blame = ", ".join(f"{name} {x[i].item()}" for name, x in terms.items() if not x[i].isfinite())
        named.append(f"{batch.ids[i]} ({blame})")
    return ", ".join(named) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
