"""A tiny transducer for the searches, and brute force over all its alignments."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

import ops
from toolkit.config import DecoderConfig
from toolkit.models.decoder import StatelessDecoder
from toolkit.models.joiner import Joiner


class FakeTransducer(nn.Module):
    """The real decoder and joiner, tiny; no encoder."""

    def __init__(
        self, vocab_size: int = 4, dim: int = 8, context_size: int = 2, seed: int = 0, blank_id: int = 0
    ) -> None:
        super().__init__()
        self.vocab_size, self.blank_id, self.subsampling_factor = vocab_size, blank_id, 4
        self.decoder = StatelessDecoder(DecoderConfig(dim=dim, context_size=context_size), vocab_size, blank_id)
        self.joiner = Joiner(dim, dim, dim, vocab_size)
        self.ctc = nn.Linear(dim, vocab_size)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # far from uniform, so that searches differ
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * (0.8 if p.dim() > 1 else 0.3))
        self.eval()

    def ctc_log_probs(self, encoder_out_NTD: Tensor) -> Tensor:
        return self.ctc(encoder_out_NTD).log_softmax(dim=-1)

    @torch.no_grad()
    def step(self, encoder_D: Tensor, tokens: list[int]) -> Tensor:
        """log-probabilities (V) after `tokens` at a frame: the plain definition."""
        k = self.decoder.context_size
        context = torch.tensor(([self.blank_id] * k + tokens)[-k:])
        return self.joiner(encoder_D, self.decoder(context[None])[0, -1]).log_softmax(-1)


def encoder_outputs(n: int, t: int, dim: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, t, dim, generator=torch.Generator().manual_seed(seed)) * 2


def all_sequences(model: FakeTransducer, encoder_TD: Tensor, merge: str = "log_add") -> dict[tuple[int, ...], float]:
    """Log-probability of every token sequence: the total over all its alignments with one symbol (blank or token) a
    frame, or that of the best one (merge="max").
    """
    totals: dict[tuple[int, ...], float] = {}
    cache: dict[tuple[int, tuple[int, ...]], list[float]] = {}
    for path in itertools.product(range(model.vocab_size), repeat=len(encoder_TD)):
        tokens: tuple[int, ...] = ()
        log_prob = 0.0
        for t, symbol in enumerate(path):
            if (t, tokens) not in cache:
                cache[t, tokens] = model.step(encoder_TD[t], list(tokens)).tolist()
            log_prob += cache[t, tokens][symbol]
            if symbol != model.blank_id:
                tokens += (symbol,)
        a, b = totals.get(tokens, -math.inf), log_prob
        totals[tokens] = max(a, b) + (math.log1p(math.exp(-abs(a - b))) if merge == "log_add" else 0.0)
    return totals


def greedy_by_hand(
    model: FakeTransducer, encoder_TD: Tensor, limit: int
) -> tuple[list[int], list[int], list[float], float]:
    """Greedy search in the obvious way: tokens, frames, their log-probabilities, and that of the path."""
    tokens: list[int] = []
    frames: list[int] = []
    log_probs: list[float] = []
    score = 0.0
    for t in range(len(encoder_TD)):
        for _ in range(limit):
            log_probs_V = model.step(encoder_TD[t], tokens)
            symbol = int(log_probs_V.argmax())
            score += float(log_probs_V[symbol])
            if symbol == model.blank_id:
                break
            tokens.append(symbol)
            frames.append(t)
            log_probs.append(float(log_probs_V[symbol]))
    return tokens, frames, log_probs, score


def rnnt_score(model: FakeTransducer, encoder_TD: Tensor, tokens: list[int], rnnt_type: str) -> float:
    """The total log-probability of `tokens` by the loss's own recursion."""
    log_probs_TSV = torch.stack(
        [torch.stack([model.step(encoder_D, tokens[:s]) for s in range(len(tokens) + 1)]) for encoder_D in encoder_TD]
    )
    symbols = torch.tensor([tokens], dtype=torch.int64)
    loss = ops.rnnt_loss(log_probs_TSV[None], symbols, model.blank_id, rnnt_type=rnnt_type, reduction="none")
    return -float(loss)
