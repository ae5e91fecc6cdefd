"""Optimizers against plain re-tellings, exact resume, and the shapes of the learning-rate schedules."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor, nn

from toolkit.config import AdamWConfig, OptimConfig, ScaledAdamConfig
from toolkit.optim import Eden, Noam, ScaledAdam, build_optimizer
from toolkit.optim.scaled_adam import MIN_NORMS, MIN_RMS, Stack


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


class PlainScaledAdam:
    """The docstring of ScaledAdam, one tensor after the other, in float64."""

    def __init__(self, params: list[Tensor], lr: float, clipping_scale: float) -> None:
        self.params = [p.detach().double().clone() for p in params]
        self.lr, self.clipping_scale = lr, clipping_scale
        self.sizes = [rms(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.delta = [torch.zeros_like(p) for p in self.params]
        self.scale_grads: list[list[float]] = [[] for _ in params]
        self.scale_v = [0.0 for _ in params]
        self.norms: list[float] = []
        self.t = 0

    def step(self, grads: list[Tensor]) -> None:
        self.t += 1
        parts = [float((g * (size if g.numel() > 1 else 1.0)).square().sum()) for g, size in zip(grads, self.sizes)]
        norm, factor = math.sqrt(sum(parts)), 1.0
        if len(self.norms) >= MIN_NORMS:
            factor = min(1.0, self.clipping_scale * statistics.median(self.norms) / norm)
        self.norms.append(norm)
        for i, p in enumerate(self.params):
            g = grads[i].double() * factor
            self.v[i] = 0.98 * self.v[i] + 0.02 * g**2
            scale_step = 0.0
            if p.numel() > 1:
                self.scale_grads[i].append(float((p * g).sum()))
                if self.t % 4 == 0:
                    self.sizes[i] = rms(p)
                    last = self.scale_grads[i][-4:]
                    beta = 0.98**4
                    self.scale_v[i] = beta * self.scale_v[i] + (1 - beta) * sum(x * x for x in last) / 4
                    scale_step = (
                        -0.1 * self.lr * sum(last) / (math.sqrt(self.scale_v[i] / (1 - beta ** (self.t // 4))) + 1e-8)
                    )
            size = max(self.sizes[i], MIN_RMS) if p.numel() > 1 else 0.1
            d = -self.lr * size * g / (self.v[i] / (1 - 0.98**self.t)).sqrt()
            self.delta[i] = 0.9 * self.delta[i] + 0.1 * (d + scale_step * p)
            self.params[i] = p + self.delta[i]
            if p.numel() == 1:
                self.params[i] = self.params[i].clamp(-10, 10)


def make_params() -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (7,), (5, 3), (), (1,), (2, 2, 2), (7,)]
    return [nn.Parameter(torch.randn(shape, generator=g) * 10.0 ** -(i % 3)) for i, shape in enumerate(shapes)]


def test_scaled_adam_is_what_its_docstring_says() -> None:
    params = make_params()
    optimizer, plain = ScaledAdam(params, lr=0.03, clipping_scale=1.5), PlainScaledAdam(params, 0.03, 1.5)
    g = torch.Generator().manual_seed(1)
    for step in range(30):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g) * (100.0 if step == 20 else 1.0)  # step 20 must be clipped
        optimizer.step()
        plain.step([p.grad for p in params])  # type: ignore[misc]
        for p, expected in zip(params, plain.params):
            torch.testing.assert_close(p.detach().double(), expected, atol=1e-6, rtol=2e-4)


def test_scaled_adam_updates_together_as_it_does_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU against what runs on a CPU, both on the CPU."""
    together, alone = make_params(), make_params()
    for params in (alone, together):
        if params is together:
            monkeypatch.setattr(Stack, "_update_one_by_one", Stack._update_together)
        optimizer, g = ScaledAdam(params, lr=0.03), torch.Generator().manual_seed(1)
        for _ in range(15):
            for p in params:
                p.grad = torch.randn(p.shape, generator=g)
            optimizer.step()
    for p, q in zip(together, alone):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=1e-5)


def test_scaled_adam_moves_every_tensor_by_the_same_fraction() -> None:
    large, small = nn.Parameter(torch.randn(40, 40)), nn.Parameter(1e-3 * torch.randn(40, 40))
    optimizer = ScaledAdam([large, small], lr=0.01)
    before = [large.detach().clone(), small.detach().clone()]
    for _ in range(3):
        large.grad, small.grad = torch.randn(40, 40), torch.randn(40, 40) * 1e4
        optimizer.step()
    moved = [rms(p.detach() - b) / rms(b) for p, b in zip((large, small), before)]
    assert moved[0] == pytest.approx(moved[1], rel=0.2) and 1e-3 < moved[0] < 0.03


