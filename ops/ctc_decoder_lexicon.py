"""The lexicon of the CTC decoder: words and their spellings, read from files, as flat tensors.

Legend: W words, P spellings, L tokens of all spellings.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops import build
from ops.ngram import as_bytes_tensor, first_line


def read_bytes(path: str | Path, what: str) -> bytes:
    """A file, decompressed if it is gzip. Raises FileNotFoundError, or ValueError if it is half a gzip file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {what}")
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None


def join_lines(words: Iterable[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode("utf-8", "surrogateescape")


def split_lines(data: bytes) -> list[str]:
    return data.decode("utf-8", "surrogateescape").split("\n")[:-1]


class WordTable(Sequence[str]):
    """Words by number, from bytes with a line end after each; strings are made when asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        # A memoryview gives an int in a twentieth of the time that a tensor takes.
        self._ends = memoryview((as_bytes_tensor(data) == 10).nonzero()[:, 0].int().numpy())  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: Any) -> Any:
        if not isinstance(i, int) or not 0 <= i < len(self):
            raise IndexError(f"word {i} of {len(self)}")
        begin = self._ends[i - 1] + 1 if i else 0
        return self._data[begin : self._ends[i]].decode("utf-8", "surrogateescape")

    def find(self, word: str) -> int:
        """The number of a word, or -1."""
        line = word.encode("utf-8", "surrogateescape") + b"\n"
        if self._data.startswith(line):
            return 0
        at = self._data.find(b"\n" + line)
        return -1 if at < 0 else self._data.count(b"\n", 0, at + 1)


class Tokens:
    """The tokens of a model by index. A line of a file may hold several that share one index."""

    def __init__(self, source: str | Path | Sequence[str]) -> None:
        if isinstance(source, (str, Path)):
            self.source = str(source)
            lines = read_bytes(source, "list of tokens").decode("utf-8", "surrogateescape").split("\n")
            rows = [row for row in (line.split() for line in lines) if row]
        else:
            self.source = "tokens"
            rows = [[token] for token in source]
        self.entries = [row[0] for row in rows]
        self.index: dict[str, int] = {}
        for i, row in enumerate(rows):
            for token in row:
                if not isinstance(token, str) or self.index.setdefault(token, i) != i:
                    raise ValueError(f"{self.source}: token {token!r} stands at {self.index.get(token)} and at {i}")
        if not self.entries:
            raise ValueError(f"{self.source}: no tokens")

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, token: str, argument: str) -> int:
        if token not in self.index:
            raise ValueError(f"{argument}={token!r} is not among the {len(self)} tokens of {self.source}")
        return self.index[token]


@dataclass
class Lexicon:
    """Spelling p is `tokens_L[splits_P1[p] : splits_P1[p + 1]]`, of the word `word_P[p]`. All tensors are int32.

    words: UTF-8, a line end after each. lines_W: where each word stands first in `source` (0: in no file).
    """

    source: str
    words: bytes
    tokens_L: Tensor
    splits_P1: Tensor
    word_P: Tensor
    lines_W: Tensor

    @classmethod
    def load(cls, path: str | Path, tokens: Tokens) -> Lexicon:
        """A word and the tokens of a spelling in each line; a word may have several lines. Text or gzip.

        Raises ValueError naming file and line for a word without spelling or with a token that is not in `tokens`.
        """
        text = read_bytes(path, "lexicon")
        build.load()
        known = list(tokens.index)  # in the order of their indexes, unless several share one
        try:
            words, tokens_L, splits_P1, word_P, lines_W = torch.ops.lattica.ctc_decoder_read_lexicon(
                as_bytes_tensor(text), as_bytes_tensor(join_lines(known)), str(path)
            )
        except RuntimeError as error:
            raise ValueError(first_line(error)) from None
        if len(known) > len(tokens):
            tokens_L = torch.tensor([tokens.index[token] for token in known], dtype=torch.int32)[tokens_L]
        if len(word_P) == 0:
            raise ValueError(f"{path}: a lexicon without words")
        return cls(str(path), words.numpy().tobytes(), tokens_L, splits_P1, word_P, lines_W)

    @classmethod
    def of(cls, spellings: Mapping[str, Sequence[Sequence[str]]], tokens: Tokens) -> Lexicon:
        """From word → its spellings, each a list of tokens. Words without a spelling are left out."""
        flat: list[int] = []
        splits, word_of = [0], []
        words: list[str] = []
        for word, several in spellings.items():
            for spelling in several:
                if isinstance(spelling, str) or not spelling:
                    raise ValueError(
                        f"lexicon[{word!r}]: expected a list of spellings, each a list of tokens, got {several!r}"
                    )
                missing = [token for token in spelling if token not in tokens.index]
                if missing:
                    raise ValueError(f"lexicon[{word!r}] has the token {missing[0]!r}, which is not in {tokens.source}")
                flat += [tokens.index[token] for token in spelling]
                splits.append(len(flat))
                word_of.append(len(words))
            if len(several):
                words.append(word)
        if not words:
            raise ValueError("a lexicon without words")
        ints = [torch.tensor(x, dtype=torch.int32) for x in (flat, splits, word_of, [0] * len(words))]
        return cls("lexicon", join_lines(words), *ints)

    @property
    def num_words(self) -> int:
        return len(self.lines_W)

    def changed(self, add: Lexicon | None, remove: set[str]) -> Lexicon:
        """Without the words of `remove`, and with those of `add`, whose spellings come on top of what is there."""
        names = split_lines(self.words)
        lines = self.lines_W.tolist()
        keep_P = torch.ones(len(self.word_P), dtype=torch.bool)
        if remove:
            gone = torch.tensor([name in remove for name in names])
            keep_P = ~gone[self.word_P.long()]
        lens_P = (self.splits_P1[1:] - self.splits_P1[:-1]).long()
        tokens = [self.tokens_L[keep_P.repeat_interleave(lens_P)]]
        lens, word_of = [lens_P[keep_P]], [self.word_P[keep_P]]
        if add is not None:
            number = {name: i for i, name in enumerate(names)}
            for name in split_lines(add.words):
                if number.setdefault(name, len(names)) == len(names):
                    names.append(name)
                    lines.append(0)
            place = torch.tensor([number[name] for name in split_lines(add.words)], dtype=torch.int32)
            tokens.append(add.tokens_L)
            lens.append((add.splits_P1[1:] - add.splits_P1[:-1]).long())
            word_of.append(place[add.word_P.long()])
        splits = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(lens).cumsum(0)]).int()
        return Lexicon(
            self.source,
            join_lines(names),
            torch.cat(tokens),
            splits,
            torch.cat(word_of),
            torch.tensor(lines, dtype=torch.int32),
        )

    def in_order_of(self, words: bytes, source: str) -> Lexicon:
        """The same with words numbered as in `words`; ValueError if one is not there."""
        ids = match_words(self.words, words)
        if bool((ids < 0).any()):
            w = int((ids < 0).nonzero()[0])
            raise ValueError(f"{self.place(w)}: the word {split_lines(self.words)[w]!r} is not in lm_dict={source}")
        lines = torch.zeros(words.count(b"\n"), dtype=torch.int32)
        lines[ids.long()] = self.lines_W
        return Lexicon(self.source, words, self.tokens_L, self.splits_P1, ids[self.word_P.long()], lines)

    def place(self, word: int) -> str:
        """Where a word comes from, for messages."""
        line = int(self.lines_W[word])
        return f"{self.source}:{line}" if line else self.source

    def trie(self, score_W: Tensor, smearing: str) -> tuple[Tensor, Tensor]:
        """Nodes and words as csrc/ctc_decoder_lexicon.h lays them out."""
        scores_P = score_W.float()[self.word_P.long()].contiguous()
        return torch.ops.lattica.ctc_decoder_build_trie(self.tokens_L, self.splits_P1, self.word_P, scores_P, smearing)


def match_words(words: bytes, vocabulary: bytes) -> Tensor:
    """The place of each word in the vocabulary, int32; -1: not there."""
    build.load()
    return torch.ops.lattica.ctc_decoder_match_words(as_bytes_tensor(words), as_bytes_tensor(vocabulary))
