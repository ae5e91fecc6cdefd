"""The fused losses equal the unfused ones, the sum over all paths, and themselves under every way to compute them."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ops
from ops import build, reference
from ops.reference.rnnt_loss_fused import activate
from ops.rnnt_loss_fused import ACTIVATIONS, _backward_op, _log_probs_op

fused_module = importlib.import_module("ops.rnnt_loss_fused")  # `ops.rnnt_loss_fused` is the function
TYPES = ("regular", "modified", "constrained")


def make(
    N: int, T: int, S: int, V: int, D: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, ...]:
    """am, lm, weight, bias (leaves that require gradients) and symbols."""
    torch.manual_seed(seed)
    shapes = [(N, T, D), (N, S + 1, D), (V, D), (V,)]
    leaves = [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    return *leaves, torch.randint(1, V, (N, S))


def ragged_boundary(N: int, T: int, S: int) -> Tensor:
    rows = [[0, 0, max(0, S - n), max(1, T - 2 * n)] for n in range(N)]
    return torch.tensor(rows)


def band(N: int, T: int, S: int, R: int, boundary: Tensor | None, rnnt_type: str) -> Tensor:
    torch.manual_seed(7)
    lm, am, symbols = torch.randn(N, S + 1, 5), torch.randn(N, T, 5), torch.randint(1, 5, (N, S))
    _, occupations = ops.rnnt_loss_simple(lm, am, symbols, 0, boundary, rnnt_type, return_grad=True)
    return ops.get_rnnt_prune_ranges(*occupations, boundary, R)


def unfused_logits(
    am: Tensor, lm: Tensor, weight: Tensor, bias: Tensor, ranges: Tensor | None, activation: str
) -> Tensor:
    if ranges is None:
        am, lm = am[:, :, None], lm[:, None]
    else:
        am, lm = ops.do_rnnt_pruning(am, lm, ranges)
    return F.linear(activate(am + lm, activation), weight, bias)


def both(ranges: Tensor | None, leaves: tuple[Tensor, ...], symbols: Tensor, activation: str, keep_bytes: int, **kw):
    """(loss, gradients) fused and unfused."""
    logits = unfused_logits(*leaves, ranges, activation)
    if ranges is None:
        fused = ops.rnnt_loss_fused(*leaves, symbols, 0, activation=activation, keep_bytes=keep_bytes, **kw)
        unfused = ops.rnnt_loss(logits, symbols, 0, **kw)
    else:
        fused = ops.rnnt_loss_pruned_fused(
            *leaves[:2], ranges, *leaves[2:], symbols, 0, activation=activation, keep_bytes=keep_bytes, **kw
        )
        unfused = ops.rnnt_loss_pruned(logits, symbols, ranges, 0, **kw)
    weights = torch.arange(1.0, 1.0 + fused.numel(), dtype=fused.dtype).reshape(fused.shape)
    return [(loss.detach(), torch.autograd.grad((loss * weights).sum(), leaves)) for loss in (fused, unfused)]


@pytest.mark.parametrize("use_hat_loss", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("pruned", [True, False])
def test_equals_unfused(pruned: bool, rnnt_type: str, activation: str, use_hat_loss: bool, monkeypatch) -> None:
    monkeypatch.setattr(fused_module, "tile_rows", lambda *_: 7)  # many tiles, the last one short
    N, T, S, V, D = 3, 9, 4, 11, 6
    *leaves, symbols = make(N, T, S, V, D)
    boundary = ragged_boundary(N, T, S)
    ranges = band(N, T, S, 3, boundary, rnnt_type) if pruned else None
    for keep_bytes in (0, 20 * V * 8, 1 << 20):
        (loss, grads), (expected, expected_grads) = both(
            ranges, tuple(leaves), symbols, activation, keep_bytes,
            boundary=boundary, rnnt_type=rnnt_type, delay_penalty=0.02, reduction="none", use_hat_loss=use_hat_loss,
        )  # fmt: skip
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_no_bias(reduction: str) -> None:
    *leaves, symbols = make(2, 5, 3, 6, 4)
    leaves[3] = torch.zeros_like(leaves[3])
    ranges = band(2, 5, 3, 2, None, "regular")
    logits = unfused_logits(*leaves, ranges, "tanh")
    expected = ops.rnnt_loss_pruned(logits, symbols, ranges, 0, reduction=reduction)
    loss = ops.rnnt_loss_pruned_fused(*leaves[:2], ranges, leaves[2], None, symbols, 0, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(loss.sum(), leaves[:3])
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), leaves[:3]))


# ----------------------------------------------------------------------------------------------------- all paths


def brute_force(log_probs_TSV: Tensor, symbols: list[int], rnnt_type: str) -> float:
    """-log of the sum over every path, each walked on its own; log_probs_TSV[t, s] is -inf outside a band."""
    T, S = log_probs_TSV.shape[0], len(symbols)
    num_moves = T + S if rnnt_type == "regular" else T
    scores = []
    for positions in itertools.combinations(range(num_moves), S):
        t = s = 0
        score = 0.0
        for move in range(num_moves):
            if t == T:  # a symbol after the last frame: not a path
                score = -math.inf
                break
            if move in positions:
                score += float(log_probs_TSV[t, s, symbols[s]])
                if rnnt_type == "constrained":
                    score += float(log_probs_TSV[t, s + 1, 0])
                s += 1
                t += rnnt_type != "regular"
            else:
                score += float(log_probs_TSV[t, s, 0])
                t += 1
        scores.append(score)
    return -float(torch.tensor(scores, dtype=torch.float64).logsumexp(0)) if scores else math.inf


@pytest.mark.parametrize("T,S", [(1, 0), (1, 1), (4, 0), (4, 2), (3, 3), (5, 3), (2, 4)])
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_brute_force(rnnt_type: str, T: int, S: int) -> None:
    *leaves, symbols = make(1, T, S, 4, 3, seed=T * 10 + S)
    log_probs = unfused_logits(*leaves, None, "tanh")[0].log_softmax(-1).detach()
    loss = ops.rnnt_loss_fused(*leaves, symbols, 0, rnnt_type=rnnt_type)
    expected = brute_force(log_probs, symbols[0].tolist(), rnnt_type)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    grads = torch.autograd.grad(loss, leaves)
    assert all(bool(g.isfinite().all()) for g in grads)
    if math.isinf(expected):  # fewer frames than symbols
        assert all(not g.any() for g in grads)

    ranges = band(1, T, S, 2, None, rnnt_type)
    outside = torch.ones(T, S + 1, dtype=torch.bool).scatter(1, ranges[0], False)
    expected = brute_force(log_probs.masked_fill(outside[:, :, None], -math.inf), symbols[0].tolist(), rnnt_type)
    loss = ops.rnnt_loss_pruned_fused(*leaves[:2], ranges, *leaves[2:], symbols, 0, rnnt_type=rnnt_type)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------ gradients, numbers


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
@pytest.mark.parametrize("activation", ["tanh", "swoosh_r"])
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_gradcheck(rnnt_type: str, activation: str, keep_bytes: int) -> None:
    *leaves, symbols = make(2, 4, 2, 5, 3)
    boundary = torch.tensor([[0, 0, 2, 4], [0, 0, 1, 3]])
    ranges = band(2, 4, 2, 2, boundary, rnnt_type)
    arguments = (symbols, 0, boundary, rnnt_type, 0.1, activation, "none")

    def pruned(am: Tensor, lm: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.rnnt_loss_pruned_fused(am, lm, ranges, weight, bias, *arguments, keep_bytes=keep_bytes)

    def full(am: Tensor, lm: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.rnnt_loss_fused(am, lm, weight, bias, *arguments, keep_bytes=keep_bytes)

    assert torch.autograd.gradcheck(pruned, leaves)
    assert torch.autograd.gradcheck(full, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_half_precision_errs_at_most_twice_as_much_as_plain_pytorch(dtype: torch.dtype, keep_bytes: int) -> None:
    N, T, S, V, D = 2, 30, 8, 40, 64
    *leaves, symbols = make(N, T, S, V, D, dtype)
    with torch.no_grad():
        leaves[2].mul_(D**-0.5)
    ranges = band(N, T, S, 4, None, "regular")
    exact = tuple(x.detach().double().requires_grad_() for x in leaves)
    _, (loss_64, grads_64) = both(ranges, exact, symbols, "tanh", 0, reduction="none")
    (loss, grads), (plain, plain_grads) = both(ranges, tuple(leaves), symbols, "tanh", keep_bytes, reduction="none")
    assert loss.dtype == torch.float32 and all(g.dtype == dtype for g in grads)

    def error(x: Tensor, exact: Tensor) -> float:
        return float((x.double() - exact).norm())

    assert error(loss, loss_64) <= 2 * error(plain, loss_64)
    for g, p, e in zip(grads, plain_grads, grads_64, strict=True):
        assert error(g, e) <= 2 * error(p, e)


def test_float32_errs_no_more_than_plain_pytorch() -> None:
    N, T, S, V, D = 2, 60, 12, 50, 32
    *leaves, symbols = make(N, T, S, V, D, torch.float32)
    ranges = band(N, T, S, 4, None, "regular")
    exact = tuple(x.detach().double().requires_grad_() for x in leaves)
    _, (_, grads_64) = both(ranges, exact, symbols, "tanh", 0)
    (_, grads), (_, plain_grads) = both(ranges, tuple(leaves), symbols, "tanh", 0)
    for g, p, e in zip(grads, plain_grads, grads_64, strict=True):
        assert (g - e).norm() <= 2 * (p - e).norm() + 1e-6 * e.norm()


def test_autocast_computes_in_its_type() -> None:
    *leaves, symbols = make(2, 6, 3, 9, 8, torch.float32)
    ranges = band(2, 6, 3, 2, None, "regular")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ops.rnnt_loss_pruned_fused(*leaves[:2], ranges, *leaves[2:], symbols, 0)
    halves = [x.detach().bfloat16() for x in leaves]
    expected = ops.rnnt_loss_pruned_fused(*halves[:2], ranges, *halves[2:], symbols, 0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss, leaves))


def test_second_backward_gives_the_same() -> None:
    """The kept logits survive the first backward pass."""
    *leaves, symbols = make(2, 6, 3, 9, 8)
    loss = ops.rnnt_loss_fused(*leaves, symbols, 0, keep_bytes=1 << 20)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), first, rtol=0, atol=0)


# -------------------------------------------------------------------------------------------------------- limits


def test_padding_is_never_read() -> None:
    N, T, S, V, D = 3, 7, 4, 6, 5
    *leaves, symbols = make(N, T, S, V, D)
    boundary = torch.tensor([[0, 0, 4, 7], [0, 0, 2, 4], [0, 0, 0, 1]])
    ranges = band(N, T, S, 3, boundary, "regular")
    with torch.no_grad():
        for n, (_, _, s_end, t_end) in enumerate(boundary.tolist()):
            leaves[0][n, t_end:] = math.nan
            leaves[1][n, s_end + 1 :] = math.nan
    for loss in (
        ops.rnnt_loss_pruned_fused(*leaves[:2], ranges, *leaves[2:], symbols, 0, boundary),
        ops.rnnt_loss_fused(*leaves, symbols, 0, boundary),
    ):
        grads = torch.autograd.grad(loss, leaves)
        assert bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in grads)
        for n, (_, _, s_end, t_end) in enumerate(boundary.tolist()):
            assert not grads[0][n, t_end:].any() and not grads[1][n, s_end + 1 :].any()
            assert grads[0][n, :t_end].any() and grads[1][n, : s_end + 1].any()


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_batch_equals_one_by_one(rnnt_type: str) -> None:
    N, T, S, V, D = 3, 8, 4, 6, 5
    *leaves, symbols = make(N, T, S, V, D)
    boundary = ragged_boundary(N, T, S)
    ranges = band(N, T, S, 3, boundary, rnnt_type)
    losses = ops.rnnt_loss_pruned_fused(
        *leaves[:2], ranges, *leaves[2:], symbols, 0, boundary, rnnt_type, reduction="none"
    )
    for n, (_, _, s, t) in enumerate(boundary.tolist()):
        am, lm, weight, bias = leaves[0][n : n + 1, :t], leaves[1][n : n + 1, : s + 1], *leaves[2:]
        ranges_n = ranges[n : n + 1, :t]
        R = int(ranges_n[..., -1].max()) + 1 - (s + 1)  # the band may reach past this utterance's symbols
        lm = F.pad(lm, (0, 0, 0, max(0, R)))
        symbols_n = F.pad(symbols[n : n + 1, :s], (0, max(0, R)))
        one = ops.rnnt_loss_pruned_fused(
            am, lm, ranges_n, weight, bias, symbols_n, 0, torch.tensor([[0, 0, s, t]]), rnnt_type
        )
        torch.testing.assert_close(losses[n], one)


def test_an_empty_and_an_impossible_utterance_leave_the_others_alone() -> None:
    *leaves, symbols = make(4, 5, 4, 6, 3)
    boundary = torch.tensor([[0, 0, 4, 5], [0, 0, 0, 0], [0, 0, 4, 2], [0, 0, 0, 5]])
    losses = ops.rnnt_loss_fused(*leaves, symbols, 0, boundary, "modified", reduction="none")
    assert losses[1] == 0.0  # nothing to say in no time: the empty path
    assert losses[2] == math.inf  # four symbols in two frames
    assert bool(losses[[0, 3]].isfinite().all())
    grads = torch.autograd.grad(losses.sum(), leaves)
    assert not grads[0][1:3].any() and grads[0][0].any() and grads[0][3].any()
    expected = torch.autograd.grad(
        ops.rnnt_loss_fused(*leaves, symbols, 0, boundary, "modified", reduction="none")[[0, 3]].sum(), leaves
    )
    torch.testing.assert_close(grads, expected)


def test_nan_stays_in_its_utterance() -> None:
    *leaves, symbols = make(3, 5, 2, 6, 3)
    with torch.no_grad():
        leaves[0][1, 2, 0] = math.nan
    losses = ops.rnnt_loss_fused(*leaves, symbols, 0, reduction="none")
    assert losses.isnan().tolist() == [False, True, False]
    grads = torch.autograd.grad(losses.sum(), leaves)
    assert grads[0][1].isnan().any() and grads[2].isnan().any()  # not left out as if it did not matter
    assert not grads[0][[0, 2]].isnan().any() and not grads[1][[0, 2]].isnan().any()


def test_a_class_ruled_out_by_its_bias() -> None:
    *leaves, symbols = make(2, 5, 3, 6, 4, torch.float32)
    symbols.clamp_(max=4)
    with torch.no_grad():
        leaves[3][5] = -math.inf
    (loss, grads), (expected, expected_grads) = both(None, tuple(leaves), symbols, "tanh", 0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads, expected_grads)


def test_large_logits_do_not_overflow() -> None:
    *leaves, symbols = make(2, 5, 3, 6, 4, torch.float32)
    with torch.no_grad():
        leaves[2].mul_(1000.0)
    (loss, grads), (expected, expected_grads) = both(None, tuple(leaves), symbols, "tanh", 0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-2)


def test_fifty_thousand_classes() -> None:
    N, T, S, V, D = 1, 6, 3, 50_000, 8
    *leaves, symbols = make(N, T, S, V, D, torch.float32)
    symbols[0, 0] = V - 1
    ranges = band(N, T, S, 2, None, "regular")
    (loss, grads), (expected, expected_grads) = both(ranges, tuple(leaves), symbols, "tanh", 0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-6)


# ----------------------------------------------------------------------------------------------- twins, compile, errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hat", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiled_steps_equal_their_twins(activation: str, hat: bool, dtype: torch.dtype) -> None:
    if build.load() == "reference":
        pytest.skip("no compiler")
    torch.manual_seed(0)
    M, D, V = 23, 37, 41
    am, lm = torch.randn(5, D, dtype=dtype) * 3, torch.randn(7, D, dtype=dtype) * 3
    am[0, :4] = torch.tensor([50.0, -50.0, 1e-4, 0.0], dtype=dtype)
    am_rows, lm_rows, symbols = (torch.randint(n, (M,)) for n in (5, 7, V))
    logits, symbol_grad, blank_grad = (torch.randn(*shape, dtype=dtype) * 4 for shape in ((M, V), (M,), (M,)))
    hidden_grad = torch.randn(M, D, dtype=dtype)
    results = []
    for steps in (torch.ops.lattica, reference):
        hidden, grad, in_place = torch.empty(M, D, dtype=dtype), torch.empty(9, V, dtype=dtype), logits.clone()
        am_grad, lm_grad = torch.ones_like(am), torch.ones_like(lm)
        steps.joiner_hidden(am, lm, am_rows, lm_rows, activation, hidden)
        log_probs = steps.joiner_log_probs(logits, symbols, 3, hat)
        kept_rows = torch.arange(9) * 2
        grads_9 = [x[kept_rows].contiguous() for x in (log_probs[2], symbols)]
        steps.joiner_logits_grad(logits, kept_rows, *grads_9, 3, hat, symbol_grad[:9], blank_grad[:9], grad)
        steps.joiner_logits_grad(in_place, None, log_probs[2], symbols, 3, hat, symbol_grad, blank_grad, in_place)
        steps.joiner_hidden_grad(am, lm, am_rows, lm_rows, activation, hidden, hidden_grad, am_grad, lm_grad)
        results.append((hidden, *log_probs, grad, in_place, am_grad, lm_grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_the_twins_alone_give_the_same_loss(rnnt_type: str, monkeypatch) -> None:
    """What serves GPUs, tested where there is none."""
    *leaves, symbols = make(2, 6, 3, 7, 5)
    expected = ops.rnnt_loss_fused(*leaves, symbols, 0, rnnt_type=rnnt_type)
    expected_grads = torch.autograd.grad(expected, leaves)
    monkeypatch.setattr(fused_module, "_steps", lambda _: reference)
    loss = ops.rnnt_loss_fused(*leaves, symbols, 0, rnnt_type=rnnt_type)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), expected_grads)


def test_opcheck(device: torch.device) -> None:
    *leaves, symbols = (x.detach().to(device).requires_grad_(x.is_floating_point()) for x in make(2, 5, 3, 7, 4))
    ranges = torch.arange(2, device=device).expand(2, 5, 2).contiguous()
    for keep_rows in (0, 20):
        for hat in (False, True):
            args = (*leaves, ranges, symbols, None, 0, "tanh", hat, keep_rows)
            torch.library.opcheck(_log_probs_op, args)
            with torch.no_grad():
                symbol, blank, normalizer, kept = _log_probs_op(*args)
                detached = [x.detach() for x in leaves]
                args = (symbol, blank, normalizer, kept, *detached, ranges, symbols, None, 0, "tanh", hat)
                torch.library.opcheck(_backward_op, args, test_utils=("test_schema", "test_faketensor"))


class TinyTransducer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(6, 8), torch.nn.Embedding(9, 8)
        self.simple_am, self.simple_lm, self.joiner = (torch.nn.Linear(8, 9) for _ in range(3))

    def forward(self, x_NTF: Tensor, symbols_NS: Tensor, boundary: Tensor) -> Tensor:
        am, lm = self.encoder(x_NTF), self.decoder(F.pad(symbols_NS, (1, 0)))
        simple, occupations = ops.rnnt_loss_smoothed(
            self.simple_lm(lm), self.simple_am(am), symbols_NS, 0, 0.25, 0.0, boundary, return_grad=True
        )
        ranges = ops.get_rnnt_prune_ranges(*occupations, boundary, 3)
        pruned = ops.rnnt_loss_pruned_fused(
            am, lm, ranges, self.joiner.weight, self.joiner.bias, symbols_NS, 0, boundary
        )
        return 0.5 * simple + pruned


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_of_a_model(backend: str) -> None:
    torch.manual_seed(0)
    model = TinyTransducer()
    x, symbols = torch.randn(2, 7, 6), torch.randint(1, 9, (2, 4))
    boundary = torch.tensor([[0, 0, 4, 7], [0, 0, 3, 5]])
    build.load()
    expected = model(x, symbols, boundary)
    expected_grads = torch.autograd.grad(expected, list(model.parameters()))
    torch._dynamo.reset()
    loss = torch.compile(model, backend=backend, fullgraph=True)(x, symbols, boundary)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), expected_grads)


@pytest.mark.parametrize(
    "name,value",
    [
        ("lm", torch.zeros(2, 3, 4)),
        ("lm", torch.zeros(2, 4, 4, dtype=torch.float32)),
        ("joiner_weight", torch.zeros(7, 5, dtype=torch.float64)),
        ("joiner_bias", torch.zeros(6, dtype=torch.float64)),
        ("symbols", torch.zeros(2, 3, dtype=torch.int32)),
        ("symbols", torch.full((2, 3), 7)),
        ("termination_symbol", 7),
        ("boundary", torch.tensor([[0, 0, 3, 6], [0, 0, 3, 5]])),
        ("rnnt_type", "irregular"),
        ("activation", "relu"),
        ("reduction", "average"),
        ("ranges", torch.zeros(2, 4, 2, dtype=torch.int64)),
    ],
)
def test_errors_name_the_argument(name: str, value: object) -> None:
    am, lm, weight, bias, symbols = make(2, 5, 3, 7, 4)
    good = {"am": am, "lm": lm, "joiner_weight": weight, "joiner_bias": bias, "symbols": symbols}
    bad = {**good, "termination_symbol": 0, name: value}
    with pytest.raises(ValueError, match=name):
        ops.rnnt_loss_pruned_fused(**{"ranges": band(2, 5, 3, 2, None, "regular"), **bad})
    if name != "ranges":
        with pytest.raises(ValueError, match=name):
            ops.rnnt_loss_fused(**bad)
