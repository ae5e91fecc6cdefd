"""Searches with scorers: wide beams against ranking all sequences by brute force; phrases are found; batch = one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scorer_fakes import random_ngram, to_arpa
from search_fakes import FakeTransducer, all_sequences, encoder_outputs
from torch import Tensor

from ops import NgramLM
from toolkit.config import LmConfig
from toolkit.models.language_model import build_lm
from toolkit.search import greedy_search, modified_beam_search
from toolkit.search.best_first import beam_search
from toolkit.search.biasing import BiasScorer, Phrase
from toolkit.search.fast_beam import FastBeam, fast_beam_search, fast_beam_search_nbest
from toolkit.search.lm_scorers import NeuralScorer, NgramScorer
from toolkit.search.rescoring import add_scores
from toolkit.search.result import SearchResult
from toolkit.search.scorers import Scorer, ScorerPool, SumScorer, score_sequences

V, T = 4, 5
TOKENS = ["<blk>", "a", "b", "c"]
WIDE = FastBeam(beam=1e6, max_states=10000, max_contexts=10000)
Search = Callable[..., list[SearchResult]]
WIDE_SEARCHES: dict[str, Search] = {
    "modified_beam_search": lambda *a, **k: modified_beam_search(*a, beam=400, **k),
    "beam_search": lambda *a, **k: beam_search(*a, beam=400, max_symbols=1, **k),
    "fast_beam_search_nbest": lambda *a, **k: fast_beam_search_nbest(
        *a, bounds=WIDE, num_paths=6000, nbest_scale=0.1, **k
    ),
}
NARROW_SEARCHES: dict[str, Search] = {
    "greedy_search": lambda *a, **k: greedy_search(*a, max_symbols=2, **k),
    "modified_beam_search": lambda *a, **k: modified_beam_search(*a, beam=3, **k),
    "beam_search": lambda *a, **k: beam_search(*a, beam=3, **k),
    "fast_beam_search": lambda *a, **k: fast_beam_search(*a, bounds=FastBeam(20.0, 1000, 64), **k),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    path.write_text(to_arpa(random_ngram(TOKENS[1:], 4, seed=1), 4))
    ngram = NgramScorer(NgramLM.load(path, cache=False), TOKENS)
    torch.manual_seed(0)
    config = LmConfig(kind="lstm", dim=8, num_heads=2, num_layers=1, tied=False, dropout=0.0)
    neural = NeuralScorer(build_lm(config, V))
    bias = BiasScorer([[Phrase((1, 2), 1.0), Phrase((2, 3, 1), 1.5), Phrase((3,), -0.5)]], V)
    return {"ngram": ngram, "neural": neural, "bias": bias, "sum": SumScorer([ngram, bias, neural], [0.7, 1.0, -0.3])}


@pytest.mark.parametrize("method", WIDE_SEARCHES)
@pytest.mark.parametrize("name", ["ngram", "neural", "bias", "sum"])
def test_wide_beams_rank_all_sequences(scorers: dict[str, Scorer], name: str, method: str) -> None:
    scorer = scorers[name]
    model = FakeTransducer(vocab_size=V, seed=2)
    encoder_NTD = encoder_outputs(1, T, seed=3)
    totals = all_sequences(model, encoder_NTD[0])
    added = score_sequences(scorer, [list(y) for y in totals]).tolist()
    expected = {y: total + x for (y, total), x in zip(totals.items(), added)}
    assert max(expected, key=lambda y: expected[y]) != max(totals, key=lambda y: totals[y])  # the scorer matters here
    nbest = WIDE_SEARCHES[method](model, encoder_NTD, torch.tensor([T]), scorers=[scorer])[0].nbest
    found = {tuple(h.tokens): h.score for h in nbest}
    assert len(found) == len(nbest)
    if method != "fast_beam_search_nbest":  # paths are drawn at random there
        assert set(found) == set(expected)
    for y, score in found.items():
        assert score == pytest.approx(expected[y], abs=1e-3)
    assert [h.score for h in nbest] == sorted(found.values(), reverse=True)
    assert tuple(nbest[0].tokens) == max(expected, key=lambda y: expected[y])


def check_log_probs(model: FakeTransducer, encoder_TD: Tensor, result: SearchResult) -> None:
    """Token log-probabilities stay the model's own, without the scorers'."""
    for h in result.nbest:
        for u, (token, frame) in enumerate(zip(h.tokens, h.frames)):
            assert h.log_probs[u] == pytest.approx(float(model.step(encoder_TD[frame], h.tokens[:u])[token]), abs=1e-3)


@pytest.mark.parametrize("method", NARROW_SEARCHES)
@pytest.mark.parametrize("name", ["ngram", "neural", "sum"])
def test_batched_is_one_by_one_and_log_probs_are_the_models(scorers: dict[str, Scorer], name: str, method: str) -> None:
    model = FakeTransducer(vocab_size=V, seed=3)
    encoder_NTD, lens_N = encoder_outputs(5, 9), torch.tensor([7, 0, 9, 1, 8])
    search = NARROW_SEARCHES[method]
    batched = search(model, encoder_NTD, lens_N, scorers=[scorers[name]])
    plain = search(model, encoder_NTD, lens_N)
    assert [r.best.tokens for r in batched] != [r.best.tokens for r in plain]
    for i, n in enumerate(lens_N.tolist()):
        single = search(model, encoder_NTD[i : i + 1, :n], torch.tensor([n]), scorers=[scorers[name]])[0]
        assert [h.tokens for h in single.nbest] == [h.tokens for h in batched[i].nbest]
        assert [h.score for h in single.nbest] == pytest.approx([h.score for h in batched[i].nbest], abs=1e-3)
        check_log_probs(model, encoder_NTD[i], batched[i])


@pytest.mark.parametrize("method", NARROW_SEARCHES)
def test_lists_of_phrases_belong_to_their_utterances(method: str) -> None:
    """The same audio four times (and shorter once, so that a search sorts), a list each: each has its own words."""
    model = FakeTransducer(vocab_size=V, seed=3)
    encoder_NTD = encoder_outputs(1, 9).expand(4, -1, -1).contiguous()
    lens_N = torch.tensor([7, 9, 9, 9])
    phrases = [[Phrase((1, 2, 3), 4.0)], [Phrase((2, 2), 4.0)], [], [Phrase((3, 1), 4.0)]]
    bias = BiasScorer(phrases, V)
    search = NARROW_SEARCHES[method]
    results = search(model, encoder_NTD, lens_N, scorers=[bias.choose([0, 1, 2, 3])])
    plain = search(model, encoder_NTD, lens_N)
    for i, some in enumerate(phrases):
        spelt = "".join(map(str, results[i].best.tokens))
        assert all("".join(map(str, p.tokens)) in spelt for p in some)
        if not some:
            assert results[i].best.tokens == plain[i].best.tokens
    alone = search(model, encoder_NTD[1:2], lens_N[1:2], scorers=[BiasScorer(phrases[1:2], V)])[0]
    assert alone.best.tokens == results[1].best.tokens
    assert alone.best.score == pytest.approx(results[1].best.score, abs=1e-3)


def test_long_memories_guide_as_far_as_contexts_reach(
    scorers: dict[str, Scorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guide that may look at two tokens only is no longer exact, but the scores in the end are."""
    from toolkit.search import fast_beam, guide

    model = FakeTransducer(vocab_size=V, seed=2)
    encoder_NTD = encoder_outputs(1, T, seed=3)
    short = lambda scorers, n, model, device: guide.Guide(scorers["ngram"], 2, n, device)  # noqa: E731
    monkeypatch.setattr(fast_beam, "guiding", lambda some, n, model, device: short(scorers, n, model, device))
    totals = all_sequences(model, encoder_NTD[0])
    nbest = WIDE_SEARCHES["fast_beam_search_nbest"](model, encoder_NTD, torch.tensor([T]), scorers=[scorers["ngram"]])[
        0
    ].nbest
    added = score_sequences(scorers["ngram"], [h.tokens for h in nbest]).tolist()
    assert [h.score for h in nbest] == pytest.approx(
        [totals[tuple(h.tokens)] + x for h, x in zip(nbest, added)], abs=1e-3
    )


