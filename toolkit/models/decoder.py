"""The stateless prediction network (Ghodsi et al. 2020): all it knows of the past is the last one or two tokens.

Shapes: N utterances or hypotheses, U tokens, D decoder dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.config import DecoderConfig
from toolkit.models.linear import init_weight


class StatelessDecoder(nn.Module):
    """Embedding, then a convolution over the last `context_size` tokens in groups of four channels, then ReLU.

    Having no state, it can be evaluated for all tokens at once in training, and a search needs to carry along, or cache
    by, nothing but `context_size` token ids.
    """

    def __init__(self, config: DecoderConfig, vocab_size: int, blank_id: int = 0) -> None:
        super().__init__()
        self.context_size, self.blank_id = config.context_size, blank_id
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.conv: nn.Conv1d | None = None
        if config.context_size > 1:
            groups = config.dim // 4 if config.dim % 4 == 0 else 1
            self.conv = nn.Conv1d(config.dim, config.dim, config.context_size, groups=groups, bias=False)
            init_weight(self.conv)

    def forward(self, y_NU: Tensor, need_pad: bool = True) -> Tensor:
        """Decoder outputs for the contexts that end in each token.

        y_NU: int64 token ids. need_pad: the first token has only blanks before it, so U outputs come out, (N, U, D); training
        gives a blank followed by the transcript. Without it the first `context_size - 1` tokens are context only and
        (N, U - context_size + 1, D) comes out: a search gives (N, context_size) and gets (N, 1, D).
        """
        if need_pad:
            y_NU = F.pad(y_NU, (self.context_size - 1, 0), value=self.blank_id)
        elif y_NU.shape[1] < self.context_size:
            raise ValueError(
                f"y_NU has {y_NU.shape[1]} tokens: expected {self.context_size} or more with need_pad=False"
            )
        x_NUD = self.embedding(y_NU)
        if self.conv is not None:
            x_NUD = self.conv(x_NUD.transpose(1, 2)).transpose(1, 2)
        return torch.relu(x_NUD)
