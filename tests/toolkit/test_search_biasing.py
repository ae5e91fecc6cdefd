"""Biasing against a naive count of phrases."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from scorer_fakes import all_phrases, naive_bias, random_sequences, stepwise

from toolkit.config import TokenConfig
from toolkit.data.tokenizer import Tokenizer
from toolkit.search.biasing import Biasing, BiasScorer, Phrase
from toolkit.search.scorers import score_sequences

V = 4


def some_phrases(seed: int, count: int) -> list[tuple[tuple[int, ...], float]]:
    rng = random.Random(seed)
    return [(p, rng.choice([0.5, 1.0, 2.0, -1.0])) for p in rng.sample(all_phrases(V, 4), count)]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("words", [False, True])
def test_totals_are_those_of_a_naive_count(seed: int, words: bool) -> None:
    """Phrases that contain, overlap and begin each other, given twice, with and without word boundaries."""
    phrases = some_phrases(seed, 1 + 3 * seed)
    phrases.append((phrases[0][0], 3.0))
    starts = [False, True, False, True] if words else None
    scorer = BiasScorer([[Phrase(*p) for p in phrases]], V, starts_V=torch.tensor(starts) if starts else None)
    sequences = random_sequences(V, 60, 12, seed)
    expected = torch.tensor([naive_bias(phrases, s, starts) for s in sequences])
    torch.testing.assert_close(score_sequences(scorer, sequences), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(stepwise(scorer, sequences), expected, atol=1e-4, rtol=0)


def test_bonus_comes_at_once_and_goes_when_the_phrase_does() -> None:
    scorer = BiasScorer([[Phrase((1, 2, 3), 2.0)]], 5)
    state = scorer.init(1, "cpu")
    gains = []
    for token in (1, 0, 2, 4, 1, 2, 3):
        gain, state = scorer.advance(state, torch.tensor([0]), torch.tensor([token]))
        gains.append(float(gain))
    assert gains == [2.0, 0.0, 2.0, -4.0, 2.0, 2.0, 2.0]
    assert float(scorer.final(state)) == 0.0
    _, state = scorer.advance(state, torch.tensor([0]), torch.tensor([1]))
    assert float(scorer.final(state)) == -2.0


def test_a_list_an_utterance_is_as_many_scorers() -> None:
    lists = [[Phrase(*p) for p in some_phrases(seed, 6)] for seed in range(3)] + [[]]
    chosen = [2, 0, 3, 1, 2, 0]
    sequences = random_sequences(V, len(chosen), 12, 5)
    together = score_sequences(BiasScorer(lists, V).choose(chosen), sequences)
    single = [score_sequences(BiasScorer([lists[i]], V), [s])[0] for i, s in zip(chosen, sequences)]
    torch.testing.assert_close(together, torch.stack(single))
    assert float(together[2]) == 0.0
    with pytest.raises(ValueError, match="4: expected list numbers below 4"):
        BiasScorer(lists, V).choose([0, 4])
    with pytest.raises(ValueError, match="chosen for 6 utterances, the search has 2"):
        score_sequences(BiasScorer(lists, V).choose(chosen), sequences[:2])


def test_no_phrases_cost_nothing() -> None:
    scorer = BiasScorer([[]], V)
    sequences = random_sequences(V, 5, 6, 0)
    assert score_sequences(scorer, sequences).tolist() == [0.0] * 5
    assert stepwise(scorer, sequences).tolist() == [0.0] * 5


def test_large_lists_have_few_arcs_and_right_scores() -> None:
    rng = random.Random(1)
    phrases = {tuple(rng.randrange(1, 500) for _ in range(rng.randrange(2, 7))) for _ in range(10000)}
    scorer = BiasScorer([[Phrase(p, 1.0) for p in phrases]], 500)
    assert len(scorer.keys_A) < 4_000_000  # of 20 million arcs of the full table
    chosen = rng.sample(sorted(phrases), 20)
    sequences = [[*a, 7, *b] for a, b in zip(chosen[::2], chosen[1::2])]
    expected = torch.tensor([naive_bias([(p, 1.0) for p in phrases], s) for s in sequences])
    torch.testing.assert_close(score_sequences(scorer, sequences), expected, atol=1e-4, rtol=0)


def test_bad_phrases_are_named() -> None:
    for tokens in ((), (1, 0), (1, 9)):
        with pytest.raises(ValueError, match="expected some tokens below 4 without blank 0"):
            BiasScorer([[Phrase(tokens, 1.0)]], V)
    with pytest.raises(ValueError, match="at least one list"):
        BiasScorer([], V)


def test_lists_from_files(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["NEW YORK ART ARTIST"], TokenConfig(kind="char"))

    def total(biasing: Biasing, text: str, id: str = "a") -> float:
        return float(score_sequences(biasing.for_utterances([id]), [tokenizer.encode(text)])[0])

    inline = Biasing(["NEW YORK", "ART"], tokenizer, 1.0)
    assert total(inline, "A NEW YORK ART") == 9.0 + 4.0
    assert total(inline, "A NEW YORK ARTIST") == 9.0  # ART is no word there
    path = tmp_path / "phrases.txt"
    path.write_text("NEW  YORK\n\nART\t0.5\n")
    assert total(Biasing(str(path), tokenizer, 2.0), "NEW YORK ART") == 18.0 + 2.0
    lists = tmp_path / "lists.jsonl"
    lists.write_text("".join(json.dumps({"id": i, "phrases": p}) + "\n" for i, p in (("a", ["ART"]), ("b", ["NEW"]))))
    biasing = Biasing(str(lists), tokenizer, 1.0)
    assert [total(biasing, "NEW ART", i) for i in "abc"] == [4.0, 4.0, 0.0]
    assert [total(biasing, "NEW", i) for i in "abc"] == [0.0, 4.0, 0.0]
    with pytest.raises(FileNotFoundError, match="no such file"):
        Biasing(str(tmp_path / "none.txt"), tokenizer, 1.0)
    with pytest.raises(ValueError, match="'new york' cannot be spelt"):
        Biasing(["new york"], tokenizer, 1.0)
    path.write_text("ART\tmuch\n")
    with pytest.raises(ValueError, match="a phrase, a tab and a number"):
        Biasing(str(path), tokenizer, 1.0)
    lists.write_text('{"id": 3}\n')
    with pytest.raises(ValueError, match="line 1: expected"):
        Biasing(str(lists), tokenizer, 1.0)
