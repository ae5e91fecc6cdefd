"""FSA-based beam search: states (context, graph state, frame), pruned by beam, max_states and max_contexts, to a lattice;
from it the best path, or an n-best list. arXiv 2211.00484, algorithm 1; ops/rnnt_decode.py does the bookkeeping.

Legend: N utterances, T encoder frames, D encoder dim, J joiner dim, V vocabulary with blank, C active contexts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import ops
from ops import Fsa, RnntDecodingConfig, RnntDecodingStream, RnntDecodingStreams
from ops.nbest import Nbest
from toolkit.search.guide import Guide, guiding
from toolkit.search.predictor import Predictor, check_encoder_out
from toolkit.search.rescoring import add_scores
from toolkit.search.result import Hypothesis, SearchResult
from toolkit.search.scorers import Scorer
from toolkit.search.waits import waiting_is_free

NBEST_SEED = 0  # paths are drawn anew for every utterance from here, so that results do not depend on the batch


@dataclass(frozen=True)
class FastBeam:
    """What bounds the search; see `ops.RnntDecodingConfig`."""

    beam: float = 20.0
    max_states: int = 64
    max_contexts: int = 8


@torch.inference_mode()
def fast_beam_search_lattice(
    model: Any,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    graph: Fsa | Sequence[Fsa] | None = None,
    bounds: FastBeam = FastBeam(),
    *,
    allow_partial: bool = False,
    temperature: float = 1.0,
    blank_penalty: float = 0.0,
    guide: Guide | None = None,
) -> Fsa:
    """The lattices (FsaVec of N) of what was said, with one symbol or blank (label 0) a frame.

    model: see `Predictor`; its blank must be 0. encoder_out_NTD: (N, T, D) float; lens_N: frames of each that count.
    graph: an acceptor or transducer of tokens, or one for each utterance; only what it accepts is searched, and the
      scores of its arcs count. None: every sequence of tokens is as good as any other.
    allow_partial: where no state that survived to the end is final, take all of them as such: the result is then the
      beginning of what the graph accepts. Otherwise the lattice is empty there.
    temperature, blank_penalty: see `Predictor`.
    guide: scorers as functions of the context, added to what the model says. Contexts are then as long as it wants.
    The lattices are on the graph's device: the CPU without one, whatever the device of the search, for what is done with them
    is done on the CPU. Arcs carry the graph's attributes and `log_probs`, what model and guide say of the arc's symbol. The
    k-th arc of a path is the symbol of frame k, the last one goes to the final state and has no frame.
    """
    softmax = {"temperature": temperature, "blank_penalty": blank_penalty}
    streams, lens_host_N, order_N = _advanced(model, encoder_out_NTD, lens_N, graph, bounds, softmax, guide)
    streams.terminate_and_flush_to_streams()
    lattice = streams.format_output(lens_host_N.tolist(), allow_partial)
    lattice.log_probs = lattice.scores - lattice.graph_scores
    del lattice.graph_scores
    return ops.index_fsa(lattice, order_N.argsort().int())


@torch.inference_mode()
def _advanced(
    model: Any,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    graph: Fsa | Sequence[Fsa] | None,
    bounds: FastBeam,
    softmax: dict[str, float],
    guide: Guide | None = None,
) -> tuple[RnntDecodingStreams, Tensor, Tensor]:
    """Read all frames: the streams, longest first; their lengths, on the CPU; which utterance each is."""
    check_encoder_out(encoder_out_NTD, lens_N)
    n, device = len(lens_N), encoder_out_NTD.device
    if n == 0:
        raise ValueError("lens_N: no utterances: a lattice needs at least one")
    if model.blank_id != 0:
        raise ValueError(f"model.blank_id={model.blank_id}: the FSA-based search needs the blank to be 0")
    predictor = Predictor(model, device, **softmax)  # type: ignore[arg-type]
    graphs = _graphs(graph, n, predictor.vocab_size)

    # Longest first: the utterances that still run at a frame are then the first ones, and finished ones cost nothing.
    lens_host_N, order_N = lens_N.cpu().sort(descending=True, stable=True)
    num_frames = int(lens_host_N[0])
    running_T = (lens_host_N[None, :] > torch.arange(num_frames)[:, None]).sum(dim=1).tolist()
    encoder_TNJ = predictor.project(encoder_out_NTD[order_N.to(device), :num_frames]).transpose(0, 1).contiguous()
    history = max(predictor.context_size, guide.history if guide else 0)
    streams = RnntDecodingStreams(
        [RnntDecodingStream(graphs[i]) for i in order_N.tolist()],
        RnntDecodingConfig(predictor.vocab_size, history, bounds.beam, bounds.max_states, bounds.max_contexts, True),
        padded=not waiting_is_free(device),
        device=device,
    )
    whose_N = order_N.to(device)
    for encoder_NJ, running in zip(encoder_TNJ, running_T):
        streams.keep_running(running)
        stream_C, context_C = _contexts(streams, device)
        encoder_CJ = encoder_NJ.index_select(0, stream_C)
        log_probs_CV = predictor.log_probs(encoder_CJ, predictor.decode(context_C % predictor.num_contexts))
        if guide:
            log_probs_CV += guide.log_probs(whose_N[stream_C], context_C)
        streams.advance(log_probs_CV)
    return streams, lens_host_N, order_N


def _contexts(streams: RnntDecodingStreams, device: torch.device) -> tuple[Tensor, Tensor]:
    """(stream, context) of each row that `advance` wants; on a GPU of as many as there is room for, lest it be asked."""
    if waiting_is_free(device):
        return streams.context_ids()
    ids_NC, _ = streams.padded_context_ids()
    n, c = ids_NC.shape
    return torch.arange(n, device=device).repeat_interleave(c), ids_NC.reshape(-1)


def fast_beam_search(
    model: Any,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    graph: Fsa | Sequence[Fsa] | None = None,
    bounds: FastBeam = FastBeam(),
    *,
    allow_partial: bool = False,
    temperature: float = 1.0,
    blank_penalty: float = 0.0,
    scorers: Sequence[Scorer] = (),
) -> list[SearchResult]:
    """The best path of the lattice of `fast_beam_search_lattice` (see there), as N results of one hypothesis each.

    `score` is that of the one best alignment, graph included; -inf, with no tokens, where nothing survived.
    scorers: with any, the best of `fast_beam_search_nbest` (see there), each weighing what its best alignment does.
    """
    if len(lens_N) == 0:
        return []
    softmax: dict[str, Any] = {"temperature": temperature, "blank_penalty": blank_penalty}
    batch = model, encoder_out_NTD, lens_N, graph, bounds
    if scorers:
        return fast_beam_search_nbest(*batch, allow_partial=allow_partial, **softmax, merge="max", scorers=scorers)
    if waiting_is_free(encoder_out_NTD.device):
        lattice = fast_beam_search_lattice(*batch, allow_partial=allow_partial, **softmax)
        best = ops.shortest_path(lattice, use_double_scores=True)
        return [SearchResult([hypothesis]) for hypothesis in _hypotheses(best)]
    return _best_on_gpu(*_advanced(*batch, softmax), allow_partial)


@torch.inference_mode()
def _best_on_gpu(
    streams: RnntDecodingStreams, lens_N: Tensor, order_N: Tensor, allow_partial: bool
) -> list[SearchResult]:
    """The best paths without lattices, which are made on the host."""
    symbols_NT, log_probs_NT, scores_N = streams.best_paths(allow_partial)
    results = [SearchResult([Hypothesis([], [], [], float("-inf"))]) for _ in range(len(lens_N))]
    emitted = symbols_NT.nonzero().tolist()
    on_NT = symbols_NT > 0
    tokens, log_probs = symbols_NT[on_NT].tolist(), log_probs_NT[on_NT].tolist()
    first = 0
    for place, score, count in zip(order_N.tolist(), scores_N.tolist(), on_NT.sum(1).tolist()):
        here = slice(first, first + count)
        if score > float("-inf"):
            frames = [t for _, t in emitted[here]]
            results[place] = SearchResult([Hypothesis(tokens[here], frames, log_probs[here], score)])
        first += count
    return results


def fast_beam_search_nbest(
    model: Any,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    graph: Fsa | Sequence[Fsa] | None = None,
    bounds: FastBeam = FastBeam(),
    *,
    num_paths: int = 100,
    nbest_scale: float = 0.5,
    merge: str = "log_add",
    length_norm: bool = False,
    allow_partial: bool = False,
    temperature: float = 1.0,
    blank_penalty: float = 0.0,
    scorers: Sequence[Scorer] = (),
) -> list[SearchResult]:
    """Distinct token sequences on random paths of the lattice, each with the score of all its paths there.

    num_paths: drawn from each lattice, with probability proportional to exp(nbest_scale * score); the best path takes
      part in any case.
    merge: "log_add": a sequence weighs what all its paths in the lattice weigh together; "max": what the best does.
    length_norm: rank by score / (tokens + context size).
    scorers: see scorers.py. Those that depend on the last few tokens only (n-grams over tokens, lists of phrases) guide
      the search (guide.py), which then wants more max_contexts; the others do not. In the end every sequence drawn has
      the exact scores of all of them, the end of the utterance included, and is ranked by that.
    Timestamps and token log-probabilities are those of the best path of the sequence.
    """
    if merge not in ("log_add", "max"):
        raise ValueError(f"merge={merge!r}: expected 'log_add' or 'max'")
    if num_paths < 1:
        raise ValueError(f"num_paths={num_paths}: expected at least 1")
    if len(lens_N) == 0:
        return []
    guide = guiding(scorers, len(lens_N), model, encoder_out_NTD.device)
    lattice = fast_beam_search_lattice(
        model, encoder_out_NTD, lens_N, graph, bounds, guide=guide,
        allow_partial=allow_partial, temperature=temperature, blank_penalty=blank_penalty,
    )  # fmt: skip
    lattice = _of_tokens(lattice)
    nbest = _draw(lattice, num_paths, nbest_scale)
    paths_of = ops.compose(lattice, ops.linear_fsa(nbest.words()), b_to_a_map=nbest.shape.row_ids(1))
    paths_of = ops.top_sort(ops.connect(paths_of))
    hypotheses = _hypotheses(ops.shortest_path(paths_of, use_double_scores=True))
    totals = paths_of.get_tot_scores(use_double_scores=True, log_semiring=merge == "log_add").tolist()
    hypotheses = [replace(h, score=total) for h, total in zip(hypotheses, totals)]
    if guide:
        hypotheses = guide.taken_off(hypotheses, nbest.shape.row_ids(1).tolist())
    splits = nbest.shape.row_splits(1).tolist()
    nothing = [Hypothesis([], [], [], float("-inf"))]
    results = [SearchResult(hypotheses[first:end] or nothing) for first, end in itertools.pairwise(splits)]
    return add_scores(results, scorers, model, length_norm, encoder_out_NTD.device)


def fast_beam_search_nbest_oracle(
    model: Any,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    references: Sequence[Sequence[int]],
    graph: Fsa | Sequence[Fsa] | None = None,
    bounds: FastBeam = FastBeam(),
    **options: Any,
) -> list[SearchResult]:
    """The n-best list of `fast_beam_search_nbest`, the entry with the fewest token errors first: how good a list is.

    references: token ids of each utterance. Of equally good entries the better-scored one comes first.
    """
    if len(references) != len(lens_N):
        raise ValueError(f"references: {len(references)} for {len(lens_N)} utterances")
    results = fast_beam_search_nbest(model, encoder_out_NTD, lens_N, graph, bounds, **options)
    reranked = []
    for result, reference in zip(results, references):
        hyps = ops.RaggedTensor([h.tokens for h in result.nbest], dtype=torch.int32)
        ref = ops.RaggedTensor([list(reference)], dtype=torch.int32)
        errors = ops.edit_distance(ref, hyps, torch.zeros(hyps.dim0, dtype=torch.int32)).tolist()
        reranked.append(SearchResult([h for _, h in sorted(zip(errors, result.nbest), key=lambda x: x[0])]))
    return reranked


def _graphs(graph: Fsa | Sequence[Fsa] | None, n: int, vocab_size: int) -> list[Fsa]:
    """A graph for each utterance, with the attribute `graph_scores`."""
    if graph is None:
        graph = ops.trivial_graph(vocab_size - 1)
    if isinstance(graph, Fsa):
        return [_with_scores(graph)] * n
    if len(graph) != n:
        raise ValueError(f"graph: {len(graph)} graphs for {n} utterances: expected one, or one for each")
    made = {id(g): _with_scores(g) for g in graph}
    return [made[id(g)] for g in graph]


def _with_scores(graph: Fsa) -> Fsa:
    copy = graph._with_shape(graph._shape)
    copy.graph_scores = copy.scores.detach().float()
    return copy


def _of_tokens(lattice: Fsa) -> Fsa:
    """The same lattice with tokens as output labels, whatever the graph's were."""
    bare = Fsa.from_arcs(lattice._shape, lattice.arcs3, lattice.scores)
    bare.aux_labels = lattice.labels.clone()
    bare.log_probs = lattice.log_probs
    return bare


