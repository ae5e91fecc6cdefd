"""The front end: 80-dim filterbanks at 100 frames a second → encoder frames at 25 a second, by strided convolutions.

Shapes: N utterances, T feature frames, F mel bins, C channels, D encoder dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.models.activations import ActivationBalancer, DoubleSwish
from toolkit.models.linear import init_weight, scaled_linear
from toolkit.models.masks import frame_mask
from toolkit.models.normalization import BasicNorm

# Where log-mel energies of speech with samples in [-1, 1] lie, roughly: mean and standard deviation. Fixed numbers, so that
# nothing depends on the batch or on what is still to come; the network need only be given values of about unit size.
LOG_MEL_MEAN = -8.0
LOG_MEL_STD = 4.0


class Subsampling(nn.Module):
    """3×3 convolutions with DoubleSwish, the last two with stride 2 in time and frequency, then a linear map and BasicNorm.

    channels: of each convolution. Three of them (8, 32, 128) is icefall's front end. With two, both strided, the
    first already halves the frame rate, and most of the cost is gone: the choice for CPUs.

    The strided convolutions do not pad in time, so an output frame within `lens` is made of input frames within `lens`,
    whatever lies behind them. Those without a stride pad by one frame, hence the zeroing of what is behind the end.
    """

    def __init__(self, num_features: int, channels: list[int], dim: int) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"model.encoder.subsampling_channels={channels}: expected two or more convolutions")
        layers: list[nn.Module] = []
        num_unstrided, in_channels, bins = len(channels) - 2, 1, num_features
        for i, out_channels in enumerate(channels):
            strided = i >= num_unstrided
            conv = nn.Conv2d(in_channels, out_channels, 3, stride=2 if strided else 1, padding=0 if strided else 1)
            init_weight(conv)
            layers += [conv, DoubleSwish()]
            in_channels, bins = out_channels, (bins - 1) // 2 if strided else bins
        self.conv = nn.Sequential(*layers)
        self.balancer = ActivationBalancer(max_abs=10.0)
        self.out = scaled_linear(in_channels * bins, dim)
        self.norm = BasicNorm()

    @staticmethod
    def output_lens(lens_N: Tensor) -> Tensor:
        """Frames that come out of this many frames; 0 for less than 7."""
        return (((lens_N - 1) // 2 - 1) // 2).clamp_(min=0)

    def forward(self, x_NTF: Tensor, lens_N: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, F) → (N, ((T - 1) // 2 - 1) // 2, D), and its lengths."""
        if x_NTF.shape[1] < 7:
            raise ValueError(f"features of {x_NTF.shape[1]} frames: the convolutions need 7 (75 ms) or more")
        x_NTF = ((x_NTF - LOG_MEL_MEAN) / LOG_MEL_STD).masked_fill_(~frame_mask(lens_N, x_NTF.shape[1])[..., None], 0.0)
        # Channels last: then the frame's channels and bins are neighbours, and leaving the convolutions costs no copy.
        x_NCTF = self.conv(x_NTF[:, None].contiguous(memory_format=torch.channels_last))
        x_NTFC = x_NCTF.permute(0, 2, 3, 1)
        x_NTD = self.out(self.balancer(x_NTFC.reshape(*x_NTFC.shape[:2], -1)))
        return self.norm(x_NTD), self.output_lens(lens_N)
