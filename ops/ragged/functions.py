"""Functions on ragged tensors: cat and stack, indexing of tensors with -1, sums over lists of indexes, sparse
helpers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ops.ragged.shape import RaggedShape, counts_to_splits
from ops.ragged.tensor import RaggedTensor


def create_ragged_tensor(
    data: Any, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> RaggedTensor:
    """A RaggedTensor from lists or text."""
    return RaggedTensor(data, dtype=dtype, device=device)


def _check_same(srcs: Sequence[RaggedTensor], axis: int, what: str) -> None:
    if not srcs:
        raise ValueError(f"{what}: no ragged tensors given")
    if axis not in (0, 1):
        raise ValueError(f"{what}: axis must be 0 or 1, got {axis}")
    kinds = {(s.num_axes, s.device) for s in srcs}
    if len(kinds) > 1:
        raise ValueError(f"{what}: the ragged tensors differ in number of axes or device: {sorted(map(str, kinds))}")
    if axis == 1 and len({s.dim0 for s in srcs}) > 1:
        raise ValueError(f"{what}: along axis 1 all must have the same dim0, got {[s.dim0 for s in srcs]}")


def _join_splits(splits: Sequence[Tensor]) -> Tensor:
    return counts_to_splits(torch.cat([s[1:] - s[:-1] for s in splits]))


def cat(srcs: Sequence[RaggedTensor], axis: int = 0) -> RaggedTensor:
    """Join along axis 0 (one list of rows after another) or 1 (row i is the rows i of all)."""
    _check_same(srcs, axis, "cat")
    if axis == 1:
        return stack(srcs, 1).remove_axis(1)
    layers = [_join_splits([s.shape.row_splits(i) for s in srcs]) for i in range(1, srcs[0].num_axes)]
    return RaggedTensor(RaggedShape(splits=layers), torch.cat([s.values for s in srcs]))


def stack(srcs: Sequence[RaggedTensor], axis: int = 0) -> RaggedTensor:
    """A new axis: along 0 ans[k] = srcs[k], along 1 ans[i][k] = srcs[k][i]."""
    _check_same(srcs, axis, "stack")
    joined, device = cat(srcs, 0), srcs[0].device
    if axis == 0:
        rows = torch.tensor([s.dim0 for s in srcs], device=device)
        return RaggedTensor(RaggedShape(splits=[counts_to_splits(rows)]).compose(joined.shape), joined.values)
    dim0, num = srcs[0].dim0, len(srcs)
    order = torch.arange(dim0 * num, device=device).reshape(num, dim0).t().reshape(-1)
    top = RaggedShape(splits=[torch.arange(dim0 + 1, dtype=torch.int32, device=device) * num])
    joined = joined.index(order)[0]
    return RaggedTensor(top.compose(joined.shape), joined.values)


def index_select(src: Tensor, index: Tensor, default_value: float = 0) -> Tensor:
    """src[index] along dimension 0, with `default_value` where index is -1. Differentiable in src.

    Args:
      src: any shape, dimension 0 is picked from.
      index: 1-D int32 (or int64), entries in [-1, src.shape[0]).
    """
    if index.ndim != 1:
        raise ValueError(f"index_select: index must be 1-D, got shape {tuple(index.shape)}")
    if index.numel() and (index.min() < -1 or index.max() >= src.shape[0]):
        raise ValueError(
            f"index_select: index must lie in [-1, {src.shape[0]}), got [{int(index.min())}, {int(index.max())}]"
        )
    missing = index < 0
    if not missing.any():
        return src.index_select(0, index)
    if src.shape[0] == 0:
        return src.new_full((index.numel(), *src.shape[1:]), default_value)
    ans = src.index_select(0, index.clamp(min=0))
    return ans.masked_fill(missing.reshape(-1, *[1] * (src.ndim - 1)), default_value)


def index_add(index: Tensor, value: Tensor, in_out: Tensor) -> None:
    """in_out[index[i]] += value[i], in place, leaving out index -1."""
    if index.shape[0] != value.shape[0] or index.ndim != 1:
        raise ValueError(f"index_add: index {tuple(index.shape)} and value {tuple(value.shape)} do not fit")
    if index.numel() and (index.min() < -1 or index.max() >= in_out.shape[0]):
        raise ValueError(f"index_add: index must lie in [-1, {in_out.shape[0]})")
    keep = index >= 0
    in_out.index_add_(0, index[keep], value[keep].to(in_out.dtype))


def index(src: Any, indexes: Any, axis: int = 0, default_value: Any = None, need_value_indexes: bool = False) -> Any:
    """Pick from a tensor, shape or ragged tensor by a tensor or ragged tensor of indexes (k2.ragged.index).

    Tensor by tensor or by ragged: default_value (0) stands for -1. Ragged by ragged: see RaggedTensor.index.
    """
    if isinstance(src, RaggedShape):
        return src.index(axis, indexes, need_value_indexes)
    if isinstance(src, RaggedTensor):
        return src.index(indexes, axis=axis, need_value_indexes=need_value_indexes)
    default = 0 if default_value is None else default_value
    if isinstance(indexes, RaggedTensor):
        return RaggedTensor(indexes.shape, index_select(src, indexes.values, default))
    return index_select(src, indexes, default)


def index_and_sum(src: Tensor, indexes: RaggedTensor) -> Tensor:
    """The sum of src over each list of indexes (-1 counts as 0); differentiable. src 1-D, indexes 2 axes."""
    return RaggedTensor(indexes.shape, index_select(src, indexes.values)).sum()


def simple_ragged_index_select(src: Tensor, indexes: RaggedTensor) -> Tensor:
    """Of each list of indexes, the one src value that is not zero (0 if there is none).

    Raises if a list names two or more non-zero values, unless all its non-zero values are equal.
    """
    if src.ndim != 1 or indexes.num_axes != 2:
        raise ValueError(f"expected 1-D src and 2-axis indexes, got {src.ndim}-D and {indexes.num_axes} axes")
    picked = RaggedTensor(indexes.shape, index_select(src, indexes.values)).keep(index_select(src, indexes.values) != 0)
    low, high, some = picked.min(), picked.max(), picked.shape.counts(1) > 0
    if bool((some & (low != high)).any()):
        raise ValueError("simple_ragged_index_select: a list of indexes names several different non-zero values")
    return torch.where(some, low, 0)


def create_sparse(
    rows: Tensor, cols: Tensor, values: Tensor, size: tuple[int, int] | None = None, min_col_index: int | None = None
) -> Tensor:
    """A sparse COO matrix; entries whose column is below `min_col_index` are left out. Differentiable in values."""
    if not rows.shape == cols.shape == values.shape or rows.ndim != 1:
        raise ValueError(
            f"rows, cols, values must be 1-D of one length, got {rows.shape}, {cols.shape}, {values.shape}"
        )
    if min_col_index is not None:
        keep = cols >= min_col_index
        rows, cols, values = rows[keep], cols[keep], values[keep]
    where = torch.stack([rows.long(), cols.long()])
    return torch.sparse_coo_tensor(where, values, size, check_invariants=True)
