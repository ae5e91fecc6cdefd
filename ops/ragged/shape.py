"""RaggedShape: the nested-list structure behind RaggedTensor and Fsa, as int32 row_splits tensors, one per axis.

The index grammar used in names all over `ops`: an `idx0` counts along axis 0, an `idx01` counts all elements of axis 1
whatever their row, an `idx01x` is the first idx012 below an idx01. `row_splits(i)[r]` is where the row `r` of axis i-1
begins among the elements of axis i; `row_ids(i)` is its inverse, made when asked for.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def splits_to_ids(row_splits: Tensor, total: int | None = None) -> Tensor:
    """The row of each element: [0, 2, 2, 5] -> [0, 0, 2, 2, 2]."""
    if row_splits.is_cuda:
        counts = row_splits[1:] - row_splits[:-1]
        rows = torch.arange(counts.numel(), dtype=torch.int32, device=row_splits.device)
        return torch.repeat_interleave(rows, counts, output_size=total)
    # Count how many rows have begun. On the CPU repeat_interleave wakes all threads, which costs milliseconds if others are busy.
    begun = torch.zeros((int(row_splits[-1]) if total is None else total) + 1, dtype=torch.int32)
    begins = row_splits[1:-1]
    begun.index_add_(0, begins, torch.ones_like(begins))
    return torch.cumsum(begun[:-1], 0, dtype=torch.int32)


def counts_to_splits(counts: Tensor) -> Tensor:
    """[2, 0, 3] -> [0, 2, 2, 5] as int32; raises if the total does not fit."""
    splits = torch.zeros(counts.numel() + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, dtype=torch.int64, out=splits[1:])
    if counts.numel() and splits[-1] > 2**31 - 1:
        raise ValueError(f"a ragged tensor holds at most 2^31 - 1 elements, not {int(splits[-1])}")
    return splits.to(torch.int32)


def check_num_rows(num_rows: int, num_elements: int, rows: str, elements: str) -> None:
    """Raise ValueError for row numbers so high that they must be wrong, before memory is asked for all the rows below."""
    if num_rows > min(2**31 - 2, (1 << 26) + 16 * num_elements):
        raise ValueError(f"{num_rows} {rows} for {num_elements} {elements}: is the number of one of the {rows} wrong?")


def ids_to_splits(row_ids: Tensor, num_rows: int) -> Tensor:
    """The inverse of `splits_to_ids`; row_ids must not decrease."""
    if row_ids.numel() and (bool((row_ids[1:] < row_ids[:-1]).any()) or row_ids[0] < 0 or row_ids[-1] >= num_rows):
        raise ValueError(f"row_ids must not decrease and lie in [0, {num_rows}), got {row_ids[:20].tolist()}...")
    return counts_to_splits(torch.bincount(row_ids.long(), minlength=num_rows))


def expand_ranges(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate arange(starts[i], starts[i] + counts[i]); returns (row_splits, indexes), both int32."""
    splits = counts_to_splits(counts)
    total = int(splits[-1])
    offsets = (starts.int() - splits[:-1])[splits_to_ids(splits, total)] if total else splits[:0]
    return splits, offsets + torch.arange(total, dtype=torch.int32, device=starts.device)


def parse_nested(s: str, scalar: Callable[[str], Any]) -> tuple[tuple[list[list[int]], list], int]:
    """Read "[[1 2] [] [3]]" (commas allowed) into ((row_splits per axis, values), number of axes)."""
    tokens = re.findall(r"[\[\]]|[^\s,\[\]]+", s)
    nested: list = []
    stack = [nested]
    for token in tokens:
        if token == "[":
            stack[-1].append([])
            stack.append(stack[-1][-1])
        elif token == "]":
            if len(stack) < 2:
                raise ValueError(f"unmatched ']' in {s!r}")
            stack.pop()
        elif len(stack) < 2:
            raise ValueError(f"expected '[' but found {token!r} in {s!r}")
        else:
            stack[-1].append(scalar(token))
    if len(stack) != 1 or len(nested) != 1:
        raise ValueError(f"expected one bracketed list, got {s!r}")
    return flatten_nested(nested[0])


