"""Where the figures of a run go: the log line, TensorBoard and metrics.jsonl.

Losses are nats per encoder frame, each term by itself and without its weight in the training loss, so a figure means
the same from the first line to the last. metrics.jsonl is append-only: steps repeated after a crash stand there twice,
the last line counts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

log = logging.getLogger(__name__)


class MetricsWriter:
    """Writes figures by tag, e.g. {"train/loss_pruned": 0.31}; for all but the main process it does nothing."""

    def __init__(self, exp_dir: Path, enabled: bool, first_step: int = 0) -> None:
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        exp_dir.mkdir(parents=True, exist_ok=True)
        # Points after first_step are of a run that was cut off, and come again.
        self.board = SummaryWriter(exp_dir / "tensorboard", purge_step=first_step + 1 if first_step else None)
        self.lines = open(exp_dir / "metrics.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115, see close

    def write(self, step: int, epoch: int, figures: Mapping[str, float]) -> None:
        if not self.enabled:
            return
        for tag, value in figures.items():
            self.board.add_scalar(tag, value, step)
        self.lines.write(json.dumps({"step": step, "epoch": epoch, **figures}) + "\n")

    def close(self) -> None:
        if self.enabled:
            self.board.close()
            self.lines.close()


class Stopwatch:
    """Time since the last log line, how much of it went by waiting for data, and the audio done in it."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start, self.waited, self.seconds = time.monotonic(), 0.0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        since = time.monotonic()
        yield
        self.waited += time.monotonic() - since

    @property
    def elapsed(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)


class Warnings:
    """The first warnings in full, then one line that the rest is only counted: no log by the thousand."""

    def __init__(self, limit: int = 50) -> None:
        self.limit, self.count = limit, 0

    def __call__(self, message: str, *args: object) -> None:
        self.count += 1
        if self.count <= self.limit:
            log.warning(message, *args)
        if self.count == self.limit:
            log.warning("that was warning number %d; further ones are not shown", self.limit)


def memory_figures(device: torch.device) -> dict[str, float]:
    """Memory in GiB: the GPU's peak, or the resident set of the process."""
    if device.type == "cuda":
        return {"mem/gpu_peak_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return {"mem/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


def clock(seconds: float) -> str:
    """h:mm:ss"""
    minutes, s = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"
