"""Training, from the first batch to the last: the file to read first. `train(config)` is all that a recipe calls.

The training loss of a step is the sum over utterances and terms k of schedule_k(progress) * term_k, divided by the
encoder frames of the whole batch: all processes, all accumulated batches. Utterances whose loss is inf or nan are left
out and named.

A run can be killed at any moment and started again: it goes on from exp_dir/last.pt and shows the same losses that it
would have shown. For that, nothing may depend on what happened before but `TrainState` and the data's position. Random
numbers (dropout and the like) are therefore drawn from generators seeded afresh for each batch with (seed, step, batch,
process). On a GPU some of torch's kernels add up in an order of their own, and the losses agree but for rounding.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.allocator import keep_freed_memory
from toolkit.config import Config
from toolkit.models.lf_mmi import LfMmi
from toolkit.train import checkpoint as checkpoints
from toolkit.train.averaging import RunningAverage
from toolkit.train.distributed import Gradient, World, world
from toolkit.train.failures import describe_bad, is_out_of_memory
from toolkit.train.report import Reporter
from toolkit.train.state import TrainState
from toolkit.train.stop import StopRequest
from toolkit.train.task import Task
from toolkit.train.validation import is_better, validate

log = logging.getLogger(__name__)


def train(config: Config) -> TrainState:
    """Train the recognizer of `config` on its corpus, or go on with it; returns the state at the end.

    Raises SystemExit (130 after Ctrl-C, 143 after SIGTERM) once the checkpoint is written, RuntimeError when memory or
    finite batches run out, CheckpointError when exp_dir holds another model or cannot be written.
    """
    from toolkit.data.datamodule import DataModule
    from toolkit.data.tokenizer import Tokenizer

    keep_freed_memory()
    with world(config.trainer.device) as processes:
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        tokenizer = Tokenizer.load(config.tokens_dir)
        data = DataModule(config, tokenizer)
        torch.manual_seed(config.seed)
        model: Any = checkpoints.build_model(config, tokenizer)
        if config.loss.mmi.used:
            model.lf_mmi = LfMmi.train(config.loss.lf_mmi, map(tokenizer.encode, data.train_texts()), model.vocab_size)
        return Trainer(config, model, tokenizer, data, processes).run()


class Trainer:
    """One run: `run` → `train_epoch` → `train_step` → `forward_backward` → `loss`, in this order below.

    `data` has `train_batches(epoch, skip, rank, world_size)`, `valid_batches()` and `train_seconds_per_epoch`;
    `model(batch)` returns `terms` (per-utterance negative log-likelihoods by name) and `frames_N`. `task` says what
    kind of model it is; batches are whatever data and model agree on, with `seconds`, `ids`, `to`, `take`, `describe`.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        tokenizer: Any,
        data: Any,
        processes: World | None = None,
        task: Task | None = None,
    ) -> None:
        from toolkit.optim import build_optimizer

        self.config, self.trainer, self.tokenizer, self.data = config, config.trainer, tokenizer, data
        self.world, self.exp_dir, self.task = processes or World(), config.exp_dir, task or Task()
        if not data.train_seconds_per_epoch > 0:
            raise ValueError(f"corpus {config.corpus.name}: nothing to train on in parts {config.corpus.train}")
        self.model = model.to(self.world.device)
        self.world.broadcast(self.model)
        self.gradient = Gradient(self.model)
        optimizer, scheduler = build_optimizer(self.model, config.optim)
        self.state = TrainState(self.model, RunningAverage(self.model), optimizer, scheduler)
        self.schedules = self.task.schedules(config)
        bf16 = _use_bf16(config, self.world.device)
        self.autocast = torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16)
        self.report = Reporter(config, self.world, self.task)
        self.stop = StopRequest(self.trainer.max_minutes, self.world.size > 1)

    @property
    def progress(self) -> float:
        return self.state.progress(self.trainer, self.data.train_seconds_per_epoch)

    # ---------------------------------------------------------------------------------------------------- the run

    def run(self) -> TrainState:
        state = self.state
        self.resume()
        if state.is_finished(self.trainer):
            log.info("%s is finished; raise trainer.num_epochs or trainer.max_steps to train on", self.exp_dir)
            return state
        self.report.start(state, self.progress)
        try:
            with self.stop:
                while not (state.is_finished(self.trainer) or self.stop.agreed):
                    self.train_epoch()
        finally:
            self.report.close()
        self.report.goodbye(state, self.stop)
        if self.stop.signal and not state.is_finished(self.trainer):
            raise SystemExit(128 + self.stop.signal)
        return state

    def train_epoch(self) -> None:
        """Train on what is left of the current epoch. At its end, or the run's, validate and save."""
        state, trainer, watch = self.state, self.trainer, self.report.watch
        batches = iter(self.data.train_batches(state.epoch, state.batch, self.world.rank, self.world.size))
        watch.restart()
        while not (state.is_finished(trainer) or self.stop.agreed):
            with watch.waiting():
                group = list(itertools.islice(batches, trainer.accumulate))
            if not self.train_step(group):
                return self.end_epoch()
            if state.step % trainer.average_period == 0:
                state.average.update(self.model, state.step)
            if state.step == 1 or state.step % trainer.log_every == 0:
                self.report.progress(state, self.progress)
            if state.step % trainer.save_every_steps == 0:
                self.save_last()
        if self.stop.signal is None:  # max_steps or max_minutes: the results of the run should include its last steps
            self.validate()
        self.save_last()

    def end_epoch(self) -> None:
        state = self.state
        if state.batch == 0:
            raise RuntimeError(f"epoch {state.epoch + 1} has no batch at all; the log says what the data dropped")
        state.epoch, state.batch, state.epoch_seconds = state.epoch + 1, 0, 0.0
        state.average.update(self.model, state.step)
        if state.epoch % self.trainer.valid_every_epochs == 0 or state.is_finished(self.trainer):
            self.validate()
        self.save_weights(checkpoints.epoch_path(self.exp_dir, state.epoch))
        if self.world.is_main:
            checkpoints.keep_last_epochs(self.exp_dir, self.trainer.keep_checkpoints)
        self.save_last()  # last, so that a run killed before this line does all of it again

    # ---------------------------------------------------------------------------------------------------- one step

    def train_step(self, group: list[Any]) -> bool:
        """One optimizer step on the batches of `group`; False, and no step, once all processes are out of batches."""
        state = self.state
        state.scheduler.set_progress(self.progress)
        sums = self.world.sums(self.forward_backward(group))
        if not sums["batches"]:
            return False
        norm = self.gradient.reduce_(self.world, sums["frames"])
        if math.isfinite(norm):
            self.gradient.clip_(norm, getattr(self.config.optim, "clip_norm", math.inf))
            state.optimizer.step()
            sums |= {"good_steps": 1.0, "grad_norm": norm}
        state.count(sums, batches=self.trainer.accumulate)
        self.report.watch.seconds += sums["seconds"]
        self.stop.agreed = sums["stop"] > 0
        self.check(norm)
        return True

    def forward_backward(self, group: list[Any]) -> dict[str, float]:
        """Leave the gradient of this process's loss sum in `self.gradient`; returns the sums that go with it.

        They come in the same order in every process, whether it has batches or not.
        """
        self.gradient.zero_()
        self.model.train()
        sums = dict.fromkeys(["batches", "stop", "seconds", "frames", "left_out", *self.schedules], 0.0)
        sums |= {"batches": len(group), "stop": float(self.stop.wanted), "seconds": sum(b.seconds for b in group)}
        for i, batch in enumerate(group):
            try:
                _seed(self.config.seed, self.state.step, i, self.world.rank)
                loss, figures = self.loss(batch.to(self.world.device))
                if loss is not None:
                    loss.backward()
            except RuntimeError as error:  # of which torch.OutOfMemoryError is one
                if not is_out_of_memory(error):
                    raise
                if self.world.size == 1:
                    self.save_last()
                raise RuntimeError(self.report.out_of_memory(self.state, batch, self.world.size == 1)) from error
            for name, value in figures.items():
                sums[name] += value
        return sums

    def loss(self, batch: Any) -> tuple[Tensor | None, dict[str, float]]:
        """(the weighted loss sum over the utterances that have a finite loss, figures of it); None if no utterance has.

        Utterances without one are taken out of the batch and the rest is computed again: to mask their loss would not
        do, because the gradient of a nan activation is nan whatever it is multiplied with.
        """
        size, progress = len(batch), self.progress
        while len(batch):
            with self.autocast:
                output = self.model(batch)
            terms = {name: output.terms[name].float() for name in self.schedules}
            sums = torch.stack([*(x.detach().double().sum() for x in terms.values()), output.frames_N.double().sum()])
            figures = dict(zip([*terms, "frames"], sums.tolist()))
            if all(map(math.isfinite, figures.values())):
                weighted = [schedule(progress) * terms[name].sum() for name, schedule in self.schedules.items()]
                return torch.stack(weighted).sum(), figures | {"left_out": size - len(batch)}
            finite_N = torch.stack([x.detach().isfinite() for x in terms.values()]).all(0)
            bad = describe_bad(batch, terms, finite_N)
            self.report.warn("step %d: utterances left out for want of a finite loss: %s", self.state.step + 1, bad)
            batch = batch.take(finite_N.nonzero().squeeze(1))
        return None, {"left_out": size}

    def check(self, norm: float) -> None:
        """Say when a step was skipped, and give up after too many in a row."""
        state = self.state
        state.bad_steps = 0 if math.isfinite(norm) else state.bad_steps + 1
        if state.bad_steps and self.world.is_main:
            self.report.warn("step %d skipped: its gradient is %s; %d in a row", state.step, norm, state.bad_steps)
        if state.bad_steps >= self.trainer.max_bad_batches:
            self.save_last()
            raise RuntimeError(self.report.diverged())

    # ---------------------------------------------------------------------------------- validation and checkpoints

    def validate(self) -> None:
        """Figures of the averaged model, which is what decoding uses, and best.pt if they are the best so far."""
        state, started = self.state, time.monotonic()
        state.average.update(self.model, state.step)
        with state.average.applied_to(self.model), self.autocast:
            batches = self.data.valid_batches()
            figures = validate(self.model, self.tokenizer, batches, list(self.schedules), self.world, self.task)
        if not figures:
            log.info("no validation data, so there will be no best.pt: decode with decoding.checkpoint=last")
            return
        is_best = is_better(figures, state.best, self.task.figure)
        self.report.validation(state, figures, is_best, time.monotonic() - started)
        if is_best:
            state.best = figures | {"epoch": state.epoch, "step": state.step}
            self.save_weights(self.exp_dir / "best.pt")

    def resume(self) -> None:
        """Go on from last.pt if there is one; if not, a new run may begin with another's weights."""
        state, path = self.state, self.exp_dir / "last.pt"
        if path.is_file():
            saved = checkpoints.load_checkpoint(path)
            changes = checkpoints.check_same_model(saved, self.config, self.tokenizer, path, self.task.model_keys)
            checkpoints.load_weights(self.model, saved["model"], path)
            state.load_state_dict(saved)
            self.report.resumed(state, path, changes)
            state.batch = state.batch * state.processes // self.world.size
        elif self.trainer.init_from:
            log.info(checkpoints.init_weights(self.model, self.tokenizer, self.trainer.init_from))
            state.average = RunningAverage(self.model)
        steps = self.world.gather(state.step)
        if len(set(steps)) > 1:
            raise RuntimeError(
                f"the processes found checkpoints of steps {steps} at {path}: expected one shared folder"
            )
        state.processes = self.world.size

    def save_last(self) -> None:
        if self.world.is_main:
            checkpoints.save_checkpoint(self.exp_dir / "last.pt", self.identity | self.state.state_dict())

    def save_weights(self, path: Path) -> None:
        """Save what decoding needs, without the optimizer."""
        if self.world.is_main:
            checkpoints.save_checkpoint(path, self.identity | self.state.weights_dict())

    @property
    def identity(self) -> dict[str, Any]:
        """What goes into every checkpoint beside the state, so that decoding needs nothing but the file."""
        config = checkpoints.config_to_dict(self.config)
        return {"task": self.task.name, "config": config, "tokenizer": self.tokenizer.state_dict()}


def _use_bf16(config: Config, device: torch.device) -> bool:
    if config.trainer.precision != "bf16":
        return False
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        log.warning("trainer.precision=bf16: %s has none, going on in fp32", torch.cuda.get_device_name(device))
        return False
    return True


def _seed(*numbers: int) -> None:
    """Seed all generators from a few numbers, such that neighbouring numbers give unrelated streams."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[:4], "big"))  # noqa: NPY002, for libraries that draw from the global one
    torch.manual_seed(int.from_bytes(digest[4:12], "big", signed=True))