def flatten_nested(nested: Sequence) -> tuple[tuple[list[list[int]], list], int]:
    """Split nested lists into row_splits per axis and the flat values; a list without sublists has two axes if
    empty.
    """
    layers: list[list[int]] = []
    level = list(nested)
    while True:
        kinds = {isinstance(x, (list, tuple)) for x in level}
        if len(kinds) == 2:
            raise ValueError("a ragged tensor must have its numbers on one level: found numbers beside lists")
        if kinds == {False} or (not kinds and layers):
            break
        splits = [0]
        for row in level:
            splits.append(splits[-1] + len(row))
        layers.append(splits)
        level = [x for row in level for x in row]
    if not layers:
        raise ValueError(f"a ragged tensor has at least two axes, got the flat list {list(nested)[:20]}")
    return (layers, level), len(layers) + 1


class RaggedShape:
    """The shape of a ragged tensor with any number (>= 2) of axes.

    Made from text, `RaggedShape("[[x x] [] [x]]")`, or with `create_ragged_shape2`, `regular_ragged_shape`, ...
    Immutable; two shapes may share row_splits.
    """

    def __init__(self, s: str | None = None, *, splits: Sequence[Tensor] = ()):
        if s is not None:
            lists, num_axes = parse_nested(s, scalar=lambda token: _check_x(token, s))
            splits = [torch.tensor(_splits, dtype=torch.int32) for _splits in lists[0]]
            assert len(splits) == num_axes - 1
        if not splits:
            raise ValueError("a RaggedShape needs at least one row_splits tensor (two axes)")
        self._splits: list[Tensor] = list(splits)
        self._ids: list[Tensor | None] = [None] * len(self._splits)
        self._totals: list[int | None] = [None] * (len(self._splits) + 1)

    # ---- sizes ----
    @property
    def num_axes(self) -> int:
        return len(self._splits) + 1

    @property
    def dim0(self) -> int:
        return self._splits[0].numel() - 1

    @property
    def device(self) -> torch.device:
        return self._splits[0].device

    @property
    def is_cuda(self) -> bool:
        return self._splits[0].is_cuda

    def tot_size(self, axis: int) -> int:
        """The number of elements on `axis`, over all rows. A device is asked at most once."""
        axis = self._axis(axis)
        if self._totals[axis] is None:
            if axis < len(self._splits):
                self._totals[axis] = self._splits[axis].numel() - 1
            else:
                self._totals[axis] = int(self._splits[-1][-1])
        total = self._totals[axis]
        assert total is not None
        return total

    def tot_sizes(self) -> tuple[int, ...]:
        return tuple(self.tot_size(i) for i in range(self.num_axes))

    def numel(self) -> int:
        return self.tot_size(self.num_axes - 1)

    def row_splits(self, axis: int) -> Tensor:
        return self._splits[self._axis(axis, 1) - 1]

    def row_ids(self, axis: int) -> Tensor:
        axis = self._axis(axis, 1)
        if self._ids[axis - 1] is None:
            self._ids[axis - 1] = splits_to_ids(self._splits[axis - 1], self.tot_size(axis))
        ids = self._ids[axis - 1]
        assert ids is not None
        return ids

    def counts(self, axis: int) -> Tensor:
        """The length of each row on `axis`, int32."""
        splits = self.row_splits(axis)
        return splits[1:] - splits[:-1]

    def max_size(self, axis: int) -> int:
        """The length of the longest row on `axis`, 0 if there are no rows."""
        counts = self.counts(axis)
        return int(counts.max()) if counts.numel() else 0

    def _axis(self, axis: int, least: int = 0) -> int:
        if not least <= axis < self.num_axes:
            raise ValueError(
                f"axis must be in [{least}, {self.num_axes}) for a shape of {self.num_axes} axes, got {axis}"
            )
        return axis

    # ---- structure ----
    def get_layer(self, layer: int) -> RaggedShape:
        """The two-axis shape between axes `layer` and `layer + 1`."""
        if not 0 <= layer < self.num_axes - 1:
            raise ValueError(f"layer must be in [0, {self.num_axes - 1}), got {layer}")
        return RaggedShape(splits=[self._splits[layer]])

    def compose(self, other: RaggedShape) -> RaggedShape:
        """Put `other` below self: the elements of self are the rows of `other`."""
        if self.numel() != other.dim0:
            raise ValueError(f"compose: self has {self.numel()} elements but other has {other.dim0} rows")
        return RaggedShape(splits=self._splits + other._splits)

    def remove_axis(self, axis: int) -> RaggedShape:
        """Merge the rows on `axis` away; needs at least three axes."""
        axis = self._axis(axis)
        if self.num_axes <= 2:
            raise ValueError("remove_axis needs a shape of at least 3 axes, got 2")
        splits = list(self._splits)
        if axis == 0:
            del splits[0]
        elif axis == self.num_axes - 1:
            del splits[-1]
        else:
            splits[axis - 1 : axis + 1] = [splits[axis][splits[axis - 1].long()]]
        return RaggedShape(splits=splits)

    def index(self, axis: int, indexes: Tensor, need_value_indexes: bool = True) -> tuple[RaggedShape, Tensor | None]:
        """Pick elements along `axis` by their idx0..axis numbers, everything below goes with them.

        Args:
          indexes: 1-D integers. On axis 0 any order, repeats, and -1 for an empty row; on another axis the rows they
            come from must not decrease.
        Returns: the new shape, and which old elements (of the last axis) make up the new ones, int32.
        """
        axis = self._axis(axis)
        if indexes.ndim != 1 or indexes.is_floating_point():
            raise ValueError(f"indexes must be 1-D integers, got {indexes.dtype} of shape {tuple(indexes.shape)}")
        idx, size, least = indexes.long(), self.tot_size(axis), -1 if axis == 0 else 0
        if idx.numel() and (idx.min() < least or idx.max() >= size):
            raise ValueError(f"indexes on axis {axis} must lie in [{least}, {size}), got {indexes.tolist()[:20]}")
        splits = self._splits[: max(axis - 1, 0)]
        if axis > 0:
            splits = [*splits, ids_to_splits(self.row_ids(axis)[idx], self.tot_size(axis - 1))]
        for layer in self._splits[axis:]:
            starts = layer[idx.clamp(min=0)]
            counts = torch.where(idx >= 0, layer[idx + 1] - starts, 0)
            new_splits, expanded = expand_ranges(starts, counts)
            idx = expanded.long()
            splits = [*splits, new_splits]
        return RaggedShape(splits=splits), idx.int() if need_value_indexes else None

    def __getitem__(self, i: int) -> RaggedShape:
        """The shape of row `i`; needs at least three axes."""
        if self.num_axes <= 2:
            raise ValueError("a row of a 2-axis shape is no shape")
        return self.index(0, torch.tensor([_row(i, self.dim0)], device=self.device), False)[0].remove_axis(0)

    # ---- the rest ----
    @staticmethod
    def regular_ragged_shape(dim0: int, dim1: int) -> RaggedShape:
        return regular_ragged_shape(dim0, dim1)

    def to(self, device: torch.device | str) -> RaggedShape:
        if torch.device(device) == self.device:
            return self
        ans = RaggedShape(splits=[s.to(device) for s in self._splits])
        ans._totals = list(self._totals)
        return ans

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RaggedShape) or self.num_axes != other.num_axes or self.device != other.device:
            return False
        return all(torch.equal(a, b) for a, b in zip(self._splits, other._splits))

    __hash__ = None  # type: ignore[assignment]

    def __getstate__(self) -> tuple:
        state: list = []
        for i, splits in enumerate(self._splits):
            state += [splits, f"row_ids{i + 1}"]
        return tuple(state)

    def __setstate__(self, state: tuple) -> None:
        RaggedShape.__init__(self, splits=list(state[0::2]))

    def __str__(self) -> str:
        values: list = ["x"] * self.numel()
        for splits in reversed([s.tolist() for s in self._splits]):
            values = ["[ " + "".join(v + " " for v in values[a:b]) + "]" for a, b in itertools.pairwise(splits)]
        return "[ " + "".join(v + " " for v in values) + "]"

    __repr__ = __str__


