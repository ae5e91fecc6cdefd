"""Forward, backward, total and posterior scores against sums over all paths, and their gradients."""

from __future__ import annotations

import math
import random

import pytest
import torch
from fsa_helpers import all_paths, random_text

import ops as k2
from ops import fsa_properties, reference, scores
from ops.fsa_attributes import call

INF = float("inf")
TEXTS = [random_text(random.Random(i), states=3 + i % 4) for i in range(6)]
DEAD_END = "0 1 1 0.5\n0 2 2 0.25\n2 3 -1 1\n3"  # state 1 leads nowhere
NO_PATH = "0 1 1 0.5\n1 2 2 0.5\n4"


def vec(device="cpu"):
    fsas = [k2.Fsa.from_str(t) for t in [*TEXTS, DEAD_END, NO_PATH, "0"]]
    return k2.create_fsa_vec(fsas).to(device)


def log_add(values):
    top = max(values, default=-INF)
    return top + math.log(sum(math.exp(v - top) for v in values)) if top > -INF else top


@pytest.mark.parametrize("log_semiring", [False, True])
def test_totals_and_posteriors_by_brute_force(device, log_semiring):
    fsas = vec(device)
    total = fsas.get_tot_scores(True, log_semiring).tolist()
    post = fsas.get_arc_post(True, log_semiring).tolist()
    add = log_add if log_semiring else lambda values: max(values, default=-INF)
    begin = 0
    for i, fsa in enumerate(fsas):
        arc_scores = fsa.scores.tolist()
        paths = [(p, sum(arc_scores[a] for a in p)) for p in all_paths(fsa.to("cpu"))]
        expected = add([s for _, s in paths])
        assert total[i] == pytest.approx(expected, abs=1e-5)
        for a in range(fsa.num_arcs):
            through = add([s for p, s in paths if a in p])
            expected_post = through - expected if through > -INF else -INF
            assert post[begin + a] == pytest.approx(expected_post, abs=1e-5)
        begin += fsa.num_arcs


@pytest.mark.parametrize("log_semiring", [False, True])
def test_state_scores(device, log_semiring):
    fsas = vec(device)
    forward = fsas.get_forward_scores(True, log_semiring)
    backward = fsas.get_backward_scores(True, log_semiring)
    starts = fsas.arcs.row_splits(1)[:-2].long()
    total = fsas.get_tot_scores(True, log_semiring)
    assert forward.shape == (fsas.arcs.tot_size(1),) and forward[starts].abs().max() == 0
    assert torch.allclose(backward[starts], total[:-1])
    assert fsas.get_forward_scores(False, log_semiring).dtype == torch.float32
    one_by_one = torch.cat([f.get_forward_scores(True, log_semiring) for f in fsas])
    assert torch.equal(one_by_one, forward)


@pytest.mark.parametrize("log_semiring", [False, True])
@pytest.mark.parametrize("forward", [False, True])
def test_reference_twin_agrees(log_semiring, forward):
    fsas = vec()
    splits, w = fsas.splits(), fsas.scores.double()
    w[3] = -INF
    args = (*splits, fsas.arcs3, w, forward, log_semiring)
    out, best, shares = call("fsa_state_scores", *args, True)
    expected, expected_best, expected_shares = reference.fsa_state_scores(*args, True)
    assert torch.allclose(out, expected, atol=1e-10) and torch.allclose(shares, expected_shares, atol=1e-10)
    assert shares.numel() == (fsas.num_arcs if log_semiring and not forward else 0)
    if not log_semiring:
        assert torch.equal(best, expected_best)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    args = (*args, out, best, shares, grad)
    actual = call("fsa_state_scores_grad", *args)
    assert torch.allclose(actual, reference.fsa_state_scores_grad(*args), atol=1e-10)
    assert torch.isfinite(actual).all()


@pytest.mark.parametrize("log_semiring", [False, True])
def test_gradients(device, log_semiring):
    fsas = k2.create_fsa_vec([k2.Fsa.from_str(t) for t in [*TEXTS[:3], DEAD_END]]).to(device)

    def run(name):
        def f(w):
            copy = fsas.clone()
            copy.scores = w
            out = getattr(copy, name)(True, log_semiring)
            return out[torch.isfinite(out)]

        return f

    w = fsas.scores.double().requires_grad_()
    for name in ("get_tot_scores", "get_forward_scores", "get_backward_scores", "get_arc_post"):
        assert torch.autograd.gradcheck(run(name), (w,))


