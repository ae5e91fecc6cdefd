"""Lattice decoding of CTC heads on small graphs: against brute force, with and without language models, and what happens
where a search comes to nothing."""

from __future__ import annotations

import itertools
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kaldialign
import pytest
import torch
from torch import Tensor

import ops
from toolkit.config import DecodingConfig, LatticeConfig, TokenConfig
from toolkit.data.tokenizer import Tokenizer
from toolkit.eval.decode import _Totals as Totals
from toolkit.eval.decode import choose_settings, settings
from toolkit.eval.wer import Utterance
from toolkit.lang import train_ngram
from toolkit.search import check_methods
from toolkit.search.lattice import LATTICE_METHODS, DecodingGraphs, LatticeSearch, load_graphs
from toolkit.search.result import SearchResult

TEXTS = ["AB BA", "BA AB AB", "A AB", "BA", "AB BA AB"]
WORDS = ("A", "AB", "BA")
SCALES = [0.0, 1.0]
WIDE = LatticeConfig(
    search_beam=1000.0, output_beam=1000.0, max_active_states=100000, num_paths=300, nbest_scale=0.3, lm_scales=SCALES
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, TokenConfig(kind="char"))  # 3 specials, ▁ (3), A (4), B (5)


@pytest.fixture(scope="module")
def arpas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lm")
    for order in (1, 2):
        train_ngram(TEXTS, order, folder / f"{order}.arpa")
    return folder / "1.arpa", folder / "2.arpa"


@pytest.fixture(scope="module")
def graphs(tokenizer: Tokenizer, arpas: tuple[Path, Path]) -> DecodingGraphs:
    config = LatticeConfig(ngram=str(arpas[0]), rescore_ngram=str(arpas[1]))
    return load_graphs(config, tokenizer, torch.device("cpu"))


def log_probs_of(n: int, t: int, seed: int, vocab: int = 6) -> Tensor:
    return (torch.randn(n, t, vocab, generator=torch.Generator().manual_seed(seed)) * 2).log_softmax(2)


def search(
    log_probs_NTV: Tensor, tokenizer: Tokenizer, config: LatticeConfig = WIDE, graphs: DecodingGraphs | None = None
) -> LatticeSearch:
    """The "encoder output" is the row of `log_probs_NTV` that is meant."""
    model: Any = SimpleNamespace(
        ctc_log_probs=lambda enc: log_probs_NTV[enc[:, 0, 0].long(), : enc.shape[1]],
        vocab_size=log_probs_NTV.shape[2],
        blank_id=0,
    )
    return LatticeSearch(model, tokenizer, config, graphs or DecodingGraphs())


def rows(log_probs_NTV: Tensor) -> Tensor:
    n, t, _ = log_probs_NTV.shape
    return torch.arange(n).float()[:, None, None].expand(n, t, 1)


def acoustic(log_probs_TV: Tensor, tokens: list[int]) -> float:
    """Score of the best labelling of `tokens`."""
    labels, scores = ops.forced_align(log_probs_TV[None], [tokens])
    return float(scores.sum()) if bool((labels >= 0).all()) else -math.inf


def sentences(most: int) -> list[list[str]]:
    return [list(s) for n in range(most + 1) for s in itertools.product(WORDS, repeat=n)]


def by_hand(log_probs_TV: Tensor, tokenizer: Tokenizer, lm: ops.NgramLM, scale: float) -> tuple[float, list[str]]:
    scored = []
    for words in sentences(2):
        am = acoustic(log_probs_TV, tokenizer.encode(" ".join(words))) if words else float(log_probs_TV[:, 0].sum())
        scored.append((am + scale * lm.sentence_log_prob(words), words))
    return max(scored)


def words_of(result: SearchResult, tokenizer: Tokenizer) -> list[str]:
    best = result.best
    return tokenizer.decode(best.tokens).split() if best.words is None else best.words


