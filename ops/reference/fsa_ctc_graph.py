"""CTC graphs arc kind by arc kind; ops/topologies.py says what they are."""

from __future__ import annotations

import torch
from torch import Tensor


def fsa_ctc_graph(row_splits: Tensor, symbols: Tensor, modified: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lens = (row_splits[1:] - row_splits[:-1]).long()
    fsas = torch.arange(lens.numel(), device=lens.device)
    owner = torch.repeat_interleave(fsas, lens)
    y = symbols.long()
    k = torch.arange(y.numel(), device=y.device) - row_splits.long()[owner]
    zero = torch.zeros_like(y)
    previous = torch.cat([y[:1], y[:-1]])
    skip = (k > 0) if modified else (k > 0) & (y != previous)
    final, one, some = 2 * lens + 1, torch.full_like(lens, -1), lens > 0
    kinds = [  # FSA, source, destination, label, aux label
        (fsas, 0 * lens, 0 * lens, 0 * lens, 0 * lens),  # the first blank stays
        (owner, 2 * k, 2 * k + 1, y, y),  # blank -> token
        (owner, 2 * k + 1, 2 * k + 2, zero, zero),  # token -> blank
        (owner, 2 * k + 1, 2 * k + 1, y, zero),  # token stays
        (owner[skip], 2 * k[skip] - 1, 2 * k[skip] + 1, y[skip], y[skip]),  # token -> next token
        (owner, 2 * k + 2, 2 * k + 2, zero, zero),  # blank stays
        (fsas, 2 * lens, final, one, one),  # ends after a blank
        (fsas[some], 2 * lens[some] - 1, final[some], one[some], one[some]),  # or a token
    ]
    owner, src, dest, label, aux = (torch.cat(x) for x in zip(*kinds))
    fsa_splits = torch.cat([lens.new_zeros(1), (2 * lens + 2).cumsum(0)])
    state = fsa_splits[owner] + src
    order = torch.argsort(state, stable=True)
    counts = torch.bincount(state, minlength=int(fsa_splits[-1]))
    state_splits = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    arcs = torch.stack([src, dest, label], dim=1)[order].int()
    return fsa_splits.int(), state_splits.int(), arcs, aux[order].int()
