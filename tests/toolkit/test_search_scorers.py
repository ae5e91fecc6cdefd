"""N-gram scorers against the definition of back-off, sums, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scorer_fakes import naive_sentence, random_ngram, random_sequences, stepwise, to_arpa

from ops import NgramLM
from toolkit.search import scorers as scorers_module
from toolkit.search.lm_scorers import NgramScorer, WordNgramScorer
from toolkit.search.scorers import SumScorer, combine, lodr, reorder, score_sequences

TOKENS = ["<blk>", "<sos/eos>", "<unk>", "▁", "A", "B", "▁C"]


def load(path: Path, words: list[str], order: int, seed: int) -> tuple[dict, NgramLM]:
    table = random_ngram(words, order, seed)
    (path / f"{seed}.arpa").write_text(to_arpa(table, order))
    return table, NgramLM.load(path / f"{seed}.arpa", cache=False)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_token_ngram_is_the_definition(tmp_path: Path, order: int) -> None:
    table, lm = load(tmp_path, TOKENS[3:], order, seed=order)
    scorer = NgramScorer(lm, TOKENS)
    sequences = random_sequences(len(TOKENS), 50, 8, order)
    expected = [naive_sentence(table, order, [TOKENS[v] for v in s]) for s in sequences]
    torch.testing.assert_close(score_sequences(scorer, sequences), torch.tensor(expected), atol=1e-3, rtol=0)
    torch.testing.assert_close(stepwise(scorer, sequences), torch.tensor(expected), atol=1e-3, rtol=0)
    assert scorer.history == order - 1


def test_search_by_keys_is_the_routine_of_the_model(tmp_path: Path) -> None:
    """What a GPU does, on the CPU: the automaton as sorted keys, and no table of rows."""
    _, lm = load(tmp_path, TOKENS[3:], 3, seed=7)
    expected, scorer = NgramScorer(lm, TOKENS), NgramScorer(lm, TOKENS)
    scorer.ngram.make_keys(torch.device("cpu"))
    scorer.ngram.score = scorer.ngram.score_by_keys  # type: ignore[method-assign]
    states = torch.arange(lm.num_states).repeat_interleave(len(TOKENS))
    tokens = torch.arange(len(TOKENS)).repeat(lm.num_states)
    for a, b in zip(scorer.arcs(states, tokens), expected.arcs(states, tokens)):
        torch.testing.assert_close(a, b)
    sequences = random_sequences(len(TOKENS), 20, 8, 1)
    scorer.init(1, "cpu")
    scorer.table.used = False  # type: ignore[union-attr]
    torch.testing.assert_close(stepwise(scorer, sequences), stepwise(expected, sequences))
    torch.testing.assert_close(score_sequences(scorer, sequences), score_sequences(expected, sequences))


def test_rows_are_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, lm = load(tmp_path, TOKENS[3:], 4, seed=8)
    sequences = random_sequences(len(TOKENS), 30, 8, 2)
    expected = score_sequences(NgramScorer(lm, TOKENS), sequences)
    monkeypatch.setattr(scorers_module, "TABLE", 40 * len(TOKENS))  # fewer rows than states
    scorer = NgramScorer(lm, TOKENS)
    for i in range(0, 30, 10):
        torch.testing.assert_close(score_sequences(scorer, sequences[i : i + 10]), expected[i : i + 10])
    assert scorer.table is not None and len(scorer.table.log_probs_RV) <= 40


@pytest.mark.parametrize("seed", range(3))
def test_word_ngram_needs_no_lexicon(tmp_path: Path, seed: int) -> None:
    """Any cutting into tokens spells the same words; unknown and empty ones are handled."""
    table, lm = load(tmp_path, ["A", "AB", "CA", "C"], 3, seed=20 + seed)
    scorer = WordNgramScorer(lm, TOKENS)
    sequences = random_sequences(len(TOKENS), 60, 9, seed)
    sequences = [[v for v in s if v > 2] for s in sequences] + [[3], [3, 3, 4], [4], [6, 4, 3, 4, 5]]
    expected = []
    for s in sequences:
        words = "".join(TOKENS[v] for v in s).replace("▁", " ").split()
        expected.append(naive_sentence(table, 3, words))
    torch.testing.assert_close(score_sequences(scorer, sequences), torch.tensor(expected), atol=1e-3, rtol=0)
    torch.testing.assert_close(stepwise(scorer, sequences), torch.tensor(expected), atol=1e-3, rtol=0)


def test_unknown_words_may_cost_what_one_likes(tmp_path: Path) -> None:
    table, lm = load(tmp_path, ["A"], 1, seed=3)
    scorer = WordNgramScorer(lm, TOKENS, unk_log_prob=-20.0)
    total = score_sequences(scorer, [[3, 4, 3, 5]])
    assert float(total) == pytest.approx(table[("A",)][0] - 20.0 + table[("</s>",)][0], abs=1e-3)


def test_sums_and_density_ratios(tmp_path: Path) -> None:
    _, a = load(tmp_path, TOKENS[3:], 3, seed=30)
    _, b = load(tmp_path, TOKENS[3:], 2, seed=31)
    external, source = NgramScorer(a, TOKENS), NgramScorer(b, TOKENS)
    sequences = random_sequences(len(TOKENS), 20, 6, 4)
    both = lodr(external, source, 0.5, 0.2)
    expected = 0.5 * score_sequences(external, sequences) - 0.2 * score_sequences(source, sequences)
    torch.testing.assert_close(score_sequences(both, sequences), expected)
    torch.testing.assert_close(stepwise(both, sequences), expected)
    assert both.history == 2
    assert SumScorer([external, WordNgramScorer(load(tmp_path, ["A"], 1, 5)[1], TOKENS)], [1, 1]).history is None
    off = SumScorer([external], [0.0])
    assert score_sequences(off, sequences).abs().max() == 0.0


def test_reordering_keeps_rows(tmp_path: Path) -> None:
    _, lm = load(tmp_path, TOKENS[3:], 3, seed=40)
    for scorer in (NgramScorer(lm, TOKENS), WordNgramScorer(lm, TOKENS)):
        state = scorer.init(3, "cpu")
        _, state = scorer.advance(state, torch.arange(3), torch.tensor([3, 4, 6]))
        turned = reorder(scorer, state, torch.tensor([2, 0, 1, 1]))
        torch.testing.assert_close(scorer.final(turned), scorer.final(state)[[2, 0, 1, 1]])
        torch.testing.assert_close(scorer.log_probs(turned), scorer.log_probs(state)[[2, 0, 1, 1]])


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    _, lm = load(tmp_path, ["HELLO", "WORLD"], 2, seed=50)
    with pytest.raises(ValueError, match=r"no word for 4 of the model's 7 tokens.*HELLO.*lm_unit=word"):
        NgramScorer(lm, TOKENS)
    with pytest.raises(ValueError, match=r"no word of the LM \(HELLO, WORLD"):
        WordNgramScorer(lm, TOKENS)
    _, good = load(tmp_path, TOKENS[3:], 2, seed=51)
    with pytest.raises(ValueError, match="a NgramScorer is for 7 tokens with blank 0; the model has 9 with blank 0"):
        combine([NgramScorer(good, TOKENS)], 9, 0)
    with pytest.raises(ValueError, match="1 of them for 2 scorers"):
        SumScorer([NgramScorer(good, TOKENS)] * 2, [1.0])
    assert combine([], 9, 0) is None