def test_1best_is_the_best_path_with_frames_and_confidences(tokenizer: Tokenizer) -> None:
    log_probs_NTV, lens = log_probs_of(2, 7, 0), [7, 4]
    results = search(log_probs_NTV, tokenizer)("1best", rows(log_probs_NTV), torch.tensor(lens), ["a", "b"])[""]
    for log_probs_TV, length, result in zip(log_probs_NTV, lens, results):
        best_T = log_probs_TV[:length].max(1)
        runs = [(c, list(g)) for c, g in itertools.groupby(enumerate(best_T.indices.tolist()), key=lambda x: x[1]) if c]
        best = result.best
        assert best.tokens == [c for c, _ in runs] and best.score == pytest.approx(float(best_T.values.sum()), abs=1e-4)
        assert best.frames == [g[0][0] for _, g in runs] and best.ends == [g[-1][0] + 1 for _, g in runs]
        # Without a language model frames are independent: the posterior of a label is its probability.
        expected = [math.exp(max(float(log_probs_TV[t, c]) for t, _ in g)) for c, g in runs]
        assert best.confidences == pytest.approx(expected, abs=1e-4)
        assert [math.exp(x) for x in best.log_probs] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_language_models_are_weighed_as_by_hand(
    seed: int, tokenizer: Tokenizer, graphs: DecodingGraphs, arpas: tuple[Path, Path]
) -> None:
    """HLG has the unigram, rescoring the bigram; six frames hold two words at most, so all sentences can be tried."""
    log_probs_NTV = log_probs_of(2, 6, seed + 10)
    run = search(log_probs_NTV, tokenizer, WIDE, graphs)
    first, second = (ops.NgramLM.load(path) for path in arpas)
    for method, lm in (("1best_hlg", first), ("whole_lattice_rescoring", second), ("nbest_rescoring", second)):
        found = run(method, rows(log_probs_NTV), torch.tensor([6, 6]), ["a", "b"])
        assert list(found) == settings(method, DecodingConfig(lattice=WIDE)) == ["lm_scale 0", "lm_scale 1"]
        for scale, results in zip(SCALES, found.values()):
            for log_probs_TV, result in zip(log_probs_NTV, results):
                score, words = by_hand(log_probs_TV, tokenizer, lm, scale)
                assert result.best.score == pytest.approx(score, abs=1e-3), (method, scale)
                assert words_of(result, tokenizer) == words
                assert tokenizer.decode(result.best.tokens).split() == words
                assert result.best.confidences is not None and all(0 <= c <= 1 for c in result.best.confidences)


def test_nbest_contains_the_best_path_and_the_oracle_is_no_worse(tokenizer: Tokenizer, graphs: DecodingGraphs) -> None:
    log_probs_NTV, lens = log_probs_of(3, 6, 4), torch.tensor([6, 6, 5])
    few = LatticeConfig(num_paths=5, lm_scales=[1.0])
    run = search(log_probs_NTV, tokenizer, few, graphs)
    ids, texts = ["a", "b", "c"], ["AB", "A BA", "BA"]
    best, nbest, oracle = (
        run(m, rows(log_probs_NTV), lens, ids, texts) for m in ("1best_hlg", "nbest", "nbest_oracle")
    )
    for one, many, chosen, text in zip(best["lm_scale 1"], nbest[""], oracle[""], texts):
        assert words_of(many, tokenizer) == words_of(one, tokenizer)
        assert many.best.score == pytest.approx(one.best.score, abs=1e-4)
        assert len({tuple(h.words or ()) for h in many.nbest}) == len(many.nbest)
        errors = [kaldialign.edit_distance(text.split(), h.words)["total"] for h in many.nbest]
        assert kaldialign.edit_distance(text.split(), words_of(chosen, tokenizer))["total"] == min(errors)


@pytest.mark.parametrize("method", ["1best", "1best_hlg", "nbest", "whole_lattice_rescoring"])
def test_batch_equals_one_by_one(method: str, tokenizer: Tokenizer, graphs: DecodingGraphs) -> None:
    log_probs_NTV, lens = log_probs_of(3, 8, 5), [8, 3, 6]
    run = search(log_probs_NTV, tokenizer, LatticeConfig(num_paths=20, lm_scales=[0.5]), graphs)
    together = run(method, rows(log_probs_NTV), torch.tensor(lens), ["a", "b", "c"])
    for i, length in enumerate(lens):
        alone = run(method, rows(log_probs_NTV)[i : i + 1, :length], torch.tensor([length]), [f"alone {i}"])
        for setting in together:
            a, b = together[setting][i].best, alone[setting][0].best
            assert (a.tokens, a.frames, a.ends, a.words) == (b.tokens, b.frames, b.ends, b.words)
            assert a.score == pytest.approx(b.score, abs=1e-4)


