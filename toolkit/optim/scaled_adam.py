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

from ops.scaled_adam import scaled_adam_

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
    """Parameters of one shape for the time of a step, with their gradients and their state, which is stacked (B, *).

    The state hangs on the first member. On a CPU, where memory traffic is what costs, the members are updated one by one in
    a single pass each; elsewhere, where starting an operation is what costs, they are stacked and updated together.
    """

    def __init__(self, members: list[Tensor], state: dict[str, Any], group: dict[str, Any]) -> None:
        self.members, self.state, self.group = members, state, group
        self.is_scaled = members[0].numel() > 1
        # A parameter without a gradient, that of a layer left out by layer dropout say, counts as one with gradient zero.
        self.grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in members]
        if not state:
            state["momentum"] = torch.zeros(len(members), *members[0].shape, device=members[0].device)
            state["second_moment"] = torch.zeros_like(state["momentum"])
            if self.is_scaled:
                state["rms_B"] = self._rms_B()
                state["scale_grads_KB"] = state["rms_B"].new_zeros(SCALE_PERIOD, len(members))
                state["scale_second_moment_B"] = torch.zeros_like(state["rms_B"])

    def _rms_B(self) -> Tensor:
        return torch.stack(torch._foreach_norm(self.members)) / self.members[0].numel() ** 0.5

    def grad_norm(self) -> Tensor:
        norm_B = torch.stack(torch._foreach_norm(self.grads))
        return (norm_B * self.state["rms_B"] if self.is_scaled else norm_B).norm()

    def update(self, clipping_factor: float) -> None:
        beta2, steps = self.group["betas"][1], self.group["steps"]
        scale_step_B = (
            self._scale_step(clipping_factor) if self.is_scaled else self.grads[0].new_zeros(len(self.members))
        )
        # Adam's bias correction is for the second moment; the momentum needs none, its slow start being a welcome warm-up.
        size_B = self.state["rms_B"].clamp(min=MIN_RMS) if self.is_scaled else torch.full_like(scale_step_B, SCALE_LR)
        rate_B = size_B * (self.group["lr"] * (1.0 - beta2**steps) ** 0.5)
        if self.members[0].device.type == "cpu":
            self._update_one_by_one(clipping_factor, rate_B, scale_step_B)
        else:
            self._update_together(clipping_factor, rate_B, scale_step_B)
        if not self.is_scaled:
            torch._foreach_clamp_min_(self.members, -MAX_SCALAR)
            torch._foreach_clamp_max_(self.members, MAX_SCALAR)

    def _update_one_by_one(self, clipping_factor: float, rate_B: Tensor, scale_step_B: Tensor) -> None:
        (beta1, beta2), eps = self.group["betas"], self.group["eps"]
        momenta, second_moments = self.state["momentum"].unbind(), self.state["second_moment"].unbind()
        tensors = zip(self.members, self.grads, momenta, second_moments)
        for (p, g, m, v), rate, scale_step in zip(tensors, rate_B.tolist(), scale_step_B.tolist()):
            scaled_adam_(
                p,
                g,
                m,
                v,
                grad_factor=clipping_factor,
                beta1=beta1,
                beta2=beta2,
                rate=rate,
                eps=eps,
                scale_step=scale_step,
            )

    def _update_together(self, clipping_factor: float, rate_B: Tensor, scale_step_B: Tensor) -> None:
        (beta1, beta2), eps = self.group["betas"], self.group["eps"]
        momentum, second = self.state["momentum"], self.state["second_moment"]
        ones = [1] * self.members[0].ndim
        grad = torch.stack(self.grads).mul_(clipping_factor)
        second.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        direction = grad.div_(second.sqrt().add_(eps)).mul_(-rate_B.view(-1, *ones))
        direction.addcmul_(torch.stack(self.members), scale_step_B.view(-1, *ones))
        momentum.mul_(beta1).add_(direction, alpha=1.0 - beta1)
        torch._foreach_add_(self.members, list(momentum.unbind()))

    def _scale_step(self, clipping_factor: float) -> Tensor:
        """By what fraction each parameter is to grow; 0 but for every SCALE_PERIOD-th step, which also updates the sizes."""
        state, steps = self.state, self.group["steps"]
        products_B = torch.stack([torch.dot(p.view(-1), g.reshape(-1)) for p, g in zip(self.members, self.grads)])
        state["scale_grads_KB"][(steps - 1) % SCALE_PERIOD] = products_B * clipping_factor
        if steps % SCALE_PERIOD:
            return torch.zeros_like(products_B)
        state["rms_B"] = rms_B = self._rms_B()
        beta2 = self.group["betas"][1] ** SCALE_PERIOD
        grads_KB, second_B = state["scale_grads_KB"], state["scale_second_moment_B"]
        second_B.mul_(beta2).add_(grads_KB.square().mean(dim=0), alpha=1.0 - beta2)
        denominator_B = (second_B / (1.0 - beta2 ** (steps // SCALE_PERIOD))).sqrt_().add_(self.group["eps"])
        step_B = grads_KB.sum(dim=0).mul_(-SCALE_LR * self.group["lr"]).div_(denominator_B)
        # A tensor that has all but vanished must not be shrunk further (it would never come back), nor a large one grown.
        step_B.masked_fill_((rms_B < MIN_RMS) & (step_B < 0), 0.0)
        return step_B.masked_fill_((rms_B > MAX_RMS) & (step_B > 0), 0.0)
