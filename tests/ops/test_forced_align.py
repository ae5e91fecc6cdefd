"""Forced alignment against all frame labellings, and what becomes of utterances that cannot be aligned."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

import ops as k2

INF = float("inf")


def collapse(labels, blank):
    return [x for x, _ in itertools.groupby(labels) if x != blank]


def brute_force(lp, target, blank):
    T, C = lp.shape
    fits = [x for x in itertools.product(range(C), repeat=T) if collapse(x, blank) == list(target)]
    return max((sum(lp[t, c].item() for t, c in enumerate(x)) for x in fits), default=-INF)


@pytest.mark.parametrize("blank", [0, 2])
def test_best_of_all_labellings(blank, device):
    rng = random.Random(blank)
    lp = torch.randn(6, 6, 4, generator=torch.Generator().manual_seed(blank)).log_softmax(-1).to(device)
    tokens = [c for c in range(4) if c != blank]
    targets = [[rng.choice(tokens) for _ in range(n)] for n in (1, 2, 3, 0, 3, 2)]
    targets[4] = [tokens[0]] * 3  # repeats: blanks must come between
    lens = torch.tensor([6, 5, 6, 3, 6, 2])
    if targets[5][0] == targets[5][1]:
        targets[5][1] = tokens[(tokens.index(targets[5][0]) + 1) % 3]
    labels, scores = k2.forced_align(lp, targets, lens, blank=blank)
    assert labels.dtype == torch.int32 and labels.shape == scores.shape == (6, 6)
    for i, n in enumerate(lens.tolist()):
        assert collapse(labels[i, :n].tolist(), blank) == targets[i]
        assert labels[i, n:].tolist() == [-1] * (6 - n) and scores[i, n:].tolist() == [0.0] * (6 - n)
        picked = lp[i, torch.arange(n), labels[i, :n].long()]
        assert torch.equal(scores[i, :n], picked)
        assert picked.sum().item() == pytest.approx(brute_force(lp[i, :n].cpu(), targets[i], blank), abs=1e-5)


def test_kinds_of_targets_agree_and_batch_is_one_by_one():
    lp = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).log_softmax(-1)
    lists = [[1, 2, 2], [4], [3, 1]]
    lens = torch.tensor([3, 1, 2])
    expected = k2.forced_align(lp, lists)
    padded = torch.tensor([[1, 2, 2], [4, 0, 0], [3, 1, 0]])
    for targets in (k2.RaggedTensor(lists, dtype=torch.int32), padded, torch.tensor([1, 2, 2, 4, 3, 1])):
        found = k2.forced_align(lp, targets, None, None if isinstance(targets, k2.RaggedTensor) else lens)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
    for i in range(3):
        assert torch.equal(k2.forced_align(lp[i : i + 1], lists[i : i + 1])[0][0], expected[0][i])
    half = k2.forced_align(lp.bfloat16(), lists)
    assert half[1].dtype == torch.bfloat16 and half[0].shape == (3, 9)


def test_score_is_the_best_path_of_the_ctc_graph():
    g = torch.Generator().manual_seed(1)
    lp = torch.randn(8, 60, 20, generator=g).log_softmax(-1)
    targets = [torch.randint(1, 20, (n,), generator=g).tolist() for n in (20, 10, 1, 0, 15, 25, 5, 12)]
    lens = torch.tensor([60, 50, 40, 30, 60, 55, 20, 44], dtype=torch.int32)
    _, scores = k2.forced_align(lp, targets, lens)
    index = torch.arange(8, dtype=torch.int32)
    dense = k2.DenseFsaVec(lp, torch.stack([index, torch.zeros_like(index), lens], 1))
    best = k2.shortest_path(k2.intersect_dense(k2.ctc_graph(targets), dense, 10), True)
    assert torch.allclose(scores.sum(1).double(), best.get_tot_scores(True, False), atol=1e-3)


def test_what_cannot_be_aligned_is_named():
    lp = torch.randn(6, 4, 5).log_softmax(-1)
    lp[2] = -INF
    lp[3, 1] = float("nan")
    targets = [[1, 2], [1, 1, 1], [1], [2], [1], []]  # 1: three equal tokens need five frames
    with pytest.warns(UserWarning, match=r"utterances \[1, 2, 3, 4\]"):
        labels, scores = k2.forced_align(lp, targets, torch.tensor([4, 4, 4, 4, 0, 0]))
    for i in (1, 2, 3, 4):
        assert labels[i].tolist() == [-1] * 4 and scores[i].tolist() == [-INF] * 4
        assert k2.merge_tokens(labels[i], scores[i]) == []
    assert collapse(labels[0].tolist(), 0) == [1, 2] and torch.isfinite(scores[0]).all()
    assert labels[5].tolist() == [-1] * 4 and scores[5].tolist() == [0.0] * 4  # nothing to align is no failure


def test_scores_are_differentiable():
    lp = torch.randn(2, 5, 4, dtype=torch.float64).log_softmax(-1).requires_grad_()
    labels, scores = k2.forced_align(lp, [[1, 2], [3]])
    scores.sum().backward()
    assert torch.equal(lp.grad, torch.nn.functional.one_hot(labels.long(), 4).double())


def test_merge_tokens():
    labels = torch.tensor([0, 3, 3, 0, 3, 1, 1, 1, 0, -1], dtype=torch.int32)
    scores = torch.tensor([0.5, 0.2, 0.4, 0.9, 0.7, 0.1, 0.2, 0.3, 0.6, 0.0])
    spans = k2.merge_tokens(labels, scores)
    assert [(s.token, s.start, s.end) for s in spans] == [(3, 1, 3), (3, 4, 5), (1, 5, 8)]
    assert [s.score for s in spans] == pytest.approx([0.3, 0.7, 0.2]) and [len(s) for s in spans] == [2, 1, 3]
    assert [s.token for s in k2.merge_tokens(labels, scores, blank=3)] == [0, 0, 1, 0]
    with pytest.raises(ValueError):
        k2.merge_tokens(labels, scores[:3])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([[1], [0]],), "no blank"),
        (([[1], [9]],), r"\[0, 4\)"),
        (([[1]],), "1 targets"),
        (([[1], [2]], torch.tensor([3, 6])), "input_lengths"),
        ((torch.tensor([1, 2]),), "need target_lengths"),
        ((torch.tensor([[1], [2]]), None, torch.tensor([1, 2])), "target_lengths"),
        ((torch.tensor([1, 2, 3]), None, torch.tensor([1, 1])), "2 targets of 2 tokens"),
        (([[1], [2]], None, None, 4), "blank"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        k2.forced_align(torch.zeros(2, 5, 4), *arguments)
    with pytest.raises(ValueError, match="log_probs"):
        k2.forced_align(torch.zeros(5, 4), [[1]])
