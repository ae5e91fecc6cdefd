"""The transducer losses against the definition of their lattices, all paths, k2's results and gradcheck."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import combinations, combinations_with_replacement
from pathlib import Path

import pytest
import torch

import ops
from ops.reference.rnnt_loss import additive_log_probs, hat_log_probs, transducer_loss

KINDS = ["regular", "modified", "constrained"]


class Batch:
    """N = 3 utterances, the second one shorter, the third without symbols."""

    def __init__(self, T: int = 6, S: int = 3, C: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        g = torch.Generator().manual_seed(seed)
        self.am = torch.randn(3, T, C, generator=g, dtype=dtype)
        self.lm = torch.randn(3, S + 1, C, generator=g, dtype=dtype)
        self.logits = torch.randn(3, T, S + 1, C, generator=g, dtype=dtype)
        self.symbols = torch.randint(0, C, (3, S), generator=g)
        self.boundary = torch.tensor([[0, 0, S, T], [0, 0, S - 1, T - 1], [0, 0, 0, T - 2]])

    def to(self, device: torch.device) -> Batch:
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))
        return self


def all_paths_loss(log_probs: torch.Tensor, symbols: list[int], blank: int, kind: str) -> float:
    """-log of the sum over all alignments, each given by its symbols' frames. log_probs: (T, S + 1, C)."""
    T, S = log_probs.shape[0], len(symbols)
    choose = combinations_with_replacement if kind == "regular" else combinations
    scores = []
    for frames in choose(range(T), S):
        score = 0.0
        for t in range(T):
            before = sum(f < t for f in frames)
            emitted = [i for i, f in enumerate(frames) if f == t]
            score += sum(log_probs[t, i, symbols[i]].item() for i in emitted)
            if not emitted or kind != "modified":  # in `modified` a symbol ends its frame without a blank
                score += log_probs[t, before + len(emitted), blank].item()
        scores.append(score)
    return -torch.tensor(scores, dtype=torch.float64).logsumexp(0).item() if scores else math.inf


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("T", "S"), [(1, 0), (1, 1), (4, 2), (5, 3), (3, 3), (2, 3)])
def test_sum_over_all_paths(T: int, S: int, kind: str, device: torch.device) -> None:
    g = torch.Generator().manual_seed(T * 10 + S)
    logits = torch.randn(2, T, S + 1, 4, generator=g, dtype=torch.float64)
    symbols = torch.randint(1, 4, (2, S), generator=g)
    losses = ops.rnnt_loss(logits.to(device), symbols.to(device), 0, rnnt_type=kind, reduction="none").cpu()
    for n in range(2):
        expected = all_paths_loss(logits[n].log_softmax(-1), symbols[n].tolist(), 0, kind)
        assert losses[n].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("delay_penalty", [0.0, 0.1])
