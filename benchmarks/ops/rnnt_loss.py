"""Transducer losses with their joiner, forward + backward: time and peak memory against peers.

    python benchmarks/ops/rnnt_loss.py --shapes ../shared/data/transducer_shapes.npy --out benchmarks/results

Batches: two fixed shapes; (a) 30 random utterances of real training data, (b) real utterances sorted by length, at most
10,000 frames with padding. V = 500, joiner dimension 512, s_range 5. Contestants take turns, round after round, so that
other work on the machine disturbs all alike; the best round counts. `bare` is what no pruned loss with a joiner can
avoid: one activation and three matrix products over the batch's real rows.
A second table has the loss without a joiner, `smoothed`, and the recursion; `bare` there is its three matrix products.
Peers that are installed are measured, too: k2 and, with --full, torchaudio.

With `--clock cpu`, one thread and the process's CPU time instead of wall time: for machines that others use as well.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import ops
from benchmarks.machine import machine
from ops import reference
from ops.rnnt_memory import measured_peak

V, D, R = 500, 512, 5


@dataclass
class Batch:
    name: str
    am: Tensor
    lm: Tensor
    weight: Tensor
    bias: Tensor
    symbols: Tensor
    boundary: Tensor
    ranges: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.am, self.lm, self.weight, self.bias

    @property
    def num_rows(self) -> int:
        """Joiner rows inside the bands that are no padding."""
        frames = torch.arange(self.ranges.shape[1], device=self.am.device)[:, None] < self.boundary[:, 3, None, None]
        return int((frames & (self.ranges <= self.boundary[:, 2, None, None])).sum())


def make_batch(name: str, lengths: Tensor, device: str, dtype: torch.dtype) -> Batch:
    """lengths: (N, 2), T and S of each utterance."""
    torch.manual_seed(0)
    N, (T, S) = len(lengths), lengths.amax(0).tolist()
    shapes = [(N, T, D), (N, S + 1, D), (V, D), (V,)]
    leaves = [torch.randn(shape, device=device) for shape in shapes]
    leaves[2] *= D**-0.5
    symbols = torch.randint(1, V, (N, S), device=device)
    boundary = torch.zeros(N, 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = lengths[:, 1], lengths[:, 0]
    boundary = boundary.to(device)
    small = 20  # classes of the loss that only serves to get bands
    am, lm = torch.randn(N, T, small, device=device), torch.randn(N, S + 1, small, device=device)
    _, occupations = ops.rnnt_loss_simple(lm, am, symbols % small, 0, boundary, return_grad=True)
    ranges = ops.get_rnnt_prune_ranges(*occupations, boundary, R)
    leaves = [x.to(dtype).requires_grad_() for x in leaves]
    return Batch(name, *leaves, symbols, boundary, ranges)


def batches(shapes_file: str | None, device: str, dtype: torch.dtype, scale: float) -> list[Batch]:
    fixed = [(8, 200, 40), (16, 400, 80)]
    lengths = {f"{n} × T {t}, U {u}": torch.tensor([[t, u]] * n) for n, t, u in fixed}
    if shapes_file is not None:
        import numpy as np

        table = torch.from_numpy(np.load(shapes_file)).long()
        picked = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[: max(1, int(30 * scale))]
        lengths[f"(a) {len(picked)} random"] = table[picked]
        by_length = table[table[:, 0].sort(stable=True).indices]
        start = len(table) // 2
        count = max(1, int(10_000 * scale) // int(by_length[start, 0]))
        while int(by_length[start : start + count, 0].max()) * count > 10_000 * scale and count > 1:
            count -= 1
        lengths[f"(b) {count} sorted by length"] = by_length[start : start + count]
    return [make_batch(name, rows, device, dtype) for name, rows in lengths.items()]


# ------------------------------------------------------------------------------------------------------- contestants


def fused(batch: Batch, keep_bytes: int | None = None) -> Tensor:
    b = batch
    return ops.rnnt_loss_pruned_fused(
        b.am, b.lm, b.ranges, b.weight, b.bias, b.symbols, 0, b.boundary, keep_bytes=keep_bytes
    )


def unfused(batch: Batch, k2: ModuleType = ops) -> Tensor:
    am, lm = k2.do_rnnt_pruning(batch.am, batch.lm, batch.ranges)
    logits = F.linear(torch.tanh(am + lm), batch.weight, batch.bias)
    return k2.rnnt_loss_pruned(logits.float(), batch.symbols, batch.ranges, 0, boundary=batch.boundary)


def plain_pytorch(batch: Batch) -> Tensor:
    """The pruned loss in PyTorch alone: autograd through everything, a recursion over frames."""
    N, T, _ = batch.ranges.shape
    lm_NTRD = batch.lm[torch.arange(N, device=batch.lm.device)[:, None, None], batch.ranges]
    logits_NTRV = F.linear(torch.tanh(batch.am[:, :, None] + lm_NTRD), batch.weight, batch.bias)
    log_probs_NTRV = logits_NTRV.float().log_softmax(-1)
    next_NTR = F.pad(batch.symbols, (0, 1))[:, None].expand(N, T, -1).gather(2, batch.ranges)
    symbol_NTR = log_probs_NTRV.gather(3, next_NTR[..., None]).squeeze(3)
    blank_NTR = log_probs_NTRV[..., 0]
    start_NT = batch.ranges[:, :, 0]
    minus_inf = symbol_NTR.new_full((N, 1), -1e30)
    score_NR = torch.cat([minus_inf * 0, minus_inf.expand(N, R - 1)], 1)
    totals = []
    for t in range(T):
        if t > 0:  # move the band
            index_NR = torch.arange(R, device=start_NT.device) + (start_NT[:, t] - start_NT[:, t - 1])[:, None]
            score_NR = torch.cat([score_NR, minus_inf.expand(N, R)], 1).gather(1, index_NR)
        # Symbols within the frame: s_r = logaddexp(from before, s_{r-1} + symbol_{r-1}), a cumulative log-sum.
        climb_NR = F.pad(symbol_NTR[:, t, :-1], (1, 0)).cumsum(1)
        score_NR = torch.logcumsumexp(score_NR - climb_NR, 1) + climb_NR + blank_NTR[:, t]
        totals.append(score_NR)
    last_N = batch.boundary[:, 3] - 1
    final_NR = torch.stack(totals, 1)[torch.arange(N, device=last_N.device), last_N]
    position_N1 = (batch.boundary[:, 2] - start_NT.gather(1, last_N[:, None]).squeeze(1))[:, None]
    return -final_NR.gather(1, position_N1).mean()


def torchaudio_full(batch: Batch, torchaudio: ModuleType) -> Tensor:
    logits = F.linear(torch.tanh(batch.am[:, :, None] + batch.lm[:, None]), batch.weight, batch.bias).float()
    lengths = batch.boundary[:, 3].int(), batch.boundary[:, 2].int()
    return torchaudio.functional.rnnt_loss(logits, batch.symbols.int(), *lengths, blank=0)


def bare(batch: Batch) -> Callable[[], object]:
    M, like = batch.num_rows, batch.am.detach()
    x_MD, grad_MV = torch.randn(M, D).to(like), torch.randn(M, V).to(like)
    hidden_MD, logits_MV, hidden_grad_MD = torch.empty_like(x_MD), torch.empty_like(grad_MV), torch.empty_like(x_MD)
    weight, weight_grad = batch.weight.detach(), torch.empty_like(batch.weight)

    def run() -> None:
        torch.tanh(x_MD, out=hidden_MD)
        torch.mm(hidden_MD, weight.t(), out=logits_MV)
        torch.mm(grad_MV, weight, out=hidden_grad_MD)
        torch.mm(grad_MV.t(), hidden_MD, out=weight_grad)

    return run


def contestants(batch: Batch, full: bool) -> dict[str, Callable[[], object]]:
    def with_backward(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), batch.leaves)

    runs: dict[str, Callable[[], object]] = {
        "bare": bare(batch),
        "fused": with_backward(lambda: fused(batch)),
        "fused, no logits kept": with_backward(lambda: fused(batch, 0)),
        "fused, all logits kept": with_backward(lambda: fused(batch, 1 << 40)),
        "unfused": with_backward(lambda: unfused(batch)),
        "plain PyTorch": with_backward(lambda: plain_pytorch(batch)),
    }
    peers = {"k2": lambda module: unfused(batch, module)}
    if full:
        peers["torchaudio"] = lambda module: torchaudio_full(batch, module)
        b = batch
        runs["fused, full"] = with_backward(
            lambda: ops.rnnt_loss_fused(b.am, b.lm, b.weight, b.bias, b.symbols, 0, b.boundary)
        )
    for name, loss in peers.items():
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError):
            continue
        runs[name] = with_backward(lambda loss=loss, module=module: loss(module))
    return runs


def joiner_free(batch: Batch) -> dict[str, Callable[[], object]]:
    """The smoothed loss of random am and lm with V classes, and its parts."""
    (N, T, _), S1 = batch.am.shape, batch.lm.shape[1]
    am, lm, grad_NTS = (torch.randn(shape, device=batch.am.device) for shape in ((N, T, V), (N, S1, V), (N, T, S1)))
    leaves = am.requires_grad_(), lm.requires_grad_()
    lattice = [x.detach().requires_grad_() for x in ops.get_rnnt_logprobs(lm, am, batch.symbols, 0, batch.boundary)]

    def bare() -> None:
        with torch.no_grad():
            torch.matmul(am, lm.transpose(1, 2))
            torch.matmul(grad_NTS, lm)
            torch.matmul(grad_NTS.transpose(1, 2), am)

    def smoothed(lm_scale: float, am_scale: float) -> object:
        arguments = (lm, am, batch.symbols, 0, lm_scale, am_scale, batch.boundary)
        return torch.autograd.grad(ops.rnnt_loss_smoothed(*arguments), leaves)

    def smoothed_pytorch() -> object:
        px, py, *_ = reference.rnnt_additive_log_probs(
            am, lm, None, batch.symbols, batch.boundary, 0, 0.25, 0.0, "regular"
        )
        return torch.autograd.grad(-ops.mutual_information_recursion(px, py, batch.boundary).mean(), leaves)

    return {
        "bare": bare,
        "smoothed, lm 0.25": lambda: smoothed(0.25, 0.0),
        "smoothed, lm 0.1, am 0.1": lambda: smoothed(0.1, 0.1),
        "smoothed, lm 0.25, by PyTorch's ops": smoothed_pytorch,
        "recursion": lambda: torch.autograd.grad(
            ops.mutual_information_recursion(*lattice, batch.boundary).sum(), lattice
        ),
    }


def check(batch: Batch) -> None:
    """All pruned contestants compute the same number."""
    values = [float(loss(batch).detach()) for loss in (fused, unfused, plain_pytorch)]
    tolerance = 1e-4 if batch.am.dtype == torch.float32 else 2e-2
    if max(values) - min(values) > tolerance * abs(values[0]):
        raise RuntimeError(f"{batch.name}: losses differ: {values}")


# ------------------------------------------------------------------------------------------------------------ report


def measure(
    runs: dict[str, Callable[[], object]], rounds: int, device: str, clock: Callable[[], float]
) -> dict[str, float]:
    def once(run: Callable[[], object]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    best = {name: float("inf") for name in runs}
    for _ in range(rounds + 1):  # the first warms up; its times are never the best
        for name, run in runs.items():
            best[name] = min(best[name], once(run))
    return best


def report(batch: Batch, runs: dict[str, Callable[[], object]], args: argparse.Namespace) -> str:
    N, T, _ = batch.am.shape
    frames = int(batch.boundary[:, 3].sum())
    lines = [
        f"### {batch.name}: N {N}, T {T}, U {batch.lm.shape[1] - 1}; {frames:,} frames, {batch.num_rows:,} joiner rows",
        "",
        *table(runs, "unfused", args),
        "",
        *table(joiner_free(batch), "smoothed, lm 0.25, by PyTorch's ops", args, 4),
    ]
    return "\n".join(lines) + "\n"


def table(
    runs: dict[str, Callable[[], object]], other: str, args: argparse.Namespace, more_rounds: int = 1
) -> list[str]:
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    best = measure(runs, args.rounds * more_rounds, args.device, clock)
    peaks = {name: measured_peak(run, args.device) for name, run in runs.items() if name != "bare"}
    lines = [f"| | ms | ÷ bare | peak MiB | ÷ {other} |", "|---|---|---|---|---|"]
    for name, seconds in best.items():
        memory = f"{peaks[name] / 2**20:.1f} | {peaks[name] / peaks[other]:.2f}" if name in peaks else "– | –"
        lines.append(f"| {name} | {seconds * 1e3:.1f} | {seconds / best['bare']:.2f} | {memory} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2, help="on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--shapes", help="transducer_shapes.npy; without it, fixed shapes only")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the real batches, to fit a small machine")
    parser.add_argument("--full", action="store_true", help="the full loss, too: ours and torchaudio's")
    parser.add_argument("--only", default="", help="batches whose name holds this")
    parser.add_argument("--out", help="directory for the dated report")
    args = parser.parse_args()
    torch.set_num_threads(1 if args.clock == "cpu" else args.threads)

    text = f"## rnnt_loss, {args.device}, {args.dtype}, {torch.get_num_threads()} CPU thread(s), {args.clock} time\n\n"
    text += f"{machine(args.device)}\n\n    python benchmarks/ops/rnnt_loss.py {' '.join(sys.argv[1:])}\n\n"
    text += f"Forward + backward with joiner, V {V}, D {D}, s_range {R}; best of {args.rounds} interleaved rounds.\n\n"
    for batch in batches(args.shapes, args.device, getattr(torch, args.dtype), args.scale):
        if args.only in batch.name:
            check(batch)
            section = report(batch, contestants(batch, args.full), args)
            print(section, flush=True)
            text += section + "\n"
    if args.out:
        path = Path(args.out) / f"{datetime.date.today()}-rnnt_loss.md"
        with path.open("a") as file:
            file.write(text)
        print(f"added to {path}")


if __name__ == "__main__":
    main()
