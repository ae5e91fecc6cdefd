"""The frames of ops/rnnt_decode.py for many streams at once, in tensors of fixed size: nothing is asked of a GPU in between.

Legend: N streams, C contexts and S states that there is room for, A arcs, R rows (streams of all frames), H symbols of a context.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ops.fsa import Fsa

if TYPE_CHECKING:
    from ops.rnnt_decode import RnntDecodingConfig

MOST_WORDS = 1 << 28  # 2 GiB of scratch memory; where all streams together want more, they take turns
BLOCK_SIZE = {"cpu": 1, "cuda": 128}  # threads that share a stream
State = tuple[Tensor, Tensor, Tensor, Tensor]  # contexts, splits of their states, graph states, scores; on the CPU
# Splits of streams into contexts and of those into states, graph states, splits of streams into arcs, arcs, scores.
FrameParts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class PaddedStates(NamedTuple):
    """Active states of N streams; those of a stream are ordered by context, then state of the graph."""

    num_contexts_N: Tensor
    num_states_N: Tensor
    contexts_NC: Tensor  # int64; 0 beyond num_contexts_N
    slots_NS: Tensor  # which context a state belongs to
    graph_states_NS: Tensor
    scores_NS: Tensor  # float64


class _Arcs(NamedTuple):
    num_N: Tensor
    arcs_NA4: Tensor  # state before, state after, arc of the graph, row of log_probs; in any order
    scores_NA: Tensor


class _BatchGraphs:
    """Graphs, one after another, on a device, and what bounds the search in them."""

    def __init__(self, fsas: Sequence[Fsa], of_stream: Tensor, device: torch.device, vocab_size: int) -> None:
        splits = [fsa.splits()[1].to(device) for fsa in fsas]
        counts = [len(s) - 1 for s in splits]
        arcs_before = [0, *torch.tensor([fsa.num_arcs for fsa in fsas]).cumsum(0).tolist()]
        arcs_A3 = torch.cat([fsa.arcs3.to(device) for fsa in fsas])
        self.most_states, self.num_arcs = max(counts), arcs_before[-1]
        self.tensors = [
            torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32, device=device),
            torch.cat([splits[0][:1], *(s[1:] + first for s, first in zip(splits, arcs_before))]).int(),
            arcs_A3.contiguous(),
            torch.cat([fsa.scores.detach().to(device).float() for fsa in fsas]),
            of_stream.to(device),
        ]
        degree_X = self.tensors[1].diff()
        self.degrees = degree_X.sort(descending=True).values
        self.check(arcs_A3, torch.cat([s.diff() * 0 + n for s, n in zip(splits, counts)]), degree_X, vocab_size)

    def check(self, arcs_A3: Tensor, sizes_X: Tensor, degree_X: Tensor, vocab_size: int) -> None:
        """Raise RuntimeError if the graphs cannot be searched; else find how many arcs of a state are alike."""
        label_A = arcs_A3[:, 2]
        state_A = torch.arange(len(degree_X), device=label_A.device).repeat_interleave(degree_X)
        symbol_A = label_A.clamp(min=0)  # arcs without a symbol are alike
        key_A = (state_A * vocab_size + symbol_A).sort().values
        new_A = torch.ones_like(key_A, dtype=torch.bool)
        new_A[1:] = key_A[1:] != key_A[:-1]
        first_A = torch.where(new_A, torch.arange(len(key_A), device=key_A.device), 0).cummax(0).values
        alike_A = torch.arange(1, len(key_A) + 1, device=key_A.device) - first_A
        silent_A = key_A % vocab_size == 0
        bad_A = (label_A < -1) | (label_A >= vocab_size)
        lost_A = (arcs_A3[:, 1] < 0) | (arcs_A3[:, 1] >= sizes_X[state_A])
        zero = alike_A.new_zeros(1)
        highest = (torch.cat([torch.where(bad_A, label_A, 0), label_A.new_zeros(1)]).abs().max(), lost_A.any())
        found = torch.stack([
            torch.cat([torch.where(silent_A, 0, alike_A), zero]).max(),
            torch.cat([torch.where(silent_A, alike_A, 0), zero]).max(),
            *(x.long() for x in highest),
        ]).tolist()  # fmt: skip
        self.most_alike, self.most_silent, bad_label, lost = found
        if bad_label:
            raise RuntimeError(f"a label of the graph is not below vocab_size: {bad_label} (vocab_size={vocab_size})")
        if lost:
            raise RuntimeError("an arc of a graph leads to no state of it")

    def end_scores(self) -> Tensor:
        """(X,): of the best arc with label -1 of each state of all graphs, -inf without one."""
        arcs_A3, scores_A, degree_X = self.tensors[2], self.tensors[3], self.tensors[1].diff()
        state_A = torch.arange(len(degree_X), device=scores_A.device).repeat_interleave(
            degree_X, output_size=len(scores_A)
        )
        end_A = torch.where(arcs_A3[:, 2] == -1, scores_A, -torch.inf)
        return torch.full(degree_X.shape, -torch.inf, device=scores_A.device).scatter_reduce(0, state_A, end_A, "amax")


class PaddedSearch:
    """Where N streams stand, and all frames so far.

    states: of each stream, on the CPU.
    """

    def __init__(
        self, fsas: Sequence[Fsa], of_stream: Tensor, states: Sequence[State], config: RnntDecodingConfig,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.config, self.device, self.n = config, device, len(states)
        self.block_size = BLOCK_SIZE[device.type]
        self.graphs = graphs = _BatchGraphs(fsas, of_stream, device, config.vocab_size)
        self.max_contexts = min(config.max_contexts, config.num_contexts)
        self.width_c = width_c = max(self.max_contexts, *(len(s[0]) for s in states))
        width_s = max(min(config.max_states, self.max_contexts * graphs.most_states), *(len(s[2]) for s in states))
        # A state of the graph may be active in every context: the most candidates are made by those with the most arcs.
        self.candidates = width_s + width_c * sum(graphs.degrees[: -(-width_s // width_c)].tolist())
        into_contexts = graphs.most_silent + self.max_contexts * graphs.most_alike
        self.arc_capacity = min(self.candidates, width_s * (1 + into_contexts))
        self.state = _padded(states, width_c, width_s, device)
        self.scratch = torch.ops.lattica.decode_rnnt_batch_scratch(
            self.state.scores_NS, self.n, config.vocab_size, width_c, width_s, self.candidates, MOST_WORDS
        )
        self.arcs: list[_Arcs] = []
        self.reached: list[tuple[Tensor, Tensor]] = []  # num_states_N and graph_states_NS after each frame
        self.scores = [self.state.scores_NS]  # before each frame, and after the last one
        self.stopped: list[PaddedStates] = []  # of streams that came to their end, the last ones first

    def used(self) -> Tensor:
        """(N, C): which contexts there are."""
        return torch.arange(self.width_c, device=self.device) < self.state.num_contexts_N[:, None]

    def row_starts(self, padded: bool) -> Tensor:
        """The first row of each stream in log-probabilities of all N * C contexts, or of those there are."""
        if padded:
            return torch.arange(self.n, dtype=torch.int32, device=self.device) * self.width_c
        counts_N = self.state.num_contexts_N
        return (counts_N.cumsum(0) - counts_N).int()

    def advance(self, log_probs: Tensor, padded: bool) -> None:
        config = self.config
        out = torch.ops.lattica.decode_rnnt_batch_advance(
            self.graphs.tensors, list(self.state), self.row_starts(padded), log_probs, self.scratch, self.n,
            config.num_contexts, config.beam, config.max_states, self.max_contexts, not config.count_last_frame,
            self.candidates, self.arc_capacity, self.graphs.most_states, self.block_size,
        )  # fmt: skip
        self.state = PaddedStates(*out[:6])
        self.reached.append((self.state.num_states_N, self.state.graph_states_NS))
        self.scores.append(self.state.scores_NS)
        self.arcs.append(_Arcs(*out[6:]))

    def keep_running(self, n: int) -> None:
        if n < self.n:
            self.stopped.append(PaddedStates(*(x[n:] for x in self.state)))
            self.state, self.n = PaddedStates(*(x[:n] for x in self.state)), n

    def to_host(self) -> tuple[list[FrameParts], list[Callable[[], State]]]:
        """What decode_rnnt_lattice reads of each frame, and the states of the streams at their ends (all have ended).

        The number of copies and questions does not depend on that of frames.
        """
        last = PaddedStates(*(x.cpu() for x in self._last()))
        finals: list[Callable[[], State]] = [partial(_state_of, last, i) for i in range(len(last.num_states_N))]
        if not self.arcs:
            return [], finals
        num_states_R, graph_states_RS = (torch.cat(x) for x in zip(*self.reached))
        num_arcs_R, arcs_RA4, scores_RA = (torch.cat(x) for x in zip(*self.arcs))
        there_RA = torch.arange(scores_RA.shape[1], device=self.device) < num_arcs_R[:, None]
        arcs, scores = arcs_RA4[there_RA], scores_RA[there_RA]
        row = torch.arange(len(num_arcs_R), device=self.device).repeat_interleave(num_arcs_R, output_size=len(arcs))
        # A block writes arcs down in whatever order it comes to them.
        order = ((row * graph_states_RS.shape[1] + arcs[:, 0]) * (self.graphs.num_arcs + 1) + arcs[:, 2] + 1).argsort()
        arcs, scores = arcs[order].cpu(), scores[order].cpu()
        there_RS = torch.arange(graph_states_RS.shape[1], device=self.device) < num_states_R[:, None]
        graph_states = graph_states_RS[there_RS].cpu()
        state_splits, arc_splits = _splits(num_states_R.cpu()), _splits(num_arcs_R.cpu())
        states_before, arcs_before = state_splits.tolist(), arc_splits.tolist()
        frames: list[FrameParts] = []
        first = 0
        for end in itertools.accumulate(len(x.num_N) for x in self.arcs):
            s, a = slice(states_before[first], states_before[end]), slice(arcs_before[first], arcs_before[end])
            rows = slice(first, end + 1)
            frames.append((torch.arange(end - first + 1, dtype=torch.int32), state_splits[rows] - s.start, graph_states[s],
                           arc_splits[rows] - a.start, arcs[a], scores[a]))  # fmt: skip
            first = end
        return frames, finals

    def _last(self) -> PaddedStates:
        """The states of all streams at their ends."""
        return PaddedStates(*(torch.cat(x[::-1]) for x in zip(*self.stopped)))

    def best_paths(self, allow_partial: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See RnntDecodingStreams.best_paths; all streams have ended. Nothing is asked of the device before the end."""
        graphs, last = self.graphs, self._last()
        fsa_splits, state_splits, arcs_A3, graph_scores_A, of_stream_N = graphs.tensors
        first_state_N1 = fsa_splits.index_select(0, of_stream_N)[:, None]
        there_NS = torch.arange(last.scores_NS.shape[1], device=self.device) < last.num_states_N[:, None]
        end_NS = graphs.end_scores()[first_state_N1 + torch.where(there_NS, last.graph_states_NS, 0)]
        total_NS = torch.where(there_NS, last.scores_NS + end_NS, -torch.inf)
        if allow_partial:
            cut_off_NS = there_NS & (total_NS == -torch.inf).all(1, keepdim=True)
            total_NS = torch.where(cut_off_NS, last.scores_NS, total_NS)
        score_N, state_N = total_NS.max(1)
        n_all = len(score_N)
        found: list[tuple[Tensor, Tensor]] = []
        for (num_N, arcs_NA4, scores_NA), before_NS in zip(self.arcs[::-1], self.scores[-2::-1]):
            n = len(num_N)
            source_N, graph_arc_N, score_of_arc_N = _best_arcs(
                num_N, arcs_NA4, scores_NA, before_NS[:n], state_N[:n], graphs.num_arcs
            )
            state_N = torch.cat([source_N, state_N[n:]])
            rest = (0, n_all - n)
            found.append(
                (torch.nn.functional.pad(graph_arc_N, rest, value=-1), torch.nn.functional.pad(score_of_arc_N, rest))
            )
        if not found:
            return torch.zeros(n_all, 0, dtype=torch.int64), torch.zeros(n_all, 0), score_N.cpu()
        graph_arc_NT, scores_NT = (torch.stack(x[::-1], 1) for x in zip(*found))
        # A blank has no arc of the graph: -1 is the place of the 0 put at the end.
        place_NT = torch.where(graph_arc_NT >= 0, graph_arc_NT + state_splits[first_state_N1], -1)
        symbols_NT = torch.cat([arcs_A3[:, 2], arcs_A3.new_zeros(1)])[place_NT].clamp(min=0).long()
        log_probs_NT = scores_NT - torch.cat([graph_scores_A, graph_scores_A.new_zeros(1)])[place_NT]
        return symbols_NT.cpu(), log_probs_NT.cpu(), score_N.cpu()


