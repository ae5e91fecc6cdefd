"""The transducer losses from plain log-probabilities of every class at every (t, s), cell by cell; differentiable.

The oracle of tests/ops/test_rnnt_loss.py. Nothing falls back to it: without a compiler ops/reference/rnnt_additive.py
serves, and the rest of ops/rnnt_loss.py is PyTorch itself, but for the recursion.
"""

from __future__ import annotations

import torch
from torch import Tensor


def additive_log_probs(lm: Tensor, am: Tensor, lm_only_scale: float = 0.0, am_only_scale: float = 0.0) -> Tensor:
    """(N, T, S + 1, C) log-probabilities of the joiner-free transducer, smoothed as in `ops.rnnt_loss_smoothed`."""
    joint = (am[:, :, None] + lm[:, None]).log_softmax(-1)
    lm_only = lm.log_softmax(-1)[:, None]
    unigram = lm.softmax(-1).mean(dim=(0, 1))
    am_only = (am + unigram.log()).log_softmax(-1)[:, :, None]
    return (1 - lm_only_scale - am_only_scale) * joint + lm_only_scale * lm_only + am_only_scale * am_only


def hat_log_probs(logits: Tensor, blank: int) -> Tensor:
    """(N, T, S + 1, C): blank by a sigmoid, the other symbols by a softmax among themselves."""
    blank_probability = logits[..., blank : blank + 1].sigmoid()
    others = (
        torch.cat([logits[..., :blank], logits[..., blank + 1 :]], -1).log_softmax(-1) + (1 - blank_probability).log()
    )
    return torch.cat([others[..., :blank], blank_probability.log(), others[..., blank:]], -1)


def transducer_loss(
    log_probs: Tensor, symbols: Tensor, blank: int, boundary: Tensor, rnnt_type: str, delay_penalty: float = 0.0
) -> Tensor:
    """(N,) losses of log_probs (N, T, S + 1, C), by the definition of the lattices in docs/transducer-losses.md."""
    losses = []
    for n, (_, _, S, T) in enumerate(boundary.tolist()):
        zero = log_probs.new_zeros(())
        cells = {(0, 0): zero}
        for t in range(T + 1):
            for s in range(S + 1):
                into = [cells[s, t]] if (s, t) in cells else []
                if t > 0 and (s, t - 1) in cells:
                    into.append(cells[s, t - 1] + log_probs[n, t - 1, s, blank])
                t_from = t if rnnt_type == "regular" else t - 1  # the frame at which symbol s - 1 is emitted
                if s > 0 and 0 <= t_from < T and (s - 1, t_from) in cells:
                    symbol = log_probs[n, t_from, s - 1, symbols[n, s - 1]] + ((T - 1) / 2 - t_from) * delay_penalty
                    if rnnt_type == "constrained":
                        symbol = symbol + log_probs[n, t_from, s, blank]
                    into.append(cells[s - 1, t_from] + symbol)
                if into:
                    cells[s, t] = torch.stack(into).logsumexp(0)
        losses.append(-cells[S, T] if (S, T) in cells else zero + float("inf"))
    return torch.stack(losses)
