"""Learning rates over a run, as functions of the fraction of it that is done.

Step counts never appear: a schedule made for one corpus keeps its shape on another, and when the run gets longer.
"""

from __future__ import annotations

from typing import Any

import torch


class Schedule:
    """Base: sets lr = peak · factor(progress) in every parameter group; `peak` is the lr the group was made with."""

    def __init__(self, optimizer: torch.optim.Optimizer, warmup: float) -> None:
        if not 0.0 <= warmup <= 1.0:
            raise ValueError(f"optim.warmup={warmup}: expected a fraction of the run in [0, 1]")
        self.optimizer, self.warmup = optimizer, warmup
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self.set_progress(0.0)

    def factor(self, progress: float) -> float:
        """The learning rate at `progress` as a multiple of the peak."""
        raise TypeError("Schedule is a base class: use Eden or Noam")

    def set_progress(self, progress: float) -> None:
        """Set the learning rate for the next step; `progress` in [0, 1] is the fraction of the run done before it."""
        self.progress = min(max(progress, 0.0), 1.0)
        for group, peak in zip(self.optimizer.param_groups, self.peaks):
            group["lr"] = peak * self.factor(self.progress)

    def state_dict(self) -> dict[str, Any]:
        return {"progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The shape of the schedule and its peak are the config's, not the checkpoint's: they may be changed on resuming."""
        self.set_progress(state["progress"])


class Eden(Schedule):
    """(1 + (p / decay)²)^-1/2, times a linear rise from 1/2 to 1 over the first `warmup` of the run (p: progress).

    Flat until about `decay`, then falling like 1 / p. icefall's Eden has this with exponent -1/4 twice, for steps and for
    epochs; as fractions of the run these two are the same thing. The warm-up starts at one half because ScaledAdam's steps are
    a fraction of each parameter's size from the very first one on.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup: float, decay: float) -> None:
        if not decay > 0.0:
            raise ValueError(f"optim.decay={decay}: expected a fraction of the run, more than 0")
        self.decay = decay
        super().__init__(optimizer, warmup)

    def factor(self, progress: float) -> float:
        rise = 1.0 if progress >= self.warmup else 0.5 + 0.5 * progress / self.warmup
        return rise * (1.0 + (progress / self.decay) ** 2) ** -0.5


class Noam(Schedule):
    """A linear rise from 0 to the peak over the first `warmup` of the run, then a fall like 1 / sqrt(progress).

    Source: Vaswani et al. 2017, arXiv 1706.03762.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup: float) -> None:
        if not warmup > 0.0:
            raise ValueError(f"optim.warmup={warmup}: expected more than 0, since the fall starts from it")
        super().__init__(optimizer, warmup)

    def factor(self, progress: float) -> float:
        return progress / self.warmup if progress < self.warmup else (self.warmup / progress) ** 0.5
