"""From decoding.lm, lodr and biasing to scorers: sweeps, what is found out by itself, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scorer_fakes import random_ngram, to_arpa

from toolkit.config import DecodingConfig, LmConfig, TokenConfig
from toolkit.data.tokenizer import Tokenizer
from toolkit.eval import scoring
from toolkit.eval.scoring import load_scorer, scoring_settings, variants
from toolkit.models.language_model import build_lm
from toolkit.search.lm_scorers import NeuralScorer, NgramScorer, WordNgramScorer
from toolkit.search.scorers import combine, score_sequences

TOKENIZER = Tokenizer.train(["AB BA", "A B"], TokenConfig(kind="char"))


@pytest.fixture
def lms(tmp_path: Path) -> dict[str, str]:
    paths = {}
    for name, words, order in (("token", ["▁", "A", "B"], 3), ("low", ["▁", "A", "B"], 2), ("word", ["AB", "BA"], 2)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"{name}.arpa"
        path.write_text(to_arpa(random_ngram(words, order, seed=1), order))
        paths[name] = str(path)
    return paths


def test_a_sweep_is_all_combinations(lms: dict[str, str]) -> None:
    d = DecodingConfig(
        lm=lms["token"], lm_scale=[0.2, 0.5], lodr=lms["low"], lodr_scale=0.1, biasing=["AB"], bias_scale=[0.0, 2.0]
    )
    names = scoring_settings(d)
    assert names == [f"lm {lm}, lodr 0.1, biasing {bias}" for lm in ("0.2", "0.5") for bias in ("0", "2")]
    made = variants(d, TOKENIZER)
    assert list(made) == names
    sequences = [TOKENIZER.encode("AB BA"), TOKENIZER.encode("B")]
    external, source = (load_scorer(lms[name], TOKENIZER, "token", "lm") for name in ("token", "low"))
    for name, lm_scale, bias in ((names[3], 0.5, 2.0), (names[0], 0.2, 0.0)):
        scorer = combine(made[name].scorers(["a", "b"]), TOKENIZER.vocab_size, 0)
        assert scorer is not None
        expected = lm_scale * score_sequences(external, sequences) - 0.1 * score_sequences(source, sequences)
        expected[0] += bias * 3  # ▁AB
        torch.testing.assert_close(score_sequences(scorer, sequences), expected)


def test_nothing_asked_for_is_nothing_added() -> None:
    assert scoring_settings(DecodingConfig()) == [""]
    (only,) = variants(DecodingConfig(), TOKENIZER).values()
    assert only.scorers(["a"]) == [] and only.rescoring == ()


def test_rescoring_leaves_the_search_alone_but_for_biasing(lms: dict[str, str]) -> None:
    d = DecodingConfig(lm=lms["token"], lm_mode="rescore", biasing=["AB"])
    ((name, only),) = variants(d, TOKENIZER).items()
    assert name == "rescored by lm 0.3, biasing 1"
    assert len(only.rescoring) == 1 and len(only.scorers(["a"])) == 1


def test_the_unit_of_an_ngram_is_found_out(lms: dict[str, str]) -> None:
    assert isinstance(load_scorer(lms["token"], TOKENIZER, "auto", "decoding.lm"), NgramScorer)
    assert isinstance(load_scorer(str(Path(lms["token"]).parent), TOKENIZER, "auto", "decoding.lm"), NgramScorer)
    assert isinstance(load_scorer(lms["word"], TOKENIZER, "auto", "decoding.lm"), WordNgramScorer)
    with pytest.raises(ValueError, match=r"decoding\.lodr=.*no word for 3 of the model's 6 tokens"):
        load_scorer(lms["word"], TOKENIZER, "token", "decoding.lodr")


def test_what_is_not_there_or_does_not_fit_is_said(
    lms: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"decoding\.lm=nowhere: no such file.*train_lm\.py"):
        variants(DecodingConfig(lm="nowhere"), TOKENIZER)
    with pytest.raises(ValueError, match=r"expected decoding\.lm, too"):
        variants(DecodingConfig(lodr=lms["low"]), TOKENIZER)
    with pytest.raises(ValueError, match="0 n-gram models and no checkpoint there"):
        load_scorer(str(tmp_path), TOKENIZER, "auto", "decoding.lm")
    for key, value in (("lm_scale", []), ("lodr_scale", "much"), ("bias_scale", [1.0, None])):
        with pytest.raises(ValueError, match=f"decoding.{key}=.*expected a number or a list of numbers"):
            DecodingConfig(**{key: value})

    other = Tokenizer.train(["AB C"], TokenConfig(kind="char"))
    config = LmConfig(dim=8, num_heads=2, num_layers=1)
    (tmp_path / "lm.pt").touch()
    for tokenizer in (TOKENIZER, other):
        lm = build_lm(config, tokenizer.vocab_size)
        monkeypatch.setattr("toolkit.train.lm.load_lm", lambda path, t=tokenizer, lm=lm: (lm, t))
        if tokenizer is TOKENIZER:
            assert isinstance(
                scoring.load_scorer(str(tmp_path / "lm.pt"), TOKENIZER, "auto", "decoding.lm"), NeuralScorer
            )
        else:
            with pytest.raises(
                ValueError, match="an LM over 7 tokens, the model has 6; the first difference is at id 6"
            ):
                scoring.load_scorer(str(tmp_path / "lm.pt"), TOKENIZER, "auto", "decoding.lm")