def _row(i: int, dim0: int) -> int:
    if not -dim0 <= i < dim0:
        raise IndexError(f"row {i} of {dim0}")  # IndexError: it is what ends a Python for loop
    return i % dim0


def _check_x(token: str, s: str) -> int:
    if token != "x":
        raise ValueError(f"the text of a RaggedShape is made of '[', ']' and 'x', got {token!r} in {s!r}")
    return 0


def _check_layer(splits: Tensor | None, ids: Tensor | None, total: int, what: str) -> Tensor:
    for name, tensor in (("row_splits", splits), ("row_ids", ids)):
        if tensor is not None and (tensor.ndim != 1 or tensor.dtype != torch.int32):
            raise ValueError(f"{what}: {name} must be 1-D int32, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    if splits is None:
        if ids is None:
            raise ValueError(f"{what}: give row_splits or row_ids")
        num_rows = int(ids[-1]) + 1 if ids.numel() else 0
        check_num_rows(num_rows, ids.numel(), "rows", "elements")
        return ids_to_splits(ids, num_rows)
    if splits.numel() == 0 or splits[0] != 0 or bool((splits[1:] < splits[:-1]).any()):
        raise ValueError(f"{what}: row_splits must begin with 0 and not decrease, got {splits.tolist()[:20]}")
    if total >= 0 and int(splits[-1]) != total:
        raise ValueError(f"{what}: row_splits end with {int(splits[-1])} but the total size given is {total}")
    if ids is not None and not torch.equal(splits_to_ids(splits), ids):
        raise ValueError(f"{what}: row_ids do not belong to row_splits")
    return splits


def create_ragged_shape2(
    row_splits: Tensor | None = None, row_ids: Tensor | None = None, cached_tot_size: int = -1
) -> RaggedShape:
    """A 2-axis shape from row_splits, row_ids (then the last row is not empty) or both, which are then checked."""
    return RaggedShape(splits=[_check_layer(row_splits, row_ids, cached_tot_size, "create_ragged_shape2")])


def create_ragged_shape3(
    row_splits1: Tensor | None = None,
    row_ids1: Tensor | None = None,
    cached_tot_size1: int = -1,
    row_splits2: Tensor | None = None,
    row_ids2: Tensor | None = None,
    cached_tot_size2: int = -1,
) -> RaggedShape:
    """A 3-axis shape; each layer as in `create_ragged_shape2`."""
    upper = create_ragged_shape2(row_splits1, row_ids1, cached_tot_size1)
    return upper.compose(create_ragged_shape2(row_splits2, row_ids2, cached_tot_size2))


def regular_ragged_shape(dim0: int, dim1: int) -> RaggedShape:
    """dim0 rows of dim1 elements each."""
    if dim0 < 0 or dim1 < 0:
        raise ValueError(f"dim0 and dim1 must not be negative, got {dim0} and {dim1}")
    if dim0 * dim1 > 2**31 - 1:
        raise ValueError(f"a ragged tensor holds at most 2^31 - 1 elements, not {dim0} * {dim1}")
    return RaggedShape(splits=[torch.arange(dim0 + 1, dtype=torch.int32) * dim1])


def random_ragged_shape(
    set_row_ids: bool = False,
    min_num_axes: int = 2,
    max_num_axes: int = 4,
    min_num_elements: int = 0,
    max_num_elements: int = 2000,
) -> RaggedShape:
    """A random shape for tests, from Python's `random` (seed it with `random.seed`)."""
    num_axes = random.randint(min_num_axes, max_num_axes)
    total = random.randint(min_num_elements, max_num_elements)
    splits: list[Tensor] = []
    for _ in range(num_axes - 1):  # from the last axis up: cut the elements at random places, some rows empty
        rows = random.randint(1 if total else 0, total + 2) if total < 3 else random.randint(1, total)
        cuts = sorted(random.randint(0, total) for _ in range(max(rows - 1, 0)))
        splits.insert(0, torch.tensor([0, *cuts, total] if rows else [0], dtype=torch.int32))
        total = rows
    shape = RaggedShape(splits=splits)
    if set_row_ids:
        for axis in range(1, num_axes):
            shape.row_ids(axis)
    return shape


torch.serialization.add_safe_globals([RaggedShape])
