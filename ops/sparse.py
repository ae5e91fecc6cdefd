"""k2.sparse: functions on sparse matrices with gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def abs(src: Tensor) -> Tensor:
    """The absolute values of a sparse COO tensor, repeated entries added first; differentiable."""
    if not src.is_sparse:
        raise ValueError("k2.sparse.abs needs a sparse COO tensor")
    src = src.coalesce()
    return torch.sparse_coo_tensor(
        src.indices(), src.values().abs(), src.shape, is_coalesced=True, check_invariants=False
    )
