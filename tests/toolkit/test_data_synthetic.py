"""The embedded corpus: LibriSpeech's layout, disjoint parts, the same audio from the same settings."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from toolkit.config import SyntheticCorpus
from toolkit.data import synthetic
from toolkit.data.synthetic_text import PARTS, make_sentence, part_of, words

pytest.importorskip("espeakng_loader")

SMALL = SyntheticCorpus(train_minutes=0.1, dev_minutes=0.05, test_minutes=0.05)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic")
    synthetic.make_corpus(SMALL, path)
    return path


def transcripts(folder: Path) -> dict[str, str]:
    lines = [line for path in folder.rglob("*.trans.txt") for line in path.read_text().splitlines()]
    return dict(line.split(" ", 1) for line in lines)


def test_layout_is_librispeechs(corpus: Path) -> None:
    root = corpus / "LibriSpeech"
    assert sorted(p.name for p in root.iterdir()) == ["SPEAKERS.TXT", "dev", "test", "train"]
    audio = sorted(root.rglob("*.flac"))
    assert {p.stem for p in audio} == set(transcripts(root))
    for path in audio:
        speaker, chapter, _ = path.stem.split("-")
        assert path.parent == root / path.parent.parent.parent.name / speaker / chapter
        info = sf.info(path)
        assert (info.samplerate, info.channels) == (16000, 1)
        assert 1.0 < info.duration < 8.0
    listed = [line.split("|")[0].strip() for line in (root / "SPEAKERS.TXT").read_text().splitlines()[1:]]
    assert listed == sorted({p.parent.parent.name for p in audio})


def test_audio_is_speech_with_a_little_noise(corpus: Path) -> None:
    x, _ = sf.read(next((corpus / "LibriSpeech" / "train").rglob("*.flac")))
    power = np.sort([np.mean(frame**2) for frame in np.array_split(x, len(x) // 400)])
    assert 0.2 < np.abs(x).max() <= 0.95
    loud, soft = power[-len(power) // 10 :].mean(), power[: len(power) // 20].mean()
    assert 10 < 10 * np.log10(loud / soft) < 60  # pauses are neither silent nor as loud as speech


def test_parts_share_neither_voices_nor_sentences() -> None:
    voices = {part: synthetic.make_voices(part, 40, seed=42) for part in PARTS}
    assert len(voices["train"]) >= 60 and len(voices["dev"]) >= 12 and len(voices["test"]) >= 12
    kinds = {part: {(v.accent, v.variant) for v in voices[part]} for part in PARTS}
    assert not kinds["train"] & kinds["dev"] and not kinds["train"] & kinds["test"] and not kinds["dev"] & kinds["test"]
    assert not {v for _, v in kinds["train"]} & {v for _, v in kinds["dev"] | kinds["test"]}
    assert {a for a, _ in kinds["test"]} <= {a for a, _ in kinds["train"]}
    assert len({v.speaker for part in PARTS for v in voices[part]}) == sum(map(len, voices.values()))
    sentences = {part: {make_sentence(part, random.Random(i)) for i in range(300)} for part in PARTS}
    assert all(part_of(s) == part for part in PARTS for s in sentences[part])
    assert not sentences["train"] & sentences["test"] and not sentences["train"] & sentences["dev"]


def test_every_word_is_heard_in_a_small_corpus() -> None:
    rng = random.Random(0)
    heard = {word for _ in range(900) for word in make_sentence("train", rng).split()}
    assert heard == set(words())
    assert 200 <= len(words()) <= 300


def test_same_settings_same_audio_whoever_makes_it(corpus: Path, tmp_path: Path) -> None:
    one_process = tmp_path / "again"
    synthetic.make_corpus(SMALL, one_process, num_jobs=1)
    files = sorted(p.relative_to(corpus) for p in corpus.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(one_process) for p in one_process.rglob("*") if p.is_file())
    assert all((corpus / f).read_bytes() == (one_process / f).read_bytes() for f in files)


def test_another_seed_is_another_corpus() -> None:
    assert synthetic.make_voices("train", 1, seed=1) != synthetic.make_voices("train", 1, seed=2)


def test_goes_on_after_an_interruption(corpus: Path, tmp_path: Path) -> None:
    synthetic.make_corpus(SMALL, tmp_path)
    speakers = sorted((tmp_path / "LibriSpeech" / "train").iterdir())
    kept, lost = next(speakers[0].rglob("*.flac")), next(speakers[1].rglob("*.flac"))
    content, time = lost.read_bytes(), kept.stat().st_mtime_ns
    speakers[1].rename(speakers[1].with_name(f".{speakers[1].name}.partial"))  # killed while this one was made
    synthetic.make_corpus(SMALL, tmp_path)
    assert lost.read_bytes() == content
    assert kept.stat().st_mtime_ns == time
    assert not list(tmp_path.rglob("*.partial"))


def test_resample_keeps_a_tone() -> None:
    t = np.arange(22050) / 22050
    x = synthetic.resample(np.sin(2 * np.pi * 440 * t), 16000 / 22050)
    assert len(x) == 16000
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(x - expected)[500:-500].max() < 0.1  # up to half a sample late at the end


def test_unknown_part_is_an_error() -> None:
    with pytest.raises(ValueError, match="part='valid'"):
        make_sentence("valid", random.Random(0))
