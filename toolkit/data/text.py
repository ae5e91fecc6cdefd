"""Text for language models: the transcripts of the training parts and files of sentences, as batches of tokens."""

from __future__ import annotations

import dataclasses
import gzip
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.config import Config

log = logging.getLogger(__name__)
BATCHES_SORTED = 50  # batches' worth of sentences that are sorted by length together, to save padding


@dataclass(frozen=True)
class TextBatch:
    """N sentences of up to U tokens, padded with 0; what a step of training a language model is given.

    seconds: what the training loop measures progress by. Text has no duration, so it is the number of tokens.
    """

    tokens_NU: Tensor  # int64
    token_lens_N: Tensor  # int64
    ids: list[str]

    @property
    def seconds(self) -> float:
        return float(self.token_lens_N.sum() + len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> TextBatch:
        return dataclasses.replace(self, tokens_NU=self.tokens_NU.to(device), token_lens_N=self.token_lens_N.to(device))

    def take(self, rows: Tensor) -> TextBatch:
        """Some of the sentences."""
        lens_N = self.token_lens_N[rows]
        width = int(lens_N.max()) if len(rows) else 0
        return TextBatch(self.tokens_NU[rows, :width], lens_N, [self.ids[i] for i in rows.tolist()])

    def describe(self) -> str:
        n, u = self.tokens_NU.shape
        return f"{n} sentences, tokens {n}x{u}; first ids: {', '.join(self.ids[:5])}"


class TextData:
    """Sentences as the training loop wants its data (see `Trainer`)."""

    def __init__(
        self, train: Sequence[np.ndarray], valid: Sequence[np.ndarray], batch_tokens: int, seed: int = 0
    ) -> None:
        if not train:
            raise ValueError("no text to train a language model on")
        self.train, self.valid, self.batch_tokens, self.seed = train, valid, batch_tokens, seed
        self.train_seconds_per_epoch = float(sum(len(s) + 1 for s in train))

    @classmethod
    def load(cls, config: Config, tokenizer: Any) -> TextData:
        """The transcripts of corpus.train and the files of lm.text for training; the transcripts of corpus.valid."""
        train = training_texts(config)
        valid = transcripts(config, config.corpus.valid)
        return cls(
            encode_texts(train, tokenizer, "training text"),
            encode_texts(valid, tokenizer, "validation text"),
            config.lm.batch_tokens,
            config.seed,
        )

    def train_batches(self, epoch: int, skip: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[TextBatch]:
        """The batches of `epoch` for `rank`, from number `skip` on; each is its share of one for all ranks together."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.train))
        number = 0
        for some in _split(order, self.train, BATCHES_SORTED * self.batch_tokens * world_size):
            some = sorted(some, key=lambda i: len(self.train[i]))
            batches = list(_split(some, self.train, self.batch_tokens * world_size))
            for b in rng.permutation(len(batches)):
                mine = batches[b][rank::world_size] or batches[b][:1]  # a rank without sentences would end the epoch
                if number >= skip:
                    yield make_batch(mine, self.train, "train")
                number += 1

    def valid_batches(self) -> Iterator[TextBatch]:
        for indexes in _split(range(len(self.valid)), self.valid, self.batch_tokens):
            yield make_batch(indexes, self.valid, "valid")


def _split(indexes: Iterable[int], sentences: Sequence[np.ndarray], tokens: int) -> Iterator[list[int]]:
    """Pieces of about so many tokens, ends of sentences included; at least one sentence each."""
    piece: list[int] = []
    size = 0
    for i in indexes:
        length = len(sentences[i]) + 1
        if piece and size + length > tokens:
            yield piece
            piece, size = [], 0
        piece.append(int(i))
        size += length
    if piece:
        yield piece


def make_batch(indexes: Sequence[int], sentences: Sequence[np.ndarray], name: str) -> TextBatch:
    lens_N = torch.tensor([len(sentences[i]) for i in indexes], dtype=torch.int64)
    tokens_NU = torch.zeros(len(indexes), int(lens_N.max()) if len(indexes) else 0, dtype=torch.int64)
    for row, i in enumerate(indexes):
        tokens_NU[row, : len(sentences[i])] = torch.from_numpy(sentences[i])
    return TextBatch(tokens_NU, lens_N, [f"{name}-{i + 1}" for i in indexes])


def training_texts(config: Config) -> list[str]:
    """What config.lm says to train on."""
    own = transcripts(config, config.corpus.train) if config.lm.transcripts else []
    return [*own, *read_texts(config.lm.text)]


def transcripts(config: Config, parts: Iterable[str]) -> list[str]:
    """The texts of some parts of the corpus, each recording once whatever features.speed_factors is."""
    from lhotse import CutSet

    texts = []
    for part in parts:
        path = config.data_dir / "manifests" / f"cuts_{part}.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: run recipes/librispeech/prepare.sh with the same overrides first")
        texts += [cut.supervisions[0].text for cut in CutSet.from_jsonl_lazy(path) if cut.supervisions]
    return [text for text in texts if text]


def read_texts(paths: Iterable[str]) -> Iterator[str]:
    """The sentences of text files, one a line, .gz or plain."""
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"lm.text: no such file {path}")
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as f:
            yield from (line.strip() for line in f if line.strip())


def encode_texts(texts: Sequence[str], tokenizer: Any, what: str) -> list[np.ndarray]:
    """Token ids of each text; those that the tokens cannot spell are left out, and it is said how many."""
    encoded = [np.asarray(tokenizer.encode(text), dtype=np.int32) for text in texts]
    bad = [i for i, ids in enumerate(encoded) if tokenizer.unk_id in ids]
    if bad:
        log.warning(
            "%s: %d of %d sentences left out, because the tokens cannot spell them; the first: %s",
            what,
            len(bad),
            len(texts),
            texts[bad[0]][:80],
        )
    unusable = set(bad)
    return [ids for i, ids in enumerate(encoded) if i not in unusable]
