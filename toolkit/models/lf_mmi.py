"""Lattice-free MMI on the CTC topology: minus the log-posterior of the transcript among everything that could be said.

    loss = -(log P(y) + log p(x | y) - den_scale * log sum over y' of P(y') p(x | y'))

p(x | y) is what CTC sums over the alignments of y; P is an n-gram of tokens, estimated on the training transcripts. The
second sum runs over a graph, the CTC topology composed with P, by `ops.intersect_dense`: no lattices from a decoder.

Shapes: N utterances, T frames, U tokens, V vocabulary with blank, S states of the n-gram.
Source: Povey et al., "Purely sequence-trained neural networks for ASR based on lattice-free MMI", Interspeech 2016.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ops
from toolkit.config import LfMmiConfig

log = logging.getLogger(__name__)

MOST_ARCS = 20_000_000  # of a denominator; more is a vocabulary or an order that was not thought about


@dataclass(frozen=True)
class TokenNgram:
    """A token n-gram as dense tables, back-off worked out: what each state gives to each token, and where that leads.

    log_probs_SV: float32, natural logs, -inf for what cannot follow (the blank). next_SV: int64. final_S: log P(end).
    """

    log_probs_SV: Tensor
    next_SV: Tensor
    final_S: Tensor
    start: int

    @classmethod
    def train(cls, token_lists: Iterable[Sequence[int]], vocab_size: int, order: int) -> TokenNgram:
        """Estimated on token lists by `toolkit.lang.train_ngram`.

        All tokens are its vocabulary, those that occur nowhere too, so that no transcript is impossible.
        """
        from ops.ngram import NgramLM
        from toolkit.lang import train_ngram

        with tempfile.TemporaryDirectory() as folder:
            arpa = Path(folder) / "tokens.arpa"
            sentences = [[str(token) for token in tokens] for tokens in token_lists]
            train_ngram(sentences, order, arpa, vocabulary=map(str, range(1, vocab_size)))
            return cls.of(NgramLM.load(arpa), vocab_size)

    @classmethod
    def of(cls, lm: Any, vocab_size: int, blank_id: int = 0) -> TokenNgram:
        """The tables of an `ops.ngram.NgramLM` whose words are token ids; only states that can be reached."""
        word_V = torch.tensor([lm.word_id(str(token)) for token in range(vocab_size)])
        number, rows, nexts = {int(lm.start_state): 0}, [], []
        queue = [int(lm.start_state)]
        for state in queue:  # grows while states are found
            if len(queue) * vocab_size > MOST_ARCS:
                raise ValueError(
                    f"loss.lf_mmi: the n-gram has more than {len(queue)} states, times {vocab_size} tokens: lower "
                    "loss.lf_mmi.ngram_order or the vocabulary"
                )
            log_prob_V, next_V = lm.score(torch.full((vocab_size,), state, dtype=torch.int32), word_V.int())
            log_prob_V = log_prob_V.clone()
            log_prob_V[blank_id] = -torch.inf
            rows.append(log_prob_V)
            for new in next_V.tolist():
                if new not in number:
                    number[new] = len(queue)
                    queue.append(new)
            nexts.append(torch.tensor([number[new] for new in next_V.tolist()]))
        final_S = lm.final(torch.tensor(queue, dtype=torch.int32))
        return cls(torch.stack(rows).float(), torch.stack(nexts), final_S.float(), 0)

    def log_prob(self, tokens_NU: Tensor, token_lens_N: Tensor) -> Tensor:
        """log P of each transcript (N,), its end included."""
        state_N = torch.full_like(token_lens_N, self.start)
        total_N = torch.zeros(len(token_lens_N), device=token_lens_N.device)
        for u in range(tokens_NU.shape[1]):
            inside_N, token_N = u < token_lens_N, tokens_NU[:, u]
            total_N = total_N + torch.where(inside_N, self.log_probs_SV[state_N, token_N], 0.0)
            state_N = torch.where(inside_N, self.next_SV[state_N, token_N], state_N)
        return total_N + self.final_S[state_N]

    def to_fsa(self) -> ops.Fsa:
        """The same as a deterministic acceptor without epsilons."""
        S, V = self.log_probs_SV.shape
        src, token = (self.log_probs_SV > -torch.inf).nonzero(as_tuple=True)
        # The start comes first, the final state last.
        order = torch.argsort(torch.cat([torch.tensor([self.start]), torch.arange(S)[torch.arange(S) != self.start]]))
        columns = [order[src], order[self.next_SV[src, token]], token]
        ends = [order, torch.full((S,), S), torch.full((S,), -1)]
        arcs = torch.stack([torch.cat(pair) for pair in zip(columns, ends)], dim=1)
        scores = torch.cat([self.log_probs_SV[src, token], self.final_S])
        keep = torch.argsort(arcs[:, 0] * (V + 1) + torch.where(arcs[:, 2] < 0, V, arcs[:, 2]))
        return ops.arc_sort(ops.Fsa(torch.cat([arcs[keep].int(), scores[keep].float().view(torch.int32)[:, None]], 1)))

    def to(self, device: torch.device) -> TokenNgram:
        return TokenNgram(self.log_probs_SV.to(device), self.next_SV.to(device), self.final_S.to(device), self.start)


class LfMmi:
    """The mmi loss term of a model; no part of its state: a checkpoint does without it."""

    def __init__(self, ngram: TokenNgram, config: LfMmiConfig) -> None:
        self.config, self.ngram = config, ngram
        topology = ops.ctc_topo(ngram.log_probs_SV.shape[1] - 1)
        self.graph = ops.arc_sort(ops.connect(ops.compose(topology, ngram.to_fsa())))
        log.info(
            "LF-MMI: token n-gram of order %d with %d states; denominator of %d states and %d arcs",
            config.ngram_order, len(ngram.final_S), self.graph.shape[0], self.graph.num_arcs,
        )  # fmt: skip

    @classmethod
    def train(cls, config: LfMmiConfig, token_lists: Iterable[Sequence[int]], vocab_size: int) -> LfMmi:
        """With the n-gram of these transcripts: the same ones give the same loss, so a run that is resumed goes on."""
        return cls(TokenNgram.train(token_lists, vocab_size, config.ngram_order), config)

    def __call__(
        self, ctc_N: Tensor, log_probs_NTV: Tensor, lens_N: Tensor, tokens_NU: Tensor, token_lens_N: Tensor
    ) -> Tensor:
        """The loss of each utterance (N,), float32, at least 0 with den_scale 1 up to what den_beam cuts off.

        ctc_N: -log p(x | y). Where that is not finite, so is the loss; such utterances take no part in anything else.
        """
        device = log_probs_NTV.device
        if self.graph.device != device:
            self.graph, self.ngram = self.graph.to(device), self.ngram.to(device)
        prior_N = self.ngram.log_prob(tokens_NU, token_lens_N)
        loss_N = ctc_N - prior_N
        rows = (ctc_N.detach().isfinite() & (lens_N > 0)).nonzero().squeeze(1)
        if len(rows) == 0:
            return loss_N
        segments = torch.stack([rows, torch.zeros_like(rows), lens_N[rows]], dim=1).int()
        lattice = ops.intersect_dense(self.graph, ops.DenseFsaVec(log_probs_NTV, segments), self.config.den_beam)
        den = lattice.get_tot_scores(use_double_scores=True, log_semiring=True).float()
        return loss_N.index_add(0, rows, self.config.den_scale * den)
