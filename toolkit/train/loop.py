"""Training, from the first batch to the last: the file to read first. `train(config)` is all that a recipe calls.

The training loss of a step is the sum over utterances and terms k of schedule_k(progress) * term_k, divided by the encoder
frames of the whole batch: all processes, all accumulated batches. Utterances whose loss is inf or nan are left out and named.

A run can be killed at any moment and started again: it goes on from exp_dir/last.pt and shows the same losses that it would
have shown. For that, nothing may depend on what happened before but `TrainState` and the data's position; random numbers
(dropout and the like) are therefore drawn from generators seeded afresh for each batch with (seed, step, batch, process).
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.config import Config
from toolkit.data.batch import Batch
from toolkit.train import checkpoint as checkpoints
from toolkit.train.averaging import RunningAverage
from toolkit.train.distributed import Gradient, World, world
from toolkit.train.metrics import MetricsWriter, Stopwatch, Warnings, clock, memory_figures
from toolkit.train.state import TrainState
from toolkit.train.stop import StopRequest
from toolkit.train.validation import is_better, validate

log = logging.getLogger(__name__)


def train(config: Config) -> TrainState:
    """Train the model of `config` on its corpus, or go on with it; returns the state at the end.

    Raises SystemExit (130 after Ctrl-C, 143 after SIGTERM) once the checkpoint is written, RuntimeError when memory or
    finite batches run out, CheckpointError when exp_dir holds another model or cannot be written.
    """
    from toolkit.data.datamodule import DataModule
    from toolkit.data.tokenizer import Tokenizer

    with world(config.trainer.device) as processes:
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        tokenizer = Tokenizer.load(config.tokens_dir)
        data = DataModule(config, tokenizer)
        torch.manual_seed(config.seed)
        model = checkpoints.build_model(config, tokenizer)
        return Trainer(config, model, tokenizer, data, processes).run()


class Trainer:
    """One run: `run` → `train_epoch` → `train_step` → `forward_backward` → `loss`, in this order below.

    `data` has `train_batches(epoch, skip, rank, world_size)`, `valid_batches()` and `train_seconds_per_epoch`;
    `model(batch)` returns `terms` (per-utterance negative log-likelihoods by name) and `frames_N`.
    """

    def __init__(self, config: Config, model: nn.Module, tokenizer: Any, data: Any, world: World = World()) -> None:
        from toolkit.optim import build_optimizer

        self.config, self.trainer, self.tokenizer, self.data, self.world = config, config.trainer, tokenizer, data, world
        self.exp_dir = config.exp_dir
        if not data.train_seconds_per_epoch > 0:
            raise ValueError(f"corpus {config.corpus.name}: no audio to train on in parts {config.corpus.train}")
        self.model = model.to(world.device)
        world.broadcast(self.model)
        self.gradient = Gradient(self.model)
        optimizer, scheduler = build_optimizer(self.model, config.optim)
        self.state = TrainState(self.model, RunningAverage(self.model), optimizer, scheduler)
        self.schedules = config.loss.schedules
        self.autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=_use_bf16(config, world.device))
        self.warn, self.watch, self.stop = Warnings(), Stopwatch(), StopRequest(self.trainer.max_minutes, world.size > 1)

    # ---------------------------------------------------------------------------------------------------- the run

    def run(self) -> TrainState:
        state = self.state
        self.resume()
        if state.is_finished(self.trainer):
            log.info("%s is finished; raise trainer.num_epochs or trainer.max_steps to train on", self.exp_dir)
            return state
        self.started, self.progress_at_start = time.monotonic(), self.progress
        self.metrics = MetricsWriter(self.exp_dir, self.world.is_main, state.step)
        try:
            with self.stop:
                while not (state.is_finished(self.trainer) or self.stop.agreed):
                    self.train_epoch()
        finally:
            self.metrics.close()
        self.say_goodbye()
        return state

    def train_epoch(self) -> None:
        """Train on what is left of the current epoch. At its end, or the run's, validate and save."""
        state, trainer, world = self.state, self.trainer, self.world
        batches = iter(self.data.train_batches(state.epoch, state.batch, world.rank, world.size))
        self.watch.restart()
        while not (state.is_finished(trainer) or self.stop.agreed):
            with self.watch.waiting():
                group = list(itertools.islice(batches, trainer.accumulate))
            if not self.train_step(group):
                return self.end_epoch()
            if state.step % trainer.average_period == 0:
                state.average.update(self.model, state.step)
            if state.step == 1 or state.step % trainer.log_every == 0:
                self.log_progress()
            if state.step % trainer.save_every_steps == 0:
                self.save_last()
        if self.stop.signal is None:  # max_steps or max_minutes: what the run shows should include its last steps
            self.validate()
        self.save_last()

    def end_epoch(self) -> None:
        state = self.state
        if state.batch == 0:
            raise RuntimeError(f"epoch {state.epoch + 1} has not a single batch: see what the data dropped, and why, above")
        state.epoch, state.batch, state.epoch_seconds = state.epoch + 1, 0, 0.0
        if state.epoch % self.trainer.valid_every_epochs == 0 or state.is_finished(self.trainer):
            self.validate()
        self.save_weights(checkpoints.epoch_path(self.exp_dir, state.epoch))
        if self.world.is_main:
            checkpoints.keep_last_epochs(self.exp_dir, self.trainer.keep_checkpoints)
        self.save_last()  # last, so that a run killed before this line does all of it again

    # ---------------------------------------------------------------------------------------------------- a step

    def train_step(self, group: list[Batch]) -> bool:
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
        state.step += 1
        state.batch += self.trainer.accumulate
        state.epoch_seconds += sums["seconds"]
        state.seconds += sums["seconds"]
        self.watch.seconds += sums["seconds"]
        for name, value in sums.items():
            state.pending[name] = state.pending.get(name, 0.0) + value
        self.stop.agreed = sums["stop"] > 0
        self.check(norm)
        return True

    def forward_backward(self, group: list[Batch]) -> dict[str, float]:
        """Leave the gradient of this process's loss sum in `self.gradient`; returns its sums, in an order that is fixed."""
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
                if not _out_of_memory(error):
                    raise
                raise RuntimeError(self.report_out_of_memory(batch)) from error
            for name, value in figures.items():
                sums[name] += value
        return sums

    def loss(self, batch: Batch) -> tuple[Tensor | None, dict[str, float]]:
        """(the loss sum over the utterances that have a finite loss, figures of it); None if no utterance has.

        Utterances without one are taken out of the batch and the rest is computed again: to mask their loss would not
        do, because the gradient of a nan activation is nan whatever it is multiplied with.
        """
        size, weights = len(batch), {name: schedule(self.progress) for name, schedule in self.schedules.items()}
        while len(batch):
            with self.autocast:
                output = self.model(batch)
            terms = {name: output.terms[name].float() for name in weights}
            sums = torch.stack([*(x.double().sum() for x in terms.values()), output.frames_N.double().sum()])
            figures = dict(zip([*terms, "frames"], sums.tolist()))
            if all(math.isfinite(x) for x in figures.values()):
                loss = torch.stack([weight * terms[name].sum() for name, weight in weights.items()]).sum()
                return loss, figures | {"left_out": size - len(batch)}
            finite_N = torch.stack([x.detach().isfinite() for x in terms.values()]).all(0).cpu()
            self.warn("step %d: loss not finite, left out: %s", self.state.step, _describe_bad(batch, terms, finite_N))
            batch = _take(batch, finite_N)
        return None, {"left_out": size}

    def check(self, norm: float) -> None:
        """Say when a step was skipped, and give up after too many in a row."""
        state, limit = self.state, self.trainer.max_bad_batches
        if math.isfinite(norm):
            state.bad_steps = 0
            return
        state.bad_steps += 1
        if self.world.is_main:
            self.warn("step %d: no finite gradient (norm %s), step skipped; %d in a row", state.step, norm, state.bad_steps)
        if state.bad_steps >= limit:
            self.save_last()
            raise RuntimeError(
                f"{limit} steps in a row without a finite loss and gradient (trainer.max_bad_batches): training has diverged "
                f"or the data are broken. Lower optim.lr or lengthen optim.warmup, and look at the utterances named above. "
                f"The weights before these steps are in {self.exp_dir / 'last.pt'}"
            )

    # --------------------------------------------------------------------------------- validation and checkpoints

    def validate(self) -> None:
        """Figures of the averaged model, which is the one that decoding uses, and best.pt if they are the best so far."""
        state = self.state
        state.average.update(self.model, state.step)
        started = time.monotonic()
        with state.average.applied_to(self.model), self.autocast:
            figures = validate(self.model, self.tokenizer, self.data.valid_batches(), list(self.schedules), self.world)
        if not figures:
            self.warn("no validation data: there will be no best.pt, decode with checkpoint=last or an epoch")
            return
        best = is_better(figures, state.best)
        log.info(
            "epoch %d, step %d, validation: WER %.2f %%, loss per frame %s%s (%.1f s)",
            state.epoch, state.step, figures["valid/wer"],
            ", ".join(f"{name} {figures[f'valid/loss_{name}']:.4f}" for name in self.schedules),
            ": the best so far" if best else f"; best WER {state.best['valid/wer']:.2f} % at epoch {state.best['epoch']:g}",
            time.monotonic() - started,
        )  # fmt: skip
        self.metrics.write(state.step, state.epoch, figures)
        if best:
            state.best = figures | {"epoch": state.epoch, "step": state.step}
            self.save_weights(self.exp_dir / "best.pt")

    def resume(self) -> None:
        """Go on from last.pt if there is one."""
        state, world, path = self.state, self.world, self.exp_dir / "last.pt"
        if path.is_file():
            saved = checkpoints.load_checkpoint(path)
            changes = checkpoints.check_same_model(saved, self.config, self.tokenizer, path)
            checkpoints.load_weights(self.model, saved["model"], path)
            state.load_state_dict(saved)
            log.info("resuming %s: %d epochs and %d steps are done", self.exp_dir, state.epoch, state.step)
            for key, (old, new) in changes.items():
                log.info("%s was %r and is %r from here on", key, old, new)
            if state.processes != world.size:
                log.warning("%d processes before, %d now: the place in the epoch is approximate", state.processes, world.size)
                state.batch = state.batch * state.processes // world.size
        if len(set(world.gather(state.step))) > 1:
            raise RuntimeError(f"processes found different checkpoints (steps {world.gather(state.step)}) at {path}")
        state.processes = world.size

    def save_last(self) -> None:
        if self.world.is_main:
            checkpoints.save_checkpoint(self.exp_dir / "last.pt", self.belongings | self.state.state_dict())

    def save_weights(self, path: Path) -> None:
        """Save what decoding needs, without the optimizer."""
        if self.world.is_main:
            checkpoints.save_checkpoint(path, self.belongings | self.state.weights_dict())

    @property
    def belongings(self) -> dict[str, Any]:
        """What goes into every checkpoint beside the state, so that decoding needs nothing but the file."""
        return {"config": checkpoints.config_to_dict(self.config), "tokenizer": self.tokenizer.state_dict()}

    # -------------------------------------------------------------------------------------------------- reporting

    @property
    def progress(self) -> float:
        return self.state.progress(self.trainer, self.data.train_seconds_per_epoch)

    def log_progress(self) -> None:
        """One line, and the same figures to TensorBoard and metrics.jsonl: means since the last one."""
        state, watch, sums = self.state, self.watch, self.state.pending
        state.pending = {}
        frames, good = max(sums["frames"], 1.0), max(sums.get("good_steps", 0.0), 1.0)
        losses = {name: sums[name] / frames for name in self.schedules}
        lr, norm = state.optimizer.param_groups[0]["lr"], sums.get("grad_norm", math.nan) / good
        speed, waited = watch.seconds / watch.elapsed, watch.waited / watch.elapsed
        gone, done = time.monotonic() - self.started, self.progress - self.progress_at_start
        figures = {f"train/loss_{name}": loss for name, loss in losses.items()}
        figures |= {"train/lr": lr, "train/grad_norm": norm, "train/left_out": sums["left_out"]}
        figures |= {"perf/audio_seconds_per_second": speed, "perf/data_wait": waited, **memory_figures(self.world.device)}
        log.info(
            "epoch %d/%d, step %d (%.1f %%): %s per frame; lr %.3g; grad norm %.3g; %.1f audio s/s; data wait %.1f %%; ETA %s%s",
            state.epoch + 1, self.trainer.num_epochs, state.step, 100 * self.progress,
            ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()), lr, norm, speed, 100 * waited,
            clock(gone / done * (1 - self.progress)), f"; {sums['left_out']:.0f} left out" if sums["left_out"] else "",
        )  # fmt: skip
        self.metrics.write(state.step, state.epoch, figures)
        watch.restart()

    def say_goodbye(self) -> None:
        """What was reached, where it lies and how to go on; after a signal, leave with the exit code of that signal."""
        state, by_signal = self.state, self.stop.signal
        best = f"; best WER {state.best['valid/wer']:.2f} % (epoch {state.best['epoch']:g})" if state.best else ""
        where = f"{state.epoch} epochs, {state.step} steps, {clock(state.seconds)} of audio{best}; see {self.exp_dir}"
        if state.is_finished(self.trainer):
            log.info("finished: %s", where)
            return
        over = f"trainer.max_minutes={self.trainer.max_minutes} are over"
        log.info(
            "%s: %s. Start again with the same command and it goes on from there",
            f"stopped by {by_signal.name}" if by_signal else over if self.trainer.max_minutes else "another process stopped",
            where,
        )
        if by_signal:
            raise SystemExit(128 + by_signal)

    def report_out_of_memory(self, batch: Batch) -> str:
        """Save, and say what did not fit and what to do about it."""
        self.gradient.zero_()
        state, path = self.state, self.exp_dir / "last.pt"
        if self.world.size == 1:
            self.save_last()
        return (
            f"out of memory on {self.world.device} at epoch {state.epoch + 1}, step {state.step}, on a batch of {batch.describe()}. "
            f"Lower data.max_duration (now {self.config.data.max_duration:g}; trainer.accumulate={2 * self.trainer.accumulate} makes "
            "up for half of it), data.max_seconds, or set data.quadratic_duration; on a GPU also trainer.precision=bf16. "
            + (f"Saved {path}" if self.world.size == 1 else f"The last checkpoint is {path}")
            + ": started again, the run goes on from there"
        )


