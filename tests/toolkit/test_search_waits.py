"""No search makes the host wait for a GPU in every frame: counted on CPU tensors, on the ways that searches go on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scorer_fakes import random_ngram, to_arpa
from search_fakes import FakeTransducer, encoder_outputs
from torch import Tensor

import ops
from toolkit.config import LmConfig
from toolkit.models.language_model import build_lm
from toolkit.search import (
    FastBeam,
    SearchResult,
    fast_beam_search,
    fast_beam_search_lattice,
    greedy_search,
    modified_beam_search,
)
from toolkit.search.biasing import BiasScorer, Phrase
from toolkit.search.guide import guiding
from toolkit.search.lm_scorers import NeuralScorer, NgramScorer
from toolkit.search.scorers import Scorer, SumScorer
from toolkit.search.waits import HostWaits, as_on_gpu, waiting_is_free

V = 6
TOKENS = ["<blk>", "<unk>", "a", "b", "c", "d"]


pytestmark = pytest.mark.usefixtures("one_thread")


def ngram(folder: Path) -> Scorer:
    path = folder / "lm.arpa"
    path.write_text(to_arpa(random_ngram(TOKENS[2:], 3, seed=1), 3))
    return NgramScorer(ops.NgramLM.load(path), TOKENS)


def neural(kind: str) -> Scorer:
    torch.manual_seed(0)
    return NeuralScorer(build_lm(LmConfig(kind=kind, dim=8, num_layers=1, num_heads=2, feedforward_dim=8), V))


def scorers(name: str, folder: Path) -> list[Scorer]:
    phrases = [Phrase((2, 3), 1.0), Phrase((4, 4, 5), 0.7)]
    made: dict[str, Callable[[], list[Scorer]]] = {
        "none": list,
        "ngram and phrases": lambda: [SumScorer([ngram(folder), BiasScorer([phrases], V)], [0.4, 1.0])],
        "lstm": lambda: [neural("lstm")],
        "transformer": lambda: [neural("transformer")],
    }
    return made[name]()


SEARCHES: dict[str, Callable[..., list[SearchResult]]] = {
    "greedy S=1": lambda m, x, lens, s: greedy_search(m, x, lens, 1, scorers=s),
    "greedy S=2": lambda m, x, lens, s: greedy_search(m, x, lens, 2, scorers=s),
    "greedy S=3": lambda m, x, lens, s: greedy_search(m, x, lens, 3, scorers=s),
    "greedy S=∞": lambda m, x, lens, s: greedy_search(m, x, lens, 0, scorers=s),
    "modified beam": lambda m, x, lens, s: modified_beam_search(m, x, lens, 4, scorers=s),
    "fast beam": lambda m, x, lens, s: fast_beam_search(m, x, lens, None, FastBeam(8.0, 8, 4)),
    "fast beam lattice": lambda m, x, lens, s: fast_beam_search_lattice(m, x, lens, None, FastBeam(8.0, 8, 4)),
}


def counted(search: Callable[..., Any], m: Any, frames: int, added: Sequence[Scorer]) -> HostWaits:
    x_NTD, lens_N = encoder_outputs(3, frames), torch.tensor([frames, frames - 5, frames // 2])
    with as_on_gpu(), HostWaits() as waits:
        search(m, x_NTD, lens_N, added)
    return waits


def model() -> FakeTransducer:
    made = FakeTransducer(vocab_size=V)
    with torch.no_grad():
        made.joiner.output.bias[0] += 4.0  # a symbol every few frames
    return made


CASES = [
    (search, added)
    for search in SEARCHES
    for added in ("none", "ngram and phrases", "lstm", "transformer")
    if not search.startswith("fast beam")
    or added == "none"  # the scorers of the FSA-based search are those of its guide
]


@pytest.mark.parametrize(("search", "added"), CASES)
def test_waits_do_not_grow_with_the_frames(search: str, added: str, tmp_path: Path) -> None:
    with_scorers = scorers(added, tmp_path)
    few, many = (counted(SEARCHES[search], model(), frames, with_scorers) for frames in (16, 112))
    # Greedy search asks after half of the rest whether it is done: a few times more for 96 frames more.
    allowed = 10 if search.startswith("greedy") else 0
    assert few.total > 0 and many.total <= few.total + allowed, (few.counts, many.counts)


def test_guided_fast_beam_asks_nothing_in_a_frame(tmp_path: Path) -> None:
    def search(m: Any, x_NTD: Tensor, lens_N: Tensor, added: Sequence[Scorer]) -> None:
        guide = guiding(added, len(lens_N), m, x_NTD.device)
        assert guide is not None
        fast_beam_search_lattice(m, x_NTD, lens_N, None, FastBeam(8.0, 8, 4), guide=guide)

    added = scorers("ngram and phrases", tmp_path)
    few, many = (counted(search, model(), frames, added) for frames in (16, 64))
    assert 0 < many.total <= few.total, (few.counts, many.counts)


@pytest.mark.parametrize(("search", "added"), [case for case in CASES if case[0] != "fast beam lattice"])
def test_results_are_those_of_the_cpu(search: str, added: str, tmp_path: Path) -> None:
    with_scorers = scorers(added, tmp_path)
    x_NTD, lens_N = encoder_outputs(4, 24), torch.tensor([17, 24, 0, 1])
    expected = SEARCHES[search](model(), x_NTD, lens_N, with_scorers)
    with as_on_gpu():
        results = SEARCHES[search](model(), x_NTD, lens_N, with_scorers)
    for result, other in zip(results, expected, strict=True):
        assert [(h.tokens, h.frames) for h in result.nbest] == [(h.tokens, h.frames) for h in other.nbest]
        for h, g in zip(result.nbest, other.nbest):
            assert h.score == pytest.approx(g.score, abs=1e-4) and h.log_probs == pytest.approx(g.log_probs, abs=1e-4)


@pytest.mark.parametrize("allow_partial", [False, True])
@pytest.mark.parametrize("graph", ["trivial", "phrase", "of each"])
def test_fast_beam_is_the_same_on_the_way_of_a_gpu(graph: str, allow_partial: bool) -> None:
    """With utterances too short for the phrase, and an empty one."""
    phrases = [ops.linear_fsa(tokens) for tokens in ([3, 3, 5], [2], [4, 2, 5, 5, 3], [1])]
    for phrase in phrases:
        phrase.scores = torch.linspace(-0.5, 0.5, phrase.num_arcs)
    fsa = {"trivial": None, "phrase": phrases[0], "of each": phrases}[graph]
    x_NTD, lens_N = encoder_outputs(4, 30), torch.tensor([21, 30, 2, 0])
    options: dict[str, Any] = {"graph": fsa, "bounds": FastBeam(10.0, 8, 4), "allow_partial": allow_partial}
    lattice = fast_beam_search_lattice(model(), x_NTD, lens_N, **options)
    best = fast_beam_search(model(), x_NTD, lens_N, **options)
    with as_on_gpu():
        padded = fast_beam_search_lattice(model(), x_NTD, lens_N, **options)
        found = fast_beam_search(model(), x_NTD, lens_N, **options)
    for result, expected in zip(found, best, strict=True):
        assert (result.best.tokens, result.best.frames) == (expected.best.tokens, expected.best.frames)
        assert result.best.score == pytest.approx(expected.best.score, abs=1e-5)
        assert result.best.log_probs == pytest.approx(expected.best.log_probs, abs=1e-5)
    assert torch.equal(padded.arcs3, lattice.arcs3)
    torch.testing.assert_close(padded.scores, lattice.scores)


def test_the_counter_sees_what_waits_and_nothing_else() -> None:
    x = torch.arange(6.0)
    waiting: list[Callable[[], Any]] = [
        lambda: x.max().item(), lambda: bool((x > 2).any()), lambda: int(x[0]), lambda: x.tolist(), lambda: x.cpu(),
        lambda: x.numpy(), lambda: x.nonzero(), lambda: x[x > 2], lambda: x.unique(), lambda: torch.equal(x, x),
        lambda: x.masked_select(x > 1), lambda: x.to("cpu"), lambda: torch.tensor([1, 2]),
        lambda: x.repeat_interleave(x.long()), lambda: torch.where(x > 2)[0], lambda: x.index_put((x > 2,), x[:1]),
    ]  # fmt: skip
    free: list[Callable[[], Any]] = [
        lambda: x.max(), lambda: x.index_select(0, x.long()), lambda: x[x.long()], lambda: torch.where(x > 2, x, 0.0),
        lambda: x.sort(), lambda: x.topk(2), lambda: x.repeat_interleave(2), lambda: x.to(torch.int64), lambda: x.shape[0],
        lambda: x.masked_fill(x > 2, 0.0), lambda: x.repeat_interleave(x.long(), output_size=15), lambda: x.clone(),
    ]  # fmt: skip
    for inference in (False, True):
        with torch.inference_mode(inference):
            for f in waiting:
                with HostWaits() as waits:
                    f()
                assert waits.total == 1, f.__code__.co_firstlineno
            with HostWaits() as waits:
                for f in free:
                    f()
            assert waits.total == 0, waits.counts


def test_as_on_gpu_ends() -> None:
    cpu = torch.device("cpu")
    assert waiting_is_free(cpu) and not waiting_is_free(torch.device("cuda"))
    with as_on_gpu():
        assert not waiting_is_free(cpu)
    assert waiting_is_free(cpu)
