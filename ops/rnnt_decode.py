"""Beam search of transducers on decoding graphs, many utterances in parallel, with k2's interface.

A state at frame t is ((a, b), s, t): the last symbols a, b that the (stateless) prediction network sees, and a state s of
the decoding graph. Between two frames only the states count; the arcs between them are kept for the lattice.
Source: Kang et al., "Fast and parallel decoding for transducer", arXiv 2211.00484, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ops import build
from ops.fsa import Fsa
from ops.fsa_attributes import pick
from ops.ragged import RaggedShape, RaggedTensor
from ops.ragged.functions import cat as ragged_cat
from ops.rnnt_decode_batch import PaddedSearch, State

MAX_ID = 2**63 - 1


@dataclass(frozen=True)
class RnntDecodingConfig:
    """What bounds the search.

    vocab_size: symbols with blank, which is 0; decoder_history_len: symbols that the prediction network sees.
    beam: states whose best path falls more than this behind the best of all at a frame are dropped, and arcs with
    symbols that end so far behind the best state before the frame.
    max_contexts: different contexts kept for an utterance at a frame, each as good as its best state; the joiner is
    evaluated once for each. max_states: (context, graph state) pairs kept of those.
    count_last_frame: False, the default, is k2's way: an arc into the final state of the graph reads a frame as a blank
    does, competes with all others, and a lattice ends with final arcs in place of its last frame, whose log-probabilities
    so count for nothing; max_states is applied before max_contexts. True: final arcs take no frame, the lattice of T
    frames has the scores of T frames, and the search is faster, as contexts that cannot stay are left out early.
    Raises ValueError naming the field.
    """

    vocab_size: int
    decoder_history_len: int
    beam: float
    max_states: int
    max_contexts: int
    count_last_frame: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "decoder_history_len", "max_states", "max_contexts"):
            if getattr(self, name) < 1:
                raise ValueError(f"RnntDecodingConfig: {name}={getattr(self, name)}: expected at least 1")
        if not self.beam > 0:
            raise ValueError(f"RnntDecodingConfig: beam={self.beam}: expected more than 0")
        if self.num_contexts * self.vocab_size > MAX_ID:
            raise ValueError(
                f"RnntDecodingConfig: vocab_size={self.vocab_size} to the power of decoder_history_len="
                f"{self.decoder_history_len} is more contexts than a 64-bit number can tell apart"
            )

    @property
    def num_contexts(self) -> int:
        return self.vocab_size**self.decoder_history_len


class _Frame(NamedTuple):
    """The active states of n streams after a frame, and the arcs that led there (what decode_rnnt_advance returns)."""

    stream_splits: Tensor  # (n + 1) into the contexts
    context_splits: Tensor  # into the states
    contexts: Tensor  # int64, symbols read as a number in base vocab_size
    graph_states: Tensor
    scores: Tensor  # float64, of the best path to each state
    arc_splits: Tensor  # (n + 1)
    arcs: Tensor  # (A, 4) int32: state before, state after, arc of the graph (-1: blank), row of log_probs
    arc_scores: Tensor


class RnntDecodingStream:
    """One utterance: its decoding graph, where the search in it stands, and what it has found so far.

    fsa: a single Fsa whose labels are symbols (1 ... vocab_size - 1); scores of arcs add to the log-probabilities. An arc
    with label 0 is taken while a blank is read; without such arcs (see ops.remove_epsilon) no frame is lost to them.
    Attributes of its arcs show up in the lattices.
    """

    def __init__(self, fsa: Fsa) -> None:
        if fsa.is_vec():
            raise ValueError(f"RnntDecodingStream: the graph must be one Fsa, got a vector of {fsa.shape[0]}")
        if fsa.shape[0] == 0:
            raise ValueError("RnntDecodingStream: the graph has no states")
        self.fsa = fsa
        self.device = fsa.device
        zero = torch.zeros(1, dtype=torch.int32)
        start = (zero.long(), torch.tensor([0, 1], dtype=torch.int32), zero, torch.zeros(1, dtype=torch.float64))
        self._state: State | Callable[[], State] = start
        self.history: list[tuple[_Frame, int]] = []  # the frame, and the number of this stream in it

    @property
    def state(self) -> State:
        """Its active contexts, the splits of their states, those states of the graph, and their scores."""
        if callable(self._state):
            self._state = self._state()
        return self._state

    def __str__(self) -> str:
        return f"RnntDecodingStream({len(self.history)} frames, {len(self.state[0])} contexts, {len(self.state[2])} states)"


class RnntDecodingStreams:
    """Streams that are decoded in step, a frame at a time:

        while frames are left:
            shape, contexts = streams.get_contexts()
            streams.advance(log_probs of all symbols after each context, at this frame of the context's stream)
        streams.terminate_and_flush_to_streams()
        lattice = streams.format_output(num_frames)

    Every frame emits blank or one symbol (the modified transducer), and blank leaves context and graph state alone.
    After flushing, streams can go on in other combinations when more frames have come.

    src_streams: at least one, with graphs on one device, to which the lattices come, too.
    padded: how the bookkeeping is done. False: an utterance a thread of the CPU, each with as many contexts and states as
      it has. True: on `device`, in tensors with room for the most that `config` allows, so that `advance` makes no host wait
      for a GPU; only `get_contexts` has to, see `padded_contexts`. None: True on a GPU. The results are the same.
    device: where log_probs are and a padded search runs; None: that of the graphs.
    Raises RuntimeError if it is padded and a label of a graph is not below vocab_size (otherwise `advance` does).
    """

    def __init__(
        self,
        src_streams: Sequence[RnntDecodingStream],
        config: RnntDecodingConfig,
        padded: bool | None = None,
        device: torch.device | None = None,
    ) -> None:
        if not src_streams:
            raise ValueError("RnntDecodingStreams: src_streams is empty")
        self.src_streams = list(src_streams)
        self.num_streams = len(self.src_streams)
        self.device = self.src_streams[0].device
        if any(s.device != self.device for s in self.src_streams):
            raise ValueError("RnntDecodingStreams: the graphs of src_streams are on different devices")
        self.config = config
        build.load()
        self.graphs = _Graphs([s.fsa for s in self.src_streams])
        states = [s.state for s in self.src_streams]
        self._padded: PaddedSearch | None = None
        device = device or self.device
        if device.type == "cuda" if padded is None else padded:
            self._padded = PaddedSearch(self.graphs.fsas, self.graphs.of_stream, states, config, device)
        else:
            contexts, splits, graph_states, scores = zip(*states)
            self._state = (
                _to_splits([len(c) for c in contexts]),
                _to_splits(torch.cat([s.diff() for s in splits])),
                torch.cat(contexts),
                torch.cat(graph_states),
                torch.cat(scores),
            )
        self._running = self.num_streams
        self._frames: list[_Frame] = []
        self._num_rows: list[int] = []  # of the log_probs of each
        self._ends = [0] * self.num_streams  # padded: frames that each stream has read here
        self._flushed = False

    def __str__(self) -> str:
        return "\n".join(
            [f"num_streams : {self.num_streams}", *(f"stream[{i}] : {s}" for i, s in enumerate(self.src_streams))]
        )

    def context_ids(self) -> tuple[Tensor, Tensor]:
        """As get_contexts, but (stream of each context, context as a number in base vocab_size), both int64 on the
        CPU.
        """
        stream_splits, contexts = self._contexts()
        return torch.repeat_interleave(stream_splits.diff().long()), contexts

    def _contexts(self) -> tuple[Tensor, Tensor]:
        """(splits of the running streams, contexts) on the CPU."""
        self._check_open()
        if self._padded is None:
            return self._state[0], self._state[2]
        state = self._padded.state
        return _to_splits(state.num_contexts_N.cpu()), state.contexts_NC[self._padded.used()].cpu()

    def padded_context_ids(self) -> tuple[Tensor, Tensor]:
        """(contexts as numbers in base vocab_size, int64; which of them there are, bool), both (streams that run, room for
        contexts) on the search's device, where streams are `padded`. Those that there are come first.
        """
        self._check_open()
        if self._padded is None:
            raise RuntimeError("padded_contexts: these RnntDecodingStreams are not padded: make them with padded=True")
        return self._padded.state.contexts_NC, self._padded.used()

    def padded_contexts(self) -> tuple[Tensor, Tensor]:
        """For which contexts `advance` wants log-probabilities next, without asking a GPU how many there are.

        Returns symbols int32 (streams that run, room for contexts, decoder_history_len) and which contexts there are, bool;
        `advance` takes a row for each, in this order, and looks at those of contexts that there are.
        """
        ids_NC, used_NC = self.padded_context_ids()
        return self._symbols(ids_NC), used_NC

    def _symbols(self, contexts: Tensor) -> Tensor:
        powers = self.config.vocab_size ** torch.arange(self.config.decoder_history_len - 1, -1, -1)
        return (contexts[..., None] // powers.to(contexts.device) % self.config.vocab_size).int()

    def get_contexts(self) -> tuple[RaggedShape, Tensor]:
        """For which contexts `advance` wants log-probabilities next.

        Returns the shape [stream][context] and the contexts' symbols, oldest first, int32 (tot_contexts,
        decoder_history_len); 0 before the first symbol. On the graphs' device.
        """
        splits, contexts = self._contexts()
        if self._running < self.num_streams:
            splits = torch.cat([splits, splits[-1:].expand(self.num_streams - self._running)])
        return RaggedShape(splits=[splits]).to(self.device), self._symbols(contexts).to(self.device)

    def advance(self, log_probs: Tensor) -> None:
        """Read one frame.

        log_probs: float (tot_contexts, vocab_size), in the order of `get_contexts`, or with a row for each of
        `padded_contexts`; -inf and nan rule a symbol out. A stream whose symbols are all ruled out has no states any more,
        and an empty lattice.
        Raises ValueError if the shape is another, RuntimeError if the graph has a symbol beyond vocab_size.
        """
        self._check_open()
        config, search = self.config, self._padded
        all_rows = search is not None and log_probs.shape[:1] == (search.n * search.width_c,)
        expected = (log_probs.shape[0] if all_rows else len(self._contexts()[1]), config.vocab_size)
        if log_probs.shape != expected or not log_probs.is_floating_point():
            raise ValueError(
                f"advance: log_probs must be float {expected}, a row for each context, got {log_probs.dtype} "
                f"{tuple(log_probs.shape)}"
            )
        self._num_rows.append(log_probs.shape[0])
        if search is not None:
            if log_probs.device != search.device:
                log_probs = log_probs.to(search.device)
            search.advance(log_probs.detach().float().contiguous(), all_rows)
            return
        frame = torch.ops.lattica.decode_rnnt_advance(
            *self.graphs.host_tensors(), *self._state, log_probs.detach().cpu().float().contiguous(), config.num_contexts,
            config.beam, config.max_states, config.max_contexts, not config.count_last_frame,
        )  # fmt: skip
        self._frames.append(_Frame(*frame))
        self._state = frame[:5]

    def keep_running(self, n: int) -> None:
        """From now on only the first n streams read frames: the others have come to their end.

        Order utterances by length, longest first, and no frame of padding is ever searched.
        """
        self._check_open()
        if not 0 <= n <= self._running:
            raise ValueError(f"keep_running: n={n}: expected at most {self._running}, the streams that still run")
        if self._padded is not None:
            self._padded.keep_running(n)
            self._ends[n : self._running] = [len(self._num_rows)] * (self._running - n)
            self._running = n
            return
        stream_splits, context_splits, contexts, graph_states, scores = self._state
        for i in range(n, self._running):
            c = slice(int(stream_splits[i]), int(stream_splits[i + 1]))
            self._stop(i, contexts[c], context_splits[c.start : c.stop + 1], graph_states, scores)
        self._running = n
        end = int(stream_splits[n])
        last = int(context_splits[end])
        self._state = (
            stream_splits[: n + 1], context_splits[: end + 1], contexts[:end], graph_states[:last], scores[:last]
        )  # fmt: skip

    def _stop(self, i: int, contexts: Tensor, splits: Tensor, graph_states: Tensor, scores: Tensor) -> None:
        """Hand stream i what has been found in it."""
        s = slice(int(splits[0]), int(splits[-1]))
        self.src_streams[i]._state = (contexts, splits - splits[0], graph_states[s], scores[s])
        self.src_streams[i].history += [(frame, i) for frame in self._frames]

    def terminate_and_flush_to_streams(self) -> None:
        """End this combination: every stream gets what has been found in it, and can be combined anew."""
        self._check_open()
        self.keep_running(0)
        self._flushed = True
        if self._padded is None:
            return
        frames, states = self._padded.to_host()
        nothing = torch.zeros(0)
        self._frames = [_Frame(*f[:2], nothing, f[2], nothing, *f[3:]) for f in frames]
        for i, (stream, end, state) in enumerate(zip(self.src_streams, self._ends, states)):
            stream._state = state
            stream.history += [(frame, i) for frame in self._frames[:end]]

    def best_paths(self, allow_partial: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The best path of each stream, in place of terminate_and_flush_to_streams, format_output and shortest_path, where
        nothing else is wanted: the lattices are not made, and a GPU finds the paths itself.

        Only of padded streams with count_last_frame that had read no frames before; they do not learn of these.
        allow_partial: as for format_output.
        Returns, on the CPU: symbols_NT, int64, 0 where a blank was read or nothing; log_probs_NT, what `advance` was given
        for them; and scores_N, float64, of the paths, graph included; -inf where there is none.
        """
        self._check_open()
        if self._padded is None or not self.config.count_last_frame or any(s.history for s in self.src_streams):
            raise RuntimeError("best_paths: only of padded streams with count_last_frame that began with these frames")
        self.keep_running(0)
        self._flushed = True
        return self._padded.best_paths(allow_partial)

    def _check_open(self) -> None:
        if self._flushed:
            raise RuntimeError("these RnntDecodingStreams were flushed: combine the streams anew to go on")

    def format_output(
        self,
        num_frames: Sequence[int],
        allow_partial: bool = False,
        log_probs: Tensor | None = None,
        t2s2c_shape: RaggedShape | None = None,
    ) -> Fsa:
        """The lattices of all streams, each of its first num_frames[i] frames; after terminate_and_flush_to_streams.

        Args:
          num_frames: at most as many as the stream has read, counted from its very first frame.
          allow_partial: where no active state of the graph is final, let all of them be.
          log_probs: what was given to all calls of `advance` of these streams, one after another (tot_rows, vocab_size).
            The scores are then made from it, and from the graphs' scores, so that gradients flow to both. Only if the
            streams have read no frames elsewhere.
          t2s2c_shape: k2's shape [frame][stream][context] of log_probs; it is known here and only checked.
        Returns an FsaVec (num_streams, None, None), connected, states in the order of time; an FSA without states
        where there is no path. Label 0 is a blank, -1 the end. Attributes are the union of those of the graphs, with the
        filler where an arc has none (as blanks have).
        """
        if not self._flushed:
            raise RuntimeError("format_output: call terminate_and_flush_to_streams first")
        if len(num_frames) != self.num_streams:
            raise ValueError(f"format_output: num_frames has {len(num_frames)} entries for {self.num_streams} streams")
        for i, (n, stream) in enumerate(zip(num_frames, self.src_streams)):
            if not 0 <= n <= len(stream.history):
                raise ValueError(
                    f"format_output: num_frames[{i}]={n}: stream {i} has read {len(stream.history)} frames"
                )
        arcs, scores, graph_arc, row = self._lattices(
            [int(n) for n in num_frames], allow_partial, log_probs, t2s2c_shape
        )
        ans = Fsa.from_arcs(RaggedShape(splits=list(arcs[:2])), arcs[2], scores).to(self.device)
        graph_arc = graph_arc.to(self.device)
        self.graphs.give_attributes(ans, graph_arc)
        if log_probs is not None:
            label = ans.labels.long().clamp(min=0)
            place = torch.where(row.to(self.device) >= 0, row.to(self.device) * self.config.vocab_size + label, -1)
            graph_scores = self.graphs.scores_of(ans, graph_arc)
            if not self.config.count_last_frame:
                graph_scores = graph_scores.masked_fill(ans.labels == -1, 0.0)
            ans.scores = graph_scores + pick(log_probs.reshape(-1), place)
        return ans

    def _lattices(
        self, num_frames: list[int], allow_partial: bool, log_probs: Tensor | None, t2s2c_shape: RaggedShape | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor, Tensor]:
        """(fsa_splits, state_splits, arcs3), scores, the graph's arc and the row of log_probs of each arc; on the CPU."""
        number: dict[int, int] = {}
        frames: list[_Frame] = []
        history: list[tuple[int, int]] = []
        for n, stream in zip(num_frames, self.src_streams):
            for frame, i in stream.history[:n]:
                if id(frame) not in number:
                    number[id(frame)] = len(frames)
                    frames.append(frame)
                history.append((number[id(frame)], i))
        rows_before = torch.zeros(len(frames), dtype=torch.int64)
        if log_probs is not None:
            rows = self._rows_before(log_probs, t2s2c_shape)
            if any(id(frame) not in rows for frame in frames):
                raise ValueError("format_output: log_probs cannot be given for streams that read frames elsewhere, too")
            rows_before = torch.tensor([rows[id(frame)] for frame in frames], dtype=torch.int64)
        parts = [
            x
            for f in frames
            for x in (f.stream_splits, f.context_splits, f.graph_states, f.arc_splits, f.arcs, f.arc_scores)
        ]
        *arcs, scores, graph_arc, row = torch.ops.lattica.decode_rnnt_lattice(
            *self.graphs.host_tensors(), parts, rows_before, _to_splits(num_frames),
            torch.tensor(history, dtype=torch.int32).view(-1, 2), allow_partial,
            not self.config.count_last_frame,
        )  # fmt: skip
        return (arcs[0], arcs[1], arcs[2]), scores, graph_arc, row

    def _rows_before(self, log_probs: Tensor, t2s2c_shape: RaggedShape | None) -> dict[int, int]:
        """How many rows of log_probs belong to earlier frames, by the id of the frame."""
        rows, total = {}, 0
        for frame, count in zip(self._frames, self._num_rows):
            rows[id(frame)] = total
            total += count
        if log_probs.shape != (total, self.config.vocab_size) or log_probs.device != self.device:
            raise ValueError(
                f"format_output: log_probs must be ({total}, {self.config.vocab_size}) on {self.device}: what `advance` "
                f"was given, one after another; got {tuple(log_probs.shape)} on {log_probs.device}"
            )
        if t2s2c_shape is not None and t2s2c_shape.numel() != total:
            raise ValueError(f"format_output: t2s2c_shape has {t2s2c_shape.numel()} contexts, log_probs {total} rows")
        return rows


