"""The core of the joiner-free losses: the compiled op against its twin in PyTorch, and at its limits.

Values against the definition of the losses, all paths and k2: test_rnnt_loss.py.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import ops
from ops import build, reference
from ops.rnnt_memory import measured_peak

TYPES = ("regular", "modified", "constrained")
SCALES = [(0.0, 0.0), (0.25, 0.0), (0.0, 0.1), (0.3, 0.2)]


def make(N: int, T: int, S: int, C: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """am, lm, symbols and a boundary whose utterances end earlier and earlier."""
    torch.manual_seed(T * 100 + S)
    am, lm = torch.randn(N, T, C, dtype=dtype) * 2, torch.randn(N, S + 1, C, dtype=dtype) * 2
    boundary = torch.tensor([[0, 0, max(0, S - 2 * n), max(0, T - 5 * n)] for n in range(N)])
    return am.requires_grad_(), lm.requires_grad_(), torch.randint(0, C, (N, S)), boundary


def unigram(lm: Tensor, am_scale: float) -> Tensor | None:
    return lm.detach().softmax(2).mean((0, 1)).log().requires_grad_() if am_scale else None


def finite_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Σ weights · x, without the -inf of arcs that are not there."""
    return (torch.where(x.isinf(), 0.0, x) * weights).sum()


# Fewer and more than one tile of frames, block of classes and vector of positions; nothing at all.
SHAPES = [(3, 11, 4, 7), (2, 131, 9, 20), (2, 6, 30, 300), (1, 1, 0, 2), (2, 0, 3, 5), (2, 70, 7, 131), (1, 65, 1, 1)]


@pytest.mark.parametrize(("rnnt_type", "scales"), list(itertools.product(TYPES, SCALES)))
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_twin(shape: tuple, rnnt_type: str, scales: tuple) -> None:
    """Any gradient may arrive, not only occupations: here of both signs, and large for a few arcs alone."""
    if build.load() == "reference":
        pytest.skip("no compiler")
    am, lm, symbols, boundary = make(*shape)
    log_unigram = unigram(lm, scales[1])
    leaves = [x for x in (am, lm, log_unigram) if x is not None]
    blank = shape[-1] - 1
    results = []
    for function in (torch.ops.lattica.rnnt_additive_log_probs, reference.rnnt_additive_log_probs):
        outputs = function(am, lm, log_unigram, symbols, boundary, blank, *scales, rnnt_type)
        px, py = outputs[:2]
        torch.manual_seed(1)
        px_weights, py_weights = (torch.randn(x.shape, dtype=x.dtype) for x in (px, py))
        py_weights[:, ::3] *= 1e9
        total = finite_sum(px, px_weights) + finite_sum(py, py_weights)
        results.append((outputs, torch.autograd.grad(total, leaves)))
    (ours, our_grads), (theirs, their_grads) = results
    for a, b in zip(ours[:5], theirs[:5]):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours[5], theirs[5], rtol=1e-6, atol=1e-12)
    for a, b in zip(our_grads, their_grads):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_float32_errs_at_most_twice_as_much_as_plain_pytorch(rnnt_type: str) -> None:
    am, lm, symbols, boundary = make(2, 150, 30, 200, torch.float32)

    def run(function, am: Tensor, lm: Tensor) -> list[Tensor]:
        am, lm = am.detach().requires_grad_(), lm.detach().requires_grad_()
        px, py, *_ = function(am, lm, unigram(lm, 0.1), symbols, boundary, 0, 0.25, 0.1, rnnt_type)
        # The recursion's own rounding errors, the same for all, are not the matter here.
        _, grads = ops.mutual_information_recursion(px.double(), py.double(), boundary, return_grad=True)
        if not occupations:
            occupations.extend(grads)
        total = sum(finite_sum(x, grad.to(x.dtype)) for x, grad in zip((px, py), occupations))
        values = [torch.where(x.isinf(), 0.0, x).detach() for x in (px, py)]
        return [*values, *torch.autograd.grad(total, (am, lm))]

    occupations: list[Tensor] = []
    build.load()
    exact = run(reference.rnnt_additive_log_probs, am.double(), lm.double())
    ours = run(torch.ops.lattica.rnnt_additive_log_probs, am, lm)
    plain = run(reference.rnnt_additive_log_probs, am, lm)
    for a, b, c in zip(ours, plain, exact):
        error, allowed = (a - c).abs().max().item(), 2 * (b - c).abs().max().item()
        assert error <= allowed + 1e-7 * c.abs().max().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    am, lm, symbols, boundary = make(2, 20, 5, 30, torch.float32)
    halves = [x.detach().to(dtype).requires_grad_() for x in (am, lm)]
    floats = [x.detach().float().requires_grad_() for x in halves]
    losses = [ops.rnnt_loss_smoothed(x[1], x[0], symbols, 0, 0.25, 0.1, boundary) for x in (halves, floats)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    for a, b in zip(torch.autograd.grad(losses[0], halves), torch.autograd.grad(losses[1], floats)):
        torch.testing.assert_close(a, b.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("am_scale", [0.0, 0.1])
def test_the_number_of_threads_changes_nothing(am_scale: float) -> None:
    am, lm, symbols, boundary = make(3, 100, 12, 150, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            loss = ops.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, am_scale, boundary, reduction="sum")
            results.append((loss.detach(), *torch.autograd.grad(loss, (am, lm))))
    finally:
        torch.set_num_threads(threads)
    # torch's own reductions over the batch, of the unigram, may differ in the last place.
    tolerance = {"rtol": 0.0, "atol": 0.0} if am_scale == 0.0 else {}
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, **tolerance)


def test_strides_do_not_matter() -> None:
    am, lm, symbols, boundary = make(2, 9, 3, 6)
    expected = ops.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.1, boundary)
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (lm, am)]
    wide_symbols = symbols.repeat_interleave(2, 1)[:, ::2]
    torch.testing.assert_close(ops.rnnt_loss_smoothed(*strided, wide_symbols, 0, 0.25, 0.1, boundary), expected)