def _draw(lattice: Fsa, num_paths: int, nbest_scale: float) -> Nbest:
    """Distinct token sequences of random paths and the best path."""
    scaled = Fsa.from_arcs(lattice._shape, lattice.arcs3, lattice.scores * nbest_scale)
    first_arcs = lattice._shape.remove_axis(1).row_splits(1).tolist()
    lattice.arc_number = torch.arange(lattice.num_arcs, dtype=torch.int32, device=lattice.device)
    best = ops.shortest_path(lattice, use_double_scores=True)
    del lattice.arc_number
    best_splits = best._shape.remove_axis(1).row_splits(1).tolist()
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for i, first_arc in enumerate(first_arcs[:-1]):
            torch.manual_seed(NBEST_SEED)
            paths = ops.random_paths(scaled[i], use_double_scores=True, num_paths=num_paths)
            paths = ops.RaggedTensor(paths.shape, paths.values + first_arc)
            best_path = best.arc_number[best_splits[i] : best_splits[i + 1]]
            if len(best_path):
                paths = ops.ragged.cat([ops.RaggedTensor([[best_path.tolist()]], dtype=torch.int32), paths], axis=1)
            drawn.append(paths)
    return Nbest.from_arcs(lattice, ops.ragged.cat(drawn, axis=0)).unique()


def _hypotheses(best: Fsa) -> list[Hypothesis]:
    """One for each linear FSA: its arcs are its frames."""
    splits = best._shape.remove_axis(1).row_splits(1).tolist()
    labels, log_probs = best.labels.cpu(), best.log_probs.cpu()
    scores = best.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
    hypotheses = []
    for first, end, score in zip(splits, splits[1:], scores):
        frames = (labels[first:end] > 0).nonzero()[:, 0]
        here = frames + first
        hypotheses.append(Hypothesis(labels[here].tolist(), frames.tolist(), log_probs[here].tolist(), score))
    return hypotheses