class _Graphs:
    """The different graphs of the streams, and which stream has which."""

    def __init__(self, fsas: Sequence[Fsa]) -> None:
        by_id = {id(fsa): fsa for fsa in fsas}
        self.fsas = list(by_id.values())
        number = {key: i for i, key in enumerate(by_id)}
        self.of_stream = torch.tensor([number[id(fsa)] for fsa in fsas], dtype=torch.int32)
        self._host_tensors: tuple[Any, ...] | None = None
        counts = torch.tensor([fsa.num_arcs for fsa in self.fsas])
        self.first_arc = counts.cumsum(0) - counts

    def host_tensors(self) -> tuple[Any, ...]:
        """Splits, arcs and scores of each graph, and which stream has which; on the CPU."""
        if self._host_tensors is None:
            self._host_tensors = (
                [fsa.splits()[1].cpu() for fsa in self.fsas],
                [fsa.arcs3.cpu() for fsa in self.fsas],
                [fsa.scores.detach().cpu().float().contiguous() for fsa in self.fsas],
                self.of_stream,
            )
        return self._host_tensors

    def _place(self, lattice: Fsa, graph_arc: Tensor) -> Tensor:
        """The place of each arc in the arcs of all graphs, one after another; -1 for none."""
        if len(self.fsas) == 1:
            return graph_arc
        shape = lattice._shape
        stream = shape.row_ids(1).long()[shape.row_ids(2).long()]
        first = self.first_arc.to(lattice.device)[self.of_stream.to(lattice.device).long()[stream]]
        return torch.where(graph_arc >= 0, graph_arc + first, -1).int()

    def scores_of(self, lattice: Fsa, graph_arc: Tensor) -> Tensor:
        return pick(torch.cat([fsa.scores for fsa in self.fsas]), self._place(lattice, graph_arc))

    def give_attributes(self, lattice: Fsa, graph_arc: Tensor) -> None:
        place = self._place(lattice, graph_arc)
        for fsa in reversed(self.fsas):  # where graphs disagree about the whole, the first one's word counts
            lattice._non_tensor_attr.update(fsa._non_tensor_attr)
        for name in dict.fromkeys(name for fsa in self.fsas for name in fsa._tensor_attr):
            has = next(fsa for fsa in self.fsas if name in fsa._tensor_attr)
            example, filler = has._tensor_attr[name], has.get_filler(name)
            values = [fsa._tensor_attr.get(name, _fill(fsa, example, filler)) for fsa in self.fsas]
            if len(values) == 1:
                joined: Any = values[0]
            elif isinstance(example, RaggedTensor):
                joined = ragged_cat(values, axis=0)
            else:
                joined = torch.cat(values)
            setattr(lattice, name, pick(joined, place, filler))


def _fill(fsa: Fsa, example: Tensor | RaggedTensor, filler: float) -> Any:
    """An attribute that `fsa` lacks, of the kind of `example`."""
    if isinstance(example, RaggedTensor):
        empty = torch.zeros(fsa.num_arcs + 1, dtype=torch.int32, device=fsa.device)
        return RaggedTensor(RaggedShape(splits=[empty]), example.values[:0])
    return example.new_full((fsa.num_arcs, *example.shape[1:]), filler)


def _to_splits(counts: Any) -> Tensor:
    counts = torch.as_tensor(counts, dtype=torch.int32)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)])
