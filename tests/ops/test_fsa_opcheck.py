"""Fake kernels of the FSA ops: torch.library.opcheck, which compares them with what the ops return; a traced program."""

from __future__ import annotations

import pytest
import torch
from fsa_helpers import random_text

import ops as k2
from ops import build
from ops.fsa_attributes import call, scores64
from ops.fsa_fakes import FAKES
from ops.scores import _entering

build.load()


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def cases() -> dict[str, tuple]:
    """Arguments of each op that has a fake."""
    import random

    rng = random.Random(0)
    fsas = k2.create_fsa_vec([k2.Fsa.from_str(random_text(rng, 6, epsilons=True)) for _ in range(3)])
    fsa, scores = (*fsas.splits(), fsas.arcs3), scores64(fsas)
    states, num_arcs = fsa[1].numel() - 1, fsas.num_arcs
    forward, best, _ = call("fsa_state_scores", *fsa, scores, True, False, False)
    backward, best_on, shares = call("fsa_state_scores", *fsa, scores, False, True, True)
    levels = *fsa, *call("fsa_levels", *fsa), *_entering(fsas), scores
    backward2, best2, shares2 = call("fsa_state_scores_by_level", *levels, False, True, True)
    mask = torch.arange(num_arcs) % 3 > 0
    index = ints(0, 1, 2)
    texts = k2.RaggedTensor([[1, 2, 2], [3]])
    text_splits, tokens = texts.shape.row_splits(1), texts.values
    graph = call("fsa_ctc_graph", text_splits, tokens, False)
    log_probs, segments = torch.randn(2, 8, 4).log_softmax(-1), ints(0, 0, 8, 1, 1, 6).reshape(2, 3)
    ctc = segments, *call("fsa_ctc_read", *graph[:3], None)
    total, occupations = call("fsa_ctc_loss", log_probs, *ctc, 0.0, True)
    splits, picks = ints(0, 2, 2, 4), ints(3, -1, 0, 1)
    lm = ints(0, 3, 4), ints(0, 1, 2, 1), torch.randn(4), ints(0, 1, 0, 1), ints(0, 0), torch.zeros(2)
    dense = (
        *graph[:3],
        torch.zeros(graph[3].numel()),
        log_probs,
        segments,
        ints(0, 1),
        ints(0, 1),
        20.0,
        8.0,
        30,
        1000,
        True,
    )
    return {
        "fsa_state_scores": (*fsa, scores, False, True, True),
        "fsa_state_scores_grad": (*fsa, scores, False, True, backward, best_on, shares, torch.ones(states).double()),
        "fsa_levels": fsa,
        "fsa_state_scores_by_level": (*levels, False, True, True),
        "fsa_state_scores_by_level_grad": (
            *levels,
            False,
            True,
            backward2,
            best2,
            shares2,
            torch.ones(states).double(),
        ),
        "fsa_arc_post": (*fsa, scores, forward, backward),
        "fsa_arc_post_grad": (*fsa, forward, torch.ones(num_arcs).double()),
        "fsa_shortest_path": (*fsa, best),
        "fsa_random_paths": (*fsa, shares, ints(0, 2, 2, 3), 7),
        "fsa_properties": fsa,
        "fsa_ctc_graph": (text_splits, tokens, False),
        "fsa_connect": fsa,
        "fsa_keep": (*fsa, mask, False),
        "fsa_top_sort": fsa,
        "fsa_arc_sort": fsa[1:],
        "fsa_intersect": (*fsa, fsas.labels.contiguous(), *fsa, index, index, True),
        "fsa_remove_epsilon": (*fsa, scores, False),
        "fsa_determinize": (*fsa, scores, 1000),
        "fsa_minimize": (*fsa, scores, torch.zeros(num_arcs, dtype=torch.int32), 0.01),
        "fsa_potentials": (*fsa, scores, False, 1e-9, 100),
        "fsa_pick": (torch.randn(5), picks, 0.5),
        "fsa_pick_sum": (torch.randn(5), splits, picks),
        "fsa_pick_lists": (ints(0, 4, 5, 6, 7), splits, picks, 0),
        "fsa_intersect_dense": (*dense, True),
        "fsa_intersect_dense_batch": (*dense, True),
        "fsa_ctc_read": (*graph[:3], graph[3]),
        "fsa_ctc_loss": (log_probs, *ctc, 0.0, True),
        "fsa_ctc_loss_grad": (occupations, total, *ctc[:3], *log_probs.shape),
        "fsa_ctc_align": (log_probs, *ctc, 0),
        "fsa_edit_distance": (text_splits, tokens, ints(0, 1, 2, 4), ints(1, 2, 3, 3), ints(0, 1, 0)),
        "ngram_score": (*lm, ints(0, 1, 1), ints(2, 1, 0)),
    }


@pytest.mark.parametrize("name", sorted(FAKES))
def test_opcheck(name: str, one_thread: None) -> None:
    op = getattr(torch.ops.lattica, name).default
    torch.library.opcheck(op, cases()[name], test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


def test_no_op_is_forgotten() -> None:
    call("fsa_properties", *(fsa := k2.linear_fsa([1])).splits(), fsa.arcs3)  # makes sure that the ops are there
    assert cases().keys() == FAKES.keys()


def test_sizes_that_depend_on_the_data_are_symbols() -> None:
    """A program that picks scores along a pruned automaton is exported without running it, and then does what it did."""

    class Pruned(torch.nn.Module):
        def forward(self, fsa_splits, state_splits, arcs, scores, mask):  # type: ignore[no-untyped-def]
            *_, arc_map = torch.ops.lattica.fsa_keep(fsa_splits, state_splits, arcs, mask, False)
            return torch.ops.lattica.fsa_pick(scores, arc_map, 0.0) * 2

    fsa = k2.linear_fsa([[3, 4], [5]])
    scores = torch.arange(5.0)
    inputs = *fsa.splits(), fsa.arcs3, scores, torch.tensor([True, False, True, True, True])
    exported = torch.export.export(Pruned(), inputs).module()
    assert exported(*inputs).tolist() == [0.0, 4.0, 6.0, 8.0]
    assert exported(*inputs[:4], torch.tensor([False, False, False, True, False])).tolist() == [6.0]
