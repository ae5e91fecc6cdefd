"""Filterbank features of a corpus, computed once in shards by several processes, or left to the loader (on_the_fly).

A shard is `<name>.f16` with the features and `<name>.jsonl` with its cuts, which appears when the shard is complete: an
interrupted computation goes on with the shards that are missing.
"""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import random
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from lhotse import CutSet, Fbank, FbankConfig
from lhotse.cut import Cut
from tqdm import tqdm

from toolkit.config import FeatureConfig
from toolkit.data.corpora import LeftOut
from toolkit.data.storage import HalfArchiveWriter

CUTS_PER_SHARD = 200
LOG_FLOOR = -23.025850929940457  # log(1e-10), the energy floor of the extractor: what silence and padding look like


def make_extractor(config: FeatureConfig) -> Fbank:
    """Kaldi-compatible log-mel filterbanks of 25 ms every 10 ms, as icefall uses them."""
    return Fbank(FbankConfig(sampling_rate=config.sampling_rate, num_mel_bins=config.num_mel_bins))


def with_speeds(cuts: Iterable[Cut], factors: list[float]) -> list[Cut]:
    """Each cut once per factor; at 0.9 speech is slower and lower."""
    return [cut if factor == 1.0 else cut.perturb_speed(factor) for factor in factors for cut in cuts]


def _compute_shard(task: tuple[Path, list[Cut]], config: FeatureConfig) -> int:
    """Write one shard; cuts whose audio cannot be decoded are missing from it. Returns how many cuts were given."""
    path, cuts = task
    torch.set_num_threads(1)  # the processes share the cores
    extractor = make_extractor(config)
    done = []
    with HalfArchiveWriter(path.with_suffix(".f16")) as storage:
        for cut in cuts:
            try:
                done.append(cut.compute_and_store_features(extractor, storage, mix_eagerly=False))
            except OSError:
                raise  # disk full, no permission: the shard's fault, not the audio's
            except Exception as e:  # whatever the audio library of the day throws at a broken file
                logging.debug("%s: %s", cut.id, e)
    partial = path.with_suffix(".partial.jsonl")
    CutSet.from_cuts(done).to_file(partial)
    os.replace(partial, path)
    return len(cuts)


def compute_features(cuts: Iterable[Cut], folder: Path, name: str, config: FeatureConfig) -> tuple[list[Path], LeftOut]:
    """Features of all cuts under `folder`; returns the manifests of the shards, and what could not be decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    every = list(cuts)
    shards = {
        folder / f"{name}-{i // CUTS_PER_SHARD:05d}.jsonl": every[i : i + CUTS_PER_SHARD]
        for i in range(0, len(every), CUTS_PER_SHARD)
    }
    missing = [(path, part) for path, part in shards.items() if not path.exists()]
    with tqdm(desc=f"features of {name}", unit="utt", total=len(every), mininterval=1.0) as bar:
        bar.update(len(every) - sum(len(part) for _, part in missing))
        work = functools.partial(_compute_shard, config=config)
        if config.num_jobs <= 1 or len(missing) <= 1:
            for task in missing:
                bar.update(work(task))
        else:
            pool = ProcessPoolExecutor(min(config.num_jobs, len(missing)), mp_context=multiprocessing.get_context())
            try:
                for count in pool.map(work, missing):
                    bar.update(count)
            finally:
                pool.shutdown(cancel_futures=True)
    left_out = LeftOut()
    for path, part in shards.items():
        good = {json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()}
        for cut in part:
            if cut.id not in good:
                left_out.add("audio that cannot be decoded", f"{cut.id} ({cut.recording.sources[0].source})")
    return list(shards), left_out


def merge_manifests(shards: list[Path], path: Path, shuffle_seed: int | None = None) -> int:
    """Join the manifests of shards into one, atomically; as lines of text, for a large corpus as objects would not fit.

    Shuffled with `shuffle_seed`: the sampler shuffles only what its buffer holds. Returns the number of cuts.
    """
    lines = [line for shard in shards for line in shard.read_text(encoding="utf-8").splitlines(keepends=True)]
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(lines)
    partial = path.with_name("partial-" + path.name)
    partial.write_text("".join(lines), encoding="utf-8")
    os.replace(partial, path)
    return len(lines)
