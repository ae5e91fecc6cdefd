"""Training language models: neural ones by the loop that trains recognizers, n-grams by counting."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.allocator import keep_freed_memory
from toolkit.config import AdamWConfig, Config, Schedule
from toolkit.data.text import TextData, encode_texts, training_texts, transcripts
from toolkit.data.tokenizer import SPECIAL, Tokenizer
from toolkit.models.language_model import LanguageModel, build_lm
from toolkit.train.checkpoint import load_model
from toolkit.train.distributed import world
from toolkit.train.loop import Trainer
from toolkit.train.state import TrainState
from toolkit.train.task import Task

log = logging.getLogger(__name__)


class LanguageModelling(Task):
    """Training a neural language model on batches of text."""

    name = "language model"
    model_keys = ("lm.kind", "lm.dim", "lm.num_layers", "lm.num_heads", "lm.feedforward_dim", "lm.tied", "tokens.")
    per = "token"
    unit, speed = "tokens", "perf/tokens_per_second"
    counts = ()
    figure = "valid/perplexity"
    batch_key = "lm.batch_tokens"

    def schedules(self, config: Config) -> Mapping[str, Schedule]:
        return {"lm": Schedule()}

    def count(self, model: nn.Module, tokenizer: Any, batch: Any, terms: Sequence[str]) -> dict[str, float]:
        return {}

    def measure(self, totals: Mapping[str, float], loss: float) -> float:
        """Of a token, the ends of sentences included."""
        return math.exp(min(loss, 700.0))

    def say(self, figures: Mapping[str, float]) -> str:
        return f"perplexity {figures[self.figure]:.3f}"

    def amount(self, seconds: float) -> str:
        return f"{seconds:.0f} tokens"

    def less_memory(self, config: Config) -> str:
        return f"Lower lm.batch_tokens (now {config.lm.batch_tokens})"


def lm_config(config: Config) -> Config:
    """The config of the run that trains config.lm: a run of its own below that of the recognizer, exp/<name>/lm_<kind>."""
    lm = config.lm
    return dataclasses.replace(
        config,
        name=f"{config.name}/lm_{lm.kind}",
        optim=AdamWConfig(lr=lm.lr),
        trainer=dataclasses.replace(config.trainer, num_epochs=lm.num_epochs, init_from=None),
    )


def train_lm(config: Config) -> TrainState | Path:
    """Train config.lm on the transcripts of corpus.train and the files of lm.text.

    A neural model goes through the loop of recognizers, resuming included: returns the state at its end. An n-gram is
    written to exp/<name>/lm_ngram/<unit>-<order>gram.arpa: returns its path. Both log the perplexity of the validation
    transcripts.
    """
    config = lm_config(config)
    tokenizer = Tokenizer.load(config.tokens_dir)
    if config.lm.kind == "ngram":
        return train_ngram_lm(config, tokenizer)
    keep_freed_memory()
    with world(config.trainer.device) as processes:
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        data = TextData.load(config, tokenizer)
        torch.manual_seed(config.seed)
        model = build_lm(config.lm, tokenizer.vocab_size, tokenizer.blank_id)
        log.info(
            "%s: %.1f M parameters, %d sentences, %.0f tokens an epoch",
            config.lm.kind,
            sum(p.numel() for p in model.parameters()) / 1e6,
            len(data.train),
            data.train_seconds_per_epoch,
        )
        return Trainer(config, model, tokenizer, data, processes, LanguageModelling()).run()


def train_ngram_lm(config: Config, tokenizer: Tokenizer) -> Path:
    from ops import NgramLM
    from toolkit.lang.ngram import train_ngram

    lm = config.lm
    train, valid = training_texts(config), transcripts(config, config.corpus.valid)
    vocabulary = None
    if lm.unit == "token":
        vocabulary = [token for token in tokenizer.tokens if token not in SPECIAL]
        sentences, held_out = (
            [[tokenizer.tokens[i] for i in ids] for ids in encode_texts(texts, tokenizer, what)]
            for texts, what in ((train, "training text"), (valid, "validation text"))
        )
    else:
        sentences, held_out = ([text.split() for text in texts] for texts in (train, valid))
    path = config.exp_dir / f"{lm.unit}-{lm.order}gram.arpa"
    train_ngram(sentences, lm.order, path, lm.prune, vocabulary)
    ngram = NgramLM.load(path)
    total = sum(ngram.sentence_log_prob(words) for words in held_out)
    count = sum(len(words) + 1 for words in held_out)
    log.info("%s: perplexity %.3f of a %s of %s", path, math.exp(-total / max(count, 1)), lm.unit, config.corpus.valid)
    return path


def load_lm(path: str | Path, device: str | torch.device = "cpu") -> tuple[LanguageModel, Any]:
    """A neural language model and its tokenizer. path: a checkpoint, or the folder of a run (its best.pt)."""
    model, tokenizer, _ = load_model(path, task=LanguageModelling.name, build=_build, device=device)
    assert isinstance(model, LanguageModel)
    return model, tokenizer


def _build(config: Config, tokenizer: Any) -> LanguageModel:
    return build_lm(config.lm, tokenizer.vocab_size, tokenizer.blank_id)
