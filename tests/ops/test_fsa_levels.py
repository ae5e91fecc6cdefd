"""Scores level by level, as the GPU computes them, against the recursions of the CPU: the CPU instance of the same source runs
everywhere, the CUDA one where there is a GPU."""

from __future__ import annotations

import random

import pytest
import torch
from fsa_helpers import random_text

import ops as k2
from ops import scores
from ops.fsa_call import call

INF = float("inf")
CHAIN = "\n".join([*(f"{i} {i + 1} {-1 if i == 199 else 1} -0.125" for i in range(200)), "200"])  # over 64 levels


def fan(arcs: int) -> str:
    """A state left, and one entered, by many arcs: more than a team has lanes."""
    rows = [f"0 {1 + i % 3} {i + 1} {-0.25 * (i % 7)}" for i in range(arcs)]
    rows += [f"{s} 4 -1 {0.5 * s}" for s in (1, 2, 3) for _ in range(arcs // 3)]
    return "\n".join([*rows, "4"])


def many(seed: int) -> k2.Fsa:
    """FSAs of many sizes, some without states, of one state, or without a path, and scores of -inf."""
    rng = random.Random(seed)
    texts = [random_text(rng, states=rng.randint(2, 30)) for _ in range(12)]
    texts += ["0", "0 1 1 0.5\n1 2 2 0.5\n4", CHAIN, fan(100)]
    rng.shuffle(texts)
    fsas = k2.create_fsa_vec([k2.Fsa.from_str(t) for t in texts])
    fsas = k2.create_fsa_vec([*fsas, k2.Fsa(torch.zeros((0, 4), dtype=torch.int32)), fsas[0]])
    fsas.scores = torch.where(torch.rand(fsas.num_arcs) < 0.05, -INF, fsas.scores)
    return fsas


@pytest.mark.parametrize("log_semiring", [False, True])
@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_by_level_agrees_with_the_recursions(device, seed, forward, log_semiring):
    torch.manual_seed(seed)
    fsas = many(seed)
    w, kind = fsas.scores.double(), (forward, log_semiring)
    plain = (*fsas.splits(), fsas.arcs3, w, *kind)
    expected = call("fsa_state_scores", *plain, True)
    there = fsas.to(device)
    tensors = (*there.splits(), there.arcs3, *scores.level_index(there), w.to(device), *kind)
    actual = call("fsa_state_scores_by_level", *tensors, True)
    assert [x.device.type for x in actual] == [device.type] * 3
    torch.testing.assert_close(actual[0].cpu(), expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual[2].cpu(), expected[2], rtol=1e-12, atol=1e-12)
    assert torch.equal(actual[1].cpu(), torch.full_like(expected[1], -1) if log_semiring else expected[1])
    grad = torch.randn(expected[0].shape, dtype=torch.float64)
    expected_grad = call("fsa_state_scores_grad", *plain, *expected, grad)
    actual_grad = call("fsa_state_scores_by_level_grad", *tensors, *(x.to(device) for x in (*expected, grad)))
    torch.testing.assert_close(actual_grad.cpu(), expected_grad, rtol=1e-12, atol=1e-12)
    again = call("fsa_state_scores_by_level_grad", *tensors, *(x.to(device) for x in (*expected, grad)))
    assert torch.equal(again, actual_grad)


@pytest.mark.parametrize("seed", range(3))
def test_levels(device, seed):
    fsas = many(seed).to(device)
    order, level_splits, entering_splits, entering = scores.level_index(fsas)
    assert level_splits.device.type == "cpu" and int(level_splits[-1]) == order.numel() == fsas.arcs.tot_size(1)
    assert sorted(order.tolist()) == list(range(order.numel()))
    level, (_, src, dest) = scores.state_levels(fsas).cpu(), (x.cpu() for x in scores.arc_places(fsas))
    highest = torch.zeros_like(level).scatter_reduce(0, dest, level[src] + 1, "amax")
    assert torch.equal(highest, level)  # as low as arcs allow
    assert torch.bincount(level).tolist() == (level_splits[1:] - level_splits[:-1]).tolist()
    lists = [entering[a:b].tolist() for a, b in zip(entering_splits[:-1].tolist(), entering_splits[1:].tolist())]
    assert lists == [(dest == s).nonzero().squeeze(1).tolist() for s in range(order.numel())]


def test_nothing_at_all(device):
    empty = k2.create_fsa_vec([k2.Fsa(torch.zeros((0, 4), dtype=torch.int32))] * 2).to(device)
    order, level_splits, *_ = scores.level_index(empty)
    assert order.numel() == 0 and level_splits.tolist() == [0]
    assert empty.get_tot_scores(True, True).tolist() == [-INF, -INF]


@pytest.fixture
def by_level_everywhere(monkeypatch):
    monkeypatch.setattr(scores, "by_level", lambda device: True)


@pytest.mark.parametrize("log_semiring", [False, True])
def test_the_public_functions_by_level(by_level_everywhere, device, log_semiring):
    texts = [random_text(random.Random(i), states=4 + i) for i in range(3)]
    fsas = k2.create_fsa_vec([k2.Fsa.from_str(t) for t in [*texts, fan(40)]]).to(device)

    def run(name):
        def f(w):
            copy = fsas.clone()
            copy.scores = w
            return getattr(copy, name)(True, log_semiring)

        return f

    w = fsas.scores.double()
    names = ("get_tot_scores", "get_forward_scores", "get_backward_scores", "get_arc_post")
    by_level = {name: run(name)(w).cpu() for name in names}
    for name in names[:3]:
        out = run(name)(w.requires_grad_())
        out[torch.isfinite(out)].sum().backward()
        by_level[name + ".grad"], w.grad = w.grad.cpu(), None
    cpu = fsas.to("cpu")
    for name in names:
        plain = call_plain(cpu, name, log_semiring)
        torch.testing.assert_close(by_level[name], plain[0])
        if name + ".grad" in by_level:
            torch.testing.assert_close(by_level[name + ".grad"], plain[1])


def call_plain(fsas, name, log_semiring):
    """The CPU's own way, and its gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "by_level", lambda device: False)
        copy = fsas.clone()
        copy.scores = fsas.scores.double().requires_grad_()
        out = getattr(copy, name)(True, log_semiring)
        out[torch.isfinite(out)].sum().backward()
    return out.detach(), copy.scores.grad


def test_paths_by_level(by_level_everywhere):
    fsas = many(7)
    best = k2.shortest_path(fsas, True)
    torch.testing.assert_close(best.get_tot_scores(True, False), fsas.get_tot_scores(True, False))
    torch.manual_seed(1)
    paths = k2.random_paths(fsas, True, 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "by_level", lambda device: False)
        torch.manual_seed(1)
        assert k2.random_paths(fsas, True, 50) == paths


def test_the_index_is_kept_until_arcs_change(device, monkeypatch):
    fsa = k2.Fsa.from_str("0 1 1 0\n0 2 2 0\n1 2 1 0\n2 3 -1 0\n3").to(device)
    first = scores.level_index(fsa)
    assert scores.level_index(fsa) is first and scores.state_levels(fsa).tolist() == [0, 1, 2, 3]
    fsa.arcs3[2, 1] = 3
    fsa.arcs3[2, 2] = -1
    assert scores.level_index(fsa) is not first and scores.state_levels(fsa).tolist() == [0, 1, 1, 2]


def test_malformed_input_is_an_error(device):
    fsas = k2.create_fsa_vec([k2.Fsa.from_str("0 1 1 0\n1 2 -1 0\n2")] * 2).to(device)
    fsa_splits, state_splits = fsas.splits()

    def levels(fsa_splits=fsa_splits, state_splits=state_splits, arcs=fsas.arcs3):
        return call("fsa_levels", fsa_splits, state_splits, arcs)

    assert levels()[1].tolist() == [0, 2, 4, 6]
    for arc, message in (([0, 0, 1], "cyclic"), ([0, 3, 1], "leads out"), ([0, -1, 1], "leads out"),
                         ([1, 2, 1], "begin"), ([0, 1, -1], "label -1")):  # fmt: skip
        bad = fsas.arcs3.clone()
        bad[2] = torch.tensor(arc, dtype=torch.int32, device=device)
        with pytest.raises(RuntimeError, match=message):
            levels(arcs=bad)
    for splits in ([0, 7, 6], [0, 2], [1, 3, 6], [0, -1, 6], [0, 3, 5]):
        with pytest.raises(RuntimeError, match="must rise"):
            levels(fsa_splits=torch.tensor(splits, dtype=torch.int32, device=device))
    for splits in ([0, 1, 9, 2, 3, 4, 4], [0, 1, 2, 2, 3, 4, 5], [-1, 1, 2, 2, 3, 4, 4], [0, 2, 1, 2, 3, 4, 4]):
        with pytest.raises(RuntimeError, match="must rise"):
            levels(state_splits=torch.tensor(splits, dtype=torch.int32, device=device))
    with pytest.raises(RuntimeError, match="3 columns"):
        levels(arcs=fsas.arcs3[:, :2].contiguous())