@pytest.mark.parametrize("blank", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
class TestAgainstDefinition:
    """Values and gradients of each loss against log-probabilities written out for every cell."""

    def compare(self, loss, expected, *leaves: torch.Tensor) -> None:
        torch.testing.assert_close(loss.cpu(), expected.cpu())
        weights = torch.tensor([1.0, -2.0, 0.5], dtype=loss.dtype)
        ours = torch.autograd.grad(loss, leaves, weights.to(loss.device))
        theirs = torch.autograd.grad(expected, leaves, weights.to(expected.device))
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize(("lm_scale", "am_scale"), [(0.0, 0.0), (0.25, 0.0), (0.0, 0.1), (0.25, 0.1)])
    def test_smoothed(
        self, kind: str, blank: int, delay_penalty: float, lm_scale: float, am_scale: float, device
    ) -> None:
        b = Batch().to(device)
        am, lm = b.am.requires_grad_(), b.lm.requires_grad_()
        loss = ops.rnnt_loss_smoothed(
            lm, am, b.symbols, blank, lm_scale, am_scale, b.boundary, kind, delay_penalty, reduction="none"
        )
        expected = transducer_loss(
            additive_log_probs(lm, am, lm_scale, am_scale), b.symbols, blank, b.boundary, kind, delay_penalty
        )
        self.compare(loss, expected, am, lm)

    def test_simple(self, kind: str, blank: int, delay_penalty: float, device: torch.device) -> None:
        b = Batch().to(device)
        am, lm = b.am.requires_grad_(), b.lm.requires_grad_()
        loss = ops.rnnt_loss_simple(lm, am, b.symbols, blank, b.boundary, kind, delay_penalty, reduction="none")
        expected = transducer_loss(additive_log_probs(lm, am), b.symbols, blank, b.boundary, kind, delay_penalty)
        self.compare(loss, expected, am, lm)

    @pytest.mark.parametrize("hat", [False, True])
    def test_full(self, kind: str, blank: int, delay_penalty: float, hat: bool, device: torch.device) -> None:
        b = Batch().to(device)
        logits = b.logits.requires_grad_()
        if hat:
            b.symbols[b.symbols == blank] = 2  # HAT has no probability for blank as a symbol
        loss = ops.rnnt_loss(logits, b.symbols, blank, b.boundary, kind, delay_penalty, "none", hat)
        log_probs = hat_log_probs(logits, blank) if hat else logits.log_softmax(-1)
        self.compare(loss, transducer_loss(log_probs, b.symbols, blank, b.boundary, kind, delay_penalty), logits)

    @pytest.mark.parametrize("hat", [False, True])
    def test_pruned(self, kind: str, blank: int, delay_penalty: float, hat: bool, device: torch.device) -> None:
        b = Batch(T=7, S=4).to(device)
        if hat:
            b.symbols[b.symbols == blank] = 2
        _, occupations = ops.rnnt_loss_simple(b.lm, b.am, b.symbols, blank, b.boundary, kind, return_grad=True)
        ranges = ops.get_rnnt_prune_ranges(*occupations, b.boundary, 3)
        pruned = b.logits.gather(2, ranges[..., None].expand(-1, -1, -1, b.logits.shape[-1])).requires_grad_()
        loss = ops.rnnt_loss_pruned(pruned, b.symbols, ranges, blank, b.boundary, kind, delay_penalty, "none", hat)
        log_probs = hat_log_probs(pruned, blank) if hat else pruned.log_softmax(-1)
        # exp(-1e4) is 0 in float64; -inf would make the oracle's own gradient nan.
        everywhere = torch.full_like(b.logits, -1e4).scatter(2, ranges[..., None].expand_as(log_probs), log_probs)
        self.compare(loss, transducer_loss(everywhere, b.symbols, blank, b.boundary, kind, delay_penalty), pruned)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str, device: torch.device) -> None:
    b = Batch(T=4, S=2, C=4).to(device)
    am, lm, logits = b.am.requires_grad_(), b.lm.requires_grad_(), b.logits.requires_grad_()
    ranges = torch.tensor([[0, 1], [0, 1], [1, 2], [1, 2]], device=device).expand(3, 4, 2).contiguous()
    fixed = {"boundary": b.boundary, "rnnt_type": kind, "delay_penalty": 0.05, "reduction": "none"}
    check = torch.autograd.gradcheck
    assert check(lambda a, l: ops.rnnt_loss_smoothed(l, a, b.symbols, 0, 0.25, 0.1, **fixed), (am, lm))
    assert check(lambda x: ops.rnnt_loss(x, b.symbols, 0, **fixed), (logits,))
    assert check(lambda x: ops.rnnt_loss(x, b.symbols, 0, use_hat_loss=True, **fixed), (logits,))
    b.boundary[:, 2].clamp_(min=1)  # the last band lies at positions 1 and 2
    assert check(
        lambda x: ops.rnnt_loss_pruned(x, b.symbols, ranges, 0, **fixed), (logits[:, :, :2].detach().requires_grad_(),)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_with_the_whole_range_is_the_full_loss(kind: str) -> None:
    b = Batch()
    ranges = torch.arange(4).expand(3, 6, 4)
    pruned = ops.rnnt_loss_pruned(b.logits, b.symbols, ranges, 0, b.boundary, kind, 0.1, "none")
    torch.testing.assert_close(pruned, ops.rnnt_loss(b.logits, b.symbols, 0, b.boundary, kind, 0.1, "none"))


@pytest.mark.parametrize("kind", KINDS)
def test_batch_equals_one_by_one(kind: str) -> None:
    b = Batch()
    together = ops.rnnt_loss_simple(b.lm, b.am, b.symbols, 0, b.boundary, kind, 0.1, "none")
    full = ops.rnnt_loss(b.logits, b.symbols, 0, b.boundary, kind, 0.1, "none")
    for n, (_, _, S, T) in enumerate(b.boundary.tolist()):
        one = slice(n, n + 1)
        alone = ops.rnnt_loss_simple(b.lm[one, : S + 1], b.am[one, :T], b.symbols[one, :S], 0, None, kind, 0.1, "none")
        torch.testing.assert_close(together[one], alone)
        alone = ops.rnnt_loss(b.logits[one, :T, : S + 1], b.symbols[one, :S], 0, None, kind, 0.1, "none")
        torch.testing.assert_close(full[one], alone)


def test_reductions_and_return_grad() -> None:
    b = Batch()
    each, (px_grad, py_grad) = ops.rnnt_loss_simple(
        b.lm, b.am, b.symbols, 0, b.boundary, reduction="none", return_grad=True
    )
    assert each.shape == (3,) and px_grad.shape == (3, 3, 7) and py_grad.shape == (3, 4, 6)
    mean, total = (ops.rnnt_loss_simple(b.lm, b.am, b.symbols, 0, b.boundary, reduction=r) for r in ("mean", "sum"))
    torch.testing.assert_close(mean, each.mean())
    torch.testing.assert_close(total, each.sum())
    torch.testing.assert_close(px_grad.sum((1, 2)), b.boundary[:, 2].double())  # every symbol is emitted once
    torch.testing.assert_close(py_grad.sum((1, 2)), b.boundary[:, 3].double())  # every frame is left once


def test_one_impossible_utterance_leaves_the_others_alone() -> None:
    b = Batch(T=3, S=3)
    b.boundary[:] = torch.tensor(
        [[0, 0, 3, 3], [0, 0, 3, 2], [0, 0, 1, 0]]
    )  # fits; fewer frames than symbols; no frame
    am = b.am.requires_grad_()
    loss = ops.rnnt_loss_simple(b.lm, am, b.symbols, 0, b.boundary, "modified", reduction="none")
    assert loss.isfinite().tolist() == [True, False, False] and (loss[1:] == math.inf).all()
    loss[:1].sum().backward()
    assert am.grad.isfinite().all() and (am.grad[1:] == 0).all() and am.grad[0].any()


def test_extreme_logits_stay_finite() -> None:
    b = Batch(dtype=torch.float32)
    am, lm = (b.am * 1e4).requires_grad_(), (b.lm * 1e4).requires_grad_()
    loss = ops.rnnt_loss_smoothed(lm, am, b.symbols, 0, 0.25, 0.1, b.boundary, reduction="none")
    loss.sum().backward()
    assert loss.isfinite().all() and am.grad.isfinite().all() and lm.grad.isfinite().all()


def test_many_classes() -> None:
    b = Batch(C=50_000, dtype=torch.float32)
    loss = ops.rnnt_loss(b.logits, b.symbols, 0, b.boundary, reduction="none")
    expected = ops.rnnt_loss(b.logits.double(), b.symbols, 0, b.boundary, reduction="none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    b = Batch(T=50, S=20, C=100)
    am, lm, logits = b.am.to(dtype), b.lm.to(dtype), b.logits.to(dtype).requires_grad_()
    simple = ops.rnnt_loss_simple(lm, am, b.symbols, 0, b.boundary, reduction="none")
    assert simple.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.rnnt_loss_simple(lm, am, b.symbols, 0, b.boundary, reduction="none"), simple)
    exact = ops.rnnt_loss_simple(lm.double(), am.double(), b.symbols, 0, b.boundary, reduction="none")
    torch.testing.assert_close(simple.double(), exact, rtol=1e-5, atol=0)
    loss = ops.rnnt_loss(logits, b.symbols, 0, b.boundary, reduction="none")
    loss.sum().backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: ops.rnnt_loss_simple(b.lm[:, 1:], b.am, b.symbols, 0), r"lm must be \(N, S \+ 1, C\) with S = 3"),
        (lambda b: ops.rnnt_loss_simple(b.lm, b.am[..., 1:], b.symbols, 0), r"lm must be .* and am"),
        (lambda b: ops.rnnt_loss_simple(b.lm, b.am, b.symbols.int(), 0), "symbols must be int64"),
        (lambda b: ops.rnnt_loss_simple(b.lm, b.am, b.symbols - 9, 0), r"symbols must lie in \[0, 5\)"),
        (lambda b: ops.rnnt_loss_simple(b.lm, b.am, b.symbols, 5), "termination_symbol=5"),
        (lambda b: ops.rnnt_loss_simple(b.lm, b.am, b.symbols, 0, rnnt_type="normal"), "rnnt_type='normal'"),
        (lambda b: ops.rnnt_loss_simple(b.lm, b.am, b.symbols, 0, reduction="avg"), "reduction='avg'"),
        (lambda b: ops.rnnt_loss_simple(b.lm, b.am, b.symbols, 0, b.boundary * 2), r"boundary\[0\]"),
        (lambda b: ops.rnnt_loss(b.logits[:, :, 1:], b.symbols, 0), r"logits must be \(N, T, S \+ 1, C\)"),
        (lambda b: ops.rnnt_loss(b.am, b.symbols, 0), "logits must have 4 dimensions"),
        (lambda b: ops.rnnt_loss_pruned(b.logits, b.symbols, torch.zeros(3, 6, 3).long(), 0), "ranges must be int64"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Batch())


