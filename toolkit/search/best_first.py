"""Best-first beam search of transducers, with up to S symbols a frame (Graves, "Sequence transduction with recurrent
neural networks", 2012, section 2.3, with duplicates merged).

Exact where others are not, and slow: a host program that expands one hypothesis at a time. All utterances go at once, so
that what they ask of the network is answered in batches.

Legend: N utterances, T encoder frames, D encoder dim, J joiner dim, V vocabulary with blank, R requests, K symbols looked
at.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolkit.search.beam import merging
from toolkit.search.greedy import UNLIMITED
from toolkit.search.predictor import Predictor, check_encoder_out
from toolkit.search.result import Hypothesis, SearchResult
from toolkit.search.scorers import Scorer, ScorerPool, combine, reorder

# Log-probability of blank; the best other symbols, what they add to the score, and their log-probabilities.
Row = tuple[float, list[int], list[float], list[float]]
Requests = list[tuple[int, int, tuple[int, ...]]]  # frame, context, tokens


@dataclass(slots=True)
class _Trace:
    """The last symbol of a hypothesis, where it was emitted, and what was before."""

    token: int
    frame: int
    log_prob: float
    before: _Trace | None


@dataclass(slots=True)
class _Hyp:
    tokens: tuple[int, ...]
    context: int  # see Predictor
    score: float
    trace: _Trace | None
    count: int = 0  # symbols emitted at this frame

    def then(self, token: int, added: float, log_prob: float, frame: int, context: int, count: int) -> _Hyp:
        trace = _Trace(token, frame, log_prob, self.trace)
        return _Hyp((*self.tokens, token), context, self.score + added, trace, count)


@torch.inference_mode()
def beam_search(
    model: Any,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    beam: int = 4,
    max_symbols: int | None = 0,
    length_norm: bool = False,
    *,
    merge: str = "log_add",
    forced_blank: bool = False,
    temperature: float = 1.0,
    blank_penalty: float = 0.0,
    scorers: Sequence[Scorer] = (),
) -> list[SearchResult]:
    """The best hypotheses with at most `max_symbols` symbols a frame (0 or None: no limit, see greedy.UNLIMITED).

    At every frame the best hypothesis that still stands before it is taken next: with a blank it moves behind the frame,
    with each symbol it stays, until `beam` hypotheses behind the frame are better than all before it. Those that have the
    same tokens are merged.

    model: see `Predictor`. encoder_out_NTD: (N, T, D) float; lens_N: frames of each that count, 0 allowed.
    beam: hypotheses kept behind a frame; also how many symbols a hypothesis is extended by.
    max_symbols: S; the S-th symbol of a frame moves on without paying for a blank, as in `greedy_search`. So S=1 is the
      modified transducer.
    forced_blank: the S-th symbol does pay for the blank that must follow it: with S=1 the constrained transducer.
    merge: "log_add": a hypothesis weighs what its alignments weigh together; "max": what the best does.
    length_norm: rank the final n-best list by score / (tokens + context size).
    temperature, blank_penalty: see `Predictor`.
    scorers: see scorers.py; what they say is part of a hypothesis's score, and at its end what they say of that.
    Returns N results of up to `beam` hypotheses, best first; timestamps and log-probabilities of a merged one are those
    of the heavier side. Raises ValueError on shapes that do not fit or an option out of range.
    """
    if beam < 1:
        raise ValueError(f"beam={beam}: expected at least 1")
    if max_symbols is not None and max_symbols < 0:
        raise ValueError(f"max_symbols={max_symbols}: expected at least 1, or 0 for no limit")
    merging(merge)
    check_encoder_out(encoder_out_NTD, lens_N)
    predictor = Predictor(model, encoder_out_NTD.device, temperature=temperature, blank_penalty=blank_penalty)
    start = int(predictor.initial())

    def follow(context: int, token: int) -> int:
        return (context * predictor.vocab_size + token) % predictor.num_contexts

    searches = [
        _search(n, start, follow, beam, max_symbols or UNLIMITED, forced_blank, merge == "log_add", bool(scorers))
        for n in lens_N.tolist()
    ]
    scorer = combine(scorers, predictor.vocab_size, predictor.blank_id)
    pool = ScorerPool(scorer, len(lens_N), predictor.device) if scorer else None
    kept = _drive(searches, predictor, predictor.project(encoder_out_NTD), min(beam, predictor.vocab_size - 1), pool)
    if pool:
        for i, hyps in enumerate(kept):
            rows = pool.rows([(i, hyp.tokens) for hyp in hyps])
            for hyp, final in zip(hyps, pool.scorer.final(pool.state)[rows].tolist()):
                hyp.score += final
    return [_result(hyps, predictor.context_size if length_norm else None) for hyps in kept]


Search = Generator[Requests, list[Row], list[_Hyp]]


def _drive(
    searches: list[Search], predictor: Predictor, encoder_NTJ: Tensor, k: int, pool: ScorerPool | None
) -> list[list[_Hyp]]:
    """Run all searches to their ends, evaluating what all of them ask for at once."""
    kept: dict[int, list[_Hyp]] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(searches)))
    while answers:
        asked: dict[int, Requests] = {}
        for i, rows in answers.items():
            try:
                asked[i] = searches[i].send(rows)
            except StopIteration as end:
                kept[i] = end.value
        places = [(i, t, context) for i, requests in asked.items() for t, context, _ in requests]
        added_RV = None
        if pool and places:
            rows_R = pool.rows([(i, tokens) for i, requests in asked.items() for _, _, tokens in requests])
            added_RV = pool.scorer.log_probs(reorder(pool.scorer, pool.state, rows_R))
        rows = _evaluate(places, predictor, encoder_NTJ, k, added_RV) if places else []
        answers, first = {}, 0
        for i, requests in asked.items():
            answers[i] = rows[first : first + len(requests)]
            first += len(requests)
    return [kept[i] for i in range(len(searches))]


def _evaluate(
    places: list[tuple[int, int, int]], predictor: Predictor, encoder_NTJ: Tensor, k: int, added_RV: Tensor | None
) -> list[Row]:
    utterance_R, frame_R, context_R = torch.tensor(places, device=predictor.device).unbind(1)
    log_probs_RV = predictor.log_probs(encoder_NTJ[utterance_R, frame_R], predictor.decode(context_R))
    blank_R = log_probs_RV[:, predictor.blank_id].clone()
    log_probs_RV[:, predictor.blank_id] = -torch.inf
    best_RK, symbol_RK = (log_probs_RV if added_RV is None else log_probs_RV + added_RV).topk(k, dim=1)
    log_prob_RK = log_probs_RV.gather(1, symbol_RK)
    return list(zip(blank_R.tolist(), symbol_RK.tolist(), best_RK.tolist(), log_prob_RK.tolist()))


def _search(
    num_frames: int,
    start: int,
    follow: Callable[[int, int], int],
    beam: int,
    limit: int,
    forced_blank: bool,
    log_add: bool,
    by_tokens: bool,
) -> Search:
    """One utterance, as a coroutine that is sent what it asks for: by context or, with scorers, by all tokens."""
    hyps = [_Hyp((), start, 0.0, None)]
    for t in range(num_frames):
        rows: dict[Any, Row] = {}
        before, after = _Agenda(log_add), _Agenda(log_add)  # Graves' A and B
        for old in hyps:
            before.add(_Hyp(old.tokens, old.context, old.score, old.trace))
        asked = {old.tokens if by_tokens else old.context: old for old in hyps}
        rows.update(zip(asked, (yield [(t, old.context, old.tokens) for old in asked.values()])))
        while (hyp := before.pop_best()) is not None:
            if hyp.score < after.floor(beam):
                break
            key = hyp.tokens if by_tokens else hyp.context
            if key not in rows:
                (rows[key],) = yield [(t, hyp.context, hyp.tokens)]
            blank, symbols, added, log_probs = rows[key]
            after.add(_Hyp(hyp.tokens, hyp.context, hyp.score + blank, hyp.trace))
            if hyp.count == limit:
                continue
            count = hyp.count + 1
            full = count == limit and not forced_blank
            for symbol, gain, log_prob in zip(symbols, added, log_probs):
                longer = hyp.then(symbol, gain, log_prob, t, follow(hyp.context, symbol), 0 if full else count)
                (after if full else before).add(longer)
        hyps = after.best(beam)
    return hyps


class _Agenda:
    """Hypotheses of one utterance that wait to be taken, best first.

    Those before a frame are told apart by tokens and symbols emitted at the frame: each has one way to come about. Those
    behind it are told apart by tokens alone, and merged.
    """

    def __init__(self, log_add: bool) -> None:
        self.log_add = log_add
        self.hyps: dict[tuple[tuple[int, ...], int], _Hyp] = {}
        self.heap: list[tuple[float, tuple[int, ...], int]] = []  # with entries that are out of date
        self.lowest, self.next_look = -math.inf, 0  # see floor

    def add(self, new: _Hyp) -> None:
        if new.score == -math.inf:
            return
        key = new.tokens, new.count
        old = self.hyps.get(key)
        if old is not None:
            high, low = (new, old) if new.score > old.score else (old, new)
            score = high.score + math.log1p(math.exp(low.score - high.score)) if self.log_add else high.score
            if score == old.score:
                return
            new = _Hyp(high.tokens, high.context, score, high.trace, high.count)
        self.hyps[key] = new
        heapq.heappush(self.heap, (-new.score, new.tokens, new.count))

    def pop_best(self) -> _Hyp | None:
        while self.heap:
            score, tokens, count = heapq.heappop(self.heap)
            hyp = self.hyps.get((tokens, count))
            if hyp is not None and hyp.score == -score:
                del self.hyps[tokens, count]
                return hyp
        return None

    def floor(self, n: int) -> float:
        """A score that at least n are better than or as good as; found anew only when some more have come, as looking
        costs more than taking a few hypotheses too many.
        """
        if len(self.hyps) >= self.next_look + n:
            self.lowest = heapq.nlargest(n, (hyp.score for hyp in self.hyps.values()))[-1]
            self.next_look = len(self.hyps) - n + 1 + n // 4
        return self.lowest

    def best(self, n: int) -> list[_Hyp]:
        return heapq.nsmallest(n, self.hyps.values(), key=lambda hyp: -hyp.score)


def _result(hyps: list[_Hyp], context_size: int | None) -> SearchResult:
    nbest = []
    for hyp in hyps:
        steps, trace = [], hyp.trace
        while trace is not None:
            steps.append(trace)
            trace = trace.before
        steps.reverse()
        score = hyp.score if context_size is None else hyp.score / (len(hyp.tokens) + context_size)
        nbest.append(Hypothesis(list(hyp.tokens), [s.frame for s in steps], [s.log_prob for s in steps], score))
    nbest.sort(key=lambda hypothesis: -hypothesis.score)
    return SearchResult(nbest or [Hypothesis([], [], [], -math.inf)])
