"""The PyTorch twins of FSA ops give what the compiled ops give."""

from __future__ import annotations

import random

import pytest
import torch
from fsa_helpers import random_text

import ops as k2
from ops import build, reference
from ops.fsa_attributes import scores64
from ops.fsa_pick import pick, pick_lists, pick_sum

build.load()
compiled = torch.ops.lattica


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def assert_equal(a: object, b: object) -> None:
    for x, y in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (a, b)), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert torch.allclose(x, y, atol=1e-6, equal_nan=True)


def some_fsas() -> k2.Fsa:
    rng = random.Random(1)
    fsas = [k2.Fsa.from_str(random_text(rng, n, epsilons=True)) for n in (2, 7, 5)]
    no_path = k2.Fsa.from_str("0 1 3 0.5\n3")
    return k2.create_fsa_vec([*fsas[:2], k2.connect(no_path), fsas[2], no_path])


@pytest.mark.parametrize("all_states", [True, False])
def test_keep(all_states: bool) -> None:
    fsas = some_fsas()
    fsa = *fsas.splits(), fsas.arcs3
    for seed in range(5):
        mask = torch.rand(fsas.num_arcs, generator=torch.Generator().manual_seed(seed)) < 0.6
        assert_equal(compiled.fsa_keep(*fsa, mask, all_states), reference.fsa_keep(*fsa, mask, all_states))


@pytest.mark.parametrize("log_semiring", [True, False])
def test_arc_post(log_semiring: bool) -> None:
    fsas = some_fsas()
    fsa, scores = (*fsas.splits(), fsas.arcs3), scores64(fsas)
    forward, backward = (compiled.fsa_state_scores(*fsa, scores, f, log_semiring, False)[0] for f in (True, False))
    arguments = *fsa, scores, forward, backward
    assert_equal(compiled.fsa_arc_post(*arguments), reference.fsa_arc_post(*arguments))
    grad = torch.randn(fsas.num_arcs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_equal(compiled.fsa_arc_post_grad(*fsa, forward, grad), reference.fsa_arc_post_grad(*fsa, forward, grad))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 5])
def test_pick(dtype: torch.dtype, size: int) -> None:
    src = torch.tensor([3, 7, 0, 7, 2], dtype=dtype)[:size]
    arc_map, splits = ints(4, -1, 1, 3, 3, 2) if size else ints(*[-1] * 6), ints(0, 0, 3, 4, 6)
    assert_equal(compiled.fsa_pick(src, arc_map, 7), reference.fsa_pick(src, arc_map, 7))
    assert_equal(compiled.fsa_pick_sum(src, splits, arc_map), reference.fsa_pick_sum(src, splits, arc_map))
    assert_equal(compiled.fsa_pick_lists(src, splits, arc_map, 7), reference.fsa_pick_lists(src, splits, arc_map, 7))


def test_pick_keeps_gradients_and_takes_any_tensor() -> None:
    lists = k2.RaggedTensor([[4, -1], [], [1, 1]])
    src = torch.arange(5.0).requires_grad_()
    (pick(src, lists.values, 9.0).sum() + 10 * pick_sum(src, lists).sum()).backward()
    assert src.grad is not None and src.grad.tolist() == [0, 22, 0, 0, 11]
    assert pick(torch.arange(10).reshape(5, 2), lists.values, 9).tolist() == [[8, 9], [9, 9], [2, 3], [2, 3]]
    assert pick(torch.tensor([True, False]), ints(1, 0), 0).tolist() == [False, True]
    assert pick_lists(torch.arange(5), lists, 4).tolist() == [[], [], [1, 1]]
    assert pick_lists(torch.arange(5), lists, 0.5).tolist() == [[4, 0], [], [1, 1]]
    for bad in (ints(5), ints(-2)):
        with pytest.raises(RuntimeError, match="map must lie in"):
            pick(src.detach(), bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("modified", [False, True])
def test_ctc_loss(dtype: torch.dtype, modified: bool) -> None:
    texts = [[1, 2, 2, 1], [3], [], [1, 1, 1], [2, 2, 2, 2, 2, 2]]  # the last one fits into its frames only if modified
    graph = k2.ctc_graph(texts, modified=modified)
    tokens = compiled.fsa_ctc_read(*graph.splits(), graph.arcs3, graph.aux_labels)
    assert tokens[0].numel() == 6
    log_probs = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0), dtype=dtype).log_softmax(-1)
    log_probs[1, 3, 1] = float("-inf")
    segments = ints(0, 0, 9, 1, 2, 7, 1, 0, 3, 2, 1, 6, 0, 1, 7).reshape(5, 3)
    arguments = log_probs, segments, *tokens, 0.1
    for want_grad in (True, False):
        assert_equal(compiled.fsa_ctc_loss(*arguments, want_grad), reference.fsa_ctc_loss(*arguments, want_grad))
    total, occupations = compiled.fsa_ctc_loss(*arguments, True)
    assert torch.isinf(total).tolist() == [False] * 4 + [not modified]
    grads = occupations, torch.arange(5.0).double(), segments, *tokens[:2], 3, 9, 4
    assert_equal(compiled.fsa_ctc_loss_grad(*grads), reference.fsa_ctc_loss_grad(*grads))


def test_edit_distance() -> None:
    rng = random.Random(3)
    refs, hyps = ([[rng.randint(1, 3) for _ in range(rng.randint(0, 6))] for _ in range(n)] for n in (4, 30))
    rows = k2.RaggedTensor(refs), k2.RaggedTensor([*hyps, []])
    arguments = [x for r in rows for x in (r.shape.row_splits(1), r.values)]
    of = ints(*[rng.randrange(4) for _ in range(31)])
    assert_equal(compiled.fsa_edit_distance(*arguments, of), reference.fsa_edit_distance(*arguments, of))