def test_float_gradients_are_posteriors():
    fsas = vec().requires_grad_(True)
    total = fsas.get_tot_scores(use_double_scores=False, log_semiring=True)
    total[torch.isfinite(total)].sum().backward()
    post = fsas.get_arc_post(True, True).detach().exp()
    assert torch.allclose(fsas.grad.double(), post, atol=1e-5) and fsas.grad.dtype == torch.float32
    fsas.get_tot_scores(False, False)[0].backward()
    assert torch.isfinite(fsas.grad).all()


def test_cyclic_input_is_an_error():
    fsa = k2.Fsa.from_str("0 1 1 0\n1 0 2 0\n1 2 -1 0\n2")
    with pytest.raises(RuntimeError, match="top_sort"):
        fsa.get_tot_scores(True, True)
    with pytest.raises(RuntimeError, match="cyclic"):
        scores.state_batches(fsa)


def test_batches_and_incoming_arcs(device):
    fsas = k2.create_fsa_vec([k2.Fsa.from_str(t) for t in TEXTS]).to(device)
    batches = scores.state_batches(fsas)
    assert sorted(batches.values.tolist()) == list(range(fsas.arcs.tot_size(1)))
    assert batches.shape.tot_size(1) == batches.dim0 * len(TEXTS)
    level = torch.empty(fsas.arcs.tot_size(1), dtype=torch.int64)
    for b, rows in enumerate(batches.tolist()):
        for row in rows:
            level[row] = b
    _, src, dest = (x.cpu() for x in scores.arc_places(fsas))
    assert bool((level[dest] > level[src]).all())
    incoming = scores.incoming_arcs(fsas).remove_axis(0).tolist()
    for state, arcs in enumerate(incoming):
        assert arcs == (dest == state).nonzero().squeeze(1).tolist()


def test_shortest_path(device):
    fsas = vec(device)
    fsas.name = torch.arange(fsas.num_arcs, device=device, dtype=torch.int32)
    fsas.requires_grad_(True)
    best = k2.shortest_path(fsas, use_double_scores=True)
    assert best.shape == fsas.shape
    best_totals = best.get_tot_scores(True, False)
    assert torch.allclose(best_totals, fsas.get_tot_scores(True, False))
    for fsa, expected in zip(best, fsas):
        assert fsa.shape[0] == (0 if expected.get_tot_scores(True, False) == -INF else fsa.num_arcs + 1)
    assert torch.equal(fsas.scores[best.name.long()], best.scores)
    best.scores.sum().backward()
    assert fsas.grad.sum() == best.num_arcs
    single = k2.shortest_path(k2.Fsa.from_str(TEXTS[0]), False)
    assert len(single.shape) == 2


def test_random_paths_follow_the_posterior(device):
    fsas = vec(device)
    torch.manual_seed(3)
    paths = k2.random_paths(fsas, True, 2000)
    assert paths.num_axes == 3 and paths.shape.counts(1).tolist() == [2000] * 9
    counts = torch.bincount(paths.values.long().cpu(), minlength=fsas.num_arcs) / 2000
    expected = fsas.get_arc_post(True, True).exp().cpu().nan_to_num(0)
    assert (counts - expected).abs().max() < 0.05
    some = k2.random_paths(fsas, True, torch.tensor([1, 0, 2, 0, 0, 0, 1, 1, 1]))
    lists = some.tolist()
    assert [len(x) for x in lists] == [1, 0, 2, 0, 0, 0, 1, 1, 1] and lists[7] == [[]] and lists[8] == [[]]
    valid = {tuple(p) for p in all_paths(fsas[0].to("cpu"))}
    assert tuple(lists[0][0]) in valid
    torch.manual_seed(3)
    assert k2.random_paths(fsas, True, 2000) == paths


def test_prune_on_arc_post():
    fsas = vec()
    pruned = k2.prune_on_arc_post(fsas, 0.3, True)
    post = fsas.get_arc_post(True, True).exp()
    assert pruned.num_arcs == int((post > 0.3).sum()) and pruned.shape == fsas.shape
    assert pruned.properties & fsa_properties.VALID
    with pytest.raises(ValueError):
        k2.prune_on_arc_post(fsas, 1.5, True)
