"""Searches with recorded frames, and on a GPU. On the CPU a recording that is none tries what CUDA graphs ask of a search."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from search_fakes import FakeTransducer, encoder_outputs
from torch import Tensor

from toolkit.search import FastBeam, SearchResult, cuda_graph, fast_beam_search, greedy_search, modified_beam_search
from toolkit.search.waits import as_on_gpu

V = 6
LENS = torch.tensor([17, 24, 0, 1, 9])
SEARCHES: dict[str, Callable[..., list[SearchResult]]] = {
    "greedy S=1": lambda *a, **k: greedy_search(*a, 1, **k),
    "greedy S=3": lambda *a, **k: greedy_search(*a, 3, **k),
    "greedy S=∞": lambda *a, **k: greedy_search(*a, 0, **k),
    "modified beam": lambda *a, **k: modified_beam_search(*a, 4, merge="max", temperature=1.5, **k),
}


pytestmark = pytest.mark.usefixtures("one_thread")


class NoRecording(cuda_graph.Recording):
    """The step itself, with memory as a graph has it: the same places for what comes in and goes out every time."""

    made = 0

    def record(self, step: cuda_graph.Step) -> tuple[Tensor, ...]:
        NoRecording.made += 1
        self.step = step
        return tuple(x.clone() for x in step(*self.inputs))

    def replay(self) -> None:
        for mine, new in zip(self.outputs, self.step(*self.inputs)):
            mine.copy_(new)


def assert_same(results: list[SearchResult], expected: list[SearchResult]) -> None:
    for result, other in zip(results, expected, strict=True):
        assert [(h.tokens, h.frames) for h in result.nbest] == [(h.tokens, h.frames) for h in other.nbest]
        for h, g in zip(result.nbest, other.nbest):
            assert h.score == pytest.approx(g.score, abs=1e-4) and h.log_probs == pytest.approx(g.log_probs, abs=1e-4)


def model(device: str | torch.device = "cpu") -> FakeTransducer:
    made = FakeTransducer(vocab_size=V)
    with torch.no_grad():
        made.joiner.output.bias[0] += 4.0  # a symbol every few frames
    return made.to(device)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_replayed_frame_overwrites_nothing_that_is_needed(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "Recording", NoRecording)
    monkeypatch.setattr(cuda_graph, "can_record", lambda device: True)
    monkeypatch.setattr(NoRecording, "made", 0)
    m = model()
    for seed, lens_N in ((1, LENS), (2, LENS.flip(0)), (3, LENS[:3])):
        x_NTD = encoder_outputs(len(lens_N), 24, seed=seed)
        expected = SEARCHES[search](m, x_NTD, lens_N)
        with as_on_gpu():
            assert_same(SEARCHES[search](m, x_NTD, lens_N), expected)
    assert NoRecording.made == 1  # three batches of at most eight utterances
    with torch.no_grad():
        m.joiner.output.bias.add_(torch.randn(V, generator=torch.Generator().manual_seed(0)))
    expected = SEARCHES[search](m, x_NTD, lens_N)
    with as_on_gpu():
        assert_same(SEARCHES[search](m, x_NTD, lens_N), expected)  # weights that change in place are seen
        assert NoRecording.made == 1
        m.joiner.output.weight.data = m.joiner.output.weight.data.clone()
        assert_same(SEARCHES[search](m, x_NTD, lens_N), expected)
    assert NoRecording.made == 2  # those that move are recorded anew


def test_without_recording_it_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "Recording", fails)
    monkeypatch.setattr(cuda_graph, "_failed", False)
    monkeypatch.setattr(cuda_graph, "can_record", lambda device: not cuda_graph._failed)
    x_NTD = encoder_outputs(5, 24)
    expected = modified_beam_search(model(), x_NTD, LENS)
    with as_on_gpu():
        assert_same(modified_beam_search(model(), x_NTD, LENS), expected)
    assert cuda_graph._failed and caplog.text.count("recording failed, going on without") == 1


@pytest.mark.cuda
@pytest.mark.parametrize("search", SEARCHES)
def test_recorded_frames_on_a_gpu(search: str) -> None:
    m = model("cuda")
    for seed in (1, 2):
        x_NTD = encoder_outputs(5, 24, seed=seed)
        expected = SEARCHES[search](model(), x_NTD, LENS)
        assert_same(SEARCHES[search](m, x_NTD.cuda(), LENS, cuda_graphs=False), expected)
        assert_same(SEARCHES[search](m, x_NTD.cuda(), LENS), expected)
    assert not cuda_graph._failed


@pytest.mark.cuda
def test_fast_beam_on_a_gpu() -> None:
    x_NTD, bounds = encoder_outputs(5, 24), FastBeam(10.0, 8, 4)
    expected = fast_beam_search(model(), x_NTD, LENS, None, bounds)
    assert_same(fast_beam_search(model("cuda"), x_NTD.cuda(), LENS, None, bounds), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("search", [*SEARCHES, "fast beam"])
def test_a_gpu_is_not_waited_for_in_every_frame(search: str) -> None:
    """By torch's own count of what makes the host wait."""
    run = SEARCHES.get(search, lambda m, x, lens: fast_beam_search(m, x, lens, None, FastBeam(8.0, 8, 4)))
    m, counts = model("cuda"), []
    for frames in (16, 16, 64):  # the first time is for what is made once
        x_NTD, lens_N = encoder_outputs(3, frames).cuda(), torch.tensor([frames, frames - 5, frames // 2])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run(m, x_NTD, lens_N)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(len(caught))
    assert counts[2] <= counts[1] + 4
