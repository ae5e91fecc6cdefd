"""What a run says: one line every so often, the same figures to TensorBoard and metrics.jsonl, and a last word."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

from toolkit.config import Config
from toolkit.train.distributed import World
from toolkit.train.metrics import MetricsWriter, Stopwatch, Warnings, clock, memory_figures
from toolkit.train.state import TrainState
from toolkit.train.stop import StopRequest
from toolkit.train.task import Task

log = logging.getLogger(__name__)


class Reporter:
    """Knows the config and the world; the state is shown to it."""

    def __init__(self, config: Config, world: World, task: Task) -> None:
        self.config, self.trainer, self.world, self.task = config, config.trainer, world, task
        self.terms = list(task.schedules(config))
        self.warn, self.watch = Warnings(), Stopwatch()

    def start(self, state: TrainState, progress: float) -> None:
        self.started, self.progress_at_start = time.monotonic(), progress
        self.metrics = MetricsWriter(self.config.exp_dir, self.world.is_main, state.step)

    def close(self) -> None:
        self.metrics.close()

    def progress(self, state: TrainState, progress: float) -> None:
        """Means since the last line: losses per frame, gradient norm, speed."""
        sums, watch = state.pending, self.watch
        state.pending = {}
        losses = {name: sums[name] / max(sums["frames"], 1.0) for name in self.terms}
        figures = {f"train/loss_{name}": loss for name, loss in losses.items()} | {
            "train/lr": state.optimizer.param_groups[0]["lr"],
            "train/grad_norm": sums.get("grad_norm", math.nan) / sums.get("good_steps", 1.0),
            "train/left_out": sums["left_out"],
            self.task.speed: watch.seconds / watch.elapsed,
            "perf/data_wait": watch.waited / watch.elapsed,
            **memory_figures(self.world.device),
        }
        share_done = max(progress - self.progress_at_start, 1e-9)
        parts = [
            f"epoch {min(state.epoch + 1, self.trainer.num_epochs)}/{self.trainer.num_epochs}, step {state.step} "
            f"({100 * progress:.1f} %): {_listed(losses)} per {self.task.per}",
            f"lr {figures['train/lr']:.3g}",
            f"grad norm {figures['train/grad_norm']:.3g}",
            f"{figures[self.task.speed]:.1f} {self.task.unit}/s",
            f"data wait {100 * figures['perf/data_wait']:.1f} %",
            f"ETA {clock((time.monotonic() - self.started) / share_done * (1 - progress))}",
        ]
        log.info("; ".join(parts) + (f"; {sums['left_out']:.0f} utterances left out" if sums["left_out"] else ""))
        self.metrics.write(state.step, state.epoch, figures)
        watch.restart()

    def validation(self, state: TrainState, figures: dict[str, float], is_best: bool, seconds: float) -> None:
        losses = {name: figures[f"valid/loss_{name}"] for name in self.terms}
        compared = "the best so far" if is_best else f"the best is {self.best(state)}"
        log.info(
            "epoch %d, step %d, validation in %.1f s: %s, %s per %s; %s",
            state.epoch,
            state.step,
            seconds,
            self.task.say(figures),
            _listed(losses),
            self.task.per,
            compared,
        )
        self.metrics.write(state.step, state.epoch, figures)

    def resumed(self, state: TrainState, path: Path, changes: dict[str, tuple]) -> None:
        log.info("resuming from %s: %d epochs and %d steps are done", path, state.epoch, state.step)
        for key, (old, new) in changes.items():
            log.info("config: %s was %r and is %r from here on", key, old, new)
        if state.processes != self.world.size:
            log.info(
                "%d processes before, %d now: the place in the epoch is approximate", state.processes, self.world.size
            )

    def goodbye(self, state: TrainState, stop: StopRequest) -> None:
        """What was reached, where it lies, and how to go on."""
        reached = f"{state.epoch} epochs, {state.step} steps, {self.task.amount(state.seconds)}"
        reached += f"; best {self.best(state)}" if state.best else ""
        if state.is_finished(self.trainer):
            log.info("finished: %s; see %s", reached, self.config.exp_dir)
            return
        why = "another process stopped"
        if stop.signal or self.trainer.max_minutes:
            why = f"stopped by {stop.signal.name}" if stop.signal else f"{self.trainer.max_minutes:g} minutes are over"
        again = "start again with the same command and it goes on from there"
        log.info("%s: %s; %s: %s", why, reached, self.config.exp_dir / "last.pt", again)

    def best(self, state: TrainState) -> str:
        return f"{self.task.say(state.best)} at epoch {state.best['epoch']:g}"

    def out_of_memory(self, state: TrainState, batch: Any, saved: bool) -> str:
        path = self.config.exp_dir / "last.pt"
        loss_memory = getattr(state.model, "loss_memory", None)
        share = f" (its pruned loss alone takes {loss_memory(batch) / 1e9:.2f} GB)" if loss_memory else ""
        return (
            f"out of memory on {self.world.device} at epoch {state.epoch + 1}, step {state.step}, on a batch of "
            f"{batch.describe()}{share}. {self.task.less_memory(self.config)}. "
            f"{'Saved' if saved else 'The last checkpoint is'} {path}; started again, the run goes on from there"
        )

    def diverged(self) -> str:
        return (
            f"{self.trainer.max_bad_batches} steps in a row without a finite loss and gradient "
            "(trainer.max_bad_batches): training has diverged, or the data are broken. Lower optim.lr or lengthen "
            "optim.warmup, and look at the utterances named above. The weights before these steps are in "
            f"{self.config.exp_dir / 'last.pt'}"
        )


def _listed(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
