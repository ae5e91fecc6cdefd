"""Forced alignment against brute force over all paths, and the files that it leaves."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from search_fakes import FakeTransducer, encoder_outputs

from toolkit.align import Alignment, align_ctc, align_transducer
from toolkit.align.files import ctm, textgrid
from toolkit.align.run import choose_method, write_alignments
from toolkit.config import Config, CorpusConfig, LossConfig, ModelConfig, OptimConfig, Schedule, TokenConfig
from toolkit.data.tokenizer import Tokenizer
from toolkit.search.words import Word

# ----------------------------------------------------------------------------------------------------------- transducer


def score_of(model: FakeTransducer, encoder_TD: torch.Tensor, tokens: list[int], frames: list[int], kind: str) -> float:
    """log-probability of the path that emits token u in frames[u], term by term."""
    total, u = 0.0, 0
    for t in range(len(encoder_TD)):
        here = frames.count(t)
        for _ in range(here):
            total += float(model.step(encoder_TD[t], tokens[:u])[tokens[u]])
            u += 1
        if kind != "modified" or here == 0:  # the modified lattice reads the frame with the token
            total += float(model.step(encoder_TD[t], tokens[:u])[model.blank_id])
    return total


def best_by_hand(
    model: FakeTransducer, encoder_TD: torch.Tensor, tokens: list[int], kind: str
) -> tuple[float, list[int]]:
    t = len(encoder_TD)
    paths = itertools.combinations_with_replacement if kind == "regular" else itertools.combinations
    return max((score_of(model, encoder_TD, tokens, list(f), kind), list(f)) for f in paths(range(t), len(tokens)))


@pytest.mark.parametrize("kind", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("seed", range(3))
def test_transducer_alignment_is_the_best_of_all_paths(kind: str, seed: int) -> None:
    model, encoder_NTD = FakeTransducer(seed=seed), encoder_outputs(3, 5, seed=seed)
    tokens = [[1, 1, 3], [2], []]
    lens, token_lens = torch.tensor([5, 4, 2]), torch.tensor([3, 1, 0])
    tokens_NU = torch.tensor([t + [0] * (3 - len(t)) for t in tokens])
    for i, found in enumerate(align_transducer(model, encoder_NTD, lens, tokens_NU, token_lens, kind)):
        assert found is not None
        score, frames = best_by_hand(model, encoder_NTD[i, : lens[i]], tokens[i], kind)
        assert found.score == pytest.approx(score, abs=1e-4)
        assert (found.tokens, found.starts) == (tokens[i], frames)
        assert found.ends == [f + 1 for f in frames]
        assert found.states == [sum(f <= t for f in frames) for t in range(lens[i])]
        for u, f in enumerate(frames):
            expected = float(model.step(encoder_NTD[i, f], tokens[i][:u])[tokens[i][u]])
            assert found.log_probs[u] == pytest.approx(expected, abs=1e-4)


def test_transducer_alignment_that_does_not_exist_is_none() -> None:
    model, encoder_NTD = FakeTransducer(), encoder_outputs(2, 3)
    tokens_NU, token_lens = torch.ones(2, 4, dtype=torch.int64), torch.tensor([4, 4])
    lens = torch.tensor([3, 0])
    assert align_transducer(model, encoder_NTD, lens, tokens_NU, token_lens, "modified") == [None, None]
    regular = align_transducer(model, encoder_NTD, lens, tokens_NU, token_lens, "regular")
    assert regular[0] is not None and regular[1] is None
    with pytest.raises(ValueError, match="rnnt_type"):
        align_transducer(model, encoder_NTD, lens, tokens_NU, token_lens, "standard")


# ---------------------------------------------------------------------------------------------------------------- files


def test_ctm_has_a_line_a_word_sorted_by_id() -> None:
    words = {"b": [Word("TWO", 0.5, 0.75, 0.5)], "a": [Word("ONE", 0.04, 0.4, 0.98765), Word("X", 0.4, 0.6, 1.0)]}
    assert ctm(words) == "a 1 0.040 0.360 ONE 0.9877\na 1 0.400 0.200 X 1.0000\nb 1 0.500 0.250 TWO 0.5000\n"


def test_textgrid_fills_gaps_and_reads_back() -> None:
    text = textgrid({"words": [(0.2, 0.5, 'SAY "A"'), (0.4, 0.8, "B")], "none": []}, duration=1.0)
    assert text.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 1.000\n')
    numbers = r"xmin = ([\d.]+)\n\s+xmax = ([\d.]+)\n\s+text = \"(.*)\""
    assert [(float(a), float(b), c) for a, b, c in re.findall(numbers, text)] == [
        (0.0, 0.2, ""), (0.2, 0.5, 'SAY ""A""'), (0.5, 0.8, "B"), (0.8, 1.0, ""), (0.0, 1.0, ""),
    ]  # fmt: skip
    assert re.findall(r"intervals: size = (\d+)", text) == ["4", "1"]
    assert "xmax = 2.000" in textgrid({"words": [(0.2, 2.0, "A")]}, duration=1.0)
    with pytest.raises(ValueError, match=r"'A' ends at 0\.1 before it begins"):
        textgrid({"words": [(0.2, 0.1, "A")]}, duration=1.0)


# ------------------------------------------------------------------------------------------------------------------ CTC


def labellings(tokens: list[int], num_frames: int, vocab_size: int) -> list[tuple[int, ...]]:
    return [
        path
        for path in itertools.product(range(vocab_size), repeat=num_frames)
        if [c for c, _ in itertools.groupby(path) if c] == tokens
    ]


@pytest.mark.parametrize("seed", range(3))
def test_ctc_alignment_is_the_best_of_all_labellings(seed: int) -> None:
    model, encoder_NTD = FakeTransducer(seed=seed), encoder_outputs(3, 5, seed=seed)
    tokens, lens = [[1, 1], [2], []], [5, 4, 2]
    tokens_NU = torch.tensor([t + [0] * (2 - len(t)) for t in tokens])
    found = align_ctc(model, encoder_NTD, torch.tensor(lens), tokens_NU, torch.tensor([2, 1, 0]))
    for alignment, encoder_TD, length, expected in zip(found, encoder_NTD, lens, tokens):
        assert alignment is not None
        log_probs_TV = model.ctc_log_probs(encoder_TD[:length]).detach()
        scored = [(sum(float(log_probs_TV[t, c]) for t, c in enumerate(p)), p) for p in labellings(expected, length, 4)]
        score, path = max(scored)
        assert alignment.score == pytest.approx(score, abs=1e-4)
        runs = [(c, list(g)) for c, g in itertools.groupby(enumerate(path), key=lambda x: x[1]) if c]
        assert alignment.tokens == [c for c, _ in runs] == expected
        assert (alignment.starts, alignment.ends) == ([g[0][0] for _, g in runs], [g[-1][0] + 1 for _, g in runs])
        assert len(alignment.states) == length
        for t, state in enumerate(alignment.states):
            assert path[t] == (expected[state // 2] if state % 2 else 0)


def test_ctc_alignment_that_does_not_exist_is_none() -> None:
    model, encoder_NTD = FakeTransducer(), encoder_outputs(3, 3)
    tokens_NU = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 2, 3]])
    found = align_ctc(model, encoder_NTD, torch.tensor([2, 3, 0]), tokens_NU, torch.tensor([2, 2, 3]))
    assert found[0] is None and found[1] is not None and found[2] is None


# ------------------------------------------------------------------------------------------------------ from end to end


def test_files_of_a_part_name_what_could_not_be_aligned(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["AB BA"], TokenConfig(kind="char"))
    good = Alignment(tokenizer.encode("AB A"), [1, 2, 4, 8, 9], [2, 4, 5, 9, 12], [-0.1] * 5, -1.0, [0] * 15)
    write_alignments(tmp_path, "test", {"u1": good, "u2": None}, {"u1": 0.6, "u2": 0.1}, tokenizer, 4)
    assert (tmp_path / "test.ctm").read_text() == "u1 1 0.040 0.160 AB 0.9048\nu1 1 0.320 0.160 A 0.9048\n"
    assert (tmp_path / "test-tokens.ctm").read_text().count("\n") == 5
    assert (tmp_path / "test-failed.txt").read_text() == "u2\n"
    assert json.loads((tmp_path / "test.jsonl").read_text())["starts"] == [1, 2, 4, 8, 9]
    assert sorted(p.name for p in (tmp_path / "test").iterdir()) == ["u1.TextGrid"]
    write_alignments(tmp_path, "test", {"u1": good}, {"u1": 0.6}, tokenizer, 4, textgrids=False)
    assert not (tmp_path / "test-failed.txt").exists()


def test_a_method_that_the_model_cannot_do_is_refused() -> None:
    off = Schedule(initial=0.0, final=0.0)
    base = Config(name="x", corpus=CorpusConfig(name="x"), optim=OptimConfig(lr=1.0))
    ctc = dataclasses.replace(
        base,
        model=ModelConfig(transducer=False, ctc_head=True),
        loss=LossConfig(simple=off, pruned=off, ctc=Schedule()),
    )
    assert choose_method("auto", base) == "transducer" and choose_method("auto", ctc) == "ctc"
    for method, config in (("ctc", base), ("transducer", ctc)):
        with pytest.raises(ValueError, match=f"align.method={method}"):
            choose_method(method, config)
