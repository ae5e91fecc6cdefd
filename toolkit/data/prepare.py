"""The preparation of a corpus, stage by stage, under data/<corpus.name>: what recipes/*/prepare.sh runs.

    0 corpus/       the recordings: made (synthetic), downloaded (LibriSpeech), or only looked at (directory)
    1 manifests/    cuts_<part>.jsonl: what there is, checked
    2 noise/        noise for mixing, where data.noise.dir is set
    3 features/     train.jsonl (all training parts, shuffled) and cuts_<part>.jsonl for validation and test
    4 lang_*/       tokens.txt, bpe.model, words.txt
    5 lang_*/NAME/  lexicon.txt, words.txt, G_3_gram.arpa.gz, HLG.pt, where lang.name is set (toolkit/lang/prepare.py)

Each stage owns its folder. `.done` there holds the settings it was made with and counts: same settings, nothing to do;
other settings, the folder is made anew and the log says what changed. An interrupted stage goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lhotse import CutSet

from toolkit.config import Config, DirectoryCorpus, LibriSpeechCorpus, SyntheticCorpus
from toolkit.data import corpora, download, features, noise, synthetic
from toolkit.data.tokenizer import Tokenizer, write_words

STAGES = ("corpus", "manifests", "noise", "features", "tokens", "lang")


def training_manifest(config: Config) -> Path:
    return config.data_dir / "features" / "train.jsonl"


def part_manifest(config: Config, part: str) -> Path:
    return config.data_dir / "features" / f"cuts_{part}.jsonl"


def prepare(config: Config, stage: int = 0, stop_stage: int = len(STAGES) - 1) -> None:
    """Run the stages `stage` to `stop_stage`, both included; what is done already is left alone.

    Raises RuntimeError for missing requirements or a skipped earlier stage, FileNotFoundError and ValueError for a
    corpus that is not there or has nothing usable.
    """
    if not 0 <= stage <= stop_stage < len(STAGES):
        last = len(STAGES) - 1
        raise ValueError(f"stage={stage}, stop_stage={stop_stage}: expected 0 <= stage <= stop_stage <= {last}")
    check_requirements(config)
    for number in range(stage, stop_stage + 1):
        _RUN[number](config)
    done = [p for p in _folders(config) if (p / ".done").is_file()]
    for folder in done:
        logging.info("%s: %s", folder, json.dumps(_read_mark(folder)["counts"]))


def check_requirements(config: Config) -> None:
    """Raise RuntimeError now for what would be missing half an hour later."""
    needed = ["lhotse", "soundfile", "sentencepiece"]
    needed += ["espeakng_loader"] if isinstance(config.corpus, SyntheticCorpus) else []
    missing = [name.replace("_", "-") for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"prepare needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if config.lang.name is not None:
        from toolkit.lang.prepare import check_lang

        check_lang(config.lang)


# --------------------------------------------------------------------------------------------------------------- stages


def _corpus(config: Config) -> None:
    corpus = config.corpus
    folder = config.data_dir / "corpus"
    settings = _plain(corpus)
    if isinstance(corpus, SyntheticCorpus):
        _run_stage(0, folder, settings, lambda: synthetic.make_corpus(corpus, folder, config.features.num_jobs))
    elif isinstance(corpus, LibriSpeechCorpus):
        parts = _parts(config)
        _run_stage(0, folder, settings, lambda: download.download_librispeech(corpus, parts))
    elif not corpus_root(config).is_dir():
        raise FileNotFoundError(f"corpus.dir={corpus_root(config)}: no such folder")


def _manifests(config: Config) -> None:
    corpus = config.corpus
    folder = config.data_dir / "manifests"
    root = corpus_root(config)
    parts = {"train": corpus.train, "valid": corpus.valid, "test": corpus.test}
    settings: dict[str, Any] = {**parts, "sampling_rate": config.features.sampling_rate}
    fraction = 0.0
    if isinstance(corpus, DirectoryCorpus):
        fraction = corpus.valid_fraction
        settings |= {"dir": corpus.dir, "valid_fraction": fraction, "files": _tree_state(root)}
    else:
        settings["corpus"] = _upstream(config.data_dir / "corpus", 0)

    def make() -> dict[str, Any]:
        cuts, left_out = corpora.read_corpus(root, parts, config.features.sampling_rate, fraction)
        counts: dict[str, Any] = {}
        for part, part_cuts in cuts.items():
            _write_cuts(part_cuts, folder / f"cuts_{part}.jsonl")
            counts[part] = _size(part_cuts) | ({"left out": left_out[part]} if left_out.get(part) else {})
        return counts

    _run_stage(1, folder, settings, make)


def _noise(config: Config) -> None:
    if config.data.noise.dir is None:
        return
    source = Path(config.data.noise.dir)
    if not source.is_dir():
        raise FileNotFoundError(f"data.noise.dir={source}: no such folder")
    folder = config.data_dir / "noise"
    settings = {"dir": str(source), "files": _tree_state(source), **_feature_settings(config)}
    _run_stage(2, folder, settings, lambda: noise.prepare_noise(source, folder, config.features))


def _features(config: Config) -> None:
    folder = config.data_dir / "features"
    corpus = config.corpus
    settings = _feature_settings(config) | {
        "speed_factors": config.features.speed_factors,
        "manifests": _upstream(config.data_dir / "manifests", 1),
    }

    def make() -> dict[str, Any]:
        counts: dict[str, Any] = {}
        groups = {"train": corpus.train} | {f"cuts_{part}": [part] for part in (*corpus.valid, *corpus.test)}
        for name, parts in groups.items():
            cuts = [cut for part in parts for cut in _read_cuts(config, part)]
            if name == "train":
                cuts = features.with_speeds(cuts, config.features.speed_factors)
            left_out = corpora.LeftOut()
            if config.features.on_the_fly:
                shards = [folder / f"{name}-all.jsonl"]
                _write_cuts(CutSet.from_cuts(cuts), shards[0])
            else:
                shards, left_out = features.compute_features(cuts, folder, name, config.features)
            left_out.report(name)
            seed = config.seed if name == "train" else None
            count = features.merge_manifests(shards, folder / f"{name}.jsonl", seed)
            if count == 0:
                raise ValueError(f"{name}: none of {len(cuts)} recordings can be decoded")
            counts[name] = {"cuts": count} | ({"left out": left_out.counts()} if len(left_out) else {})
        return counts

    _run_stage(3, folder, settings, make)


def _tokens(config: Config) -> None:
    folder = config.tokens_dir
    settings = _plain(config.tokens) | {"manifests": _upstream(config.data_dir / "manifests", 1)}

    def make() -> dict[str, Any]:
        texts = [cut.supervisions[0].text for part in config.corpus.train for cut in _read_cuts(config, part)]
        tokenizer = Tokenizer.train(texts, config.tokens)
        tokenizer.save(folder)
        return {"tokens": tokenizer.vocab_size, "words": write_words(texts, folder / "words.txt")}

    _run_stage(4, folder, settings, make)


def _lang(config: Config) -> None:
    if config.lang.name is None:
        return
    from toolkit.lang.prepare import make_lang

    folder = config.lang_dir
    sources = [*config.lang.text, *([config.lang.lexicon] if config.lang.lexicon != "tokens" else [])]
    settings = _plain(config.lang) | {
        "files": {path: [os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in sources},
        "tokens": _upstream(config.tokens_dir, 4),
    }

    def make() -> dict[str, Any]:
        texts = (cut.supervisions[0].text for part in config.corpus.train for cut in _read_cuts(config, part))
        return make_lang(config.lang, Tokenizer.load(config.tokens_dir), texts, folder)

    _run_stage(5, folder, settings, make)


_RUN: tuple[Callable[[Config], None], ...] = (_corpus, _manifests, _noise, _features, _tokens, _lang)


# ---------------------------------------------------------------------------------------------------------------- marks


def _run_stage(number: int, folder: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> None:
    """Call `make` unless `folder`/.done says that it was done with the same settings; `make` returns counts to keep."""
    title = f"stage {number} ({STAGES[number]})"
    settings = json.loads(json.dumps(settings))  # as it will be read back
    before = _read_mark(folder)
    if before["settings"] == settings and before["counts"] is not None:
        logging.info("%s: done before", title)
        return
    if before["settings"] not in (None, settings):
        changed = {k for k in {*settings, *before["settings"]} if settings.get(k) != before["settings"].get(k)}
        logging.info("%s: %s changed; making %s anew", title, ", ".join(sorted(changed)), folder)
        shutil.rmtree(folder)
    logging.info("%s: %s %s", title, "making" if before["settings"] != settings else "going on with", folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / ".settings", settings)
    counts = make()
    _write_json(folder / ".done", {"settings": settings, "counts": counts})


def _read_mark(folder: Path) -> dict[str, Any]:
    """The settings a stage was begun with and its counts; None for what is not there."""
    if (folder / ".done").is_file():
        return json.loads((folder / ".done").read_text())
    if (folder / ".settings").is_file():
        return {"settings": json.loads((folder / ".settings").read_text()), "counts": None}
    return {"settings": None, "counts": None}


def _upstream(folder: Path, number: int) -> str:
    """A digest of the settings of an earlier stage, so that what it changes is made anew here too."""
    mark = _read_mark(folder)
    if mark["counts"] is None:
        raise RuntimeError(f"stage {number} ({STAGES[number]}) is not done: run prepare.sh with --stage {number}")
    return hashlib.sha256(json.dumps(mark["settings"], sort_keys=True).encode()).hexdigest()[:16]


def _tree_state(root: Path) -> str:
    """A digest of the names, sizes and times of the files under `root`; a changed corpus is read again."""
    if not root.is_dir():
        return ""
    state = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            stat = os.stat(os.path.join(folder, name))
            state.update(f"{folder}/{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return state.hexdigest()[:16]


# -------------------------------------------------------------------------------------------------------- small helpers


def corpus_root(config: Config) -> Path:
    """Where the parts of the corpus lie."""
    corpus = config.corpus
    if isinstance(corpus, SyntheticCorpus):
        return config.data_dir / "corpus"
    assert isinstance(corpus, (DirectoryCorpus, LibriSpeechCorpus))
    return Path(corpus.dir)


def _parts(config: Config) -> list[str]:
    return list(dict.fromkeys([*config.corpus.train, *config.corpus.valid, *config.corpus.test]))


def _folders(config: Config) -> list[Path]:
    return [config.data_dir / name for name in STAGES[:-2]] + [config.tokens_dir, config.lang_dir]


def _feature_settings(config: Config) -> dict[str, Any]:
    f = config.features
    return {"num_mel_bins": f.num_mel_bins, "sampling_rate": f.sampling_rate, "on_the_fly": f.on_the_fly}


def _plain(section: Any) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(section).items() if k != "name"}


def _size(cuts: CutSet) -> dict[str, Any]:
    speakers = {c.supervisions[0].speaker for c in cuts}
    return {"utterances": len(cuts), "hours": round(sum(c.duration for c in cuts) / 3600, 3), "speakers": len(speakers)}


def _read_cuts(config: Config, part: str) -> CutSet:
    return CutSet.from_file(config.data_dir / "manifests" / f"cuts_{part}.jsonl")


def _write_cuts(cuts: CutSet, path: Path) -> None:
    partial = path.with_name("partial-" + path.name)
    cuts.to_file(partial)
    os.replace(partial, path)


def _write_json(path: Path, data: object) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(partial, path)
