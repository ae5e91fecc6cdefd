"""Text to token ids and back: BPE by sentencepiece, or characters. Writes tokens.txt and words.txt as icefall has them.

Ids 0, 1, 2 are `<blk>` (the blank), `<sos/eos>` and `<unk>`; a word begins with `▁`, in both kinds, so that the tokens
of a word do not depend on its neighbours.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece as spm
import torch

from toolkit.config import TokenConfig

BLANK, SOS_EOS, UNK = SPECIAL = ("<blk>", "<sos/eos>", "<unk>")
WORD_START = "\u2581"


class Tokenizer:
    """`kind` is "bpe" or "char"; `tokens[i]` is the written form of id i."""

    blank_id = 0
    unk_id = 2

    def __init__(self, kind: str, tokens: list[str], model: bytes = b"") -> None:
        if tuple(tokens[:3]) != SPECIAL:
            raise ValueError(f"tokens begin with {tokens[:3]}: expected {list(SPECIAL)}")
        if kind == "bpe" and not model:
            raise ValueError("kind='bpe' needs a sentencepiece model, got none")
        self.kind = kind
        self.tokens = tokens
        self._model = model
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._bpe = spm.SentencePieceProcessor(model_proto=model) if model else None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, blank included."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; what the tokens cannot spell becomes `unk_id`."""
        if self._bpe is not None:
            return self._bpe.encode(text)
        return [self._ids.get(c, self.unk_id) for word in text.split() for c in WORD_START + word]

    def decode(self, ids: Iterable[int]) -> str:
        """The words that `ids` spell; blanks and `<sos/eos>` say nothing, `<unk>` is ⁇ as in sentencepiece."""
        written = (" \u2047 " if i == self.unk_id else self.tokens[i] for i in ids if i not in (0, 1))
        return " ".join("".join(written).replace(WORD_START, " ").split())

    # -------------------------------------------------------------------------------------------------------- training

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenConfig) -> Tokenizer:
        """Learn the tokens of `texts`. A `config.vocab_size` that the text cannot fill is reduced, which is logged; one
        that cannot hold the characters of the text is a ValueError."""
        texts = [t for t in texts if t.strip()]
        if not texts:
            raise ValueError("tokens: no text to learn from")
        if config.kind == "char":
            characters = sorted({c for text in texts for word in text.split() for c in word})
            return cls("char", [*SPECIAL, WORD_START, *characters])
        return cls._train_bpe(texts, config.vocab_size)

    @classmethod
    def _train_bpe(cls, texts: list[str], vocab_size: int) -> Tokenizer:
        model = io.BytesIO()
        try:
            spm.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                user_defined_symbols=[BLANK, SOS_EOS],
                unk_id=cls.unk_id,
                bos_id=-1,
                eos_id=-1,
                character_coverage=1.0,
                normalization_rule_name="identity",
                input_sentence_size=1_000_000,
                num_threads=1,  # the same tokens on every machine
                minloglevel=2,
            )
        except RuntimeError as e:
            largest = re.search(r"value <= (\d+)", str(e))
            if largest:
                logging.warning("tokens.vocab_size=%d is more than the text has; using %s", vocab_size, largest[1])
                return cls._train_bpe(texts, int(largest[1]))
            needed = re.search(r"required_chars\. \d+ vs (\d+)", str(e))
            if needed:
                raise ValueError(
                    f"tokens.vocab_size={vocab_size}: the characters of the text alone need {needed[1]}"
                ) from None
            raise RuntimeError(f"sentencepiece, with tokens.vocab_size={vocab_size}: {e}") from None
        processor = spm.SentencePieceProcessor(model_proto=model.getvalue())
        return cls("bpe", [processor.id_to_piece(i) for i in range(processor.get_piece_size())], model.getvalue())

    # --------------------------------------------------------------------------------------------------------- storing

    def state_dict(self) -> dict[str, Any]:
        """Plain types and a tensor, for checkpoints that load under `weights_only=True`."""
        return {
            "kind": self.kind,
            "tokens": list(self.tokens),
            "model": torch.tensor(list(self._model), dtype=torch.uint8),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Tokenizer:
        return cls(state["kind"], list(state["tokens"]), state["model"].cpu().numpy().tobytes())

    def save(self, lang_dir: str | Path) -> None:
        """Write tokens.txt, and bpe.model where there is one, into `lang_dir`."""
        lang_dir = Path(lang_dir)
        lang_dir.mkdir(parents=True, exist_ok=True)
        if self._model:
            _write(lang_dir / "bpe.model", self._model)
        _write(lang_dir / "tokens.txt", "".join(f"{t} {i}\n" for i, t in enumerate(self.tokens)).encode())

    @classmethod
    def load(cls, lang_dir: str | Path) -> Tokenizer:
        """The tokenizer that `save` wrote; FileNotFoundError says how to make it."""
        lang_dir = Path(lang_dir)
        if not (lang_dir / "tokens.txt").is_file():
            raise FileNotFoundError(f"no {lang_dir / 'tokens.txt'}: run prepare.sh with the same overrides first")
        lines = (lang_dir / "tokens.txt").read_text(encoding="utf-8").splitlines()
        bpe = lang_dir / "bpe.model"
        model = bpe.read_bytes() if bpe.is_file() else b""
        return cls("bpe" if model else "char", [line.rsplit(" ", 1)[0] for line in lines], model)


def write_words(texts: Iterable[str], path: Path) -> int:
    """Write icefall's words.txt (special symbols around the sorted words of `texts`); returns the number of words."""
    words = sorted({w for text in texts for w in text.split()})
    _write(path, "".join(f"{w} {i}\n" for i, w in enumerate(word_rows(words))).encode())
    return len(words)


def word_rows(words: list[str]) -> list[str]:
    """The rows of icefall's words.txt for these words, which may hold some of its special symbols."""
    before, after = ["<eps>", "!SIL", "<SPOKEN_NOISE>", "<UNK>"], ["#0", "<s>", "</s>"]
    return [*before, *(w for w in words if w not in (*before, *after)), *after]


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
