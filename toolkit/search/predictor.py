"""What a transducer search asks of a model, tuned for asking often: decoder outputs by context id, and joiner outputs.

A stateless decoder sees only the last K tokens, so a context is one integer, the K tokens read as a number in base V:
    next id = (id * V + token) mod V^K.
Equal contexts, of whatever hypothesis of whatever utterance, share one evaluation of the decoder.

Legend: N utterances, T encoder frames, D encoder dim, J joiner dim, V vocabulary with blank, K tokens of context.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.search.waits import waiting_is_free

# Contexts up to which all are evaluated beforehand; more on a GPU, where it is not free to ask which are new.
WHOLE_TABLE = {"cpu": 1 << 10, "cuda": 1 << 14}
SLOTS = 1 << 27  # CPU: contexts up to which an index of them is affordable (untouched pages of it cost nothing)


class Predictor:
    """Decoder and joiner of `model`, for one call of a search.

    model: a `TransducerModel`, or what has its `.decoder` (stateless), `.joiner`, `.vocab_size` and `.blank_id`.
    temperature: logits are divided by it: above 1 makes the model less sure of itself. More than 0.
    blank_penalty: taken off the logit of blank before that, for a model that leaves out too much.
    remember: keep decoder outputs for the next question.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        *,
        temperature: float = 1.0,
        blank_penalty: float = 0.0,
        remember: bool = True,
    ) -> None:
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature={temperature}: expected a number above 0")
        if not abs(blank_penalty) < float("inf"):
            raise ValueError(f"blank_penalty={blank_penalty}: expected a finite number")
        self.temperature, self.blank_penalty = temperature, blank_penalty
        self.model = model
        self.device = device
        self.vocab_size: int = model.vocab_size
        self.blank_id: int = model.blank_id
        self.context_size: int = model.decoder.context_size
        self.num_contexts = self.vocab_size**self.context_size
        # What is known lies in rows_RJ; slot_C gives the row of a context, 0 for those not evaluated yet.
        self.rows_RJ: Tensor | None = None
        self.num_rows = 1
        self.slot_C: Tensor | None = None
        free = waiting_is_free(device)
        if not remember:
            return
        if self.num_contexts <= WHOLE_TABLE["cpu" if free else "cuda"]:
            self.rows_RJ = self._evaluate(torch.arange(self.num_contexts, device=device))
        elif free and self.num_contexts <= SLOTS:
            self.slot_C = torch.zeros(self.num_contexts, dtype=torch.int32)

    def initial(self, *shape: int) -> Tensor:
        """Context ids of the start of an utterance: nothing but blanks."""
        blanks = sum(self.blank_id * self.vocab_size**k for k in range(self.context_size))
        return torch.full(shape, blanks, dtype=torch.int64, device=self.device)

    def advance(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """Context ids after emitting `tokens` (same shape)."""
        return (contexts * self.vocab_size + tokens) % self.num_contexts

    def decode(self, contexts: Tensor) -> Tensor:
        """Projected decoder outputs (…, J) of context ids (…)."""
        ids = contexts.reshape(-1)
        if self.slot_C is not None:
            out = self._cached(ids, self.slot_C)
        elif self.rows_RJ is not None:
            out = self.rows_RJ.index_select(0, ids)
        else:  # on a GPU, asking what is new would make the host wait in every frame
            out = self._evaluate(ids)
        return out.view(*contexts.shape, out.shape[-1])

    def project(self, encoder_out_NTD: Tensor) -> Tensor:
        """The encoder's side of the joiner (N, T, J): once for all frames."""
        return self.model.joiner.encoder_proj(encoder_out_NTD)

    def log_probs(self, encoder_J: Tensor, decoder_J: Tensor) -> Tensor:
        """Log-probabilities (…, V), float32, of projected encoder and decoder outputs (…, J) that broadcast."""
        logits_V = self.model.joiner(encoder_J, decoder_J, project_input=False).float()
        if self.blank_penalty != 0.0:
            logits_V[..., self.blank_id] -= self.blank_penalty
        if self.temperature != 1.0:
            logits_V /= self.temperature
        return logits_V.log_softmax(dim=-1)

    def _evaluate(self, ids: Tensor) -> Tensor:
        shifts = [self.vocab_size**k for k in reversed(range(self.context_size))]
        contexts_NK = torch.stack([(ids // shift) % self.vocab_size for shift in shifts], dim=1)
        return self.model.joiner.decoder_proj(self.model.decoder(contexts_NK, need_pad=False)[:, -1])

    def _cached(self, ids: Tensor, slot_C: Tensor) -> Tensor:
        slots = slot_C.index_select(0, ids)
        unknown = slots == 0
        if self.rows_RJ is None or bool(unknown.any()):
            new = ids[unknown].unique()
            rows = self._evaluate(new)
            end = self.num_rows + len(new)
            if self.rows_RJ is None or end > len(self.rows_RJ):
                grown = rows.new_zeros(max(2 * end, 64), rows.shape[1])
                if self.rows_RJ is not None:
                    grown[: self.num_rows] = self.rows_RJ[: self.num_rows]
                self.rows_RJ = grown
            self.rows_RJ[self.num_rows : end] = rows
            slot_C[new] = torch.arange(self.num_rows, end, dtype=torch.int32)
            self.num_rows = end
            slots = slot_C.index_select(0, ids)
        return self.rows_RJ.index_select(0, slots)


def check_encoder_out(encoder_out_NTD: Tensor, lens_N: Tensor) -> None:
    """Raise ValueError unless these are encoder outputs and how many frames of each utterance count."""
    if encoder_out_NTD.dim() != 3:
        raise ValueError(f"encoder_out_NTD: shape {tuple(encoder_out_NTD.shape)}: expected (N, T, D)")
    n, t, _ = encoder_out_NTD.shape
    if lens_N.shape != (n,):
        raise ValueError(f"lens_N: shape {tuple(lens_N.shape)}: expected ({n},), one length an utterance")
    if n and not 0 <= int(lens_N.min()) <= int(lens_N.max()) <= t:
        raise ValueError(f"lens_N: {lens_N.tolist()}: expected lengths from 0 to T={t}")
