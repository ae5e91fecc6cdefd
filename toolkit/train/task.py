"""What the training loop has to know of what it trains: a recognizer (`Task` itself) or a language model (lm.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from toolkit.config import Config, Schedule
from toolkit.train import checkpoint as checkpoints
from toolkit.train import validation
from toolkit.train.metrics import clock


class Task:
    """Training a recognizer on batches of speech. Another task is a subclass that says what differs."""

    name = "recognizer"  # stands in checkpoints
    model_keys: tuple[str, ...] = checkpoints.MODEL_KEYS  # config keys with which a checkpoint stops fitting
    per = "frame"  # what losses are means over: what the model counts in `frames_N`
    unit, speed = "audio s", "perf/audio_seconds_per_second"  # of the batches' `seconds`: how it is called, its tag
    counts: tuple[str, ...] = ("errors", "words")  # what `count` counts
    figure = "valid/wer"  # the lowest makes the best checkpoint; ties are decided by valid/loss

    batch_key = "data.max_duration"  # the config key that makes batches smaller

    def schedules(self, config: Config) -> Mapping[str, Schedule]:
        """The weights of the loss terms."""
        return config.loss.schedules

    def count(self, model: nn.Module, tokenizer: Any, batch: Any, terms: Sequence[str]) -> dict[str, float]:
        """Sums over a validation batch from which `measure` makes the figure."""
        return dict(zip(self.counts, validation.count_errors(model, tokenizer, batch, "pruned" in terms)))

    def measure(self, totals: Mapping[str, float], loss: float) -> float:
        """The figure, from the sums over all validation batches and the validation loss."""
        return 100.0 * totals["errors"] / max(totals["words"], 1.0)

    def say(self, figures: Mapping[str, float]) -> str:
        """The figure in words."""
        return f"WER {figures[self.figure]:.2f} %"

    def amount(self, seconds: float) -> str:
        """So much training data in words."""
        return f"{clock(seconds)} of audio"

    def less_memory(self, config: Config) -> str:
        """What to do when memory runs out; without a full stop."""
        data = config.data
        return (
            f"Lower data.max_duration (now {data.max_duration:g}; trainer.accumulate={2 * config.trainer.accumulate} "
            f"makes up for half of it) or data.max_seconds (now {data.max_seconds:g}), or set data.quadratic_duration; "
            "on a GPU trainer.precision=bf16 saves memory too"
        )
