"""What a training, validation or decoding step is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """N utterances, padded. Features are padded with the log-energy floor, tokens with 0 (the blank).

    Shapes: N utterances, T feature frames (100 a second), F mel bins, U tokens.
    """

    features_NTF: Tensor  # float32
    feature_lens_N: Tensor  # int64
    tokens_NU: Tensor  # int64
    token_lens_N: Tensor  # int64
    texts: list[str]
    ids: list[str]  # cut ids, what error messages and result files name
    seconds: float  # audio in the batch, without padding

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def take(self, rows: Tensor) -> Batch:
        """Some of the utterances, by number, without padding that only the others needed. `seconds` stays what it was."""
        feature_lens_N, token_lens_N = self.feature_lens_N[rows], self.token_lens_N[rows]
        T, U = (int(lens.max()) if len(rows) else 0 for lens in (feature_lens_N, token_lens_N))
        return dataclasses.replace(
            self,
            features_NTF=self.features_NTF[rows, :T],
            feature_lens_N=feature_lens_N,
            tokens_NU=self.tokens_NU[rows, :U],
            token_lens_N=token_lens_N,
            texts=[self.texts[i] for i in rows.tolist()],
            ids=[self.ids[i] for i in rows.tolist()],
        )

    def describe(self) -> str:
        """One line for error reports: what was in the batch, and how large."""
        n, t, f = self.features_NTF.shape
        return (
            f"{n} utterances, features {n}x{t}x{f}, {self.seconds:.1f} s of audio, longest {int(self.feature_lens_N.max())} "
            f"frames and {int(self.token_lens_N.max())} tokens; first ids: {', '.join(self.ids[:5])}"
        )
