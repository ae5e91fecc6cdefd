"""Searches on PyTorch's meta device: a GPU that answers no question.

Its tensors have shapes and no values, so whatever asks for one raises, and so does an operation between two devices. What
runs through on it makes no host wait and mixes no devices, for sure, whatever it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scorer_fakes import random_ngram, to_arpa
from search_fakes import FakeTransducer
from torch import Tensor

import ops
from ops import build, rnnt_decode_batch
from toolkit.config import LmConfig
from toolkit.models.language_model import build_lm
from toolkit.search import FastBeam, beam, cuda_graph, fast_beam, greedy
from toolkit.search.biasing import BiasScorer, Phrase
from toolkit.search.guide import guiding
from toolkit.search.lm_scorers import NeuralScorer, NgramScorer, WordNgramScorer
from toolkit.search.predictor import Predictor
from toolkit.search.scorers import Scorer

META, V = torch.device("meta"), 6
TOKENS = ["<blk>", "<unk>", "a", "b", "▁c", "d"]
LENS = torch.tensor([20, 19, 7, 3, 0])
SOFTMAX = {"temperature": 1.5, "blank_penalty": 0.5}


@pytest.fixture(autouse=True)
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is asked once a batch be: the lengths before, the copy to the host after."""
    for module in (greedy, beam, fast_beam):
        monkeypatch.setattr(module, "check_encoder_out", lambda *tensors: None)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: x)
    monkeypatch.setattr(beam, "_trace_back", lambda steps, *others: [None] * len(LENS))
    monkeypatch.setitem(greedy.ROWS, "meta", 64)
    monkeypatch.setitem(rnnt_decode_batch.BLOCK_SIZE, "meta", 1)


@pytest.fixture(scope="module", autouse=True)
def shapes_of_ops() -> None:
    build.load()

    @torch.library.register_fake("lattica::decode_rnnt_batch_scratch")
    def scratch(like: Tensor, streams: int, *sizes: int) -> Tensor:
        return like.new_empty((streams, 1), dtype=torch.int64)

    @torch.library.register_fake("lattica::decode_rnnt_batch_advance")
    def advance(
        graphs: list[Tensor], states: list[Tensor], rows: Tensor, log_probs: Tensor, scratch: Tensor, n: int,
        *settings: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        for x in (*graphs, *states, rows, scratch):
            assert x.device == log_probs.device
        counts = [torch.empty(n, dtype=torch.int32, device=META) for _ in range(3)]
        arc_capacity = settings[-3]
        of_states = [x.new_empty((n, x.shape[1])) for x in states[2:]]
        arcs_NA4 = rows.new_empty((n, arc_capacity, 4))
        return *counts[:2], *of_states, counts[2], arcs_NA4, log_probs.new_empty((n, arc_capacity))


def model() -> FakeTransducer:
    return FakeTransducer(vocab_size=V).to(META)


def encoder_outputs() -> Tensor:
    return torch.empty(len(LENS), int(LENS.max()), 8, device=META)


def scorers(folder: Path) -> dict[str, Scorer]:
    torch.manual_seed(0)
    path = folder / "lm.arpa"
    path.write_text(to_arpa(random_ngram(["a", "b", "▁c", "d"], 3, seed=1), 3))
    lm = ops.NgramLM.load(path)
    small: dict[str, Any] = {"dim": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 8}
    return {
        "ngram": NgramScorer(lm, TOKENS),
        "words": WordNgramScorer(lm, ["<blk>", "<unk>", "a", "b", "▁c", "d"]),
        "phrases": BiasScorer([[Phrase((2, 3), 1.0), Phrase((4, 4, 5), 0.7)]], V),
        "lstm": NeuralScorer(build_lm(LmConfig(kind="lstm", **small), V)),
        "transformer": NeuralScorer(build_lm(LmConfig(kind="transformer", **small), V)),
    }


@pytest.mark.parametrize("remember", [False, True])
@pytest.mark.parametrize("limit", [1, 25])
def test_an_iteration_of_greedy_search(limit: int, remember: bool) -> None:
    predictor = Predictor(model(), META, **SOFTMAX, remember=remember)
    zeros_N = torch.zeros(5, dtype=torch.int64, device=META)
    place = zeros_N, zeros_N, predictor.initial(5), zeros_N.double()
    out = greedy._iterate(predictor, limit, torch.empty(5, 4, 8, device=META), zeros_N, *place)
    assert {x.device for x in out} == {META}


def test_modified_beam_search_with_all_utterances_in_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(make_step: Callable[[Any], cuda_graph.Step], kept: int, model: Any, settings: Any) -> cuda_graph.Step:
        return make_step(model)

    monkeypatch.setattr(beam, "recorded", run)
    results = beam._search_whole_batch(model(), encoder_outputs(), LENS.to(META), 4, False, "max", SOFTMAX)
    assert len(results) == len(LENS)


@pytest.mark.parametrize("name", ["none", "ngram", "words", "phrases", "lstm", "transformer"])
def test_modified_beam_search(name: str, tmp_path: Path) -> None:
    added: Sequence[Scorer] = [scorers(tmp_path)[name]] if name != "none" else []
    results = beam.modified_beam_search(model(), encoder_outputs(), LENS, 4, scorers=added, cuda_graphs=False)
    assert len(results) == len(LENS)


@pytest.mark.parametrize("name", ["none", "ngram", "phrases"])
def test_fast_beam_search(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Graphs(rnnt_decode_batch._BatchGraphs):
        """What bounds the search is asked of the graphs once; here of ones on the CPU."""

        def __init__(self, fsas: Any, of_stream: Tensor, device: torch.device, vocab_size: int) -> None:
            super().__init__(fsas, of_stream, torch.device("cpu"), vocab_size)
            self.tensors = [x.to(device) for x in self.tensors]

    monkeypatch.setattr(rnnt_decode_batch, "_BatchGraphs", Graphs)
    guide = None if name == "none" else guiding([scorers(tmp_path)[name]], len(LENS), model(), META)
    graphs = [ops.trivial_graph(V - 1), ops.linear_fsa([2, 3]), *[ops.linear_fsa([2])] * 3]
    streams, _, _ = fast_beam._advanced(model(), encoder_outputs(), LENS, graphs, FastBeam(8.0, 8, 4), SOFTMAX, guide)
    symbols_NT, log_probs_NT, scores_N = streams.best_paths(allow_partial=True)
    assert symbols_NT.shape == log_probs_NT.shape == (5, 20) and scores_N.shape == (5,)
