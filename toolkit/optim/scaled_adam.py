"""ScaledAdam: Adam whose steps are proportional to the size of the parameter they change (Yao et al. 2023, arXiv 2310.11230).

Adam moves each element by about lr, be the tensor's elements around 1 or around 0.01: one learning rate cannot suit both.
ScaledAdam moves a tensor θ by lr · rms(θ), in effect a relative learning rate, and because that alone would hardly ever change
rms(θ) itself, it learns the scale of each tensor as if it were a parameter of its own.

Tensors of equal shape are handled as one stacked tensor, so that a model of hundreds of parameters needs few operations.
Shapes: B tensors of one shape stacked, then the shape itself, written "*".
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

SCALE_PERIOD = 4  # steps between updates of the scales
SCALE_LR = 0.1  # learning rate of log-scales and of one-element parameters, relative to lr
MIN_RMS, MAX_RMS = 1e-5, 3.0  # what a parameter's size counts as at least; where its scale stops growing
MAX_SCALAR = 10.0  # one-element parameters stay within ± this
NORMS_KEPT = 100  # steps whose gradient norms the median is taken over
MIN_NORMS = 10  # steps before the first clipping


class ScaledAdam(torch.optim.Optimizer):
    """Adam with relative steps, learnt scales and a clipping threshold that sets itself.

    For a tensor θ of more than one element, with gradient g (after clipping) and second moment v as in Adam:

      direction   d = -lr · max(rms(θ), MIN_RMS) · g / (sqrt(v) + eps)
      scale       every SCALE_PERIOD steps, Adam without momentum on s in θ → θ · exp(s), whose gradient is Σ θ g,
                  at SCALE_LR · lr: d += θ · step(s)
      momentum    δ = β1 δ + (1 - β1) d;   θ += δ

    One-element parameters are often log-scales or the like, whose size means nothing: plain Adam at SCALE_LR · lr,
    kept within ± MAX_SCALAR.

    Clipping: the norm of the gradient with respect to the log of the parameters, so to say, sqrt(Σ |g|² rms(θ)²), is
    compared with `clipping_scale` times the median of its last values; a gradient beyond that is scaled down to it.
    So no absolute threshold has to be found for each model, loss and batch size.

    lr: about 0.045 for speech models, far above Adam's. All state is in `state_dict()`; going on from it is exact.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.045,
        betas: tuple[float, float] = (0.9, 0.98),
        clipping_scale: float = 2.0,
        eps: float = 1e-8,
    ) -> None:
        if not lr >= 0.0:
            raise ValueError(f"lr={lr}: expected 0 or more")
        if not clipping_scale > 0.0:
            raise ValueError(f"clipping_scale={clipping_scale}: expected more than 0 (inf turns clipping off)")
        super().__init__(
            params, {"lr": lr, "betas": betas, "clipping_scale": clipping_scale, "eps": eps, "norms": [], "steps": 0}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            stacks = [Stack(members, self.state[members[0]], group) for members in by_shape(group["params"])]
            group["steps"] += 1
            factor = self._clipping_factor(stacks, group)
            for stack in stacks:
                stack.update(factor)
        return loss

    def _clipping_factor(self, stacks: list[Stack], group: dict[str, Any]) -> float:
        norm = torch.stack([stack.grad_norm() for stack in stacks]).norm().item()
        if len(group["norms"]) < MIN_NORMS:
            factor = 1.0
        else:
            factor = min(1.0, group["clipping_scale"] * statistics.median(group["norms"]) / max(norm, 1e-20))
        # A new list, because state_dict() hands out the old one by reference.
        group["norms"] = [*group["norms"], norm][-NORMS_KEPT:]
        return factor


def by_shape(params: list[Tensor]) -> list[list[Tensor]]:
    """Parameters grouped by shape and device, in the order of first appearance."""
    groups: dict[Any, list[Tensor]] = {}
    for p in params:
        groups.setdefault((p.shape, p.dtype, p.device), []).append(p)
    return list(groups.values())


class Stack:
    """Parameters of one shape for the time of a step: values and gradients (B, *), and their state.

    The state hangs on the first member.
    """

    def __init__(self, members: list[Tensor], state: dict[str, Any], group: dict[str, Any]) -> None:
        self.members, self.state, self.group = members, state, group
        self.is_scaled = members[0].numel() > 1
        # A parameter without a gradient, that of a layer left out by layer dropout say, counts as one with gradient zero.
        self.grad = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in members])
        self.dims = list(range(1, self.grad.ndim))
        if not state:
            self._init_state()

    def _init_state(self) -> None:
        self.state["momentum"] = torch.zeros_like(self.grad)
        self.state["second_moment"] = torch.zeros_like(self.grad)
        if self.is_scaled:
            value = self._value()
            self.state["rms"] = self._rms(value)
            self.state["scale_grads"] = torch.zeros(SCALE_PERIOD, *self.state["rms"].shape, device=value.device)
            self.state["scale_second_moment"] = torch.zeros_like(self.state["rms"])

    @property
    def rms(self) -> Tensor:
        """Size of each parameter (B, 1…), as of the last update of the scales."""
        return self.state["rms"]

    def _value(self) -> Tensor:
        return torch.stack(self.members)

    def _rms(self, value: Tensor) -> Tensor:
        return value.square().mean(dim=self.dims, keepdim=True).sqrt_()

    def grad_norm(self) -> Tensor:
        norm_B = torch.linalg.vector_norm(self.grad.flatten(1) if self.dims else self.grad[:, None], dim=1)
        return (norm_B * self.rms.flatten() if self.is_scaled else norm_B).norm()

    def update(self, clipping_factor: float) -> None:
        if clipping_factor != 1.0:
            self.grad.mul_(clipping_factor)
        beta1, beta2 = self.group["betas"]
        second, momentum, steps = self.state["second_moment"], self.state["momentum"], self.group["steps"]
        second.mul_(beta2).addcmul_(self.grad, self.grad, value=1.0 - beta2)
        momentum.mul_(beta1)
        if self.is_scaled:
            self._update_scale(steps)
        # Adam's bias correction of the second moment and the size are factors of the denominator here: one pass over memory for
        # both. The momentum needs no correction, its slow start being a welcome warm-up.
        size = self.rms.clamp(min=MIN_RMS) if self.is_scaled else torch.full_like(second, SCALE_LR)
        denominator = second.sqrt().add_(self.group["eps"]).div_(size * (1.0 - beta2**steps) ** 0.5)
        momentum.addcdiv_(self.grad, denominator, value=-self.group["lr"] * (1.0 - beta1))
        torch._foreach_add_(self.members, list(momentum.unbind()))
        if not self.is_scaled:
            torch._foreach_clamp_min_(self.members, -MAX_SCALAR)
            torch._foreach_clamp_max_(self.members, MAX_SCALAR)

    def _update_scale(self, steps: int) -> None:
        value = self._value()
        dots_B = torch.bmm(value.view(len(value), 1, -1), self.grad.view(len(value), -1, 1))
        self.state["scale_grads"][(steps - 1) % SCALE_PERIOD] = dots_B.view_as(self.rms)
        if steps % SCALE_PERIOD:
            return
        self.state["rms"] = rms = self._rms(value)
        beta1, beta2 = self.group["betas"]
        beta2 **= SCALE_PERIOD
        grads, second = self.state["scale_grads"], self.state["scale_second_moment"]
        second.mul_(beta2).add_(grads.square().mean(dim=0), alpha=1.0 - beta2)
        correction = (1.0 - beta2 ** (steps // SCALE_PERIOD)) ** 0.5
        scale_step = (
            grads.sum(dim=0).mul_(-SCALE_LR * self.group["lr"] * correction).div_(second.sqrt().add_(self.group["eps"]))
        )
        # A tensor that has all but vanished must not be shrunk further (it would never come back), nor a large one grown.
        scale_step.masked_fill_((rms < MIN_RMS) & (scale_step < 0), 0.0)
        scale_step.masked_fill_((rms > MAX_RMS) & (scale_step > 0), 0.0)
        self.state["momentum"].add_(value.mul_(scale_step), alpha=1.0 - beta1)
