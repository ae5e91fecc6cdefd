"""Searches against brute force and against the obvious one-by-one programs, on tiny random models."""

from __future__ import annotations

import pytest
import torch
from search_fakes import FakeTransducer, all_sequences, encoder_outputs, greedy_by_hand

from toolkit.config import CtcBeamConfig, DecodingConfig
from toolkit.search import (
    SEARCHES,
    beam_search,
    check_methods,
    ctc_greedy_search,
    fast_beam_search,
    fast_beam_search_nbest,
    greedy_search,
    modified_beam_search,
)
from toolkit.search.greedy import UNLIMITED
from toolkit.search.predictor import Predictor
from toolkit.search.result import Hypothesis, SearchResult

pytestmark = pytest.mark.usefixtures("one_thread")


LENS = torch.tensor([7, 0, 12, 1, 9])
METHODS = [method for method in sorted(SEARCHES) if not method.endswith("_LG")]  # those that need no graph


def assert_same(a: list[SearchResult], b: list[SearchResult], atol: float = 1e-4) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert [h.tokens for h in x.nbest] == [h.tokens for h in y.nbest]
        assert [h.frames for h in x.nbest] == [h.frames for h in y.nbest]
        for h, g in zip(x.nbest, y.nbest):
            assert h.score == pytest.approx(g.score, abs=atol)
            assert h.log_probs == pytest.approx(g.log_probs, abs=atol)


@pytest.mark.parametrize("context_size", [1, 2])
@pytest.mark.parametrize("max_symbols", [1, 2, 3, 0])
def test_greedy_is_the_obvious_program(max_symbols: int, context_size: int) -> None:
    encoder_NTD = encoder_outputs(5, 12)
    emitted_twice = False
    for seed in range(4):
        model = FakeTransducer(context_size=context_size, seed=seed)
        results = greedy_search(model, encoder_NTD, LENS, max_symbols)
        for encoder_TD, length, result in zip(encoder_NTD, LENS.tolist(), results):
            tokens, frames, log_probs, score = greedy_by_hand(model, encoder_TD[:length], max_symbols or UNLIMITED)
            best = result.best
            assert (best.tokens, best.frames) == (tokens, frames)
            assert best.log_probs == pytest.approx(log_probs, abs=1e-4)
            assert best.score == pytest.approx(score, abs=1e-3)
            emitted_twice |= len(set(frames)) < len(frames)
    assert emitted_twice == (max_symbols != 1)


