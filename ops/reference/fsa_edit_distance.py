"""Edit distances of many pairs at once, a row of Levenshtein's table at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def _padded(splits: Tensor, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    begin = splits.long()[rows]
    lens = splits.long()[rows + 1] - begin
    places = torch.arange(int(lens.max()) if lens.numel() else 0, device=values.device)
    index = torch.where(places < lens[:, None], begin[:, None] + places, 0)
    return values[index] if index.numel() else index.int(), lens


def fsa_edit_distance(ref_splits: Tensor, refs: Tensor, hyp_splits: Tensor, hyps: Tensor, hyp_to_ref: Tensor) -> Tensor:
    ref_NR, ref_lens = _padded(ref_splits, refs, hyp_to_ref.long())
    hyp_NH, hyp_lens = _padded(hyp_splits, hyps, torch.arange(hyp_to_ref.numel(), device=hyps.device))
    place = torch.arange(ref_NR.shape[1] + 1, device=refs.device)
    row = place.expand(hyp_to_ref.numel(), -1)
    for i in range(hyp_NH.shape[1]):
        best = torch.minimum(row[:, 1:] + 1, row[:, :-1] + (ref_NR != hyp_NH[:, i : i + 1]))
        new = torch.cat([row[:, :1] + 1, best], dim=1)
        new = (new - place).cummin(dim=1).values + place  # symbols of the reference left out
        row = torch.where(i < hyp_lens[:, None], new, row)
    return row.gather(1, ref_lens[:, None]).squeeze(1).int()
