"""Greedy searches, batched: the transducer's with S symbols a frame, and CTC's best path.

Legend: N utterances, T encoder frames, D encoder dim, J joiner dim, V vocabulary with blank, C frames looked at at a
time, I iterations of the loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.search.cuda_graph import Step, recorded, whole_batch
from toolkit.search.predictor import Predictor, check_encoder_out
from toolkit.search.result import Hypothesis, SearchResult
from toolkit.search.scorers import Scorer, combine
from toolkit.search.waits import waiting_is_free

# "No limit" still ends: 25 symbols a frame of 40 ms are 625 a second; no speech has them, an untrained model may.
UNLIMITED = 25
# Rows (utterances times frames) that the joiner takes for about the price of one; more are worth less than they cost.
ROWS = {"cpu": 64, "cuda": 1024}
MOST_FRAMES = 8  # tokens are seldom further apart
FEWEST = 4  # iterations at least between asking a GPU whether all utterances are done


@torch.inference_mode()
def greedy_search(
    model: Any,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    max_symbols: int | None = 1,
    *,
    temperature: float = 1.0,
    blank_penalty: float = 0.0,
    scorers: Sequence[Scorer] = (),
    cuda_graphs: bool = True,
) -> list[SearchResult]:
    """The most probable symbol at every step, at most `max_symbols` a frame (0 or None: no limit, see UNLIMITED).

    A blank moves on to the next frame; a symbol stays unless it is the last allowed one, which moves on without paying
    for a blank (so S=1 reads one frame a symbol or blank, as the modified transducer does).

    Every utterance has its own place t in time. As a blank does not change the decoder, an iteration evaluates the
    joiner at the C frames from t on at once, and each utterance goes on behind its first non-blank. So iterations are
    about as many as the tokens of the longest utterance, not as its frames, let alone frames times symbols; and a GPU
    is asked only now and then whether all utterances are done.

    model: see `Predictor`. encoder_out_NTD: (N, T, D) float; lens_N: frames of each that count, 0 allowed.
    temperature, blank_penalty: see `Predictor`.
    scorers: see scorers.py; what they say of a symbol is added to its log-probability before the best is taken.
    cuda_graphs: on CUDA, without scorers, an iteration is recorded and replayed, see cuda_graph.py.
    Returns N results of one hypothesis each; `score` is the log-probability of the path taken, blanks included, and what
    the scorers say of it.
    Raises ValueError on shapes that do not fit or a negative `max_symbols`.
    """
    if max_symbols is not None and max_symbols < 0:
        raise ValueError(f"max_symbols={max_symbols}: expected at least 1, or 0 for no limit")
    check_encoder_out(encoder_out_NTD, lens_N)
    n, num_frames, _ = encoder_out_NTD.shape
    if n == 0:
        return []

    limit = max_symbols or UNLIMITED
    device = encoder_out_NTD.device
    lens_N = lens_N.to(device)
    softmax: dict[str, Any] = {"temperature": temperature, "blank_penalty": blank_penalty}
    recording = cuda_graphs and not scorers and not waiting_is_free(device)
    num_utterances = n
    if recording:
        encoder_out_NTD, lens_N = whole_batch(encoder_out_NTD, lens_N)
        n = len(lens_N)
    predictor = Predictor(model, device, **softmax, remember=not recording)
    encoder_RJ = predictor.project(encoder_out_NTD).flatten(0, 1)  # R = N * T
    row_N = torch.arange(n, device=device) * num_frames
    ahead_C = torch.arange(max(1, min(MOST_FRAMES, ROWS[device.type] // n)), device=device)
    scorer = combine(scorers, predictor.vocab_size, predictor.blank_id)
    state = scorer.init(n, device) if scorer else None
    rows_N = torch.arange(n, device=device)
    place = _Place(
        t_N=torch.zeros_like(lens_N),
        count_N=torch.zeros_like(lens_N),
        contexts_N=predictor.initial(n),
        score_N=torch.zeros(n, dtype=torch.float64, device=device),
    )
    step: Step
    if recording:

        def make_step(model: Any) -> Step:
            return partial(_iterate, Predictor(model, device, **softmax, remember=False), limit)

        step = recorded(make_step, 4, model, ("greedy_search", limit, *softmax.values()))
    else:
        step = partial(_iterate, predictor, limit)
    steps: list[tuple[Tensor, ...]] = []

    next_check = 0
    for i in itertools.count():
        if i == next_check:
            left = int((lens_N - place.t_N).max())
            if left <= 0:
                break
            next_check += 1 if waiting_is_free(device) else _iterations(left, num_frames - left, i, len(ahead_C))
        frame_NC = place.t_N[:, None] + ahead_C
        row_NC = row_N[:, None] + frame_NC.clamp(max=num_frames - 1)
        encoder_NCJ = encoder_RJ.index_select(0, row_NC.view(-1)).view(n, len(ahead_C), -1)
        added_NV = (scorer.log_probs(state),) if scorer else ()
        *passed_on, symbol_N, log_prob_N, frame_N, emit_N = step(encoder_NCJ, lens_N, *place, *added_NV)
        place = _Place(*passed_on)
        steps.append((symbol_N, log_prob_N, frame_N, emit_N))
        if scorer:
            added_N, state = scorer.advance(state, rows_N, torch.where(emit_N, symbol_N, predictor.blank_id))
            place = place._replace(score_N=place.score_N + added_N)
    score_N = place.score_N + scorer.final(state) if scorer else place.score_N
    return _collect(steps, score_N)[:num_utterances]


class _Place(NamedTuple):
    """How far each utterance has come."""

    t_N: Tensor
    count_N: Tensor  # symbols emitted at frame t
    contexts_N: Tensor  # see Predictor
    score_N: Tensor  # float64


def _iterate(
    predictor: Predictor, limit: int, encoder_NCJ: Tensor, lens_N: Tensor, t_N: Tensor, count_N: Tensor,
    contexts_N: Tensor, score_N: Tensor, added_NV: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """One iteration: the next `_Place`; and the symbol, its log-probability, its frame and whether there is one.

    encoder_NCJ: the C frames from t_N on; added_NV: what scorers say of each symbol.
    """
    ahead_C = torch.arange(encoder_NCJ.shape[1], device=t_N.device)
    inside_NC = t_N[:, None] + ahead_C < lens_N[:, None]
    log_probs_NCV = predictor.log_probs(encoder_NCJ, predictor.decode(contexts_N)[:, None])
    if added_NV is not None:
        symbol_NC = (log_probs_NCV + added_NV[:, None]).argmax(dim=2)
        log_prob_NC = log_probs_NCV.gather(2, symbol_NC[:, :, None])[:, :, 0]
    else:
        log_prob_NC, symbol_NC = log_probs_NCV.max(dim=2)

    emit_N, first_N = ((symbol_NC != predictor.blank_id) & inside_NC).max(dim=1)
    taken_NC = inside_NC & (~emit_N[:, None] | (ahead_C <= first_N[:, None]))
    score_N = score_N + torch.where(taken_NC, log_prob_NC, 0.0).sum(dim=1)
    symbol_N = symbol_NC.gather(1, first_N[:, None])[:, 0]
    found = symbol_N, log_prob_NC.gather(1, first_N[:, None])[:, 0], t_N + first_N, emit_N

    contexts_N = torch.where(emit_N, predictor.advance(contexts_N, symbol_N), contexts_N)
    count_N = torch.where(first_N > 0, 0, count_N) + 1
    full_N = count_N == limit
    t_N = t_N + torch.where(emit_N, first_N + full_N, len(ahead_C))
    return t_N, torch.where(emit_N & ~full_N, count_N, 0), contexts_N, score_N, *found


def _iterations(left: int, read: int, iterations: int, ahead: int) -> int:
    """How many more iterations to do before asking again, so that few are done in vain and few questions are asked.

    left, read: frames of the utterance that has most to read; iterations: done for those read; ahead: the most frames that
    an iteration reads. Half of what it takes at the pace so far.
    """
    return max(-(-left // ahead), left * iterations // (2 * max(read, 1)), FEWEST)


def _collect(steps: list[tuple[Tensor, ...]], score_N: Tensor) -> list[SearchResult]:
    """Bring the steps to the host in one piece, and make one hypothesis an utterance."""
    if not steps:
        return [SearchResult([Hypothesis([], [], [], score)]) for score in score_N.tolist()]
    symbols_NI, log_probs_NI, frames_NI, emits_NI = (torch.stack(x, dim=1).cpu() for x in zip(*steps))
    return [
        SearchResult([Hypothesis(symbols_I[on].tolist(), frames_I[on].tolist(), log_probs_I[on].tolist(), score)])
        for symbols_I, log_probs_I, frames_I, on, score in zip(
            symbols_NI, log_probs_NI, frames_NI, emits_NI, score_N.tolist()
        )
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
