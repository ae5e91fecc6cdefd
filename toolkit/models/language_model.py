"""Neural language models over the tokens of a recognizer: an LSTM and a Transformer, with one interface.

Both read `<sos/eos>` and then the tokens, and say what comes next, `<sos/eos>` again at the end. Training sees whole
sentences (`forward`), a search one token at a time for many hypotheses at once (`initial`, `step`).

Shapes: N sentences, B hypotheses, U tokens, V vocabulary with blank, D dimension, L layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.config import LmConfig
from toolkit.data.text import TextBatch

Caches = tuple[Tensor, ...]  # what a model remembers of each hypothesis; the first dimension of each is B
CHUNK = 32  # tokens by which a Transformer's cache grows


@dataclass(frozen=True)
class LmOutput:
    """terms["lm"]: negative log-likelihood of each sentence (N,); frames_N: its tokens, the end included."""

    terms: dict[str, Tensor]
    frames_N: Tensor


class LanguageModel(nn.Module):
    """Embedding and output layer, which may share their weights; subclasses have what is between."""

    def __init__(self, config: LmConfig, vocab_size: int, blank_id: int = 0, sos_eos_id: int = 1) -> None:
        super().__init__()
        self.vocab_size, self.blank_id, self.sos_eos_id = vocab_size, blank_id, sos_eos_id
        self.embedding = nn.Embedding(vocab_size, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.dim, vocab_size)
        if config.tied:
            self.output.weight = self.embedding.weight

    def log_probs(self, tokens_NU: Tensor) -> Tensor:
        """(N, U + 1, V): what comes first, and after each token; -inf for blank, which is no token."""
        inputs_NU = F.pad(tokens_NU, (1, 0), value=self.sos_eos_id)
        return self._classify(self.hidden(self.dropout(self.embedding(inputs_NU))))

    def forward(self, batch: TextBatch) -> LmOutput:
        log_probs_NUV = self.log_probs(batch.tokens_NU)
        position_U = torch.arange(log_probs_NUV.shape[1], device=log_probs_NUV.device)
        lens_N1 = batch.token_lens_N[:, None]
        targets_NU = F.pad(batch.tokens_NU, (0, 1)).masked_fill(position_U == lens_N1, self.sos_eos_id)
        nll_NU = -log_probs_NUV.gather(2, targets_NU[:, :, None])[:, :, 0]
        return LmOutput({"lm": nll_NU.masked_fill(position_U > lens_N1, 0.0).sum(1)}, batch.token_lens_N + 1)

    def _classify(self, x: Tensor) -> Tensor:
        logits = self.output(self.dropout(x)).float()
        blank_V = torch.arange(self.vocab_size, device=x.device) == self.blank_id
        return logits.masked_fill(blank_V, -torch.inf).log_softmax(dim=-1)

    def hidden(self, x_NUD: Tensor) -> Tensor:
        """Embedded sentences → what the output layer reads, for all positions."""
        raise TypeError("LanguageModel is a base class: use LstmLm or TransformerLm")

    def initial(self, batch_size: int, device: torch.device) -> Caches:
        """The memory before `<sos/eos>`."""
        raise TypeError("LanguageModel is a base class: use LstmLm or TransformerLm")

    def step(self, tokens_B: Tensor, caches: Caches, longest: int | None = None) -> tuple[Tensor, Caches]:
        """Read one more token in each row: (log-probabilities (B, V) of the next one, new memory).

        longest: no row has read more tokens so far. Given it, nothing is asked of a GPU.
        """
        raise TypeError("LanguageModel is a base class: use LstmLm or TransformerLm")


class LstmLm(LanguageModel):
    """Layers of LSTM cells, D wide."""

    def __init__(self, config: LmConfig, vocab_size: int, blank_id: int = 0, sos_eos_id: int = 1) -> None:
        super().__init__(config, vocab_size, blank_id, sos_eos_id)
        dropout = config.dropout if config.num_layers > 1 else 0.0
        self.lstm = nn.LSTM(config.dim, config.dim, config.num_layers, batch_first=True, dropout=dropout)

    def hidden(self, x_NUD: Tensor) -> Tensor:
        return self.lstm(x_NUD)[0]

    def initial(self, batch_size: int, device: torch.device) -> Caches:
        zeros_BLD = torch.zeros(batch_size, self.lstm.num_layers, self.lstm.hidden_size, device=device)
        return zeros_BLD, zeros_BLD

    def step(self, tokens_B: Tensor, caches: Caches, longest: int | None = None) -> tuple[Tensor, Caches]:
        h_LBD, c_LBD = (x.transpose(0, 1).contiguous() for x in caches)
        x_B1D, (h_LBD, c_LBD) = self.lstm(self.embedding(tokens_B[:, None]), (h_LBD, c_LBD))
        return self._classify(x_B1D[:, 0]), (h_LBD.transpose(0, 1), c_LBD.transpose(0, 1))


class TransformerLm(LanguageModel):
    """Pre-norm Transformer layers with causal attention and sinusoidal positions (Vaswani et al. 2017)."""

    def __init__(self, config: LmConfig, vocab_size: int, blank_id: int = 0, sos_eos_id: int = 1) -> None:
        super().__init__(config, vocab_size, blank_id, sos_eos_id)
        self.dim = config.dim
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)

    def hidden(self, x_NUD: Tensor) -> Tensor:
        x_NUD = x_NUD + self._positions(torch.arange(x_NUD.shape[1], device=x_NUD.device))
        for layer in self._layers():
            x_NUD = layer(x_NUD, *layer.keys_and_values(x_NUD), is_causal=True)
        return self.norm(x_NUD)

    def _layers(self) -> list[_Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def initial(self, batch_size: int, device: torch.device) -> Caches:
        """Keys and values (B, L, 2, U, D), of which the first lens_B count; lens_B."""
        shape = (batch_size, len(self.layers), 2, CHUNK, self.dim)
        return torch.zeros(shape, device=device), torch.zeros(batch_size, dtype=torch.int64, device=device)

    def step(self, tokens_B: Tensor, caches: Caches, longest: int | None = None) -> tuple[Tensor, Caches]:
        memory_BL2UD, lens_B = caches
        if (int(lens_B.max()) if longest is None else longest) >= memory_BL2UD.shape[3]:
            memory_BL2UD = F.pad(memory_BL2UD, (0, 0, 0, CHUNK))
        position_U = torch.arange(memory_BL2UD.shape[3], device=tokens_B.device)
        here_BU1 = (position_U == lens_B[:, None])[:, :, None]
        seen_B11U = (position_U <= lens_B[:, None])[:, None, None]
        x_B1D = (self.embedding(tokens_B) + self._positions(lens_B))[:, None]
        memories = []
        for layer, memory_B2UD in zip(self._layers(), memory_BL2UD.unbind(1)):
            new = layer.keys_and_values(x_B1D)
            keys_BUD, values_BUD = (torch.where(here_BU1, y, x) for x, y in zip(memory_B2UD.unbind(1), new))
            x_B1D = layer(x_B1D, keys_BUD, values_BUD, mask=seen_B11U)
            memories.append(torch.stack([keys_BUD, values_BUD], 1))
        return self._classify(self.norm(x_B1D[:, 0])), (torch.stack(memories, 1), lens_B + 1)

    def _positions(self, positions: Tensor) -> Tensor:
        rates = torch.exp(torch.arange(0, self.dim, 2, device=positions.device) * (-math.log(10000.0) / self.dim))
        angles = positions[..., None] * rates
        # As large as the embeddings, whose entries have a standard deviation of D^-1/2.
        return torch.cat([angles.sin(), angles.cos()], dim=-1) * self.dim**-0.5


class _Layer(nn.Module):
    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.query, self.key_value = nn.Linear(config.dim, config.dim), nn.Linear(config.dim, 2 * config.dim)
        self.project = nn.Linear(config.dim, config.dim)
        self.feedforward = nn.Sequential(
            nn.Linear(config.dim, config.feedforward_dim), nn.GELU(), nn.Linear(config.feedforward_dim, config.dim)
        )
        self.dropout = nn.Dropout(config.dropout)

    def keys_and_values(self, x_NUD: Tensor) -> tuple[Tensor, ...]:
        return self.key_value(self.norm1(x_NUD)).chunk(2, dim=-1)

    def forward(
        self, x_NUD: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        query, keys, values = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (self.query(self.norm1(x_NUD)), keys, values)
        )
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=is_causal)
        x_NUD = x_NUD + self.dropout(self.project(attended.transpose(1, 2).flatten(2)))
        return x_NUD + self.dropout(self.feedforward(self.norm2(x_NUD)))


def build_lm(config: LmConfig, vocab_size: int, blank_id: int = 0) -> LanguageModel:
    """The neural LM of a config."""
    models = {"lstm": LstmLm, "transformer": TransformerLm}
    if config.kind not in models:
        raise ValueError(f"lm.kind={config.kind!r} is no neural LM: expected one of {', '.join(models)}")
    return models[config.kind](config, vocab_size, blank_id)