def test_no_surviving_path_widens_the_beams_and_then_ends_anywhere(
    tokenizer: Tokenizer, graphs: DecodingGraphs, caplog: pytest.LogCaptureFixture
) -> None:
    # One frame holds ▁ and no word: HLG has no complete path but the empty sentence; the blank is made impossible.
    log_probs_NTV = torch.full((2, 6, 6), -50.0)
    log_probs_NTV[0, 0, 3], log_probs_NTV[0, 0, 0] = 0.0, -torch.inf
    log_probs_NTV[1] = log_probs_of(1, 6, 1)[0]
    run = search(log_probs_NTV, tokenizer, LatticeConfig(lm_scales=[1.0]), graphs)
    with caplog.at_level(logging.WARNING):
        found = run("1best_hlg", rows(log_probs_NTV), torch.tensor([1, 6]), ["short", "fine"])["lm_scale 1"]
    assert "4 times as wide: short" in caplog.text and "end anywhere: short" in caplog.text
    assert "fine" not in caplog.text
    assert found[0].best.tokens == [3] and math.isfinite(found[0].best.score)


def test_utterances_without_frames_are_named(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    log_probs_NTV = log_probs_of(2, 5, 0)
    run = search(log_probs_NTV, tokenizer)
    found = run("1best", rows(log_probs_NTV), torch.tensor([0, 5]), ["nothing", "fine"])[""]
    assert found[0].best.tokens == [] and found[1].best.score < 0
    assert "no frames to decode: nothing" in caplog.text
    assert run("1best", rows(log_probs_NTV), torch.tensor([0, 0]), ["x", "y"])[""][1].best.tokens == []


def test_a_larger_model_that_knows_no_path_leaves_the_first_pass(
    tokenizer: Tokenizer, graphs: DecodingGraphs, caplog: pytest.LogCaptureFixture
) -> None:
    only_a = ops.linear_fsa([list(graphs.words).index("A")])
    odd = DecodingGraphs(graphs.hlg, only_a, graphs.words)
    log_probs_NTV = torch.full((1, 6, 6), -20.0)
    for t, token in enumerate(tokenizer.encode("BA")):
        log_probs_NTV[0, t, token] = 0.0
    log_probs_NTV[0, 3:, 0] = 0.0
    run = search(log_probs_NTV, tokenizer, LatticeConfig(lm_scales=[1.0], num_paths=5, output_beam=5.0), odd)
    for method in ("whole_lattice_rescoring", "nbest_rescoring"):
        caplog.clear()
        found = run(method, rows(log_probs_NTV), torch.tensor([6]), [f"utt {method}"])["lm_scale 1"]
        assert words_of(found[0], tokenizer) == ["BA"]
        assert f"first-pass result kept: utt {method}" in caplog.text


def test_missing_language_models_are_said_at_the_start(arpas: tuple[Path, Path]) -> None:
    for method in LATTICE_METHODS:
        check_methods([method], has_ctc=True, has_transducer=False)
        with pytest.raises(ValueError, match="CTC head"):
            check_methods([method], has_ctc=False)
    with pytest.raises(ValueError, match=r"decoding\.lattice\.ngram: 1best_hlg need a word n-gram"):
        check_methods(["1best_hlg"], True, lattice=LatticeConfig())
    with pytest.raises(ValueError, match=r"decoding\.lattice\.rescore_ngram"):
        check_methods(["nbest_rescoring"], True, lattice=LatticeConfig(ngram=str(arpas[0])))
    with pytest.raises(FileNotFoundError, match=r"no gone\.arpa"):
        check_methods(["1best_hlg"], True, lattice=LatticeConfig(ngram="gone.arpa"))


def test_the_scale_with_the_fewest_errors_is_chosen() -> None:
    d = DecodingConfig(methods=["1best_hlg", "1best"], lattice=LatticeConfig(lm_scales=[0.1, 0.5, 1.0]))
    totals = Totals()
    for setting, hyp in (("lm_scale 0.1", ["A", "X"]), ("lm_scale 0.5", ["A", "B"]), ("lm_scale 1", ["A", "B"])):
        totals.utterances["1best_hlg", setting] = [Utterance("u", ["A", "B"], hyp)]
    totals.utterances["1best", ""] = [Utterance("u", ["A", "B"], [])]
    assert choose_settings(d, [totals]) == {"1best_hlg": "lm_scale 0.5", "1best": ""}
