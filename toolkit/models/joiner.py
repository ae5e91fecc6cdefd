"""The joiner: one encoder frame and one decoder output → scores of the next symbol.

Shapes: N utterances, T frames, S positions in the transcript, D encoder, E decoder and J joiner dimension, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.models.linear import scaled_linear


class Joiner(nn.Module):
    """output(tanh(encoder_proj(encoder) + decoder_proj(decoder))).

    The two projections are linear in one input each, so a search does encoder_proj once for an utterance and decoder_proj
    once for a context, and calls the rest with `project_input=False`.
    """

    def __init__(self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_proj = scaled_linear(encoder_dim, joiner_dim)
        self.decoder_proj = scaled_linear(decoder_dim, joiner_dim)
        self.output = scaled_linear(joiner_dim, vocab_size)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True) -> Tensor:
        """(..., D) and (..., E), or both (..., J) with project_input=False, that broadcast → logits (..., V)."""
        if project_input:
            encoder_out, decoder_out = self.encoder_proj(encoder_out), self.decoder_proj(decoder_out)
        return self.output(torch.tanh(encoder_out + decoder_out))