# ------------------------------------------------------------------------------------------------------------- details


def _use_bf16(config: Config, device: torch.device) -> bool:
    if config.trainer.precision != "bf16":
        return False
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        log.warning("trainer.precision=bf16: %s has no bfloat16, going on in fp32", torch.cuda.get_device_name(device))
        return False
    return True


def _seed(*numbers: int) -> None:
    """Seed all generators from a few numbers, such that neighbouring numbers give unrelated streams."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[:4], "big"))
    torch.manual_seed(int.from_bytes(digest[4:12], "big", signed=True))


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class of its own for it; the CPU allocator only has words."""
    words = ("DefaultCPUAllocator", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)


def _take(batch: Batch, keep_N: Tensor) -> Batch:
    """The utterances of a batch where `keep_N` is true, without padding that only the others needed."""
    keep = keep_N.nonzero().squeeze(1)
    keep_on_device = keep.to(batch.features_NTF.device)
    feature_lens_N, token_lens_N = batch.feature_lens_N[keep_on_device], batch.token_lens_N[keep_on_device]
    T, U = (int(lens.max()) if len(keep) else 0 for lens in (feature_lens_N, token_lens_N))
    return replace(
        batch,
        features_NTF=batch.features_NTF[keep_on_device, :T],
        feature_lens_N=feature_lens_N,
        tokens_NU=batch.tokens_NU[keep_on_device, :U],
        token_lens_N=token_lens_N,
        texts=[batch.texts[i] for i in keep.tolist()],
        ids=[batch.ids[i] for i in keep.tolist()],
    )


def _describe_bad(batch: Batch, terms: dict[str, Tensor], finite_N: Tensor) -> str:
    """The ids of the utterances without a finite loss, with the terms that are to blame."""
    bad = (~finite_N).nonzero().squeeze(1).tolist()
    names = [f"{batch.ids[i]} ({', '.join(f'{k} {x[i].item()}' for k, x in terms.items() if not x[i].isfinite())})" for i in bad]
    return ", ".join(names[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
