"""RaggedTensor: nested lists of numbers as one values tensor under a RaggedShape, with k2's operations, all vectorised.

Everything is plain torch, so it runs on any device and gradients flow through `values`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ops.ragged.shape import RaggedShape, _row, flatten_nested, ids_to_splits, parse_nested

_DTYPES = (torch.int32, torch.int64, torch.float32, torch.float64)


def _number(token: str) -> int | float:
    try:
        return int(token)
    except ValueError:
        try:
            return float(token)
        except ValueError:
            raise ValueError(f"expected a number in the text of a ragged tensor, got {token!r}") from None


class RaggedTensor:
    """Nested lists as a tensor.

    RaggedTensor([[1, 2], [], [3]]) · RaggedTensor("[[1 2] [] [3]]") · RaggedTensor(shape, values) ·
    RaggedTensor(torch.zeros(2, 3)). Integers become int32 and other numbers float32 unless `dtype` says otherwise.
    Values may have more dimensions than one; dimension 0 is the last axis.
    """

    def __init__(
        self,
        data: Any,
        value: Tensor | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        if isinstance(value, torch.dtype):  # RaggedTensor(list, torch.float32)
            value, dtype = None, value
        if isinstance(data, RaggedShape):
            if not isinstance(value, Tensor):
                raise ValueError("RaggedTensor(shape, value): value must be a tensor")
            if value.shape[:1] != (data.numel(),) or value.device != data.device:
                raise ValueError(
                    f"RaggedTensor(shape, value): the shape has {data.numel()} elements on {data.device}, "
                    f"value has shape {tuple(value.shape)} on {value.device}"
                )
            shape, values = data, value
        elif isinstance(data, Tensor):
            if data.ndim < 2:
                raise ValueError(f"a ragged tensor has at least two axes, got a tensor of shape {tuple(data.shape)}")
            if data.numel() > 2**31 - 1:
                raise ValueError(f"a ragged tensor holds at most 2^31 - 1 elements, not {data.numel()}")
            splits, rows = [], 1
            for dim, following in zip(data.shape, data.shape[1:]):
                rows *= dim
                splits.append(torch.arange(rows + 1, dtype=torch.int32, device=data.device) * following)
            shape, values = RaggedShape(splits=splits), data.reshape(-1)
        else:
            if isinstance(data, str):
                (layers, flat), _ = parse_nested(data, _number)
            elif isinstance(data, (list, tuple)):
                (layers, flat), _ = flatten_nested(data)
            else:
                raise ValueError(f"RaggedTensor: expected lists, text, a tensor or a RaggedShape, got {type(data)}")
            shape = RaggedShape(splits=[torch.tensor(x, dtype=torch.int32) for x in layers])
            whole = all(isinstance(x, int) for x in flat)
            try:
                values = torch.tensor(flat, dtype=dtype or (torch.int32 if whole else torch.float32))
            except (TypeError, RuntimeError) as e:
                raise ValueError(f"RaggedTensor: {e}") from None
        if dtype is not None:
            values = values.to(dtype)
        if device is not None:
            shape, values = shape.to(device), values.to(device)
        if values.dtype not in _DTYPES:
            raise ValueError(f"RaggedTensor: dtype must be one of {_DTYPES}, got {values.dtype}")
        self._shape, self._values = shape, values

    # ---- what it is ----
    @property
    def shape(self) -> RaggedShape:
        return self._shape

    @property
    def values(self) -> Tensor:
        return self._values

    @property
    def data(self) -> Tensor:
        return self._values

    @property
    def dtype(self) -> torch.dtype:
        return self._values.dtype

    @property
    def device(self) -> torch.device:
        return self._values.device

    @property
    def is_cuda(self) -> bool:
        return self._values.is_cuda

    @property
    def num_axes(self) -> int:
        return self._shape.num_axes

    @property
    def dim0(self) -> int:
        return self._shape.dim0

    @property
    def grad(self) -> Tensor | None:
        return self._values.grad

    @property
    def requires_grad(self) -> bool:
        return self._values.requires_grad

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        self._values.requires_grad_(flag)

    def requires_grad_(self, requires_grad: bool = True) -> RaggedTensor:
        self._values.requires_grad_(requires_grad)
        return self

    def tot_size(self, axis: int) -> int:
        return self._shape.tot_size(axis)

    def numel(self) -> int:
        return self._values.numel()

    def __len__(self) -> int:
        return self.dim0

    def to(self, other: torch.device | str | torch.dtype | Tensor | RaggedTensor) -> RaggedTensor:
        """To a device, a dtype, or the device of another tensor."""
        if isinstance(other, (Tensor, RaggedTensor)):
            other = other.device
        if isinstance(other, torch.dtype):
            return RaggedTensor(self._shape, self._values.to(other))
        return RaggedTensor(self._shape.to(other), self._values.to(other))

    def clone(self) -> RaggedTensor:
        return RaggedTensor(self._shape, self._values.clone())

    def detach(self) -> RaggedTensor:
        return RaggedTensor(self._shape, self._values.detach())

    def tolist(self) -> list:
        values = self._values.tolist()
        for axis in range(self.num_axes - 1, 0, -1):
            splits = self._shape.row_splits(axis).tolist()
            values = [values[a:b] for a, b in itertools.pairwise(splits)]
        return values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RaggedTensor) or self.dtype != other.dtype or self.device != other.device:
            return False
        return self._shape == other._shape and torch.equal(self._values, other._values)

    __hash__ = None  # type: ignore[assignment]

    def __getstate__(self) -> tuple:
        return (*self._shape.__getstate__(), self._values)

    def __setstate__(self, state: tuple) -> None:
        self._shape, self._values = RaggedShape(splits=list(state[0:-1:2])), state[-1]

    def _to_str(self, compact: bool) -> str:
        number = (lambda x: f"{x:.6g}") if self.dtype.is_floating_point else str

        def text(item: Any, depth: int) -> str:
            if not isinstance(item, list):
                return number(item)
            lists = bool(item) and isinstance(item[0], list)
            between = ",\n" + " " * (len("RaggedTensor([") + depth) if lists and not compact else ", "
            return "[" + between.join(text(x, depth + 1) for x in item) + "]"

        device = f"device='{self.device}', " if self.device.type != "cpu" else ""
        return f"RaggedTensor({text(self.tolist(), 0)}, {device}dtype={self.dtype})"

    def __str__(self) -> str:
        return self._to_str(compact=False)

    __repr__ = __str__

    def to_str_simple(self) -> str:
        return self._to_str(compact=True)

    # ---- picking parts ----
    def __getitem__(self, i: int | slice | tuple) -> RaggedTensor | Tensor | Any:
        """a[i] is row i (a tensor if a has two axes), a[i:j] some rows, a[i, j] is a[i][j]; slices may stand
        anywhere.
        """
        if isinstance(i, tuple):
            if not i:
                return self
            first, rest = i[0], i[1:]
            if isinstance(first, int):
                return self[first][rest if len(rest) > 1 else rest[0]] if rest else self[first]
            below: Any = self[first]
            return below._getitem_below(rest, 1) if rest else below
        if isinstance(i, slice):
            rows = range(self.dim0)[i]
            return self.index(torch.arange(rows.start, rows.stop, rows.step, device=self.device))[0]
        row = torch.tensor([_row(int(i), self.dim0)], device=self.device)
        if self.num_axes == 2:
            splits = self._shape.row_splits(1)
            begin, end = int(splits[row]), int(splits[row + 1])
            return self._values[begin:end]
        return self.index(row)[0].remove_axis(0)

    def _getitem_below(self, items: tuple, axis: int) -> RaggedTensor:
        """Apply slices within every row of `axis`."""
        item, rest = items[0], items[1:]
        if not isinstance(item, slice) or (item.step or 1) <= 0:
            raise ValueError(f"after a slice, only slices with positive steps can follow, got {item!r}")
        counts = self._shape.counts(axis)[self._shape.row_ids(axis).long()]
        position = torch.arange(self.tot_size(axis), device=self.device)
        position = position - self._shape.row_splits(axis)[self._shape.row_ids(axis).long()]
        bounds = [0 if item.start is None else item.start, 2**31 - 1 if item.stop is None else item.stop]
        low, high = ((counts + b).clamp(min=0) if b < 0 else torch.full_like(counts, b) for b in bounds)
        keep = (position >= low) & (position < high) & ((position - low) % (item.step or 1) == 0)
        ans = self.index(keep.nonzero().squeeze(1), axis=axis)[0]
        return ans._getitem_below(rest, axis + 1) if rest else ans

    def index(self, indexes: Tensor | RaggedTensor, axis: int = 0, need_value_indexes: bool = False) -> Any:
        """Pick along `axis`: see RaggedShape.index (-1 gives an empty row on axis 0).

        With a tensor returns (RaggedTensor, value_indexes or None). With a RaggedTensor of indexes (axis 0 only) returns
        one RaggedTensor with indexes.num_axes + self.num_axes - 1 axes: each index replaced by the row it names.
        """
        if isinstance(indexes, RaggedTensor):
            if axis != 0:
                raise ValueError(f"ragged indexes pick along axis 0 only, got axis={axis}")
            rows = self.index(indexes.values)[0]
            return RaggedTensor(indexes.shape.compose(rows.shape), rows.values)
        shape, value_indexes = self._shape.index(axis, indexes)
        assert value_indexes is not None
        ans = RaggedTensor(shape, self._values.index_select(0, value_indexes))
        return ans, value_indexes if need_value_indexes else None

    def remove_axis(self, axis: int) -> RaggedTensor:
        """Merge an axis other than the last away."""
        if axis == self.num_axes - 1:
            raise ValueError(f"the last axis ({axis}) holds the values: it cannot be removed")
        return RaggedTensor(self._shape.remove_axis(axis), self._values)

    def arange(self, axis: int, begin: int, end: int) -> RaggedTensor:
        """Rows begin..end-1 along `axis`, after the axes above it are dropped."""
        ans = self
        for _ in range(axis):
            ans = ans.remove_axis(0)
        if not 0 <= begin <= end <= ans.dim0:
            raise ValueError(f"arange: need 0 <= begin <= end <= {ans.dim0}, got begin={begin}, end={end}")
        return ans[begin:end]  # type: ignore[return-value]

    def keep(self, mask: Tensor) -> RaggedTensor:
        """Keep the values where the bool `mask` is True; no row disappears."""
        last = self.num_axes - 1
        shape, kept = self._shape.index(last, mask.nonzero().squeeze(1))
        assert kept is not None
        return RaggedTensor(shape, self._values.index_select(0, kept))

    def remove_values_eq(self, target: float) -> RaggedTensor:
        return self.keep(self._values != target)

    def remove_values_leq(self, cutoff: float) -> RaggedTensor:
        return self.keep(self._values > cutoff)

    # ---- reductions over the last axis ----
    def _ids(self) -> Tensor:
        return self._shape.row_ids(self.num_axes - 1).long()

    def _rows(self) -> int:
        return self.tot_size(self.num_axes - 2)

    def sum(self, initial_value: float = 0) -> Tensor:
        """initial_value + the sum of each sublist."""
        ans = self._values.new_zeros(self._rows(), *self._values.shape[1:])
        ans = ans.index_add(0, self._ids(), self._values)
        return ans + initial_value if initial_value else ans

    def max(self, initial_value: float | None = None) -> Tensor:
        """The largest of each sublist and initial_value (default: the least number of the dtype)."""
        return self._extreme("amax", _least(self.dtype) if initial_value is None else initial_value)

    def min(self, initial_value: float | None = None) -> Tensor:
        """The smallest of each sublist and initial_value (default: the largest number of the dtype)."""
        return self._extreme("amin", _largest(self.dtype) if initial_value is None else initial_value)

    def _extreme(self, reduce: str, initial: float) -> Tensor:
        start = self._values.new_full((self._rows(),), initial)
        return start.scatter_reduce(0, self._ids(), self._values, reduce)

    def argmax(self, initial_value: float | None = None) -> Tensor:
        """Where in `values` each sublist has its (first) largest element; -1 if none is >= initial_value. int32."""
        best = self.max(initial_value)
        ids = self._ids()
        is_best = self._values == best[ids]
        where = torch.arange(self.numel(), device=self.device)[is_best]
        none = torch.full((self._rows(),), self.numel(), device=self.device)
        first = none.scatter_reduce(0, ids[is_best], where, "amin")
        return torch.where(first == self.numel(), -1, first).int()

    def logsumexp(self, initial_value: float = float("-inf")) -> Tensor:
        """log(exp(initial_value) + the sum of exp over each sublist); -inf for an empty one."""
        if not self.dtype.is_floating_point:
            raise ValueError(f"logsumexp needs float32 or float64 values, got {self.dtype}")
        top = self.detach().max(initial_value)
        shift = torch.where(torch.isfinite(top), top, 0.0)
        ids = self._ids()
        start = (torch.full_like(top, initial_value) - shift).exp()
        total = start.index_add(0, ids, (self._values - shift[ids]).exp())
        # log's gradient at 0 is infinite: rows that sum to zero take a constant instead.
        return torch.where(total > 0, total.where(total > 0, 1.0).log() + shift, total.detach().log())

    def normalize(self, use_log: bool) -> RaggedTensor:
        """Each sublist minus its logsumexp, or (use_log=False) divided by its sum."""
        norm = (self.logsumexp() if use_log else self.sum())[self._ids()]
        return RaggedTensor(self._shape, self._values - norm if use_log else self._values / norm)

    def add(self, value: Tensor, alpha: float = 1) -> RaggedTensor:
        """Add alpha * value[row] to every element of each row of the last axis."""
        if value.shape != (self._rows(),):
            raise ValueError(f"add: value must have shape ({self._rows()},), got {tuple(value.shape)}")
        return RaggedTensor(self._shape, self._values + (alpha * value)[self._ids()].to(self.dtype))

    # ---- order ----
    def sort_(self, descending: bool = False, need_new2old_indexes: bool = False) -> Tensor | None:
        """Sort each sublist in place (stable); returns where each new element was, int32, if asked for."""
        order = torch.argsort(self._values.detach(), stable=True, descending=descending)
        order = order[torch.argsort(self._ids()[order], stable=True)]
        with torch.no_grad():
            self._values.copy_(self._values[order])
        return order.int() if need_new2old_indexes else None

    def unique(
        self, need_num_repeats: bool = False, need_new2old_indexes: bool = False
    ) -> tuple[RaggedTensor, RaggedTensor | None, Tensor | None]:
        """Drop repeated sublists, within each row above them (2 axes: within the whole).

        The kept ones are ordered by length, then by their numbers. Returns (unique, how often each occurred, which old
        sublist each new one is: the first).
        """
        if self.dtype.is_floating_point:
            raise ValueError(f"unique needs integers, got {self.dtype}")
        last = self.num_axes - 1
        upper = self._shape
        if last == 1:  # one row above all sublists
            upper = RaggedShape(splits=[torch.tensor([0, self.dim0], dtype=torch.int32, device=self.device)])
        group = upper.row_ids(max(last - 1, 1)).long()
        length = self._shape.counts(last).long()
        table = torch.cat([group[:, None], length[:, None], self._pad_last().long()], dim=1)
        rows, inverse, repeats = torch.unique(table, dim=0, return_inverse=True, return_counts=True)
        first = torch.full_like(repeats, table.shape[0])
        first = first.scatter_reduce(0, inverse, torch.arange(table.shape[0], device=self.device), "amin")
        groups = ids_to_splits(rows[:, 0].int(), upper.tot_size(max(last - 1, 1) - 1))
        below, kept = RaggedShape(splits=[self._shape.row_splits(last)]).index(0, first)
        assert kept is not None
        above = [self._shape.row_splits(i) for i in range(1, last - 1)]
        shape = RaggedShape(splits=[*above, *([groups] if last > 1 else []), below.row_splits(1)])
        counts = RaggedTensor(RaggedShape(splits=[*above, groups]), repeats.int()) if need_num_repeats else None
        return RaggedTensor(shape, self._values[kept.long()]), counts, first.int() if need_new2old_indexes else None

    def _pad_last(self, padding_value: float = 0, left: bool = False) -> Tensor:
        last = self.num_axes - 1
        ids, splits = self._ids(), self._shape.row_splits(last)
        width = self._shape.max_size(last)
        column = torch.arange(self.numel(), device=self.device) - splits[ids]
        if left:
            column = column + (width - self._shape.counts(last))[ids]
        ans = self._values.new_full((self._rows(), width), padding_value)
        return ans.index_put((ids, column), self._values)

    def pad(self, mode: str, padding_value: float = 0, left: bool = False) -> Tensor:
        """A (dim0, longest) tensor of a 2-axis ragged tensor.

        Args:
          mode: "constant" fills with padding_value, "replicate" with the row's last value (its first if `left`; the
            padding_value for an empty row).
          left: put the padding on the left.
        """
        if self.num_axes != 2:
            raise ValueError(f"pad needs 2 axes, got {self.num_axes}")
        if mode not in ("constant", "replicate"):
            raise ValueError(f"pad: mode must be 'constant' or 'replicate', got {mode!r}")
        ans = self._pad_last(padding_value, left)
        if mode == "replicate" and self.numel():
            counts = self._shape.counts(1)
            edge = self._shape.row_splits(1)[:-1] if left else self._shape.row_splits(1)[1:] - 1
            fill = torch.where(counts > 0, self._values[edge.long().clamp(0, self.numel() - 1)], padding_value)
            column = torch.arange(ans.shape[1], device=self.device)
            pads = column < (ans.shape[1] - counts)[:, None] if left else column >= counts[:, None]
            ans = torch.where(pads, fill[:, None], ans)
        return ans

    @staticmethod
    def cat(srcs: Sequence[RaggedTensor], axis: int) -> RaggedTensor:
        from ops.ragged.functions import cat

        return cat(srcs, axis)

    @staticmethod
    def stack(srcs: Sequence[RaggedTensor], axis: int) -> RaggedTensor:
        from ops.ragged.functions import stack

        return stack(srcs, axis)


def _least(dtype: torch.dtype) -> float:
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _largest(dtype: torch.dtype) -> float:
    return float("inf") if dtype.is_floating_point else torch.iinfo(dtype).max


torch.serialization.add_safe_globals([RaggedTensor])
