"""Telling what went wrong with a batch: utterances without a finite loss, exhausted memory."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from toolkit.data.batch import Batch

# The CUDA allocator has an exception of its own, the CPU's only words.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def take(batch: Batch, keep_N: Tensor) -> Batch:
    """The utterances of a batch where `keep_N` is true, without padding that only the others needed."""
    rows = keep_N.nonzero().squeeze(1)
    feature_lens_N, token_lens_N = batch.feature_lens_N[rows], batch.token_lens_N[rows]
    T, U = (int(lens.max()) if len(rows) else 0 for lens in (feature_lens_N, token_lens_N))
    return replace(
        batch,
        features_NTF=batch.features_NTF[rows, :T],
        feature_lens_N=feature_lens_N,
        tokens_NU=batch.tokens_NU[rows, :U],
        token_lens_N=token_lens_N,
        texts=[batch.texts[i] for i in rows.tolist()],
        ids=[batch.ids[i] for i in rows.tolist()],
    )


def describe_bad(batch: Batch, terms: dict[str, Tensor], finite_N: Tensor) -> str:
    """The ids of the utterances without a finite loss, with the terms that are to blame; the first five."""
    bad = (~finite_N).nonzero().squeeze(1).tolist()
    named = []
    for i in bad[:5]:
        blame = ", ".join(f"{name} {x[i].item()}" for name, x in terms.items() if not x[i].isfinite())
        named.append(f"{batch.ids[i]} ({blame})")
    return ", ".join(named) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
