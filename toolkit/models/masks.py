"""Which frames of a padded batch are real."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_mask(lens_N: Tensor, num_frames: int) -> Tensor:
    """(N, num_frames), True on the first lens_N frames of each utterance."""
    return torch.arange(num_frames, device=lens_N.device) < lens_N[:, None]