def test_torch_compile() -> None:
    ops.build.load()
    b = Batch()
    am, lm = b.am.requires_grad_(), b.lm.requires_grad_()

    def f(am: torch.Tensor, lm: torch.Tensor) -> torch.Tensor:
        simple, occupations = ops.rnnt_loss_smoothed(lm, am, b.symbols, 0, 0.25, 0.0, b.boundary, return_grad=True)
        ranges = ops.get_rnnt_prune_ranges(*occupations, b.boundary, 2)
        am_pruned, lm_pruned = ops.do_rnnt_pruning(am, lm, ranges)
        return simple + ops.rnnt_loss_pruned(am_pruned + lm_pruned, b.symbols, ranges, 0, b.boundary)

    compiled = torch.compile(f, backend="aot_eager")
    torch.testing.assert_close(compiled(am, lm), f(am, lm))
    for ours, theirs in zip(torch.autograd.grad(compiled(am, lm), (am, lm)), torch.autograd.grad(f(am, lm), (am, lm))):
        torch.testing.assert_close(ours, theirs)


def test_equals_k2(shared_dir: Path, repo_dir: Path) -> None:
    """All transducer and recursion results that the real k2 1.24.4 computed."""
    command = [sys.executable, str(shared_dir / "scripts/k2_parity.py"), "--module", "ops", "--seed", "1"]
    command += ["--check", str(shared_dir / "golden/k2_parity.pt"), "--only", "transducer,recursion"]
    environment = {**os.environ, "PYTHONPATH": str(repo_dir)}
    result = subprocess.run(command, cwd=repo_dir, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "79 of 79 agree" in result.stdout
