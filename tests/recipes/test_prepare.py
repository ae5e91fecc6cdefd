"""prepare.sh: stages, marks, changed settings, interruptions, bad input, real speech."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

import ops
from toolkit import config as schema
from toolkit.data import features
from toolkit.data.datamodule import DataModule
from toolkit.data.prepare import check_requirements, part_manifest, prepare, training_manifest
from toolkit.data.tokenizer import Tokenizer

DIGITS = {"ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"}


def write_corpus(root: Path, part: str, utterances: int = 4) -> None:
    rng = np.random.default_rng(utterances)
    folder = root / part / "11" / "1"
    folder.mkdir(parents=True)
    lines = []
    for i in range(utterances):
        sf.write(folder / f"11-1-{i:04d}.flac", 0.1 * rng.standard_normal(8000 + 500 * i), 16000)
        lines.append(f"11-1-{i:04d} {('ONE', 'TWO', 'THREE', 'FOUR')[i % 4]}\n")
    (folder / "11-1.trans.txt").write_text("".join(lines))


@pytest.fixture
def config(tmp_path: Path) -> schema.Config:
    write_corpus(tmp_path / "speech", "train")
    write_corpus(tmp_path / "speech", "valid", 2)
    return schema.Config(
        name="test",
        corpus=schema.DirectoryCorpus("mine", valid=["valid"], test=["valid"], dir=str(tmp_path / "speech")),
        features=schema.FeatureConfig(num_jobs=1),
        tokens=schema.TokenConfig(kind="char"),
        data=schema.DataConfig(root=str(tmp_path / "data")),
        optim=schema.AdamWConfig(),
    )


def change(config: schema.Config, section: str, **values: object) -> schema.Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def done(config: schema.Config, stage: str) -> dict:
    return json.loads((config.data_dir / stage / ".done").read_text())


def run_log(caplog: pytest.LogCaptureFixture, config: schema.Config, *args: int) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        prepare(config, *args)
    return caplog.text


def test_marks_have_counts(config: schema.Config) -> None:
    prepare(config)
    counts = done(config, "manifests")["counts"]
    assert counts["train"] == {"utterances": 4, "hours": pytest.approx(0.001, abs=1e-3), "speakers": 1}
    assert done(config, "features")["counts"] == {"train": {"cuts": 4}, "cuts_valid": {"cuts": 2}}
    assert done(config, "lang_char")["counts"] == {"tokens": Tokenizer.load(config.tokens_dir).vocab_size, "words": 4}
    assert not list(config.data_dir.rglob("*partial*"))


def test_done_is_done(config: schema.Config, caplog: pytest.LogCaptureFixture) -> None:
    prepare(config)
    before = {p: p.stat().st_mtime_ns for p in config.data_dir.rglob("*")}
    assert run_log(caplog, config).count("done before") == 3
    assert before == {p: p.stat().st_mtime_ns for p in config.data_dir.rglob("*")}


def test_a_changed_setting_redoes_what_hangs_on_it(config: schema.Config, caplog: pytest.LogCaptureFixture) -> None:
    prepare(config)
    log = run_log(caplog, change(config, "features", speed_factors=[1.0, 1.1]))
    assert "stage 3 (features): speed_factors changed; making" in log
    assert "stage 1 (manifests): done before" in log and "stage 4 (tokens): done before" in log
    assert len(training_manifest(config).read_text().splitlines()) == 8

    write_corpus(Path(config.corpus.dir), "train/more", 3)  # type: ignore[attr-defined]
    log = run_log(caplog, config)
    assert "stage 1 (manifests): files changed" in log and "stage 4 (tokens): manifests changed" in log


def test_vocabularies_live_side_by_side(config: schema.Config, caplog: pytest.LogCaptureFixture) -> None:
    prepare(config)
    log = run_log(caplog, change(config, "tokens", kind="bpe", vocab_size=20), 4)
    assert "stage 4 (tokens): making" in log and (config.data_dir / "lang_bpe_20" / "bpe.model").is_file()
    assert "stage 4 (tokens): done before" in run_log(caplog, config, 4)


def test_stages(config: schema.Config) -> None:
    prepare(config, 0, 1)
    assert (config.data_dir / "manifests" / ".done").is_file() and not training_manifest(config).exists()
    prepare(config, 3, 3)
    assert training_manifest(config).is_file() and not config.tokens_dir.exists()
    with pytest.raises(ValueError, match="stage=3, stop_stage=2"):
        prepare(config, 3, 2)


def test_a_skipped_stage_is_an_error(config: schema.Config) -> None:
    with pytest.raises(RuntimeError, match=r"stage 1 \(manifests\) is not done: run prepare.sh with --stage 1"):
        prepare(config, 3)


def test_interrupted_features_go_on(config: schema.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CUTS_PER_SHARD", 2)
    compute, calls = features._compute_shard, []

    def interrupted(task: tuple, config: schema.FeatureConfig) -> int:
        calls.append(task[0].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(task, config)

    monkeypatch.setattr(features, "_compute_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    assert not (config.data_dir / "features" / ".done").exists()
    prepare(config)
    assert calls == ["train-00000.jsonl", "train-00001.jsonl", "train-00001.jsonl", "cuts_valid-00000.jsonl"]
    tokenizer = Tokenizer.load(config.tokens_dir)
    assert sum(len(b) for b in DataModule(config, tokenizer).train_batches(0)) == 4


def test_audio_that_breaks_off_is_left_out_and_named(config: schema.Config, caplog: pytest.LogCaptureFixture) -> None:
    path = Path(config.corpus.dir) / "train" / "11" / "1" / "11-1-0002.flac"  # type: ignore[attr-defined]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # the header is whole
    log = run_log(caplog, config)
    assert "left out 1 with audio that cannot be decoded: 11-1-0002" in log
    assert done(config, "features")["counts"]["train"] == {"cuts": 3, "left out": {"audio that cannot be decoded": 1}}


def test_unknown_folders_are_errors(config: schema.Config, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"corpus\.dir=.*nowhere: no such folder"):
        prepare(change(config, "corpus", dir=str(tmp_path / "nowhere")))
    noise = schema.NoiseConfig(dir=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"data\.noise\.dir=.*nowhere: no such folder"):
        prepare(change(config, "data", noise=noise))
    (tmp_path / "silence").mkdir()
    noise = schema.NoiseConfig(dir=str(tmp_path / "silence"))
    with pytest.raises(ValueError, match="no usable recording among 0 audio files"):
        prepare(change(config, "data", noise=noise))


def test_requirements_are_checked_first(config: schema.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "espeakng_loader" else object())
    check_requirements(config)
    with pytest.raises(RuntimeError, match="pip install espeakng-loader"):
        check_requirements(dataclasses.replace(config, corpus=schema.SyntheticCorpus()))


def test_lang_stage(config: schema.Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lexicon, n-grams and HLG: made once, made anew where settings or a text changed; HLG reads the corpus's words."""
    prepare(config, 0, 1)
    prepare(config, 4, 5)  # without lang.name there is nothing to do
    assert [p.name for p in config.tokens_dir.iterdir() if p.is_dir()] == []
    extra = tmp_path / "more.txt"
    extra.write_text("ONE TWO\nTWO TWO THREE FIVE\nÄ ONE\n" * 3)
    config = change(config, "lang", name="words", text=[str(extra)], orders=[2, 3], graphs=["LG", "HLG"])
    log = run_log(caplog, config, 5, 5)
    names = {p.name for p in config.lang_dir.iterdir()}
    assert {
        "lexicon.txt",
        "words.txt",
        "tokens.txt",
        "G_2_gram.arpa.gz",
        "G_3_gram.arpa.gz",
        "LG.pt",
        "HLG.pt",
    } <= names
    # I, V and Ä are not among the letters of ONE TWO THREE FOUR.
    assert "2 words left out, the tokens cannot spell them: FIVE, Ä" in log
    counts = json.loads((config.lang_dir / ".done").read_text())["counts"]
    assert (counts["sentences"], counts["words"], counts["left out"]) == (13, 4, 2) and counts["HLG"]["arcs"] > 0
    rows = (config.lang_dir / "words.txt").read_text().split()
    assert {"ONE", "TWO", "THREE", "FOUR"} < set(rows)
    assert (config.lang_dir / "tokens.txt").read_bytes() == (config.tokens_dir / "tokens.txt").read_bytes()
    hlg = ops.Fsa.from_dict(torch.load(config.lang_dir / "HLG.pt", weights_only=True))
    assert int(hlg.labels.max()) < Tokenizer.load(config.tokens_dir).vocab_size
    assert "stage 5 (lang): done before" in run_log(caplog, config, 5, 5)
    extra.write_text("ONE TWO\n")
    assert "stage 5 (lang): files changed" in run_log(caplog, config, 5, 5)
    with pytest.raises(FileNotFoundError, match=r"lang.text=.*gone.txt: no such file"):
        prepare(change(config, "lang", text=["gone.txt"]), 5, 5)
    with pytest.raises(FileNotFoundError, match=r"lang.lexicon=gone.txt: no such file"):
        prepare(change(config, "lang", lexicon="gone.txt"), 5, 5)


