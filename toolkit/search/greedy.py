"""Greedy searches, batched: the transducer's with S symbols a frame, and CTC's best path.

Legend: N utterances, T encoder frames, D encoder dim, V vocabulary with blank, I iterations of the loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.search.predictor import Predictor, check_encoder_out
from toolkit.search.result import Hypothesis, SearchResult

# "No limit" still ends: 25 symbols a frame of 40 ms are 625 a second; no speech has them, an untrained model may.
UNLIMITED = 25
CHECK_EVERY = 16  # iterations between asking a CUDA device whether all utterances are done


@torch.inference_mode()
def greedy_search(
    model: Any, encoder_out_NTD: Tensor, lens_N: Tensor, max_symbols: int | None = 1
) -> list[SearchResult]:
    """The most probable symbol at every step, at most `max_symbols` a frame (0 or None: no limit, see UNLIMITED).

    Every utterance has its own place t in time. An iteration evaluates the joiner once for each: a blank moves on to
    t+1, a symbol stays at t unless it was the frame's last allowed one, which moves on without paying for a blank (so
    S=1 reads one frame an iteration, as the modified transducer does). Iterations are thus as many as the longest
    utterance needs, not frames times symbols, and a GPU is asked only now and then whether all are done (S=1: never).

    model: see `Predictor`. encoder_out_NTD: (N, T, D) float; lens_N: frames of each that count, 0 allowed.
    Returns N results of one hypothesis each; `score` is the log-probability of the path taken, blanks included.
    Raises ValueError on shapes that do not fit or a negative `max_symbols`.
    """
    if max_symbols is not None and max_symbols < 0:
        raise ValueError(f"max_symbols={max_symbols}: expected at least 1, or 0 for no limit")
    check_encoder_out(encoder_out_NTD, lens_N)
    limit = max_symbols or UNLIMITED
    device = encoder_out_NTD.device
    num_frames = int(lens_N.max()) if len(lens_N) else 0
    if num_frames == 0:
        return [SearchResult([Hypothesis([], [], [], 0.0)]) for _ in range(len(lens_N))]

    predictor = Predictor(model, device)
    encoder_NTJ = predictor.project(encoder_out_NTD)
    lens_N = lens_N.to(device)
    rows_N = torch.arange(len(lens_N), device=device)
    t_N = torch.zeros_like(lens_N)
    count_N = torch.zeros_like(lens_N)  # symbols emitted at this frame
    contexts_N = predictor.initial(len(lens_N))
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # symbol, its log-probability, frame, whether still running
    check_every = 1 if device.type == "cpu" else CHECK_EVERY
    # Every iteration of S=1 reads one frame; otherwise a frame takes S at most.
    for i in range(num_frames * limit):
        running_N = t_N < lens_N
        if limit > 1 and i >= num_frames and i % check_every == 0 and not bool(running_N.any()):
            break
        encoder_NJ = encoder_NTJ[:, i] if limit == 1 else encoder_NTJ[rows_N, t_N.clamp(max=num_frames - 1)]
        logits_NV = predictor.logits(encoder_NJ, predictor.decode(contexts_N))
        best_N, symbol_N = logits_NV.max(dim=1)
        steps.append((symbol_N, best_N - logits_NV.logsumexp(dim=1), t_N, running_N))
        blank_N = symbol_N == predictor.blank_id
        contexts_N = torch.where(blank_N, contexts_N, predictor.advance(contexts_N, symbol_N))
        if limit == 1:
            t_N = t_N + 1
        else:
            count_N = torch.where(blank_N, 0, count_N + 1)
            move_N = blank_N | (count_N == limit)
            count_N = count_N.masked_fill(move_N, 0)
            t_N = t_N + move_N.long()
    return _collect(steps, predictor.blank_id)


def _collect(steps: list[tuple[Tensor, Tensor, Tensor, Tensor]], blank_id: int) -> list[SearchResult]:
    """One transfer to the host, then one hypothesis an utterance."""
    symbols_NI, log_probs_NI, frames_NI, running_NI = (torch.stack(x, dim=1) for x in zip(*steps))
    scores = torch.where(running_NI, log_probs_NI.double(), 0.0).sum(dim=1).tolist()
    emitted_NI = (running_NI & (symbols_NI != blank_id)).cpu()
    symbols_NI, log_probs_NI, frames_NI = symbols_NI.cpu(), log_probs_NI.cpu(), frames_NI.cpu()
    return [
        SearchResult([Hypothesis(symbols_I[on].tolist(), frames_I[on].tolist(), log_probs_I[on].tolist(), score)])
        for symbols_I, frames_I, log_probs_I, on, score in zip(symbols_NI, frames_NI, log_probs_NI, emitted_NI, scores)
    ]


@torch.inference_mode()
def ctc_greedy_search(model: Any, encoder_out_NTD: Tensor, lens_N: Tensor) -> list[SearchResult]:
    """The most probable symbol of every frame of the CTC head, repeats merged, blanks dropped (best path).

    model: has `ctc_log_probs(encoder_out_NTD) -> (N, T, V)` and `blank_id`. A token's frame is the first of its run,
    its log-probability the largest in the run; `score` is the log-probability of the path.
    """
    check_encoder_out(encoder_out_NTD, lens_N)
    n, t, _ = encoder_out_NTD.shape
    if n == 0 or t == 0:
        return [SearchResult([Hypothesis([], [], [], 0.0)]) for _ in range(n)]
    log_probs_NT, symbols_NT = model.ctc_log_probs(encoder_out_NTD).float().max(dim=2)
    log_probs_NT, symbols_NT = log_probs_NT.cpu(), symbols_NT.cpu()
    inside_NT = torch.arange(t) < lens_N.cpu()[:, None]
    scores = torch.where(inside_NT, log_probs_NT.double(), 0.0).sum(dim=1).tolist()
    starts_NT = torch.ones_like(inside_NT)
    starts_NT[:, 1:] = symbols_NT[:, 1:] != symbols_NT[:, :-1]
    runs_NT = starts_NT.cumsum(dim=1) - 1
    peaks_NT = torch.full_like(log_probs_NT, -torch.inf).scatter_reduce(
        1, runs_NT, log_probs_NT.masked_fill(~inside_NT, -torch.inf), "amax"
    )
    first_NT = starts_NT & inside_NT & (symbols_NT != model.blank_id)
    return [
        SearchResult(
            [Hypothesis(symbols_T[on].tolist(), on.nonzero()[:, 0].tolist(), peaks_T[runs_T[on]].tolist(), score)]
        )
        for symbols_T, peaks_T, runs_T, on, score in zip(symbols_NT, peaks_NT, runs_NT, first_NT, scores)
    ]
