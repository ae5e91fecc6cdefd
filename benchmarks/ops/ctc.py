"""CTC loss, forced alignment and the intersection of CTC topologies with frame scores: time against peers.

    python benchmarks/ops/ctc.py --out benchmarks/results [--device cuda]

`ctc_loss`: forward + backward by the log-probabilities, float32; ours on the label sequences' own recursion and by way of
intersect_dense (which other graphs take), torch.nn.functional.ctc_loss, and k2 where it is installed. Contestants take
turns; the best round counts. `intersect_dense_pruned`: a 99-symbol ctc_topo, 16 utterances x 150 frames, search beam 20,
output beam 8, at most 10,000 active states; log-softmax of normal logits times `sharpness`: the flatter the scores, the
more arcs lie within the output beam, and the size of the lattice is what takes the time.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from rnnt_loss import measure

import ops
from benchmarks.machine import machine

Runs = dict[str, Callable[[], object]]


def peer() -> ModuleType | None:
    try:
        return importlib.import_module("k2")
    except ImportError:
        return None


def segments(n: int, t: int) -> torch.Tensor:
    return torch.tensor([[i, 0, t] for i in range(n)], dtype=torch.int32)


def loss_runs(n: int, t: int, u: int, v: int, device: str) -> Runs:
    torch.manual_seed(0)
    log_probs = torch.randn(n, t, v).log_softmax(-1).to(device).requires_grad_()
    targets = torch.randint(1, v, (n, u)).to(device)
    lens, sizes = torch.full((n,), t), torch.full((n,), u)

    def step(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def run() -> None:
            log_probs.grad = None
            loss().backward()

        return run

    def fsa_loss(k2: Any, lattice: bool) -> Callable[[], torch.Tensor]:
        graph = k2.ctc_graph(targets.tolist(), device=device)
        if lattice:
            graph.requires_grad_(True)
        return lambda: k2.ctc_loss(graph, k2.DenseFsaVec(log_probs, segments(n, t)))

    runs: Runs = {
        "ours": step(fsa_loss(ops, False)),
        "ours, by intersect_dense": step(fsa_loss(ops, True)),
        "torch": step(
            lambda: torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, lens, sizes, reduction="sum")
        ),
    }
    k2 = peer()
    if k2 is not None:
        runs["k2"] = step(fsa_loss(k2, False))
    runs["ours, forced_align"] = lambda: ops.forced_align(log_probs.detach(), targets)
    return runs


def dense_runs(sharpness: float, device: str) -> tuple[Runs, int]:
    torch.manual_seed(0)
    log_probs = (sharpness * torch.randn(16, 150, 100)).log_softmax(-1).to(device)

    def intersect(k2: Any) -> Callable[[], Any]:
        graph = k2.ctc_topo(99, device=device)
        return lambda: k2.intersect_dense_pruned(
            graph, k2.DenseFsaVec(log_probs, segments(16, 150)), 20.0, 8.0, 30, 10000
        )

    runs: Runs = {"ours": intersect(ops)}
    k2 = peer()
    if k2 is not None:
        runs["k2"] = intersect(k2)
    return runs, intersect(ops)().num_arcs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="directory for the dated report")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = f"## CTC, {args.device}, float32, {args.threads} CPU thread(s), wall time\n\n{machine(args.device)}\n\n"
    text += (
        f"    python benchmarks/ops/ctc.py {' '.join(sys.argv[1:])}\n\nBest of {args.rounds} interleaved rounds.\n\n"
    )
    text += "| ctc_loss, forward + backward: N, T, U, V | contestant | ms |\n|---|---|---|\n"
    for shape in ((16, 200, 40, 500), (32, 400, 80, 500)):
        for name, seconds in measure(
            loss_runs(*shape, args.device), args.rounds, args.device, time.perf_counter
        ).items():
            text += f"| {', '.join(map(str, shape))} | {name} | {seconds * 1e3:.1f} |\n"
    text += "\n| intersect_dense_pruned: sharpness | arcs in the lattices | contestant | ms |\n|---|---|---|---|\n"
    for sharpness in (5.0, 3.0, 1.0):
        runs, num_arcs = dense_runs(sharpness, args.device)
        for name, seconds in measure(runs, args.rounds, args.device, time.perf_counter).items():
            text += f"| {sharpness:g} | {num_arcs:,} | {name} | {seconds * 1e3:.0f} |\n"
    print(text)
    if args.out:
        path = Path(args.out) / f"{datetime.date.today()}-ctc.md"
        with path.open("a") as file:
            file.write(text + "\n")
        print(f"added to {path}")


if __name__ == "__main__":
    main()