def test_lang_stage_with_a_lexicon(config: schema.Config, tmp_path: Path) -> None:
    prepare(config, 0, 1)
    prepare(config, 4, 4)
    (tmp_path / "cmudict.txt").write_text("one W AH N\none(2) HH W AH N\ntwo T UW\nunheard AH N\n")
    config = change(config, "lang", name="phones", lexicon=str(tmp_path / "cmudict.txt"), orders=[1])
    prepare(config, 5, 5)
    tokens = [line.split()[0] for line in (config.lang_dir / "tokens.txt").read_text().splitlines()]
    assert tokens == ["<blk>", "AH", "HH", "N", "T", "UW", "W"]
    assert (config.lang_dir / "lexicon.txt").read_text() == "ONE W AH N\nONE HH W AH N\nTWO T UW\n"
    with pytest.raises(ValueError, match=r"none of the .* words of the text has a spelling"):
        (tmp_path / "other.txt").write_text("THING TH IH NG\n")
        prepare(change(config, "lang", lexicon=str(tmp_path / "other.txt")), 5, 5)


# ---------------------------------------------------------------------------------------------------------- prepare.sh


def prepare_sh(repo: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    env["VIRTUAL_ENV"] = sys.prefix
    command = [repo / "recipes/librispeech/prepare.sh", *args]
    return subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=300)


