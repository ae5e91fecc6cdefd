"""One process or several under torchrun: who am I, sums over all processes, and the gradient as one buffer.

Data parallelism without DistributedDataParallel: gradients of loss *sums* are added up over processes once an optimizer
step, then divided by the frames of the global batch. So n processes equal one process with the n-fold batch,
accumulation costs no extra communication, and a process that has run out of data adds zeros instead of leaving the
others waiting.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among all that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, x: Tensor) -> Tensor:
        """Sum over all processes, in place; every process gets the same bits."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums of a few numbers over all processes, in float64; all must pass the same names in the same order."""
        x = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        return dict(zip(values, self.sum_(x).tolist()))

    def gather(self, value: int) -> list[int]:
        """A number of each process."""
        mine = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        mine[self.rank] = value
        return self.sum_(mine).tolist()

    def broadcast(self, model: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.size > 1:
            for x in model.state_dict().values():
                dist.broadcast(x, src=0)


def choose_device(name: str) -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU."""
    if name != "auto" and not name.startswith("cuda"):
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name in ("auto", "cuda") else name)
    if name == "auto":
        return torch.device("cpu")
    raise ValueError(
        f"trainer.device={name!r}: torch {torch.__version__} sees no GPU here; use trainer.device=cpu or auto"
    )


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """The world as torchrun describes it in the environment; one process without it."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")  # TF32 in matrix products, as torch does in convolutions anyway
    if size == 1:
        yield World(device=chosen)
        return
    if rank > 0:
        logging.getLogger("toolkit").setLevel(logging.WARNING)  # one process tells the story
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        dist.destroy_process_group()


class Gradient:
    """The gradient of all trainable parameters as one flat buffer, of which each `parameter.grad` is a view.

    So summing over processes is one call, and so are scaling and the norm. A parameter that took no part in a step has
    gradient zero, never None: what the optimizer does is then the same however many processes there are.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters or any(p.dtype != torch.float32 for p in parameters):
            kinds = sorted({str(p.dtype) for p in parameters}) or "none"
            raise ValueError(f"model has trainable parameters of type {kinds}: expected float32")
        self.flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
        for p, view in zip(parameters, self.flat.split([p.numel() for p in parameters])):
            p.grad = view.view_as(p)

    def zero_(self) -> None:
        self.flat.zero_()

    def reduce_(self, world: World, frames: float) -> float:
        """Turn each process's gradient of a sum into that of the mean over all `frames`; returns its norm.

        Without any frames there is nothing to learn from, and the norm is nan."""
        world.sum_(self.flat).div_(frames or float("nan"))
        return self.flat.norm().item()

    def clip_(self, norm: float, max_norm: float) -> None:
        if norm > max_norm:
            self.flat.mul_(max_norm / norm)
