"""All that changes during training, in one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from toolkit.config import TrainerConfig
from toolkit.train.averaging import RunningAverage

SETTINGS = ("betas", "clipping_scale", "weight_decay")  # of optimizers: the config's, which may change on resuming
NUMBERS = ("epoch", "batch", "step", "epoch_seconds", "seconds", "bad_steps", "processes", "best", "pending")


@dataclass
class TrainState:
    """What a checkpoint must hold so that a run goes on as if nothing had happened.

    There are no random-number states in it: each step seeds the generators from (seed, step, process), see `loop.py`.
    """

    model: nn.Module
    average: RunningAverage
    optimizer: torch.optim.Optimizer
    scheduler: Any
    epoch: int = 0  # epochs finished
    batch: int = 0  # batches of the current epoch that are done, in each process
    step: int = 0  # optimizer steps, skipped ones included
    epoch_seconds: float = 0.0  # audio of the current epoch that is done, all processes together
    seconds: float = 0.0  # audio since the start of the run
    bad_steps: int = 0  # consecutive steps without a finite loss and gradient
    processes: int = 1  # of the run that wrote the state
    best: dict[str, float] = field(default_factory=dict)  # the validation figures of best.pt
    pending: dict[str, float] = field(default_factory=dict)  # sums since the last log line

    def progress(self, trainer: TrainerConfig, seconds_per_epoch: float) -> float:
        """The fraction of the run that is done, in [0, 1]; schedules follow it.

        By audio over the epochs, or by steps where `max_steps` ends the run earlier; nothing of it depends on time.
        """
        in_epoch = min(self.epoch_seconds / seconds_per_epoch, 1.0)
        by_steps = self.step / trainer.max_steps if trainer.max_steps else 0.0
        return min(max((self.epoch + in_epoch) / trainer.num_epochs, by_steps), 1.0)

    def is_finished(self, trainer: TrainerConfig) -> bool:
        return self.epoch >= trainer.num_epochs or (trainer.max_steps is not None and self.step >= trainer.max_steps)

    def count(self, sums: Mapping[str, float], batches: int) -> None:
        """Add a step, of at most `batches` batches in each process, and its sums over all processes."""
        self.step += 1
        self.batch += batches
        self.epoch_seconds += sums["seconds"]
        self.seconds += sums["seconds"]
        for name, value in sums.items():
            self.pending[name] = self.pending.get(name, 0.0) + value

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer", "scheduler")}
        return parts | {name: getattr(self, name) for name in NUMBERS}

    def weights_dict(self) -> dict[str, Any]:
        """The part of `state_dict` that decoding and averaging need, the average in float32."""
        average = self.average.state_dict()
        average["weights"] = {name: x.float() for name, x in average["weights"].items()}
        return {"model": self.model.state_dict(), "average": average} | {name: getattr(self, name) for name in NUMBERS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        groups = self.optimizer.param_groups
        settings = [{key: group[key] for key in SETTINGS if key in group} for group in groups]
        for name in ("model", "average", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        for group, setting in zip(self.optimizer.param_groups, settings):
            group |= setting
        for name in NUMBERS:
            setattr(self, name, state[name])