def test_nan_stays_in_its_utterance() -> None:
    am, lm, symbols, boundary = make(3, 70, 4, 9)
    with torch.no_grad():
        am[1, 3, 2] = math.nan
    loss = ops.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, boundary, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    am_grad, lm_grad = torch.autograd.grad(loss.sum(), (am, lm))
    for grad in (am_grad, lm_grad):
        assert grad[0].isfinite().all() and grad[2].isfinite().all() and grad[1].isnan().any()


def test_a_class_may_be_ruled_out() -> None:
    am, lm, symbols, boundary = make(2, 9, 3, 6)
    symbols[symbols == 5] = 4
    with torch.no_grad():
        am[:, :, 5] = -math.inf
    loss = ops.rnnt_loss_simple(lm, am, symbols, 0, boundary)
    torch.testing.assert_close(loss, ops.rnnt_loss_simple(lm[..., :5], am[..., :5], symbols, 0, boundary))
    am_grad, lm_grad = torch.autograd.grad(loss, (am, lm))
    assert am_grad.isfinite().all() and (am_grad[..., 5] == 0).all() and (lm_grad[..., 5] == 0).all()


def test_far_apart_am_and_lm_stay_finite() -> None:
    """Each is sure of another class: the product of their exponentials underflows."""
    am, lm, symbols, boundary = make(2, 9, 3, 6, torch.float32)
    with torch.no_grad():
        am[..., 1] += 150
        lm[..., 2] += 150
    loss = ops.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.1, boundary)
    grads = torch.autograd.grad(loss, (am, lm))
    assert loss.isfinite() and all(bool(grad.isfinite().all()) for grad in grads)


def test_fifty_thousand_classes() -> None:
    N, T, S, C = 2, 30, 6, 50_000
    am, lm, symbols, boundary = make(N, T, S, C, torch.float32)

    def loss() -> Tensor:
        return ops.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, boundary, reduction="none")

    exact = ops.rnnt_loss_smoothed(lm.double(), am.double(), symbols, 0, 0.25, 0.0, boundary, reduction="none")
    torch.testing.assert_close(loss().double(), exact, rtol=1e-5, atol=0)
    # The gradients and little more: no exponentials as large as am, far from T · S · C numbers.
    gradients = (am.numel() + lm.numel()) * 4
    assert measured_peak(lambda: torch.autograd.grad(loss().sum(), (am, lm))) < 1.1 * gradients


@pytest.mark.parametrize(("rnnt_type", "am_scale"), list(itertools.product(TYPES, (0.0, 0.1))))
def test_opcheck(rnnt_type: str, am_scale: float) -> None:
    am, lm, symbols, boundary = make(2, 7, 3, 5)
    log_unigram = unigram(lm, am_scale)
    build.load()
    for end in (None, boundary):
        inputs = (am, lm, log_unigram, symbols, end, 0, 0.25, am_scale, rnnt_type)
        torch.library.opcheck(torch.ops.lattica.rnnt_additive_log_probs.default, inputs)
        *tensors, blank, lm_scale, _, _ = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
        px, py, *saved = torch.ops.lattica.rnnt_additive_log_probs(*tensors, blank, lm_scale, am_scale, rnnt_type)
        backward = torch.ops.lattica.rnnt_additive_log_probs_backward.default
        grads = torch.ones_like(px), torch.ones_like(py)
        torch.library.opcheck(backward, (*grads, *tensors, *saved, blank, lm_scale, am_scale, rnnt_type))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blank": 5}, "blank = 5"),
        ({"symbols": torch.full((2, 3), 9)}, "symbol 9"),
        ({"rnnt_type": "other"}, "rnnt_type must be"),
        ({"am_only_scale": 0.1}, "am_only_scale needs log_unigram"),
        ({"lm": torch.zeros(2, 4, 6)}, "must be"),
        ({"lm": torch.zeros(2, 4, 5, dtype=torch.float64)}, "lm must be contiguous and of the right dtype"),
        ({"boundary": torch.tensor([[0, 0, 3, 8], [0, 0, 3, 7]])}, "boundary"),
    ],
)
def test_the_op_checks_what_it_reads(change: dict, message: str) -> None:
    if build.load() == "reference":
        pytest.skip("no compiler")
    am, lm, symbols, _ = make(2, 7, 3, 5, torch.float32)
    arguments = {
        "am": am, "lm": lm, "log_unigram": None, "symbols": symbols, "boundary": None, "blank": 0,
        "lm_only_scale": 0.25, "am_only_scale": 0.0, "rnnt_type": "regular",
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.lattica.rnnt_additive_log_probs(*{**arguments, **change}.values())