def test_scaled_adam_learns_the_scale() -> None:
    """A weight that is right but for its size, by a factor of 5, gets there faster than relative steps alone would allow."""
    torch.manual_seed(0)
    target = torch.randn(30, 30)
    weight = nn.Parameter(target / 5)
    optimizer = ScaledAdam([weight], lr=0.05)
    for _ in range(300):
        weight.grad = weight.detach() - target
        optimizer.step()
    assert rms(weight.detach() - target) < 0.1


def test_scaled_adam_counts_a_missing_gradient_as_zero() -> None:
    results = []
    for missing in (True, False):
        params = make_params()
        optimizer = ScaledAdam(params, lr=0.03)
        for step in range(6):
            for i, p in enumerate(params):
                skipped = i == 2 and step % 2 == 0
                p.grad = None if skipped and missing else torch.full_like(p, 0.0 if skipped else 1.0 + step)
            optimizer.step()
        results.append([p.detach().clone() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("config", [ScaledAdamConfig(), AdamWConfig()], ids=["scaled_adam", "adamw"])
def test_going_on_from_a_state_dict_is_exact(config: OptimConfig, tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
    inputs = [torch.randn(16, 6) for _ in range(40)]

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler, steps: range) -> None:  # type: ignore[no-untyped-def]
        for step in steps:
            scheduler.set_progress(step / 40)
            optimizer.zero_grad()
            (model(inputs[step]) - inputs[step][:, :1]).square().mean().backward()
            optimizer.step()

    optimizer, scheduler = build_optimizer(model, config)
    run(model, optimizer, scheduler, range(17))
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(states, tmp_path / "state.pt")
    run(model, optimizer, scheduler, range(17, 40))

    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
    optimizer, scheduler = build_optimizer(other, config)
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    assert scheduler.progress == 16 / 40
    run(other, optimizer, scheduler, range(17, 40))
    for p, q in zip(model.parameters(), other.parameters()):
        assert torch.equal(p, q)


def test_adamw_decays_matrices_only() -> None:
    model = nn.Linear(3, 3)
    optimizer, scheduler = build_optimizer(model, AdamWConfig(lr=0.1, weight_decay=0.5, warmup=0.5))
    scheduler.set_progress(0.5)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    model.weight.grad, model.bias.grad = torch.zeros(3, 3), torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), weight * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias.detach(), bias)


def test_parameters_that_do_not_train_are_left_out() -> None:
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    for config in (ScaledAdamConfig(), AdamWConfig()):
        optimizer, _ = build_optimizer(model, config)
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 1


def test_eden_rises_from_half_and_falls_like_one_over_progress() -> None:
    optimizer = ScaledAdam(make_params(), lr=0.04)
    eden = Eden(optimizer, warmup=0.1, decay=0.2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    lrs = []
    for k in range(101):
        eden.set_progress(k / 100)
        lrs.append(optimizer.param_groups[0]["lr"])
    assert lrs[5] == pytest.approx(0.04 * 0.75 / math.sqrt(1 + 0.25**2))
    assert lrs[20] == pytest.approx(0.04 / math.sqrt(2))
    assert lrs[100] == pytest.approx(0.04 / math.sqrt(26))
    assert max(lrs) == lrs[10] and lrs[10:] == sorted(lrs[10:], reverse=True)


def test_noam_rises_from_zero_to_the_peak_and_falls_like_the_root() -> None:
    optimizer = torch.optim.AdamW(make_params(), lr=0.002)
    noam = Noam(optimizer, warmup=0.25)
    for progress, expected in ((0.0, 0.0), (0.125, 0.001), (0.25, 0.002), (1.0, 0.001)):
        noam.set_progress(progress)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_progress_beyond_the_run_counts_as_its_end() -> None:
    optimizer = ScaledAdam(make_params(), lr=0.04)
    eden = Eden(optimizer, warmup=0.0, decay=0.2)
    eden.set_progress(1.0)
    last = optimizer.param_groups[0]["lr"]
    eden.set_progress(1.7)
    assert optimizer.param_groups[0]["lr"] == last


def test_bad_settings_are_named() -> None:
    params = make_params()
    with pytest.raises(ValueError, match=r"clipping_scale=0\.0"):
        ScaledAdam(params, clipping_scale=0.0)
    with pytest.raises(ValueError, match=r"optim\.decay=0"):
        Eden(ScaledAdam(params), 0.1, 0.0)
    with pytest.raises(ValueError, match=r"optim.warmup=1.5"):
        Noam(ScaledAdam(params), 1.5)
    with pytest.raises(ValueError, match=r"optim.betas=\[0.9\]"):
        build_optimizer(nn.Linear(2, 2), ScaledAdamConfig(betas=[0.9]))
    with pytest.raises(ValueError, match="no optimizer for a OptimConfig"):
        build_optimizer(nn.Linear(2, 2), OptimConfig(lr=0.1))
