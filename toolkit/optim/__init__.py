"""Optimizers and learning-rate schedules, chosen by the type of the config section.

scaled_adam.py   ScaledAdam: steps in proportion to the size of each parameter, learnt scales, clipping by the median
schedules.py     Eden and Noam, as functions of the fraction of the run that is done
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from toolkit.config import AdamWConfig, OptimConfig, ScaledAdamConfig
from toolkit.optim.scaled_adam import ScaledAdam
from toolkit.optim.schedules import Eden, Noam, Schedule

__all__ = ["Eden", "Noam", "ScaledAdam", "Schedule", "build_optimizer"]


def build_optimizer(model: nn.Module, config: OptimConfig) -> tuple[torch.optim.Optimizer, Schedule]:
    """The optimizer of `model`'s trainable parameters, and its schedule, set to the start of the run."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if isinstance(config, ScaledAdamConfig):
        scaled_adam = ScaledAdam(parameters, config.lr, _pair(config.betas), config.clipping_scale)
        return scaled_adam, Eden(scaled_adam, config.warmup, config.decay)
    if isinstance(config, AdamWConfig):
        # Weight decay is for matrices; biases, log-scales and the like have a meaningful size of their own.
        matrices = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            config.lr,
            _pair(config.betas),
            weight_decay=config.weight_decay,
            fused=True,
        )
        return adamw, Noam(adamw, config.warmup)
    raise ValueError(
        f"optim: no optimizer for a {type(config).__name__}, expected one of ScaledAdamConfig, AdamWConfig"
    )


def _pair(betas: list[float]) -> tuple[float, float]:
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"optim.betas={betas}: expected two numbers in [0, 1)")
    return betas[0], betas[1]