def test_script_makes_the_embedded_corpus(repo_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    sizes = ["corpus.train_minutes=0.1", "corpus.dev_minutes=0.05", "corpus.test_minutes=0.05"]
    overrides = ["corpus=synthetic", *sizes, "tokens.vocab_size=40"]
    result = prepare_sh(repo_dir, tmp_path, *overrides)
    assert result.returncode == 0, result.stderr
    assert {p.name for p in (tmp_path / "data/synthetic").iterdir()} == {
        "corpus", "manifests", "features", "lang_bpe_40",
    }  # fmt: skip
    config = schema.load(repo_dir / "conf", [*overrides, f"data.root={tmp_path / 'data'}"])
    manifest = part_manifest(config, "test")
    assert len(manifest.read_text().splitlines()) >= 2


def test_script_says_what_is_wrong_without_a_stack(repo_dir: Path, tmp_path: Path) -> None:
    args = ["--stage", "1", "--stop-stage", "1", "corpus=directory", "corpus.dir=nowhere"]
    result = prepare_sh(repo_dir, tmp_path, *args)
    assert result.returncode == 1
    assert "prepare: corpus.dir=nowhere: no such folder" in result.stderr and "Traceback" not in result.stderr
    result = prepare_sh(repo_dir, tmp_path, "corpus=directory", "corpus.dri=nowhere")
    assert result.returncode != 0 and "corpus.dri" in result.stdout + result.stderr


@pytest.mark.slow
def test_real_digits(repo_dir: Path, shared_dir: Path, tmp_path: Path) -> None:
    """Six real voices, through the same three steps as a user takes."""
    unpack = [sys.executable, shared_dir / "scripts/unpack_real_speech.py", tmp_path, "--only", "digits"]
    subprocess.run(unpack, check=True, capture_output=True, timeout=300)
    overrides = ["corpus=digits", f"corpus.dir={tmp_path / 'digits'}", f"data.root={tmp_path / 'data'}", "tokens=char"]
    config = schema.load(repo_dir / "conf", overrides)
    config = change(config, "features", num_jobs=1, on_the_fly=True)
    prepare(config)
    counts = done(config, "manifests")["counts"]
    assert counts["train"]["utterances"] == 1500 and counts["train"]["speakers"] == 6
    assert counts["valid"]["utterances"] == 100
    data = DataModule(config, Tokenizer.load(config.tokens_dir))
    assert data.train_seconds_per_epoch / 3600 == pytest.approx(counts["train"]["hours"], abs=0.01)
    batch = next(iter(data.test_batches("valid")))
    assert set(" ".join(batch.texts).split()) <= DIGITS
