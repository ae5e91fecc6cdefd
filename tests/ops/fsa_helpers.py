"""Small random automata, and all their paths by brute force: the oracle of the FSA tests."""

from __future__ import annotations

import math
import os
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from ops.fsa import Fsa

Weights = dict[tuple, list[float]]


def random_text(rng: random.Random, states: int = 5, labels: int = 2, epsilons: bool = False, aux: bool = False) -> str:
    """An acyclic top-sorted FSA as text; each state is left, so that it is mostly connected."""
    rows = []
    for s in range(states - 1):
        for _ in range(rng.randint(1, 3)):
            dest = rng.randint(s + 1, states - 1)
            label = -1 if dest == states - 1 else rng.randint(0 if epsilons else 1, labels)
            out = f" {-1 if label == -1 else rng.randint(0, 3)}" if aux else ""
            rows.append(f"{s} {dest} {label}{out} {rng.uniform(-2, 1):.3f}")
    return "\n".join([*rows, str(states - 1)])


def all_paths(fsa: Fsa) -> list[list[int]]:
    """Every path from start to final, as arc numbers."""
    if not fsa.shape[0]:
        return []
    arcs = fsa.arcs3.tolist()
    leaving = defaultdict(list)
    for i, (src, _, _) in enumerate(arcs):
        leaving[src].append(i)
    paths, stack = [], [(0, ())]
    while stack:
        state, path = stack.pop()
        if state == fsa.shape[0] - 1:
            paths.append(list(path))
        stack += [(arcs[i][1], (*path, i)) for i in leaving[state]]
    return paths


def language(fsa: Fsa, with_aux: bool = False, epsilons: bool = False) -> Weights:
    """The scores of all paths by string: labels without 0 and -1 (epsilons=True: with 0); with_aux: (string,
    output).
    """
    labels, scores = fsa.labels.tolist(), fsa.scores.tolist()
    aux = fsa.aux_labels.tolist() if with_aux else None
    ans: Weights = defaultdict(list)
    for path in all_paths(fsa):
        string = tuple(labels[i] for i in path if labels[i] > (-1 if epsilons else 0))
        key: tuple = string
        if aux is not None:
            out: list[int] = []
            for i in path:
                out += aux[i] if isinstance(aux[i], list) else [aux[i]]
            key = (string, tuple(x for x in out if x > 0))
        ans[key].append(sum(scores[i] for i in path))
    return dict(ans)


def totals(weights: Weights, log_semiring: bool) -> dict[tuple, float]:
    if not log_semiring:
        return {k: max(v) for k, v in weights.items()}
    return {k: max(v) + math.log(sum(math.exp(x - max(v)) for x in v)) for k, v in weights.items()}


def assert_same(a: Weights, b: Weights, semirings: tuple[bool, ...] = (False, True), tolerance: float = 1e-4) -> None:
    for log_semiring in semirings:
        x, y = totals(a, log_semiring), totals(b, log_semiring)
        assert x.keys() == y.keys()
        for key in x:
            assert abs(x[key] - y[key]) < tolerance, (key, x[key], y[key])


def peak_memory(run: Callable[[], Any]) -> float:
    """MiB that the process holds at most while run() works, beyond what it held before."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("AddressSanitizer keeps freed memory")
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # the peak starts anew
    except OSError:
        pytest.skip("needs Linux's /proc/self/clear_refs")

    def mebibytes(name: str) -> float:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(name)) / 1024

    before = mebibytes("VmRSS")
    run()
    return mebibytes("VmHWM") - before
