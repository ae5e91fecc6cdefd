"""Tokens: round trips, icefall's files, vocabularies that do not fit."""

from __future__ import annotations

import io
import logging
import random
from pathlib import Path

import pytest
import torch

from toolkit.config import TokenConfig
from toolkit.data.synthetic_text import make_sentence
from toolkit.data.tokenizer import Tokenizer, write_words

TEXTS = [make_sentence("train", random.Random(i)) for i in range(200)]
UNSEEN = make_sentence("test", random.Random(0))


@pytest.fixture(scope="module", params=["bpe", "char"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(TEXTS, TokenConfig(kind=request.param, vocab_size=120))


def test_round_trip(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(UNSEEN)
    assert tokenizer.decode(ids) == UNSEEN
    assert tokenizer.blank_id not in ids and tokenizer.unk_id not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_special_tokens_are_icefalls(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokens[:3] == ["<blk>", "<sos/eos>", "<unk>"]
    assert (tokenizer.blank_id, tokenizer.unk_id) == (0, 2)
    assert tokenizer.vocab_size == len(tokenizer.tokens) == len(set(tokenizer.tokens))
    if tokenizer.kind == "bpe":
        assert tokenizer.vocab_size == 120


def test_tokens_of_a_word_do_not_depend_on_its_neighbours(tokenizer: Tokenizer) -> None:
    words = UNSEEN.split()
    assert tokenizer.encode(UNSEEN) == [i for word in words for i in tokenizer.encode(word)]


def test_unknown_characters_become_unk(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("RED \u00c4")
    assert tokenizer.unk_id in ids
    assert tokenizer.decode(ids) == "RED \u2047"
    assert tokenizer.decode([0, *tokenizer.encode("RED"), 1]) == "RED"


def test_state_dict_loads_with_weights_only(tokenizer: Tokenizer) -> None:
    buffer = io.BytesIO()
    torch.save(tokenizer.state_dict(), buffer)
    buffer.seek(0)
    again = Tokenizer.from_state_dict(torch.load(buffer, weights_only=True))
    assert again.encode(UNSEEN) == tokenizer.encode(UNSEEN)
    assert (again.kind, again.tokens) == (tokenizer.kind, tokenizer.tokens)


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.kind == tokenizer.kind and again.encode(UNSEEN) == tokenizer.encode(UNSEEN)
    lines = (tmp_path / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "<blk> 0" and [line.split()[0] for line in lines] == tokenizer.tokens
    with pytest.raises(FileNotFoundError, match=r"run prepare\.sh"):
        Tokenizer.load(tmp_path / "nowhere")


def test_training_is_deterministic() -> None:
    config = TokenConfig(vocab_size=100)
    assert Tokenizer.train(TEXTS, config).tokens == Tokenizer.train(TEXTS, config).tokens


def test_too_large_a_vocabulary_is_reduced_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.train(["ONE TWO THREE"] * 5, TokenConfig(vocab_size=500))
    assert 10 < tokenizer.vocab_size < 40
    assert f"tokens.vocab_size=500 is more than the text has; using {tokenizer.vocab_size}" in caplog.text
    assert tokenizer.decode(tokenizer.encode("TWO ONE")) == "TWO ONE"


def test_too_small_a_vocabulary_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"tokens.vocab_size=10: the characters of the text alone need \d+"):
        Tokenizer.train(TEXTS, TokenConfig(vocab_size=10))


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="no text"):
        Tokenizer.train(texts, TokenConfig())


def test_words(tmp_path: Path) -> None:
    assert write_words(["B A", "A C"], tmp_path / "words.txt") == 3
    rows = dict(line.split() for line in (tmp_path / "words.txt").read_text().splitlines())
    assert rows["<eps>"] == "0" and rows["A"] == "4" and rows["#0"] == "7" and len(rows) == 10
