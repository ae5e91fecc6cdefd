"""Findings by rule; tables from runs that are there and runs that are not; cells measured once."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest

from toolkit.config import Config, CorpusConfig, DecodingConfig, TablesConfig
from toolkit.eval import cells as cells_module
from toolkit.eval import tables as tables_module
from toolkit.eval.cells import Cell, Laboratory, Result
from toolkit.eval.findings import MISSING, NO, UNCLEAR, YES, Counts, compare, compare_speed, difference
from toolkit.eval.tables import experiments, make_tables
from toolkit.eval.wer import WordErrors


def test_the_rule_tells_better_worse_and_unclear() -> None:
    words = [10] * 200
    good, bad = Counts([1] * 200, words), Counts([2] * 200, words)
    assert compare("", good, bad, "better").verdict == YES
    assert compare("", bad, good, "better").verdict == NO
    assert compare("", bad, good, "equal").verdict == NO
    assert compare("", good, good, "equal").verdict == YES
    assert compare("", good, good, "better").verdict == UNCLEAR
    few = Counts([0, 3], [10, 10]), Counts([2, 0], [10, 10])
    assert compare("", *few, "better").verdict == compare("", *few, "equal").verdict == UNCLEAR
    assert compare("", None, good, "equal").verdict == MISSING
    with pytest.raises(ValueError, match="'better' or 'equal'"):
        compare("", good, bad, "worse")
    with pytest.raises(ValueError, match="not measured on the same utterances"):
        difference(good, Counts([1], [10]))
    assert difference(Counts([0], [0]), Counts([0], [0])) == (0.0, 0.0, 0.0)


def test_differences_are_paired() -> None:
    """The same hard utterances in both: paired, a small difference is certain though both rates vary widely."""
    base = [i % 10 for i in range(300)]
    delta, low, high = difference(Counts([e + 1 for e in base], [10] * 300), Counts(base, [10] * 300))
    assert (delta, low, high) == pytest.approx((10.0, 10.0, 10.0))


def test_speed_rule() -> None:
    assert compare_speed("", [9.0, 8.0], [1.0, 2.0], paper=10.0).verdict == YES
    assert compare_speed("", [3.0], [1.0], paper=10.0).verdict == UNCLEAR
    assert compare_speed("", [1.0], [2.0], paper=10.0).verdict == NO
    assert compare_speed("", None, [2.0], paper=10.0).verdict == MISSING


class FakeLaboratory(Laboratory):
    """Measures nothing: errors follow from the cell."""

    measured: ClassVar[list[Cell]] = []

    def has(self, experiment: str) -> bool:
        return not experiment.endswith("-0") or (self.experiment_dir(experiment) / "trained").is_file()

    def _key(self, cell: Cell) -> str:
        options = "-".join(f"{k}{v}" for k, v in cell.options if k != "graph")
        return f"{cell.experiment}-{cell.method}-{options}-{cell.timing}"

    def _decode(self, cell: Cell) -> Result:
        self.measured.append(cell)
        result = Result()
        for part in self.config.corpus.test:
            wrong = 2 if "constrained" in cell.experiment else 1
            result.counts[part] = Counts([wrong] * 50, [10] * 50)
            result.errors[part] = WordErrors(0, 0, 50 * wrong, 500, 50, (9.0, 11.0))
        return result

    def _time(self, cell: Cell) -> Result:
        self.measured.append(cell)
        seconds = 8.0 if cell.method == "beam_search" else 1.0
        return Result(seconds=[seconds, 2 * seconds], search_seconds=[seconds / 2, seconds], audio_seconds=100.0)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(tables_module, "Laboratory", FakeLaboratory)
    monkeypatch.setattr(tables_module, "decoding_graph", lambda *_: "LG.pt")
    monkeypatch.setattr(FakeLaboratory, "measured", [])
    return Config(
        name="toy",
        exp_root=str(tmp_path),
        corpus=CorpusConfig(name="toy", test=["clean", "other"]),
        optim=None,  # type: ignore[arg-type]
        decoding=DecodingConfig(),
    )


def test_all_tables_are_written_and_nothing_is_measured_twice(config: Config) -> None:
    folder = make_tables(config)
    text = (folder / "tables.md").read_text()
    for number in range(1, 7):
        assert f"## Table {number}." in text
        rows = list(csv.reader((folder / f"table-{number}.csv").open()))
        assert len(rows) > 5 and len({len(row) for row in rows}) == 1
    assert "Missing runs: toy-regular-0, toy-modified-0, toy-constrained-0" in text
    first = list(csv.reader((folder / "table-1.csv").open()))
    assert {row[2] for row in first[1:]} == {"no run"}
    second = list(csv.reader((folder / "table-2.csv").open()))
    assert second[1] == ["regular", "greedy_search S=1", "10.00 [9.00, 11.00]", "10.00 [9.00, 11.00]", "2.66 / 6.25"]
    assert (
        "| regular: greedy with S=1 is as good as with S=∞ | 10.00 against 10.00 %: +0.00 [+0.00, +0.00] | reproduced |"
        in text
    )
    assert (
        "| constrained is as good as regular (greedy, S=1) | 20.00 against 10.00 %: +10.00 [+10.00, +10.00] | not reproduced |"
        in text
    )
    assert "lm_scale 0.25 is better than 0 (greedy, S=1) |  | not measured |" in text
    assert (
        "| modified beam search (S=1) is faster than beam search with S=∞ | 8.0 times as fast (paper: 18.4) | not disting"
        in text
    )
    cells = len(FakeLaboratory.measured)
    assert cells == len({str(c) for c in FakeLaboratory.measured})
    assert make_tables(config) == folder
    assert len(FakeLaboratory.measured) == cells
    assert (folder / "tables.md").read_text() == text


def test_missing_runs_are_trained_when_asked(config: Config, tmp_path: Path) -> None:
    trained: list[Any] = []

    def train(one: Config) -> None:
        trained.append((one.name, one.loss.rnnt_type, one.loss.lm_only_scale, one.trainer.max_minutes))
        (tmp_path / one.name).mkdir()
        (tmp_path / one.name / "trained").touch()

    wanted = TablesConfig(types=["regular"], train=True, train_minutes=3.0, tables=[1])
    folder = make_tables(dataclasses.replace(config, tables=wanted), train)
    assert trained == [("toy-regular-0", "regular", 0.0, 3.0), ("toy-regular-25", "regular", 0.25, 3.0)]
    assert "no run" not in (folder / "tables.md").read_text()
    assert experiments(config)["modified", 0.25] == "toy-modified-25"
    with pytest.raises(ValueError, match="some of 1"):
        TablesConfig(tables=[7])


def test_a_checkpoint_that_was_replaced_is_loaded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of a run that goes on training belong to the checkpoint that their file's name says."""
    config = Config(
        name="toy",
        exp_root=str(tmp_path),
        corpus=CorpusConfig(name="toy"),
        optim=None,  # type: ignore[arg-type]
        decoding=DecodingConfig(),
    )
    (tmp_path / "run").mkdir()
    best = tmp_path / "run" / "best.pt"
    monkeypatch.setattr(cells_module, "load_model", lambda *_: (best.read_text(), "tokenizer", None))
    best.write_text("first")
    lab, cell = Laboratory(config, tmp_path), Cell("run", "greedy_search")
    key, model = lab._key(cell), lab.model("run")
    lab._encoded["test"] = ["of the first model"]
    assert lab.model("run") is model and lab._encoded
    best.write_text("second one")
    assert lab._key(cell) != key
    assert lab.model("run") == ("second one", "tokenizer") and not lab._encoded
