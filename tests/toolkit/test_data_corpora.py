"""Reading corpora: layouts and tables, and every kind of bad input, counted and named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from lhotse import CutSet

from toolkit.data.corpora import find_part, normalize_text, read_corpus, read_part, split_off

PARTS = {"train": ["train"], "valid": ["valid"], "test": ["valid"]}


def write_audio(path: Path, seconds: float = 0.5, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, 0.1 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate), rate)


def write_layout(folder: Path, speakers: int = 3, utterances: int = 2, seconds: float = 0.5) -> None:
    for speaker in range(1, speakers + 1):
        lines = []
        for i in range(utterances):
            name = f"{speaker}-7-{i:04d}"
            write_audio(folder / str(speaker) / "7" / f"{name}.flac", seconds)
            lines.append(f"{name} HELLO NUMBER {'ABCDEFG'[i]}\n")
        (folder / str(speaker) / "7" / f"{speaker}-7.trans.txt").write_text("".join(lines))


def test_layout(tmp_path: Path) -> None:
    write_layout(tmp_path / "LibriSpeech" / "train")
    write_layout(tmp_path / "valid", speakers=1)
    cuts, left_out = read_corpus(tmp_path, PARTS, 16000)
    assert {part: len(c) for part, c in cuts.items()} == {"train": 6, "valid": 2}
    cut = cuts["train"]["2-7-0001"]
    supervision = cut.supervisions[0]
    assert (supervision.text, supervision.speaker, cut.duration) == ("HELLO NUMBER B", "2", 0.5)
    assert left_out == {"train": {}, "valid": {}}


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
@pytest.mark.parametrize("header", [True, False])
def test_tables(tmp_path: Path, suffix: str, header: bool) -> None:
    write_audio(tmp_path / "clips" / "a.wav")
    write_audio(tmp_path / "b.flac")
    rows = [("clips/a.wav", "Hello, world!", "anna"), (str(tmp_path / "b.flac"), "it\u2019s fine", "bert")]
    if suffix == ".jsonl":
        keys = ("audio_filepath", "text", "speaker") if header else ("audio", "sentence", "speaker_id")
        text = "".join(json.dumps(dict(zip(keys, row))) + "\n" for row in rows)
    else:
        quote = '"{}"'.format if suffix == ".csv" else str
        lines = [("path", "sentence", "speaker")] if header else []
        text = "".join(("\t" if suffix == ".tsv" else ",").join(map(quote, row)) + "\n" for row in [*lines, *rows])
    (tmp_path / f"train{suffix}").write_text(text, encoding="utf-8")
    cuts, left_out = read_part(tmp_path / f"train{suffix}", 16000)
    assert [c.supervisions[0].text for c in cuts] == ["HELLO WORLD", "IT'S FINE"]
    assert [c.supervisions[0].speaker for c in cuts] == ["anna", "bert"]
    assert cuts["clips-a"].load_audio().shape == (1, 8000)
    assert len(left_out) == 0


def test_everything_bad_is_left_out_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_layout(tmp_path / "train", speakers=1, utterances=2)
    folder = tmp_path / "train" / "1" / "7"
    (folder / "1-7-0002.flac").write_bytes(b"")
    (folder / "1-7-0003.flac").write_bytes(b"this is no audio at all")
    sf.write(folder / "1-7-0004.wav", np.zeros(0), 16000)
    write_audio(folder / "1-7-0005.flac")
    write_audio(folder / "1-7-0006.flac")
    with open(folder / "1-7.trans.txt", "a") as f:
        f.write("1-7-0002 EMPTY FILE\n1-7-0003 GARBAGE\n1-7-0004 NO SAMPLES\n1-7-0005\n1-7-0009 NO AUDIO\n")
        f.write("1-7-0000 SAID TWICE\n")
    with caplog.at_level(logging.WARNING):
        cuts, left_out = read_part(tmp_path / "train", 16000)
    assert sorted(cuts.ids) == ["1-7-0000", "1-7-0001"]
    assert left_out.counts() == {
        "a transcript but no audio": 1,
        "an empty transcript": 1,
        "an id that is there already": 1,
        "audio but no transcript": 1,
        "empty audio": 2,
        "unreadable audio": 1,
    }
    for name in ("1-7-0002.flac", "1-7-0003.flac", "1-7-0004.wav", "1-7-0005.flac", "1-7-0006.flac", "1-7-0009"):
        assert name in caplog.text
    assert len(caplog.records) == 6  # a line per reason, not per file


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"no usable utterance.*no audio and no transcripts"):
        read_part(tmp_path / "train", 16000)
    (tmp_path / "train" / "1-1-0000.flac").write_bytes(b"")
    (tmp_path / "train" / "1-1.trans.txt").write_text("1-1-0000 HELLO\n")
    with pytest.raises(ValueError, match="1 with empty audio"):
        read_part(tmp_path / "train", 16000)


def test_unknown_folder_and_part_name_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder"):
        read_corpus(tmp_path / "nowhere", PARTS, 16000)
    write_layout(tmp_path / "LibriSpeech" / "training", speakers=1)
    with pytest.raises(FileNotFoundError, match=r"no part train, valid.*found: training"):
        read_corpus(tmp_path, PARTS, 16000)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("train.csv", "path,text\n,hello\n", "row 1 names no audio"),
        ("train.jsonl", "{broken\n", "line 1 is not a JSON"),
    ],
)
def test_broken_tables_name_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_part(tmp_path / name, 16000)


def test_other_rates_are_resampled_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, rate in (("a", 8000), ("b", 44100), ("c", 8000)):
        write_audio(tmp_path / f"{name}.wav", seconds=1.0, rate=rate)
    (tmp_path / "train.tsv").write_text("".join(f"{n}.wav\thello\n" for n in "abc"))
    with caplog.at_level(logging.INFO):
        cuts, _ = read_part(tmp_path / "train.tsv", 16000)
    said = [r.getMessage() for r in caplog.records if "resampled" in r.getMessage()]
    assert len(said) == 2 and any("2 recordings of 8000 Hz are resampled to 16000 Hz" in s for s in said)
    cuts.to_file(tmp_path / "cuts.jsonl")
    expected = 0.1 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    for cut in CutSet.from_file(tmp_path / "cuts.jsonl"):  # through the manifest, as the loader reads it
        x = cut.load_audio()[0]
        assert x.shape == (16000,) and np.abs(x - expected)[200:-200].max() < 2e-3
    fast = cuts["a"].perturb_speed(1.1)
    assert fast.load_audio().shape[1] == fast.num_samples == round(16000 / 1.1)


def test_normalize_text() -> None:
    assert normalize_text("  \u201eWell-known\u201c  caf\u00e9s, it\u2019s 5\u20ac! ") == "WELL KNOWN CAF\u00c9S IT'S 5"
    assert (
        normalize_text("\u0928\u092e\u0938\u094d\u0924\u0947") == "\u0928\u092e\u0938\u094d\u0924\u0947"
    )  # vowel signs stay


def test_a_missing_valid_part_is_cut_off_by_speaker(tmp_path: Path) -> None:
    write_layout(tmp_path / "train", speakers=10)
    cuts, _ = read_corpus(tmp_path, PARTS, 16000, valid_fraction=0.2)
    speakers = {part: {c.supervisions[0].speaker for c in cuts[part]} for part in cuts}
    assert len(speakers["valid"]) == 2 and not speakers["valid"] & speakers["train"]
    assert len(cuts["train"]) + len(cuts["valid"]) == 20
    again, _ = read_corpus(tmp_path, PARTS, 16000, valid_fraction=0.2)
    assert list(again["valid"].ids) == list(cuts["valid"].ids)


def test_few_large_speakers_are_split_by_utterance(tmp_path: Path) -> None:
    write_layout(tmp_path / "train", speakers=2, utterances=7)
    cuts, _ = read_part(tmp_path / "train", 16000)
    rest, off, by = split_off(cuts, 0.1)
    assert by == "utterances" and len(off) == 1 and len(rest) == 13


def test_a_lone_utterance_cannot_be_split(tmp_path: Path) -> None:
    write_layout(tmp_path / "train", speakers=1, utterances=1)
    with pytest.raises(ValueError, match="one utterance only"):
        read_corpus(tmp_path, PARTS, 16000, valid_fraction=0.1)


def test_find_part(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    (tmp_path / "LibriSpeech" / "dev").mkdir(parents=True)
    assert find_part(tmp_path, "train") == tmp_path / "train.csv"
    assert find_part(tmp_path, "dev") == tmp_path / "LibriSpeech" / "dev"
    assert find_part(tmp_path, "test") is None
