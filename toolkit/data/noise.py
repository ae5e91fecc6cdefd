"""Noise for mixing into training audio: any folder of recordings (MUSAN, one's own) as lhotse cuts of some seconds.

When they are mixed, lhotse applies data.noise.snr_db to each piece of noise on its own: an utterance longer than a
piece gets several, and is that much noisier.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from lhotse import CutSet, Recording
from tqdm import tqdm

from toolkit.config import FeatureConfig
from toolkit.data.corpora import AUDIO_SUFFIXES, LeftOut
from toolkit.data.features import compute_features, merge_manifests
from toolkit.data.resample import resampled

WINDOW_SECONDS = 10.0
SHORTEST_SECONDS = 0.5


def prepare_noise(source: Path, folder: Path, config: FeatureConfig) -> dict[str, Any]:
    """Write `folder`/noise.jsonl: all audio under `source` in windows of 10 s, with features unless on the fly.

    Raises ValueError when there is no usable recording.
    """
    left_out = LeftOut()
    cuts = []
    paths = [p for p in sorted(source.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES]
    for path in tqdm(paths, "reading noise", leave=False):
        name = "-".join(path.relative_to(source).with_suffix("").parts)
        try:
            recording = resampled(Recording.from_file(path, recording_id=name), config.sampling_rate)
        except Exception:  # whatever the audio library of the day throws at a broken file
            left_out.add("unreadable audio", path)
            continue
        if recording.duration < SHORTEST_SECONDS:
            left_out.add(f"less than {SHORTEST_SECONDS} s of audio", path)
        else:
            cuts.append(recording.to_cut())
    windows = [c for c in CutSet.from_cuts(cuts).cut_into_windows(WINDOW_SECONDS) if c.duration >= SHORTEST_SECONDS]
    left_out.report(str(source))
    if not windows:
        raise ValueError(f"data.noise.dir={source}: no usable recording among {len(paths)} audio files")
    if config.on_the_fly:
        CutSet.from_cuts(windows).to_file(folder / "partial-noise.jsonl")
        os.replace(folder / "partial-noise.jsonl", folder / "noise.jsonl")
    else:
        shards, undecoded = compute_features(windows, folder, "windows", config)
        undecoded.report(str(source))
        merge_manifests(shards, folder / "noise.jsonl")
    minutes = round(sum(c.duration for c in windows) / 60, 1)
    logging.info("noise: %d windows, %.1f minutes", len(windows), minutes)
    return {"windows": len(windows), "minutes": minutes}