def _best_arcs(
    num_N: Tensor, arcs_NA4: Tensor, scores_NA: Tensor, before_NS: Tensor, state_N: Tensor, num_arcs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best way into a state of each stream: the state before, the arc of the graph (-1: blank), the score."""
    there_NA = torch.arange(scores_NA.shape[1], device=num_N.device) < num_N[:, None]
    into_NA = there_NA & (arcs_NA4[:, :, 1] == state_N[:, None])
    source_NA = torch.where(into_NA, arcs_NA4[:, :, 0], 0).long()
    total_NA = torch.where(into_NA, before_NS.gather(1, source_NA) + scores_NA, -torch.inf)
    # Of equal ones the first in the order of states and arcs, for they are written down in any order.
    order_NA = source_NA * (num_arcs + 1) + arcs_NA4[:, :, 2] + 1
    best_NA = into_NA & (total_NA == total_NA.amax(1, keepdim=True))
    place_N1 = torch.where(best_NA, order_NA, torch.iinfo(torch.int64).max).argmin(1, keepdim=True)
    any_N = best_NA.any(1)
    picked = (x.gather(1, place_N1)[:, 0] for x in (source_NA, arcs_NA4[:, :, 2], scores_NA))
    source_N, graph_arc_N, score_N = (torch.where(any_N, x, fill) for x, fill in zip(picked, (0, -1, 0.0)))
    return source_N, graph_arc_N, score_N


def _splits(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=counts.dtype)])


def _padded(states: Sequence[State], width_c: int, width_s: int, device: torch.device) -> PaddedStates:
    n = len(states)
    contexts_NC = torch.zeros(n, width_c, dtype=torch.int64)
    slots_NS, graph_states_NS = torch.zeros(2, n, width_s, dtype=torch.int32)
    scores_NS = torch.zeros(n, width_s, dtype=torch.float64)
    for i, (contexts, splits, graph_states, scores) in enumerate(states):
        contexts_NC[i, : len(contexts)] = contexts
        slots_NS[i, : len(scores)] = torch.repeat_interleave(splits.diff()).int()
        graph_states_NS[i, : len(scores)] = graph_states
        scores_NS[i, : len(scores)] = scores
    counts = (torch.tensor([len(s[k]) for s in states], dtype=torch.int32) for k in (0, 2))
    return PaddedStates(*(x.to(device) for x in (*counts, contexts_NC, slots_NS, graph_states_NS, scores_NS)))


def _state_of(states: PaddedStates, i: int) -> State:
    c, s = int(states.num_contexts_N[i]), int(states.num_states_N[i])
    splits = _splits(states.slots_NS[i, :s].bincount(minlength=c).int())
    return states.contexts_NC[i, :c], splits, states.graph_states_NS[i, :s], states.scores_NS[i, :s]