def test_rescoring_ranks_by_both_scores(scorers: dict[str, Scorer]) -> None:
    model = FakeTransducer(vocab_size=V, seed=4)
    results = modified_beam_search(model, encoder_outputs(2, 8), torch.tensor([8, 6]), beam=6)
    scaled = SumScorer([scorers["neural"]], [0.5])
    again = add_scores(results, [scaled], model)
    for before, after in zip(results, again):
        added = score_sequences(scaled, [h.tokens for h in before.nbest]).tolist()
        expected = {tuple(h.tokens): h.score + x for h, x in zip(before.nbest, added)}
        assert {tuple(h.tokens): h.score for h in after.nbest} == pytest.approx(expected, abs=1e-4)
        assert [h.score for h in after.nbest] == sorted(expected.values(), reverse=True)
    unchanged = add_scores(results, [SumScorer([scaled], [0.0])], model)
    assert [[h.tokens for h in r.nbest] for r in unchanged] == [[h.tokens for h in r.nbest] for r in results]


def test_a_pool_of_rows_forgets_and_makes_them_again(scorers: dict[str, Any]) -> None:
    scorer = scorers["sum"]
    pool = ScorerPool(scorer, 2, torch.device("cpu"), limit=12)
    sequences = [
        tuple(torch.randint(1, V, (n % 5,), generator=torch.Generator().manual_seed(n)).tolist()) for n in range(30)
    ]
    expected = score_sequences(scorer, sequences)
    for y, total in zip(sequences, expected):
        rows = pool.rows([(1, y)])
        final = scorer.final(pool.state)[rows]
        state, summed = scorer.init(1, "cpu"), torch.zeros(1)
        for token in y:
            log_prob, state = scorer.advance(state, torch.tensor([0]), torch.tensor([token]))
            summed += log_prob
        torch.testing.assert_close(summed + final, total[None], atol=1e-4, rtol=0)
        assert len(pool.row) <= 12 + 2 + 5


def test_scorers_of_another_model_are_refused(scorers: dict[str, Scorer]) -> None:
    model = FakeTransducer(vocab_size=6)
    for search in NARROW_SEARCHES.values():
        with pytest.raises(ValueError, match="is for 4 tokens with blank 0; the model has 6 with blank 0"):
            search(model, encoder_outputs(1, 4), torch.tensor([4]), scorers=[scorers["ngram"]])
