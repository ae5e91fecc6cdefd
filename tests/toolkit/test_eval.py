"""Word errors, result files, and the decoding pipeline on a fake run."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from search_fakes import FakeTransducer

from toolkit.config import Config, CorpusConfig, DecodingConfig, FeatureConfig, ModelConfig, OptimConfig
from toolkit.data.batch import Batch
from toolkit.eval import decode as pipeline
from toolkit.eval.reports import ResultRow, errs, markdown_table, marked, recogs, wer_summary, write_text
from toolkit.eval.wer import Utterance, WordErrors, align, word_errors

UTTERANCES = [
    Utterance("b", ["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "on", "a", "mat", "mat"]),
    Utterance("a", ["yes"], ["yes"]),
    Utterance("c", [], ["uh"]),
    Utterance("d", ["no", "no"], []),
]


def levenshtein(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


def test_errors_and_alignments_agree_with_the_textbook() -> None:
    rng = random.Random(0)
    for _ in range(50):
        ref, hyp = ([rng.choice("abc") for _ in range(rng.randint(0, 7))] for _ in range(2))
        u = Utterance("x", ref, hyp)
        errors = word_errors([u], replications=1)
        assert errors.errors == levenshtein(ref, hyp)
        ali = align(u)
        assert [r for r, _ in ali if r] == ref
        assert [h for _, h in ali if h] == hyp
        assert sum(r != h for r, h in ali) == errors.errors


def test_totals_over_a_set() -> None:
    errors = word_errors(UTTERANCES)
    assert (errors.words, errors.utterances) == (9, 4)
    assert errors.errors == 6
    assert errors.wer == pytest.approx(600 / 9)
    assert errors.insertions - errors.deletions == 8 - 9  # hypothesis words less reference words


def test_confidence_interval_is_that_of_the_bootstrap() -> None:
    """Against percentiles of a bootstrap written out here."""
    rng = random.Random(1)
    utterances = []
    for i in range(200):
        ref = [rng.choice("abcdef") for _ in range(rng.randint(3, 12))]
        utterances.append(Utterance(str(i), ref, [w if rng.random() > 0.2 else "x" for w in ref]))
    errors = word_errors(utterances)
    counts = [(levenshtein(u.ref, u.hyp), len(u.ref)) for u in utterances]
    rates = []
    for _ in range(2000):
        wrong, words = zip(*rng.choices(counts, k=len(counts)))
        rates.append(100 * sum(wrong) / sum(words))
    rates.sort()
    assert errors.ci95 is not None
    assert errors.ci95[0] < errors.wer < errors.ci95[1]
    assert errors.ci95[0] == pytest.approx(rates[50], abs=0.3)
    assert errors.ci95[1] == pytest.approx(rates[1950], abs=0.3)
    assert word_errors(utterances).ci95 == errors.ci95


def test_empty_references_divide_nothing_by_zero() -> None:
    assert word_errors([]) == WordErrors(0, 0, 0, 0, 0, None)
    silent = word_errors([Utterance("a", [], [])])
    assert (silent.wer, silent.ci95, str(silent)) == (0.0, None, "0.00")
    invented = word_errors([Utterance("a", [], ["uh"])])
    assert math.isinf(invented.wer)
    assert str(invented) == "n/a (1 errors, no reference words)"
    # Some draws of the bootstrap have no reference words at all.
    assert word_errors([Utterance("a", ["x"], ["x"]), Utterance("b", [], ["uh"])]).ci95 is None
    perfect = word_errors([Utterance(str(i), ["x"], ["x"]) for i in range(3)])
    assert str(perfect) == "0.00 [0.00, 0.00]"


def test_recogs() -> None:
    assert recogs(UTTERANCES[1:3]) == "a:\tref=['yes']\na:\thyp=['yes']\nc:\tref=[]\nc:\thyp=['uh']\n"


def test_marked() -> None:
    assert marked([("a", "a"), ("b", "x"), ("c", ""), ("d", "d"), ("", "e")]) == "a (b c->x) d (*->e)"
    assert marked([]) == ""


def test_errs() -> None:
    utterances = [Utterance("u1", ["a", "b", "c"], ["a", "x", "c", "c"]), Utterance("u2", ["b", "d"], ["x"])]
    text = errs(utterances, word_errors(utterances))
    head, *sections = text.split("\n\n")
    assert (
        head.splitlines()[1] == "Errors: 1 insertions, 1 deletions, 2 substitutions, over 5 reference words (2 correct)"
    )
    assert sections[0].splitlines()[1] == "u1:\ta (b->x) c (*->c)"
    assert sections[1].splitlines()[0] == "SUBSTITUTIONS: count ref -> hyp"
    assert sum(int(line.split()[0]) for line in sections[1].splitlines()[1:]) == 2
    assert sections[3] == "INSERTIONS: count hyp\n1   c"
    stats = {line.split()[0]: [int(x) for x in line.split()[1:]] for line in sections[4].splitlines()[1:]}
    assert stats["a"] == [1, 0, 1, 1]
    assert stats["c"] == [1, 1, 1, 2]
    assert stats["x"] == [0, 2, 0, 2]
    assert stats["b"][3] == 0


def row(method: str, errors: WordErrors, audio: float = 10.0) -> ResultRow:
    return ResultRow(method, method, "test", errors, audio, 0.5, 0.25)


def test_summary_and_table() -> None:
    rows = [
        row("slow", WordErrors(1, 2, 3, 100, 10, (3.0, 9.0))),
        row("fast", WordErrors(0, 0, 1, 100, 10, (0.0, 2.0))),
        row("none", WordErrors(0, 0, 0, 0, 0), audio=0.0),
    ]
    assert wer_summary(rows[:2]) == "settings\tWER\tci95min\tci95max\nfast\t1.00\t0.00\t2.00\nslow\t6.00\t3.00\t9.00\n"
    table = markdown_table(rows).splitlines()
    assert table[2] == "| test | slow | 6.00 [3.00, 9.00] | 1 | 2 | 3 | 100 | 10 | 10.0 | 0.0750 |"
    assert table[4] == "| test | none | 0.00 | 0 | 0 | 0 | 0 | 0 | 0.0 | n/a |"


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "x.txt", "old")

    def full(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            write_text(tmp_path / "x.txt", "new")
    assert (tmp_path / "x.txt").read_text() == "old"


# --------------------------------------------------------------------------------------------------------- the pipeline


class FakeModel(FakeTransducer):
    """Features are encoder outputs, every fourth of them; counts how often it encodes."""

    encoded = 0

    def encode(self, features_NTF: torch.Tensor, feature_lens_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert not self.training and torch.is_inference_mode_enabled()
        assert features_NTF.dtype == torch.float32
        type(self).encoded += 1
        return features_NTF[:, ::4], feature_lens_N // 4


class FakeTokenizer:
    tokens = ("<blk>", "\u2581a", "\u2581b", "\u2581c")
    unk_id = -1

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.tokens[i][1:] for i in ids)

    def encode(self, text: str) -> list[int]:
        known = [token[1:] for token in self.tokens]
        return [known.index(word) if word in known else self.unk_id for word in text.split()]


def fake_batch(ids: list[str], texts: list[str], frames: list[int], seed: int) -> Batch:
    features_NTF = torch.randn(len(ids), max(frames), 8, generator=torch.Generator().manual_seed(seed)) * 2
    none = torch.zeros(len(ids), 1, dtype=torch.int64)
    return Batch(features_NTF, torch.tensor(frames), none, none[:, 0], texts, ids, sum(frames) / 100)


class FakeDataModule:
    def __init__(self, config: Config, tokenizer: Any) -> None:
        self.test_parts = config.corpus.test

    def test_batches(self, part: str) -> list[Batch]:
        if part == "nothing":
            return []
        return [fake_batch(["u2", "u1"], ["a b c", "b"], [40, 20], 0), fake_batch(["u3"], [""], [3], 1)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    config = Config(
        name="fake",
        exp_root=str(tmp_path),
        corpus=CorpusConfig(name="none", test=["test", "nothing"]),
        optim=OptimConfig(lr=1.0),
    )

    def load_model(exp_dir: Path, checkpoint: str, avg: int, use_averaged_model: bool, device: torch.device) -> tuple:
        assert (exp_dir, checkpoint, avg, use_averaged_model) == (tmp_path / "fake", "best", 1, True)
        return FakeModel(), FakeTokenizer(), config

    modules = {
        "toolkit.data.datamodule": types.SimpleNamespace(DataModule=FakeDataModule),
        "toolkit.data.prepare": types.SimpleNamespace(part_manifest=lambda config, part: tmp_path / f"{part}.jsonl"),
        "toolkit.train.checkpoint": types.SimpleNamespace(load_model=load_model),
        "toolkit.train.distributed": types.SimpleNamespace(choose_device=lambda name: torch.device("cpu")),
    }
    for part in config.corpus.test:
        (tmp_path / f"{part}.jsonl").touch()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return config


def test_decode_writes_all_files_and_the_table(run: Config, capsys: pytest.CaptureFixture[str]) -> None:
    FakeModel.encoded = 0
    rows = pipeline.decode(run)
    assert FakeModel.encoded == 2  # once a batch, whatever the number of methods
    assert [(r.test_set, r.method) for r in rows] == [
        (part, method) for part in ("test", "nothing") for method in ("greedy_search", "modified_beam_search")
    ]
    assert [r.errors.utterances for r in rows] == [3, 3, 0, 0]
    assert rows[0].errors.words == 4
    assert rows[0].audio_seconds == pytest.approx(0.63)
    assert rows[0].rtf is not None and rows[0].rtf > 0
    folder = pipeline.output_dir(run)
    assert folder.name == "decode-best-avg1"
    expected = {"wer.md"} | {
        f"{kind}-{part}-{method}.txt"
        for kind in ("recogs", "errs", "wer-summary")
        for part in ("test", "nothing")
        for method in ("greedy_search", "modified_beam_search")
    }
    assert expected <= {p.name for p in folder.iterdir()}
    lines = (folder / "recogs-test-greedy_search.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["u1", "u1", "u2", "u2", "u3", "u3"]
    assert lines[4:] == ["u3:\tref=[]", "u3:\thyp=[]"]  # no encoder frame, nothing recognized
    assert lines[2] == "u2:\tref=['a', 'b', 'c']"
    timed = [json.loads(line) for line in (folder / "timestamps-test-greedy_search.jsonl").read_text().splitlines()]
    assert [line["id"] for line in timed] == ["u1", "u2", "u3"]
    assert [word["text"] for word in timed[0]["words"]] == ast.literal_eval(lines[1].split("=")[1])
    assert all(0 <= word["start"] < word["end"] <= 0.2 and 0 < word["confidence"] <= 1 for word in timed[0]["words"])
    table = (folder / "wer.md").read_text()
    assert markdown_table(rows) in table
    assert markdown_table(rows) in capsys.readouterr().out
    assert "modified_beam_search (beam 4)" in table


def test_what_cannot_work_is_said_before_decoding(run: Config) -> None:
    def changed(**kwargs: Any) -> Config:
        return dataclasses.replace(run, **kwargs)

    FakeModel.encoded = 0
    with pytest.raises(ValueError, match="'typo' is not a search; known: greedy_search"):
        pipeline.decode(changed(decoding=DecodingConfig(methods=["typo"])))
    with pytest.raises(ValueError, match="needs a CTC head"):
        # What the given config says of the model is of no interest: the checkpoint has no such head.
        pipeline.decode(
            changed(decoding=DecodingConfig(methods=["ctc_greedy_search"]), model=ModelConfig(ctc_head=True))
        )
    with pytest.raises(ValueError, match=r"features.num_mel_bins=40: the model was trained with 80"):
        pipeline.decode(changed(features=FeatureConfig(num_mel_bins=40)))
    with pytest.raises(FileNotFoundError, match=r"corpus.test: later not prepared .*later.jsonl"):
        pipeline.decode(changed(corpus=CorpusConfig(name="none", test=["test", "later"])))
    with pytest.raises(ValueError, match=r"corpus.test is empty"):
        pipeline.decode(changed(corpus=CorpusConfig(name="none", test=[])))
    assert FakeModel.encoded == 0
    assert not pipeline.output_dir(run).exists()


def test_output_dir_says_which_model(run: Config) -> None:
    decoding = DecodingConfig(checkpoint="some/where/epoch-9.pt", avg=3, use_averaged_model=False)
    assert pipeline.output_dir(dataclasses.replace(run, decoding=decoding)).name == "decode-epoch-9-avg3-plain"
