"""The CTC beam search as one of the toolkit's searches, and the sweep over its settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.config import CtcBeamConfig, DecodingConfig
from toolkit.data.tokenizer import Tokenizer
from toolkit.eval.ctc_sweep import SweepRow, decode_all, draw, frontier, grid, sweep_table
from toolkit.search import CTC_SEARCHES, SEARCHES, check_methods, to_words
from toolkit.search.ctc_beam import ctc_beam, prepared

TOKENIZER = Tokenizer("char", ["<blk>", "<sos/eos>", "<unk>", "\u2581", *"ENOTW"])


class Spoken:
    """A model whose CTC head says what it is given."""

    blank_id = 0

    def ctc_log_probs(self, encoder_out_NTD: Tensor) -> Tensor:
        return encoder_out_NTD.log_softmax(dim=2)


def say(text: str, frames: int = 24, certain: float = 6.0) -> Tensor:
    """Each character for two frames, blanks between and behind."""
    x = torch.zeros(frames, TOKENIZER.vocab_size)
    x[:, 0] = certain
    for i, token in enumerate(TOKENIZER.encode(text)):
        x[3 * i : 3 * i + 2, 0] = 0.0
        x[3 * i : 3 * i + 2, token] = certain
    return x


def search(config: DecodingConfig, texts: list[str], lens: list[int] | None = None) -> list[Any]:
    x = torch.stack([say(text) for text in texts])
    return SEARCHES["ctc_beam"](Spoken(), x, torch.tensor(lens or [x.shape[1]] * len(texts)), config)


def config(tmp_path: Path, **settings: Any) -> DecodingConfig:
    return prepared(DecodingConfig(methods=["ctc_beam"], ctc_beam=CtcBeamConfig(**settings)), TOKENIZER, tmp_path)


def test_without_lexicon_it_hears_letters(tmp_path: Path) -> None:
    results = search(config(tmp_path), ["ONE TWO", "WOW"], [24, 24])
    assert [TOKENIZER.decode(r.best.tokens) for r in results] == ["ONE TWO", "WOW"]
    best = results[1].best
    assert best.words is None and best.frames == [0, 3, 6, 9] and best.ends == [2, 5, 8, 11]
    assert [w.text for w in to_words(results[0].best, TOKENIZER, 4)] == ["ONE", "TWO"]


def test_with_a_list_of_words_it_hears_those(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("<eps> 0\n!SIL 1\nONE 2\nTWO 3\nTEN 4\nSIX 5\n#0 6\n")
    d = config(tmp_path, lexicon=str(tmp_path / "words.txt"), nbest=2)
    assert Path(d.ctc_beam.lexicon or "").read_text().splitlines()[0].split() == ["ONE", "\u2581", "O", "N", "E"]
    results = search(d, ["ONE", "TWE"])
    assert results[0].best.words == ["ONE"] and TOKENIZER.decode(results[0].best.tokens) == "ONE"
    assert results[1].best.words in (["TWO"], ["TEN"], []) and len(results[1].nbest) == 2
    assert search(d, ["ONE"], [0])[0].best.tokens == []
    assert ctc_beam(Spoken(), torch.zeros(0, 5, 9), torch.zeros(0, dtype=torch.int64), d.ctc_beam) == []


def test_spelled_lexicon_and_lm(tmp_path: Path) -> None:
    (tmp_path / "lexicon.txt").write_text("TO \u2581 T O\nTOO \u2581 T O\n")
    lines = [
        "\\data\\",
        "ngram 1=5",
        "",
        "\\1-grams:",
        "-3 <unk>",
        "-99 <s>",
        "-0.5 </s>",
        "-2 TO",
        "-0.2 TOO",
        "",
        "\\end\\",
    ]
    (tmp_path / "lm.arpa").write_text("\n".join(lines) + "\n")
    lexicon, lm = str(tmp_path / "lexicon.txt"), str(tmp_path / "lm.arpa")
    assert search(config(tmp_path, lexicon=lexicon, lm=lm), ["TO"])[0].best.words == ["TOO"]
    assert search(config(tmp_path, lexicon=lexicon, lm=lm, lm_weight=-1.0), ["TO"])[0].best.words == ["TO"]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"decoding\.ctc_beam\.lexicon: no .*none\.txt"):
        config(tmp_path, lexicon=str(tmp_path / "none.txt"))
    (tmp_path / "words.txt").write_text("SIX\n")
    with pytest.raises(ValueError, match="can spell none of its words"):
        config(tmp_path, lexicon=str(tmp_path / "words.txt"))
    with pytest.raises(ValueError, match=r"decoding\.ctc_beam\.beam_size"):
        CtcBeamConfig(beam_size=0)
    with pytest.raises(ValueError, match="CTC head"):
        check_methods(["ctc_beam"], has_ctc=False)
    assert "ctc_beam" in CTC_SEARCHES
    untouched = DecodingConfig()
    assert prepared(untouched, TOKENIZER, tmp_path) is untouched


def test_sweep_tries_all_settings(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("ONE\nTWO\nTEN\n")
    settings = config(
        tmp_path, lexicon=str(tmp_path / "words.txt"), sweep_word_score=[-50.0, 0.0], sweep_beam_size=[1, 8]
    )
    configs = grid(settings.ctc_beam)
    assert len(configs) == 4 and {c.lm_weight for c in configs} == {0.0}  # no LM, no weight
    batches = [(say(t)[None].log_softmax(2), torch.tensor([24])) for t in ("ONE", "TWO TEN")]
    rows = decode_all(configs, batches, ["ONE", "TWO TEN"], TOKENIZER, threads=2)
    assert [r.config for r in rows] == configs
    by_score = {(r.config.word_score, r.config.beam_size): r.wer for r in rows}
    assert by_score[0.0, 8] == 0.0 and by_score[-50.0, 8] == 100.0  # words too dear to be said
    table = sweep_table(sorted(rows, key=lambda r: r.wer))
    assert len(table.splitlines()) == 6 and "★" in table


def test_frontier_and_drawing(tmp_path: Path) -> None:
    c = CtcBeamConfig()
    rows = [
        SweepRow(dataclasses.replace(c, beam_size=b), wer, s)
        for b, wer, s in [(1, 9.0, 1.0), (2, 9.5, 2.0), (3, 8.0, 3.0)]
    ]
    assert [r.config.beam_size for r in frontier(rows)] == [1, 3]
    pytest.importorskip("matplotlib")
    draw(rows, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"
