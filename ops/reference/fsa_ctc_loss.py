"""CTC over label sequences: the recursion over states blank, token, blank ... of all sequences at once, frame by frame;
occupations are its derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW = -1e30  # stands for -inf, whose differences would be nan


def _padded(token_splits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(S, U) values, 0 after the end, and the lengths."""
    lens = (token_splits[1:] - token_splits[:-1]).long()
    places = torch.arange(int(lens.max()) if lens.numel() else 0, device=values.device)
    some = places < lens[:, None]
    return torch.zeros(some.shape, dtype=torch.int64, device=values.device).masked_scatter(some, values.long()), lens


def _emissions(log_probs: Tensor, segments: Tensor, labels_SZ: Tensor) -> Tensor:
    """(S, T, Z): the scores of the states' labels in the frames of each segment; after its end anything."""
    n, start, _ = segments.long().unbind(1)
    frames = (start[:, None] + torch.arange(log_probs.shape[1], device=n.device)).clamp(max=log_probs.shape[1] - 1)
    return log_probs[n[:, None, None], frames[:, :, None], labels_SZ[:, None, :]]


def fsa_ctc_loss(
    log_probs: Tensor, segments: Tensor, token_splits: Tensor, tokens: Tensor, skips: Tensor, delay_penalty: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y_SU, lens = _padded(token_splits, tokens)
    num_frames, states = segments[:, 2].long(), 2 * y_SU.shape[1] + 1
    labels_SZ = y_SU.new_zeros(len(lens), states)
    labels_SZ[:, 1::2] = y_SU
    is_token = torch.arange(states, device=lens.device) % 2 == 1
    skip_SZ = torch.zeros_like(labels_SZ, dtype=torch.bool)
    skip_SZ[:, 1::2] = _padded(token_splits, skips)[0] != 0
    x_STZ = _emissions(log_probs.double(), segments, labels_SZ)
    x_STZ = torch.where(torch.isfinite(x_STZ), x_STZ, LOW).detach().requires_grad_(want_grad)
    with torch.set_grad_enabled(want_grad):
        alpha = torch.full(labels_SZ.shape, LOW, dtype=torch.float64, device=lens.device)
        alpha[:, :1] = 0
        for t in range(x_STZ.shape[1]):
            lead = delay_penalty * (0.5 * (num_frames[:, None] - 1) - t) * is_token
            before = torch.nn.functional.pad(alpha, (2, 0), value=LOW)
            skipped = torch.where(skip_SZ, before[:, :-2], LOW) + lead
            new = torch.stack([alpha, before[:, 1:-1] + lead, skipped]).logsumexp(0) + x_STZ[:, t]
            alpha = torch.where(t < num_frames[:, None], new, alpha)
        ends = torch.cat([torch.full_like(alpha[:, :1], LOW), alpha], dim=1)  # so that state -1 is none
        total = torch.stack([ends.gather(1, 2 * lens[:, None] + k) for k in (0, 1)]).logsumexp(0).squeeze(1)
    found = total.detach() > LOW / 2
    occupations = log_probs.new_zeros(0)
    if want_grad and total.numel():
        (grad,) = torch.autograd.grad(total[found].sum(), x_STZ)
        rows = [torch.cat([g[:f, ::2].sum(1, keepdim=True), g[:f, 1 : 2 * u : 2]], dim=1).reshape(-1)
                for g, f, u in zip(grad, num_frames.tolist(), lens.tolist())]  # fmt: skip
        occupations = torch.cat(rows).to(log_probs.dtype)
    return torch.where(found, total.detach(), float("-inf")), occupations


def fsa_ctc_loss_grad(
    occupations: Tensor, total_grad: Tensor, segments: Tensor, token_splits: Tensor, tokens: Tensor, N: int, T: int, C: int
) -> Tensor:  # fmt: skip
    grad = occupations.new_zeros(N, T, C)
    splits, begin = token_splits.tolist(), 0
    for i, (n, start, frames) in enumerate(segments.tolist()):
        labels = torch.cat([tokens.new_zeros(1), tokens[splits[i] : splits[i + 1]]])
        part = occupations[begin : begin + frames * labels.numel()].reshape(frames, -1) * total_grad[i].to(grad.dtype)
        grad[n, start : start + frames].index_add_(1, labels, part)
        begin += part.numel()
    return grad
