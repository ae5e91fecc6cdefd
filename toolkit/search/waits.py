"""Does a program make the host wait for a GPU? A counter of the operations that would, which works on CPU tensors, too.

A GPU is fed well as long as the host runs ahead of it. Reading a number back (`item`, `if tensor:`, `tolist`), or asking
for a shape that depends on values (`nonzero`, a boolean mask as an index, `unique`), makes the host wait until all that it
has asked for is done. A search that does so in every frame is as slow as the way back and forth.

    with HostWaits() as waits:
        greedy_search(model, encoder_out_NTD, lens_N)
    print(waits.total, waits.counts)

On a CPU waiting costs nothing and saves work, so the searches have a few places that ask `waiting_is_free(device)` first.
Within `as_on_gpu()` they take the other way on CPU tensors, which is how their tests count waits without a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# By the name of the operation; those whose arguments decide are in `_by_arguments`.
WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "allclose", "unique_dim",
    "unique_consecutive", "_unique2", "_unique", "unique_dim_consecutive", "bincount",
}  # fmt: skip
# Of Python: those that read a CPU tensor without any operation, and those that make a tensor of Python's numbers.
COPYING = {"tolist", "numpy", "cpu", "tensor", "as_tensor"}

_pretending = False


def waiting_is_free(device: torch.device) -> bool:
    """Whether a search may read numbers back in every frame where that saves it work: on the CPU."""
    return device.type == "cpu" and not _pretending


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Let searches on the CPU go the ways that they go on a GPU."""
    global _pretending
    before, _pretending = _pretending, True
    try:
        yield
    finally:
        _pretending = before


class HostWaits:
    """Counts, while it is entered, what would make the host wait for a GPU; `counts` by operation, `total` in all.

    Fetching a tensor counts, whatever it is made of: what has been fetched already is counted again if it is looked into.
    Making a tensor of Python's numbers counts as well, for its copy to the GPU waits for what is in the queue.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._modes = (_Functions(self.counts), _Operations(self.counts))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __enter__(self) -> HostWaits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Functions(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        moved = name == "to" and any(isinstance(x, (str, torch.device)) for x in [*args[1:], kwargs.get("device")])
        if moved or name in COPYING:
            self.counts[name] += 1
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in WAITING or _by_arguments(name, args, kwargs):
            self.counts[name] += 1
        return func(*args, **kwargs)


def _by_arguments(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    if name == "where":
        return len(args) == 1
    if name == "repeat_interleave":
        by_tensor = any(isinstance(x, Tensor) for x in args[1:]) or len(args) == 1
        return by_tensor and kwargs.get("output_size") is None
    if name in ("_to_copy", "copy_"):  # tensors that are on a GPU already show it themselves
        tensors = [x for x in args[:2] if isinstance(x, Tensor)]
        devices = {x.device for x in tensors} | ({kwargs["device"]} if kwargs.get("device") else set())
        return len(devices) > 1 and not kwargs.get("non_blocking", False) and True not in args[2:]
    return False
