"""Language models: a token at a time is a sentence at a time; training by the common loop, resuming; clear errors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_fakes import fake_config

from toolkit.config import Config, LmConfig, TokenConfig
from toolkit.data.text import TextData, encode_texts, read_texts
from toolkit.data.tokenizer import Tokenizer
from toolkit.models.language_model import build_lm
from toolkit.search.lm_scorers import NeuralScorer
from toolkit.search.scorers import score_sequences
from toolkit.train.checkpoint import CheckpointError
from toolkit.train.lm import LanguageModelling, lm_config, load_lm
from toolkit.train.loop import Trainer
from toolkit.train.state import TrainState

KINDS = ["lstm", "transformer"]
TEXTS = ["A B A B", "B A B A B A", "AB BA", "BA"] * 6


def tiny(kind: str, **changes: Any) -> LmConfig:
    return LmConfig(**{"kind": kind, "dim": 16, "num_heads": 2, "feedforward_dim": 32, "dropout": 0.0, **changes})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_token_by_token_is_the_whole_sentence(kind: str, tied: bool) -> None:
    """The scorer, which keeps memories by hypothesis, gives what one pass over the sentence does; 40 tokens outgrow a cache."""
    torch.manual_seed(0)
    lm = build_lm(tiny(kind, tied=tied), 7).eval()
    lens = [40, 3, 0, 17]
    data = TextData([torch.randint(2, 7, (n,)).numpy() for n in lens], [], 10**6)
    batch = next(data.train_batches(0))
    expected_N = -lm(batch).terms["lm"]
    sequences = [batch.tokens_NU[i, :n].tolist() for i, n in enumerate(batch.token_lens_N.tolist())]
    torch.testing.assert_close(score_sequences(NeuralScorer(lm), sequences), expected_N, atol=1e-4, rtol=0)
    probs = lm.log_probs(batch.tokens_NU).exp()
    torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:2]))
    assert bool((probs[..., 0] == 0.0).all())  # blank is no token


@pytest.mark.parametrize("kind", KINDS)
def test_rows_can_be_reordered_copied_and_dropped(kind: str) -> None:
    torch.manual_seed(1)
    scorer = NeuralScorer(build_lm(tiny(kind), 5))
    state = scorer.init(2, "cpu")
    _, state = scorer.advance(state, torch.tensor([1, 0, 1]), torch.tensor([3, 0, 4]))
    log_prob, state = scorer.advance(state, torch.tensor([2, 1]), torch.tensor([2, 0]))
    assert log_prob[1] == 0.0
    torch.testing.assert_close(
        scorer.final(state),
        score_sequences(scorer, [[4, 2], []]) - torch.stack([score_prefix(scorer, [4, 2]), torch.zeros(())]),
    )
    assert scorer.log_probs(state)[:, 0].tolist() == [0.0, 0.0]


def score_prefix(scorer: NeuralScorer, tokens: list[int]) -> torch.Tensor:
    state, total = scorer.init(1, "cpu"), torch.zeros(1)
    for token in tokens:
        log_prob, state = scorer.advance(state, torch.tensor([0]), torch.tensor([token]))
        total = total + log_prob
    return total[0]


def test_batches_hold_every_sentence_once_and_are_the_same_again() -> None:
    sentences = [np.full(n % 9, n + 1) for n in range(50)]
    data = TextData(sentences, [], batch_tokens=30, seed=3)
    batches = list(data.train_batches(1))
    seen = sorted(i for b in batches for i in b.ids)
    assert seen == sorted(f"train-{i + 1}" for i in range(50))
    assert sum(b.seconds for b in batches) == data.train_seconds_per_epoch
    assert max(b.seconds for b in batches) <= 30
    assert [b.ids for b in data.train_batches(1, skip=3)] == [b.ids for b in batches[3:]]
    assert [b.ids for b in data.train_batches(2)] != [b.ids for b in batches]
    ranks = [list(data.train_batches(1, rank=r, world_size=2)) for r in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    assert sorted({i for rank in ranks for b in rank for i in b.ids}) == seen


def run(root: Path, kind: str, **trainer: Any) -> tuple[TrainState, Config]:
    tokenizer = Tokenizer.train(TEXTS, TokenConfig(kind="char"))
    base = fake_config(root, **{"num_epochs": 4, **trainer})
    base = dataclasses.replace(base, lm=tiny(kind, num_epochs=8, batch_tokens=40, lr=0.03))
    config = lm_config(base)
    encoded = encode_texts(TEXTS, tokenizer, "text")
    torch.manual_seed(0)
    model = build_lm(config.lm, tokenizer.vocab_size)
    data = TextData(encoded, encoded[:4], config.lm.batch_tokens)
    return Trainer(config, model, tokenizer, data, task=LanguageModelling()).run(), config


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_and_goes_on_where_it_stopped(tmp_path: Path, kind: str) -> None:
    state, config = run(tmp_path / "straight", kind)
    assert 1.0 < state.best["valid/perplexity"] < 3.0  # of about 4 equally likely tokens
    assert state.best["valid/perplexity"] == pytest.approx(math.exp(state.best["valid/loss"]))
    stopped, _ = run(tmp_path / "stopped", kind, max_minutes=1e-9)
    assert 0 < stopped.step < state.step
    again, _ = run(tmp_path / "stopped", kind)
    assert again.step == state.step
    for name, x in state.model.state_dict().items():
        assert torch.equal(x, again.model.state_dict()[name]), name

    lm, tokenizer = load_lm(config.exp_dir)
    assert tokenizer.tokens == Tokenizer.train(TEXTS, TokenConfig(kind="char")).tokens
    total = score_sequences(NeuralScorer(lm), [tokenizer.encode("A B A B"), tokenizer.encode("A A A A")])
    assert total[0] > total[1]


def test_what_is_no_language_model_is_said_to_be_none(tmp_path: Path) -> None:
    _, config = run(tmp_path, "lstm")
    from toolkit.train.checkpoint import load_model

    with pytest.raises(CheckpointError, match="is of a language model: expected one of a recognizer"):
        load_model(config.exp_dir)
    other = dataclasses.replace(config, lm=tiny("lstm", dim=32))
    with pytest.raises(CheckpointError, match=r"lm\.dim: 16 there, 32 here"):
        Trainer(
            other,
            build_lm(other.lm, 6),
            Tokenizer.train(TEXTS, TokenConfig(kind="char")),
            TextData([np.array([3])], [], 40),
            task=LanguageModelling(),
        ).run()


def test_text_files_and_what_cannot_be_spelt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenConfig(kind="char"))
    path = tmp_path / "text.txt"
    path.write_text("A B\n\nB C\n")
    encoded = encode_texts(list(read_texts([str(path)])), tokenizer, "text")
    assert [tokenizer.decode(ids.tolist()) for ids in encoded] == ["A B"]
    assert "1 of 2 sentences left out" in caplog.text and "B C" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"lm\.text"):
        list(read_texts([str(tmp_path / "none")]))
    with pytest.raises(ValueError, match="no text"):
        TextData([], [], 10)
