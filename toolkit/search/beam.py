"""Modified beam search: at most one symbol a frame, all hypotheses of all utterances in one batch of tensors.

Legend: N utterances, T encoder frames, D encoder dim, J joiner dim, B beam, V vocabulary with blank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolkit.search.cuda_graph import Step, recorded, whole_batch
from toolkit.search.predictor import Predictor, check_encoder_out
from toolkit.search.result import Hypothesis, SearchResult
from toolkit.search.scorers import Scorer, reorder
from toolkit.search.scorers import combine as combine_scorers
from toolkit.search.waits import waiting_is_free

# A token sequence is known by a 64-bit hash, h(y·v) = h(y) * MULTIPLIER + (v + 1) * INCREMENT (mod 2^64); two different
# ones of an utterance meet with a probability of about 2^-64 a pair.
MULTIPLIER = 6364136223846793005
INCREMENT = 1442695040888963407
EMPTY = 1  # hash of the empty sequence
NONE = 0  # what stands for the parent of the empty sequence

Combine = Callable[[Tensor, Tensor], Tensor]


def merging(merge: str) -> Combine:
    """What "max" or "log_add" does to the scores of two alignments of the same tokens."""
    if merge == "log_add":
        return torch.logaddexp
    if merge == "max":
        return torch.maximum
    raise ValueError(f"merge={merge!r}: expected 'log_add' or 'max'")


@dataclass
class _Beams:
    """B hypotheses of n utterances; a slot with score -inf is unused."""

    scores_NB: Tensor  # log-probability, summed over the alignments merged into it
    contexts_NB: Tensor  # see Predictor
    hashes_NB: Tensor  # of the token sequence
    parents_NB: Tensor  # of the token sequence without its last token
    last_NB: Tensor  # its last token

    def map(self, f: Any) -> _Beams:
        return _Beams(*(f(x) for x in vars(self).values()))


@dataclass
class _Step:
    """What one frame did to each slot: enough to trace hypotheses back."""

    previous_NB: Tensor  # the slot it came from
    token_NB: Tensor  # emitted, or blank
    log_prob_NB: Tensor  # of that token


@torch.inference_mode()
def modified_beam_search(
    model: Any,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    beam: int = 4,
    length_norm: bool = False,
    *,
    merge: str = "log_add",
    temperature: float = 1.0,
    blank_penalty: float = 0.0,
    scorers: Sequence[Scorer] = (),
    cuda_graphs: bool = True,
) -> list[SearchResult]:
    """Beam search of the modified transducer: every frame emits blank or one symbol (arXiv 2211.00484, section 3).

    Alignments of the same tokens are merged before the beam is cut, so that the n-best list has distinct entries. The
    timestamps and token log-probabilities of a merged hypothesis are those of the heavier side.

    model: see `Predictor`. encoder_out_NTD: (N, T, D) float; lens_N: frames of each that count, 0 allowed.
    beam: hypotheses kept, at least 1 (1 is greedy search with one symbol a frame).
    merge: "log_add": a hypothesis weighs what all its surviving alignments weigh together; "max": what the best does.
    length_norm: rank the final n-best by score / (tokens + context size) instead of score. Off by default: with one
    symbol a frame all hypotheses of an utterance are products of equally many probabilities, so there is no length to
    make up for.
    temperature, blank_penalty: see `Predictor`.
    scorers: see scorers.py; what they say is part of a hypothesis's score, and at its end what they say of that.
    cuda_graphs: on CUDA, without scorers, a frame is recorded and replayed, see cuda_graph.py.
    Returns N results of up to `beam` hypotheses, best first; `score` is what they are ranked by.
    Raises ValueError on shapes that do not fit or an option out of range.
    """
    if beam < 1:
        raise ValueError(f"beam={beam}: expected at least 1")
    combine = merging(merge)
    check_encoder_out(encoder_out_NTD, lens_N)
    if len(lens_N) == 0:
        return []
    # Longest first: the utterances that still run at a frame are then the first n, and finished ones cost nothing.
    lens_host_N, order_N = lens_N.cpu().sort(descending=True, stable=True)
    device = encoder_out_NTD.device
    num_frames = int(lens_host_N[0])
    softmax: dict[str, Any] = {"temperature": temperature, "blank_penalty": blank_penalty}
    if cuda_graphs and not scorers and not waiting_is_free(device):
        kept = encoder_out_NTD[:, :num_frames]
        return _search_whole_batch(model, kept, lens_N.to(device), beam, length_norm, merge, softmax)
    running_T = (lens_host_N[None, :] > torch.arange(num_frames)[:, None]).sum(dim=1).tolist()

    predictor = Predictor(model, device, **softmax)
    encoder_NTJ = predictor.project(encoder_out_NTD[order_N.to(device), :num_frames])
    beams = _start(predictor, len(lens_N), beam)
    scorer = combine_scorers(scorers, predictor.vocab_size, predictor.blank_id)
    scoring = _Scoring(scorer, order_N.to(device), beam) if scorer else None
    finished: list[Tensor] = []
    steps: list[_Step] = []
    n = len(lens_N)
    for t, still in enumerate(running_T):
        if still < n:
            finished.append(beams.scores_NB[still:] + (scoring.final(still) if scoring else 0.0))
            beams = beams.map(lambda x: x[:still])  # noqa: B023
            n = still
        beams, step = _advance(predictor, encoder_NTJ[:n, t], beams, combine, scoring)
        steps.append(step)
    finished.append(beams.scores_NB + (scoring.final(0) if scoring else 0.0))
    scores_NB = torch.cat(finished[::-1]).cpu()
    sorted_results = _trace_back(steps, scores_NB, predictor, length_norm)
    results: list[SearchResult] = [sorted_results[0]] * len(lens_N)
    for place, result in zip(order_N.tolist(), sorted_results):
        results[place] = result
    return results


def _search_whole_batch(
    model: Any,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    beam: int,
    length_norm: bool,
    merge: str,
    softmax: dict[str, Any],
) -> list[SearchResult]:
    """The same with all utterances in every frame, so that frames can be recorded: those that have ended stay as they are."""
    n, device = len(lens_N), encoder_out_NTD.device
    encoder_out_NTD, lens_N = whole_batch(encoder_out_NTD, lens_N)

    def make_step(model: Any) -> Step:
        predictor = Predictor(model, device, **softmax, remember=False)

        def step(encoder_NJ: Tensor, running_N1: Tensor, *beams: Tensor) -> tuple[Tensor, ...]:
            new, frame = _advance(predictor, encoder_NJ, _Beams(*beams), merging(merge))
            kept = (torch.where(running_N1, x, y) for x, y in zip(vars(new).values(), beams))
            same_slot_B = torch.arange(beam, device=device)
            previous_NB = torch.where(running_N1, frame.previous_NB, same_slot_B)
            token_NB = torch.where(running_N1, frame.token_NB, predictor.blank_id)
            return *kept, previous_NB, token_NB, frame.log_prob_NB

        return step

    step = recorded(make_step, 3, model, ("modified_beam_search", merge, *softmax.values()))
    predictor = Predictor(model, device, **softmax, remember=False)
    encoder_NTJ = predictor.project(encoder_out_NTD)
    beams = tuple(vars(_start(predictor, len(lens_N), beam)).values())
    steps: list[_Step] = []
    for t, encoder_NJ in enumerate(encoder_NTJ.unbind(1)):
        *passed_on, previous_NB, token_NB, log_prob_NB = step(encoder_NJ, lens_N[:, None] > t, *beams)
        beams = tuple(passed_on)
        steps.append(_Step(previous_NB, token_NB, log_prob_NB))
    return _trace_back(steps, beams[0].cpu(), predictor, length_norm)[:n]


def _start(predictor: Predictor, n: int, beam: int) -> _Beams:
    """One hypothesis an utterance: the empty one."""
    contexts_NB = predictor.initial(n, beam)
    scores_NB = torch.full((n, beam), -torch.inf, device=predictor.device)
    scores_NB[:, 0] = 0.0
    return _Beams(
        scores_NB,
        contexts_NB,
        hashes_NB=torch.full_like(contexts_NB, EMPTY),
        parents_NB=torch.full_like(contexts_NB, NONE),
        last_NB=torch.full_like(contexts_NB, predictor.blank_id),
    )


class _Scoring:
    """A scorer with the hypotheses of a beam as its rows: row n * B + b is slot b of utterance n."""

    def __init__(self, scorer: Scorer, order_N: Tensor, beam: int) -> None:
        self.scorer, self.beam = scorer, beam
        state = scorer.init(len(order_N), order_N.device)
        self.state = reorder(scorer, state, order_N.repeat_interleave(beam))

    def log_probs(self, n: int) -> Tensor:
        return self.scorer.log_probs(self.state).view(n, self.beam, -1)

    def advance(self, previous_NB: Tensor, token_NB: Tensor) -> None:
        first_row_N1 = torch.arange(len(previous_NB), device=previous_NB.device)[:, None] * self.beam
        rows = (first_row_N1 + previous_NB).view(-1)
        _, self.state = self.scorer.advance(self.state, rows, token_NB.view(-1))

    def final(self, still: int) -> Tensor:
        """What the ends of all utterances from number `still` on add; their rows are dropped."""
        final_NB = self.scorer.final(self.state).view(-1, self.beam)
        self.state = reorder(self.scorer, self.state, torch.arange(still * self.beam, device=final_NB.device))
        return final_NB[still:]


def _advance(
    predictor: Predictor, encoder_NJ: Tensor, beams: _Beams, combine: Combine, scoring: _Scoring | None = None
) -> tuple[_Beams, _Step]:
    """Read one frame: extend all hypotheses by blank or a symbol, merge equal ones, keep the best B."""
    n, b = beams.scores_NB.shape
    blank = predictor.blank_id
    decoder_NBJ = predictor.decode(beams.contexts_NB)
    log_probs_NBV = predictor.log_probs(encoder_NJ[:, None], decoder_NBJ)
    v = log_probs_NBV.shape[2]
    totals_NBV = log_probs_NBV + beams.scores_NB[:, :, None]
    if scoring:
        totals_NBV += scoring.log_probs(n)
    totals_NC = totals_NBV.view(n, b * v)  # C = B * V candidates
    origin_NB, heavier_NB = _merge(totals_NC, beams, blank, v, combine)

    scores_NB, chosen_NB = totals_NC.topk(b, dim=1)
    previous_NB, token_NB = chosen_NB // v, chosen_NB % v
    # A hypothesis that stays (blank) and has been reached by its parent, too, is traced through the heavier of the two.
    through_parent_NB = (token_NB == blank) & heavier_NB.gather(1, previous_NB)
    origin_NB = torch.where(through_parent_NB, origin_NB.gather(1, previous_NB), previous_NB)
    origin_token_NB = torch.where(through_parent_NB, beams.last_NB.gather(1, previous_NB), token_NB)
    origin_log_prob_NB = log_probs_NBV.view(n, b * v).gather(1, origin_NB * v + origin_token_NB)

    if scoring:
        scoring.advance(previous_NB, token_NB)
    emit_NB = token_NB != blank
    old = beams.map(lambda x: x.gather(1, previous_NB))
    new = _Beams(
        scores_NB,
        torch.where(emit_NB, predictor.advance(old.contexts_NB, token_NB), old.contexts_NB),
        torch.where(emit_NB, old.hashes_NB * MULTIPLIER + (token_NB + 1) * INCREMENT, old.hashes_NB),
        torch.where(emit_NB, old.hashes_NB, old.parents_NB),
        torch.where(emit_NB, token_NB, old.last_NB),
    )
    return new, _Step(origin_NB, origin_token_NB, origin_log_prob_NB)


def _merge(totals_NC: Tensor, beams: _Beams, blank: int, v: int, combine: Combine) -> tuple[Tensor, Tensor]:
    """Combine, in place, candidates that are the same token sequence.

    The hypotheses of a beam being distinct, two candidates can only be equal if one is hypothesis j with a blank and
    the other is the parent of j with the last token of j. Each j has one parent at most in the beam.
    Returns, for each j, its parent's slot and whether the way through the parent is the heavier one.
    """
    n, b = beams.scores_NB.shape
    used_NB = beams.scores_NB > -torch.inf
    is_parent_NBB = beams.parents_NB[:, :, None] == beams.hashes_NB[:, None, :]  # [:, j, i]: i is the parent of j
    is_parent_NBB &= used_NB[:, :, None] & used_NB[:, None, :]
    has_parent_NB, parent_NB = is_parent_NBB.max(dim=2)
    stay_NB = torch.arange(b, device=totals_NC.device) * v + blank
    stay_NB = stay_NB.expand(n, b)
    # Without a parent, the candidate "comes" from j's own blank: gathered, it is masked out; cleared, written again.
    come_NB = torch.where(has_parent_NB, parent_NB * v + beams.last_NB, stay_NB)
    stay_total_NB = totals_NC.gather(1, stay_NB)
    come_total_NB = totals_NC.gather(1, come_NB).masked_fill(~has_parent_NB, -torch.inf)
    totals_NC.scatter_(1, come_NB, -torch.inf)
    totals_NC.scatter_(1, stay_NB, combine(stay_total_NB, come_total_NB))
    return parent_NB, come_total_NB > stay_total_NB


def _trace_back(steps: list[_Step], scores_NB: Tensor, predictor: Predictor, length_norm: bool) -> list[SearchResult]:
    """Follow the slots back in time, all hypotheses at once, and read off tokens, frames and log-probabilities."""
    n, b = scores_NB.shape
    device = predictor.device
    tokens_TNB = torch.full((len(steps), n, b), predictor.blank_id, dtype=torch.int64, device=device)
    log_probs_TNB = torch.zeros(len(steps), n, b, device=device)
    slot_NB = torch.arange(b, device=device).repeat(n, 1)
    for t in reversed(range(len(steps))):
        running = len(steps[t].previous_NB)
        slots = slot_NB[:running]
        tokens_TNB[t, :running] = steps[t].token_NB.gather(1, slots)
        log_probs_TNB[t, :running] = steps[t].log_prob_NB.gather(1, slots)
        slot_NB[:running] = steps[t].previous_NB.gather(1, slots)
    tokens_TNB, log_probs_TNB = tokens_TNB.cpu(), log_probs_TNB.cpu()
    emitted_TNB = tokens_TNB != predictor.blank_id
    results = []
    for i in range(n):
        nbest = []
        for j in range(b):
            score = float(scores_NB[i, j])
            if j > 0 and score == -torch.inf:
                break
            on_T = emitted_TNB[:, i, j]
            tokens = tokens_TNB[on_T, i, j].tolist()
            if length_norm:
                score /= len(tokens) + predictor.context_size
            nbest.append(Hypothesis(tokens, on_T.nonzero()[:, 0].tolist(), log_probs_TNB[on_T, i, j].tolist(), score))
        nbest.sort(key=lambda hypothesis: -hypothesis.score)
        results.append(SearchResult(nbest))
    return results
