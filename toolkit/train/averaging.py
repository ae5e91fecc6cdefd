"""The running average of the weights: a better model than the last step's, for validation and decoding.

A plain cumulative average, sum_s x_s / t, carries the useless weights of the first steps along for a long time, and a
short run ends before they are forgotten. Here step s counts with density s^(p-1): the average at step t is

    avg_t = (p / t^p) * integral_0^t s^(p-1) x_s ds,

whose mean age is t / (p + 1), a fixed share of the run so far, however long the run is (polynomial-decay averaging,
Shamir and Zhang, 2013, arXiv 1212.1824). p = 1 is the cumulative average. Because t^p * avg_t is a plain sum over time,
the average over any stretch (a, b] of the run follows from the averages stored at its ends (`stretch`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

POWER = 9.0  # mean age: a tenth of the run so far


class RunningAverage:
    """The average of a model's floating-point parameters and buffers, kept in float64; the rest is the model's own."""

    def __init__(self, model: nn.Module, power: float = POWER) -> None:
        if power < 1:
            raise ValueError(f"power={power}: expected at least 1 (1 is the plain cumulative average)")
        self.power = power
        self.step = 0  # of the last update
        self.weights = {name: x.double() for name, x in _floating(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of `step`, which stand for all steps since the last update."""
        if step <= self.step:
            return
        share = 1.0 - (self.step / step) ** self.power
        for name, x in _floating(model).items():
            self.weights[name].lerp_(x.double(), share)
        self.step = step

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights; afterwards its own again, bit for bit."""
        if self.step == 0:
            yield
            return
        own = {name: x.clone() for name, x in _floating(model).items()}
        _assign(model, self.weights)
        try:
            yield
        finally:
            _assign(model, own)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "power": self.power, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.power = state["step"], state["power"]
        for name, x in self.weights.items():
            x.copy_(state["weights"][name])


def stretch(end: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Tensor]:
    """The average over the steps after `start` up to `end`, from two states of one `RunningAverage`."""
    if start["power"] != end["power"] or not start["step"] < end["step"]:
        raise ValueError(
            f"averages of steps {start['step']} and {end['step']} (powers {start['power']:g} and {end['power']:g}): "
            "expected two points of one run, the earlier one as start"
        )
    early = (start["step"] / end["step"]) ** end["power"]  # the share of the average that dates from before start
    return {
        name: (x.double() - early * start["weights"][name].double()) / (1.0 - early)
        for name, x in end["weights"].items()
    }


def mean(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The plain mean of the floating-point entries of several state dicts."""
    names = [name for name, x in models[0].items() if x.is_floating_point()]
    return {name: sum(m[name].double() for m in models) / len(models) for name in names}  # type: ignore[misc]


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach() for name, x in model.state_dict().items() if x.is_floating_point()}


@torch.no_grad()
def _assign(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, x in _floating(model).items():
        x.copy_(weights[name])
