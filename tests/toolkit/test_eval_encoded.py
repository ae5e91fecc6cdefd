"""The encoder works a batch ahead of the searches."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from toolkit.data.batch import Batch
from toolkit.eval.decode import encoded


def batches(n: int) -> list[Batch]:
    made = []
    for i in range(n):
        x_NTF, lens_N = torch.full((2, 5, 3), float(i)), torch.tensor([5, 4])
        tokens_NU, token_lens_N = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
        made.append(Batch(x_NTF, lens_N, tokens_NU, token_lens_N, ["A", "B"], [f"{i}-0", f"{i}-1"], 1.0))
    return made


def test_order_and_results_are_those_of_one_after_another() -> None:
    happened: list[str] = []

    def encode(features_NTF: Tensor, lens_N: Tensor) -> tuple[Tensor, Tensor]:
        happened.append(f"encode {int(features_NTF[0, 0, 0])}")
        return features_NTF * 2, lens_N - 1

    model, seconds = SimpleNamespace(encode=encode), {"encoder": 0.0}
    for i, (batch, encoder_out_NTD, lens_N) in enumerate(encoded(model, batches(4), torch.device("cpu"), seconds)):
        happened.append(f"search {i}")
        assert batch.ids == [f"{i}-0", f"{i}-1"] and lens_N.tolist() == [4, 3]
        assert torch.equal(encoder_out_NTD, torch.full((2, 5, 3), 2.0 * i))
    assert happened == [
        "encode 0", "encode 1", "search 0", "encode 2", "search 1", "encode 3", "search 2", "search 3",
    ]  # fmt: skip
    assert seconds["encoder"] > 0
    assert list(encoded(model, [], torch.device("cpu"), seconds)) == []
