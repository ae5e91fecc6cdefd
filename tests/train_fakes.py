"""Small stand-ins for data, tokenizer and model, so that tests of the training loop take seconds.

Run as a program it trains with them in a process of its own, for tests that kill it or start several.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.config import (
    AdamWConfig,
    Config,
    CorpusConfig,
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    LossConfig,
    ModelConfig,
    ScaledAdamConfig,
    Schedule,
    TrainerConfig,
)
from toolkit.data.batch import Batch
from toolkit.train import validation
from toolkit.train.checkpoint import build_model
from toolkit.train.distributed import World, world
from toolkit.train.loop import Trainer
from toolkit.train.state import TrainState

WORDS = ["<blk>", "<unk>", "one", "two", "three", "four", "five"]


class WordTokenizer:
    """One token a word."""

    kind, blank_id, unk_id = "char", 0, 1

    def __init__(self, tokens: list[str] = WORDS) -> None:
        self.tokens = list(tokens)

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.tokens[i] for i in ids)

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> WordTokenizer:
        return cls(state["tokens"])


class FakeData:
    """Utterances of random words; each word, 16 frames long, is a random spectrum of its own with noise on it.

    The order and the noise of epoch e depend on (seed, e) alone. Process r of n takes its share of each global batch of
    n * batch_size utterances, so that n processes see what one with batch_size n times as large sees.
    """

    def __init__(self, utterances: int = 24, batch_size: int = 4, seed: int = 1, num_features: int = 16) -> None:
        self.batch_size, self.seed = batch_size, seed
        g = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 5, (utterances,), generator=g).tolist()
        self.words = [2 + torch.randperm(len(WORDS) - 2, generator=g)[:n] for n in lengths]
        self.spectra = torch.randn(len(WORDS), num_features, generator=g)
        self.train_seconds_per_epoch = sum(self.seconds(i) for i in range(utterances))

    def seconds(self, i: int) -> float:
        return 0.16 * len(self.words[i])

    def batch(self, indexes: list[int], g: torch.Generator) -> Batch:
        features = [self.spectra[self.words[i]].repeat_interleave(16, 0) for i in indexes]
        features = [x + 0.3 * torch.randn(x.shape, generator=g) for x in features]
        return Batch(
            features_NTF=nn.utils.rnn.pad_sequence(features, batch_first=True),
            feature_lens_N=torch.tensor([len(x) for x in features]),
            tokens_NU=nn.utils.rnn.pad_sequence([self.words[i] for i in indexes], batch_first=True),
            token_lens_N=torch.tensor([len(self.words[i]) for i in indexes]),
            texts=[" ".join(WORDS[w] for w in self.words[i]) for i in indexes],
            ids=[f"cut-{i}" for i in indexes],
            seconds=sum(self.seconds(i) for i in indexes),
        )

    def train_batches(self, epoch: int, skip: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        g = torch.Generator().manual_seed(1000 * self.seed + epoch)
        order = torch.randperm(len(self.words), generator=g).tolist()
        for k in range(0, len(order), self.batch_size * world_size):
            whole = self.batch(order[k : k + self.batch_size * world_size], g)
            mine = take_slice(whole, rank * self.batch_size, (rank + 1) * self.batch_size)
            if k // (self.batch_size * world_size) >= skip and len(mine):
                yield dataclasses.replace(mine, seconds=sum(0.16 * int(n) for n in mine.token_lens_N))

    def valid_batches(self) -> Iterator[Batch]:
        yield self.batch(list(range(8)), torch.Generator().manual_seed(0))


def take_slice(batch: Batch, start: int, end: int) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return Batch(**{k: v if k == "seconds" else v[start:end] for k, v in values.items()})


class FakeModel(nn.Module):
    """Four frames to one, a hidden layer with dropout, CTC."""

    def __init__(self, num_features: int = 16, dropout: float = 0.1, vocab_size: int = len(WORDS)) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * num_features, 32)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(32, vocab_size)
        self.unused = nn.Linear(3, 3)

    def log_probs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        N, T, _ = batch.features_NTF.shape
        x_NTD = batch.features_NTF[:, : T // 4 * 4].reshape(N, T // 4, -1)
        return self.output(self.dropout(self.hidden(x_NTD).relu())).float().log_softmax(-1), batch.feature_lens_N // 4

    def forward(self, batch: Batch) -> SimpleNamespace:
        log_probs_NTV, lens_N = self.log_probs(batch)
        ctc_N = F.ctc_loss(log_probs_NTV.transpose(0, 1), batch.tokens_NU, lens_N, batch.token_lens_N, reduction="none")
        return SimpleNamespace(terms={"ctc": ctc_N}, frames_N=lens_N)


def count_errors(model: FakeModel, tokenizer: WordTokenizer, batch: Batch, transducer: bool) -> tuple[int, int]:
    """Stands in for greedy search, which wants a whole transducer."""
    log_probs_NTV, lens_N = model.log_probs(batch)
    errors = 0
    for i, text in enumerate(batch.texts):
        best = log_probs_NTV[i, : lens_N[i]].argmax(-1).unique_consecutive()
        errors += tokenizer.decode(best[best != 0].tolist()) != text
    return errors, len(batch)


def fake_config(exp_root: Path, optim: Any = None, **trainer: Any) -> Config:
    off = Schedule(initial=0.0, final=0.0)
    base = Config(
        name="fake", exp_root=str(exp_root), corpus=CorpusConfig(name="fake"), optim=optim or AdamWConfig(lr=1e-2)
    )
    defaults = {"num_epochs": 3, "device": "cpu", "log_every": 1, "average_period": 2}
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, ctc_head=True),
        loss=LossConfig(simple=off, pruned=off, ctc=Schedule(initial=1.0, final=1.0)),
        trainer=TrainerConfig(**{**defaults, **trainer}),
    )


def tiny_config(exp_root: Path, optim: Any = None, dropout: float = 0.1, **trainer: Any) -> Config:
    """A real transducer with CTC head, of 40,000 parameters, for the fake data."""
    base = fake_config(exp_root, optim or ScaledAdamConfig(), **trainer)
    encoder = EncoderConfig(
        num_layers=2,
        dim=32,
        num_heads=2,
        feedforward_dim=64,
        conv_kernel=7,
        subsampling_channels=[4, 8, 16],
        dropout=dropout,
        layer_dropout=dropout,
    )
    return dataclasses.replace(
        base,
        features=FeatureConfig(num_mel_bins=16),
        model=ModelConfig(encoder=encoder, decoder=DecoderConfig(dim=32), joiner_dim=32, ctc_head=True),
        loss=LossConfig(prune_range=3, ctc=Schedule(initial=0.5, final=0.5)),
    )


def losses(exp_dir: Path, tag: str = "train/loss_ctc") -> dict[int, float]:
    """{step: loss} of metrics.jsonl; of a step that was repeated the last."""
    lines = [json.loads(line) for line in (exp_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[tag] for line in lines if tag in line}


def train(processes: World, **arguments: Any) -> TrainState:
    """Train with fakes. `arguments`: keys of the trainer, and those that are taken out of them below."""
    take = arguments.pop
    data = FakeData(take("utterances", 24), take("batch_size", 4))
    dropout, slow, kill_at, pause_at = (
        take("dropout", 0.1),
        take("slow", 0.0),
        take("kill_at", None),
        take("pause_at", None),
    )
    real, exp_root = take("real", False), Path(take("exp_root"))
    config = tiny_config(exp_root, dropout=dropout, **arguments) if real else fake_config(exp_root, **arguments)
    torch.manual_seed(config.seed)
    model = build_model(config, WordTokenizer()) if real else FakeModel(dropout=dropout)
    trainer = Trainer(config, model, WordTokenizer(), data, processes)
    step = trainer.train_step

    def disturbed_step(group: list[Batch]) -> bool:
        time.sleep(slow)
        if trainer.state.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.state.step + 1 == pause_at and processes.rank == processes.size - 1:
            trainer.stop.deadline = 0.0  # the time of this process is up; the others must agree
        return step(group)

    trainer.train_step = disturbed_step  # type: ignore[method-assign]
    with contextlib.nullcontext() if real else mock.patch.object(validation, "count_errors", count_errors):
        return trainer.run()


def main(runs: list[dict[str, Any]]) -> None:
    """Train once for each of `runs`, one after the other."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    with world("cpu") as processes:
        for arguments in runs:
            train(processes, **arguments)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
