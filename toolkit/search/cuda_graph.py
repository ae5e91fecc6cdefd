"""CUDA graphs: the kernels of a search's frame, recorded once and started together ever after.

A frame of a search is some fifty small kernels, each of which takes the host longer to start than the GPU to run. Replayed
as a graph they cost one start. For that a step must be the same kernels on the same memory every time: shapes that do not
change (finished utterances are masked, not dropped, see `whole_batch`), and nothing that makes the host wait (waits.py).

Recordings are kept with the model for the next batches. Anywhere but on CUDA, and where recording fails, a step is run as it is.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary, proxy

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

MOST_GRAPHS = 16  # for a model; each has the memory of its intermediate results
# Batches are filled up with empty utterances to a multiple of it, so that fewer sizes have to be recorded.
ROUNDED_TO = 8

Step = Callable[..., tuple[Tensor, ...]]
_recordings: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Recording]] = WeakKeyDictionary()
_failed = False


class Recording:
    """`step` as a CUDA graph, for inputs of the shapes of the first call; raises RuntimeError if it cannot be recorded.

    Of what it returns, the last `kept` tensors are the caller's; the others are overwritten by the next call.
    """

    def __init__(self, step: Step, kept: int, inputs: tuple[Tensor, ...]) -> None:
        self.kept = kept
        self.inputs = [x.clone() for x in inputs]
        self.outputs = self.record(step)

    def record(self, step: Step) -> tuple[Tensor, ...]:
        """What `step` makes of self.inputs, in memory that every replay writes to again."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):  # what libraries do the first time must not be recorded
            for _ in range(2):
                step(*self.inputs)
        here.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # "thread_local": a data loader may pin memory meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            return step(*self.inputs)

    def replay(self) -> None:
        self.graph.replay()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for mine, given in zip(self.inputs, inputs):
            mine.copy_(given)
        self.replay()
        passed_on = len(self.outputs) - self.kept
        return *self.outputs[:passed_on], *(x.clone() for x in self.outputs[passed_on:])


def can_record(device: torch.device) -> bool:
    return device.type == "cuda" and not _failed


def recorded(make_step: Callable[[Any], Step], kept: int, model: Any, settings: Hashable) -> Step:
    """A step that is recorded, on CUDA, for each new set of shapes.

    make_step: makes the step of a (weak) reference to the model; `settings` must say all else that it depends on.
    kept: how many of its results, the last ones, the caller keeps beyond the next call.
    """
    plain = make_step(model)
    # A recording reads weights where they were: moved ones need another.
    places = tuple(p.data_ptr() for part in (model.decoder, model.joiner) for p in part.parameters())

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        global _failed
        if not can_record(inputs[0].device):
            return plain(*inputs)
        key = (settings, places, tuple((x.shape, x.dtype) for x in inputs))
        mine = _recordings.setdefault(model, OrderedDict())
        if key not in mine:
            try:
                mine[key] = Recording(make_step(proxy(model)), kept, inputs)
            except RuntimeError as error:
                _failed = True
                log.warning("decoding.cuda_graphs: recording failed, going on without: %s", error)
                return plain(*inputs)
            if len(mine) > MOST_GRAPHS:
                mine.popitem(last=False)
        mine.move_to_end(key)
        return mine[key](*inputs)

    return run


def whole_batch(encoder_out_NTD: Tensor, lens_N: Tensor) -> tuple[Tensor, Tensor]:
    """The batch with empty utterances at its end, up to a size that is likely to come again."""
    more = -len(lens_N) % ROUNDED_TO
    return nn.functional.pad(encoder_out_NTD, (0, 0, 0, 0, 0, more)), nn.functional.pad(lens_N, (0, more))
