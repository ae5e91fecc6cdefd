"""Resampling of recordings while they are read, with lhotse's torch resampler.

lhotse's own `Resample` transform wants torchaudio or scipy, which nothing else here needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from lhotse import Recording
from lhotse.augmentation import Resample


@dataclass
class TorchResample(Resample):
    """lhotse's `Resample` (same fields, same timestamps), computed by the torch resampler that `Speed` uses.

    lhotse finds it by its name when it reads a manifest; whoever reads manifests imports `toolkit.data`.
    """

    def __call__(self, samples: np.ndarray, *args: object, **kwargs: object) -> np.ndarray:
        return self.resampler(torch.from_numpy(samples)).numpy()


def resampled(recording: Recording, sampling_rate: int) -> Recording:
    """`recording` as one of `sampling_rate`; the audio is resampled when it is loaded."""
    if recording.sampling_rate == sampling_rate:
        return recording
    out = recording.resample(sampling_rate)
    out.transforms[-1] = TorchResample(recording.sampling_rate, sampling_rate)
    return out