@pytest.mark.parametrize("merge", ["log_add", "max"])
@pytest.mark.parametrize("context_size", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beam_finds_every_sequence_and_its_score(seed: int, context_size: int, merge: str) -> None:
    model = FakeTransducer(vocab_size=3, context_size=context_size, seed=seed)
    encoder_NTD = encoder_outputs(1, 5, seed=seed + 10)
    expected = all_sequences(model, encoder_NTD[0], merge)
    beam = len(expected) + 10
    nbest = modified_beam_search(model, encoder_NTD, torch.tensor([5]), beam, merge=merge)[0].nbest
    assert len(nbest) == len(expected)  # all sequences, none twice, and unused slots of the beam are not reported
    assert {tuple(h.tokens) for h in nbest} == set(expected)
    for h in nbest:
        assert h.score == pytest.approx(expected[tuple(h.tokens)], abs=1e-4)
    assert nbest[0].tokens == list(max(expected, key=lambda tokens: expected[tokens]))


def test_narrow_beam_merges_before_it_cuts() -> None:
    """With beam B the totals are sums over surviving alignments: never more than the truth, and the list is sorted."""
    for seed in range(8):
        model = FakeTransducer(seed=seed)
        encoder_NTD = encoder_outputs(1, 6, seed=seed)
        expected = all_sequences(model, encoder_NTD[0])
        nbest = modified_beam_search(model, encoder_NTD, torch.tensor([6]), beam=4)[0].nbest
        assert len(nbest) == 4
        assert len({tuple(h.tokens) for h in nbest}) == 4
        assert [h.score for h in nbest] == sorted((h.score for h in nbest), reverse=True)
        for h in nbest:
            assert h.score <= expected[tuple(h.tokens)] + 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_beam_of_one_is_greedy(seed: int) -> None:
    model = FakeTransducer(seed=seed)
    encoder_NTD = encoder_outputs(5, 12)
    assert_same(
        modified_beam_search(model, encoder_NTD, LENS, beam=1), greedy_search(model, encoder_NTD, LENS, 1), 1e-3
    )


@pytest.mark.parametrize("method", METHODS)
def test_batched_is_one_by_one(method: str) -> None:
    model = FakeTransducer(vocab_size=6, seed=3)
    encoder_NTD = encoder_outputs(5, 12)
    config = DecodingConfig(max_symbols=2, ctc_beam=CtcBeamConfig(tokens=list("-abcdefg")[: model.vocab_size]))
    batched = SEARCHES[method](model, encoder_NTD, LENS, config)
    single = [
        SEARCHES[method](model, encoder_NTD[i : i + 1, :length], torch.tensor([length]), config)[0]
        for i, length in enumerate(LENS.tolist())
    ]
    assert_same(batched, single)
    noise = encoder_NTD.clone()
    for i, length in enumerate(LENS.tolist()):
        noise[i, length:] = 99.0
    assert_same(SEARCHES[method](model, noise, LENS, config), batched)


@pytest.mark.parametrize("beam", [1, 4, 7])
def test_token_log_probs_and_frames_belong_to_one_alignment(beam: int) -> None:
    """Each token's log-probability is the model's at its frame, given the tokens before it."""
    model = FakeTransducer(vocab_size=5, seed=5)
    encoder_NTD = encoder_outputs(3, 10)
    for encoder_TD, result in zip(
        encoder_NTD, modified_beam_search(model, encoder_NTD, torch.tensor([10] * 3), beam=beam)
    ):
        for h in result.nbest:
            assert all(a < b for a, b in zip(h.frames, h.frames[1:]))
            for u, (token, frame) in enumerate(zip(h.tokens, h.frames)):
                assert h.log_probs[u] == pytest.approx(
                    float(model.step(encoder_TD[frame], h.tokens[:u])[token]), abs=1e-4
                )


@pytest.mark.parametrize("method", METHODS)
def test_nothing_said(method: str) -> None:
    model = FakeTransducer(seed=0)
    config = DecodingConfig(ctc_beam=CtcBeamConfig(tokens=list("-abcdefghijk")[: model.vocab_size]))
    assert SEARCHES[method](model, torch.zeros(0, 5, 8), torch.zeros(0, dtype=torch.int64), config) == []
    for t in (0, 4):
        results = SEARCHES[method](model, torch.zeros(2, t, 8), torch.zeros(2, dtype=torch.int64), config)
        assert [(r.best.tokens, r.best.frames, r.best.log_probs, r.best.score) for r in results] == [
            ([], [], [], 0.0)
        ] * 2
    with torch.no_grad():
        model.joiner.output.bias[0] = 1000.0
        model.ctc.bias[0] = 1000.0
    results = SEARCHES[method](model, encoder_outputs(2, 6), torch.tensor([6, 3]), config)
    assert [r.best.tokens for r in results] == [[], []]
    assert all(r.best.score == pytest.approx(0.0, abs=1e-3) for r in results)


def test_a_model_that_never_stops_is_stopped() -> None:
    model = FakeTransducer(seed=0)
    with torch.no_grad():
        model.joiner.output.bias[1] = 1000.0
    best = greedy_search(model, encoder_outputs(1, 3), torch.tensor([3]), max_symbols=0)[0].best
    assert best.tokens == [1] * 3 * UNLIMITED


def test_length_norm_ranks_by_score_per_token() -> None:
    model = FakeTransducer(seed=2)
    encoder_NTD = encoder_outputs(3, 8)
    lens_N = torch.tensor([8, 8, 8])
    plain = modified_beam_search(model, encoder_NTD, lens_N, beam=6)
    normed = modified_beam_search(model, encoder_NTD, lens_N, beam=6, length_norm=True)
    for a, b in zip(plain, normed):
        expected = sorted((h.score / (len(h.tokens) + 2) for h in a.nbest), reverse=True)
        assert [h.score for h in b.nbest] == pytest.approx(expected, abs=1e-5)


def test_temperature_and_blank_penalty_are_those_of_the_joiner() -> None:
    """Each option does to a search what the same change of the joiner's output layer does."""
    encoder_NTD = encoder_outputs(3, 8)
    lens_N = torch.tensor([8, 5, 8])
    searches = (greedy_search, modified_beam_search, beam_search, fast_beam_search, fast_beam_search_nbest)
    plain, penalised, hot = (FakeTransducer(seed=2) for _ in range(3))
    with torch.no_grad():
        penalised.joiner.output.bias[0] -= 1.5
        hot.joiner.output.bias /= 2.0
        hot.joiner.output.weight /= 2.0
    for search in searches:
        assert_same(search(plain, encoder_NTD, lens_N, blank_penalty=1.5), search(penalised, encoder_NTD, lens_N))
        assert_same(search(plain, encoder_NTD, lens_N, temperature=2.0), search(hot, encoder_NTD, lens_N))


def test_blank_need_not_be_zero() -> None:
    model = FakeTransducer(seed=4, blank_id=2)
    encoder_NTD = encoder_outputs(2, 9)
    for encoder_TD, result in zip(encoder_NTD, greedy_search(model, encoder_NTD, torch.tensor([9, 9]))):
        assert result.best.tokens == greedy_by_hand(model, encoder_TD, 1)[0]
    assert_same(
        modified_beam_search(model, encoder_NTD, torch.tensor([9, 9]), beam=1),
        greedy_search(model, encoder_NTD, torch.tensor([9, 9])),
        1e-3,
    )


def test_ctc_greedy_merges_repeats_and_drops_blanks() -> None:
    class Head:
        blank_id = 0

        def ctc_log_probs(self, x_NTD: torch.Tensor) -> torch.Tensor:
            return x_NTD.log_softmax(-1)

    path = [0, 1, 1, 0, 1, 2, 2, 0]
    logits_TV = torch.zeros(8, 3)
    logits_TV[torch.arange(8), torch.tensor(path)] = torch.tensor([3.0, 2.0, 5.0, 3.0, 4.0, 1.0, 6.0, 3.0])
    log_probs_TV = logits_TV.log_softmax(-1)
    whole, cut = ctc_greedy_search(Head(), torch.stack([logits_TV, logits_TV]), torch.tensor([8, 2]))
    assert (whole.best.tokens, whole.best.frames) == ([1, 1, 2], [1, 4, 5])
    assert whole.best.log_probs == pytest.approx([float(log_probs_TV[t, path[t]]) for t in (2, 4, 6)])
    assert whole.best.score == pytest.approx(float(log_probs_TV.max(1).values.sum()), abs=1e-5)
    assert (cut.best.tokens, cut.best.frames) == ([1], [1])
    assert cut.best.log_probs == pytest.approx([float(log_probs_TV[1, 1])])


@pytest.mark.parametrize("table", [0, 25])
def test_each_context_is_evaluated_once(monkeypatch: pytest.MonkeyPatch, table: int) -> None:
    monkeypatch.setattr("toolkit.search.predictor.WHOLE_TABLE", {"cpu": table})
    model = FakeTransducer(vocab_size=5, seed=5)
    contexts: list[tuple[int, ...]] = []
    model.decoder.register_forward_pre_hook(lambda _, args: contexts.extend(map(tuple, args[0].tolist())))
    modified_beam_search(model, encoder_outputs(8, 30), torch.full((8,), 30), beam=4)
    assert 1 < len(contexts) == len(set(contexts))


@pytest.mark.parametrize(("table", "slots"), [(0, 0), (0, 10**9), (25, 0)])
def test_predictor_with_and_without_cache(monkeypatch: pytest.MonkeyPatch, table: int, slots: int) -> None:
    monkeypatch.setattr("toolkit.search.predictor.WHOLE_TABLE", {"cpu": table})
    monkeypatch.setattr("toolkit.search.predictor.SLOTS", slots)
    model = FakeTransducer(vocab_size=5, seed=5)
    predictor = Predictor(model, torch.device("cpu"))
    contexts = predictor.initial(2, 3)
    tokens: list[int] = []
    with torch.no_grad():
        for token in (3, 1, 4, 4, 2):
            tokens.append(token)
            contexts = predictor.advance(contexts, torch.full_like(contexts, token))
            expected = model.joiner.decoder_proj(model.decoder(torch.tensor([[0, 0, *tokens][-2:]])))[0, -1]
            torch.testing.assert_close(predictor.decode(contexts), expected.expand(2, 3, -1))


def test_seconds() -> None:
    assert Hypothesis([5, 6], [0, 25], [-0.1, -0.2], -1.0).seconds(subsampling_factor=4) == [0.0, 1.0]


def test_bad_arguments_are_named() -> None:
    model = FakeTransducer()
    good = encoder_outputs(2, 5)
    with pytest.raises(ValueError, match="encoder_out_NTD"):
        greedy_search(model, good[0], torch.tensor([5, 5]))
    with pytest.raises(ValueError, match="lens_N"):
        greedy_search(model, good, torch.tensor([5]))
    with pytest.raises(ValueError, match=r"lens_N.*T=5"):
        modified_beam_search(model, good, torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="max_symbols"):
        greedy_search(model, good, torch.tensor([5, 5]), max_symbols=-1)
    with pytest.raises(ValueError, match="temperature"):
        greedy_search(model, good, torch.tensor([5, 5]), temperature=0.0)
    with pytest.raises(ValueError, match=r"merge='sum'.*log_add"):
        modified_beam_search(model, good, torch.tensor([5, 5]), merge="sum")
    with pytest.raises(ValueError, match="beam"):
        modified_beam_search(model, good, torch.tensor([5, 5]), beam=0)


def test_methods_are_checked_by_name() -> None:
    check_methods(["greedy_search", "modified_beam_search"], has_ctc=False)
    with pytest.raises(
        ValueError, match="'gredy_search' is not a search; known: greedy_search, modified_beam_search, beam_search"
    ):
        check_methods(["gredy_search"], has_ctc=False)
    with pytest.raises(ValueError, match="'ctc_greedy_search' needs a CTC head"):
        check_methods(["ctc_greedy_search"], has_ctc=False)
    with pytest.raises(ValueError, match="empty"):
        check_methods([], has_ctc=True)
    with pytest.raises(ValueError, match=r"'greedy_search' needs a transducer.*ctc_greedy_search"):
        check_methods(["greedy_search"], has_ctc=True, has_transducer=False)
