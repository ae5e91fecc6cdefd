"""How fast one training step is, and where its time goes.

Random batches of realistic lengths through forward, backward and optimizer step, as `toolkit.train` does them:

    python benchmarks/train_step.py                                # model tiny on the CPU
    python benchmarks/train_step.py --model paper --device cuda --precision bf16 --batch-seconds 300
    python benchmarks/train_step.py --profile 25                   # with torch.profiler's table

Reports audio seconds per second of wall time and, for machines that others use too, per two core-seconds of CPU time. The
latter means something with --threads 1 only: two threads on a busy machine burn CPU time waiting for each other.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from toolkit.allocator import keep_freed_memory
from toolkit.config import LossConfig, ModelConfig, ScaledAdamConfig, Schedule, load
from toolkit.data.batch import Batch
from toolkit.models.transducer import TransducerModel
from toolkit.optim import build_optimizer

CONF = Path(__file__).resolve().parent.parent / "conf"

# name → (shortest, longest utterance in seconds, tokens per second, vocabulary)
CASES = {
    "2-6 s, characters": (2.0, 6.0, 12.0, 30),
    "3-15 s, characters": (3.0, 15.0, 14.0, 30),
    "3-15 s, BPE 500": (3.0, 15.0, 4.0, 500),
}


def random_batches(
    low: float, high: float, rate: float, vocab: int, seconds: float, count: int, seed: int
) -> list[Batch]:
    """`count` batches of about `seconds` of audio each, of utterances of similar length as bucketing makes them."""
    g = torch.Generator().manual_seed(seed)
    pool = (low + (high - low) * torch.rand(int(4 * count * seconds / low), generator=g)).sort().values.tolist()
    batches = []
    for i in range(count):
        durations: list[float] = []
        start = int(len(pool) * (i + 0.5) / count)
        while start + len(durations) < len(pool):
            if durations and sum(durations) + pool[start + len(durations)] > seconds:
                break
            durations.append(pool[start + len(durations)])
        batches.append(random_batch(durations, rate, vocab, g))
    return batches


def random_batch(durations: list[float], rate: float, vocab: int, g: torch.Generator) -> Batch:
    frames = torch.tensor([int(100 * d) for d in durations])
    num_tokens = torch.tensor([max(1, int(rate * d)) for d in durations])
    tokens_NU = torch.randint(1, vocab, (len(durations), int(num_tokens.max())), generator=g)
    tokens_NU[torch.arange(tokens_NU.shape[1]) >= num_tokens[:, None]] = 0
    return Batch(
        features_NTF=-8 + 4 * torch.randn(len(durations), int(frames.max()), 80, generator=g),
        feature_lens_N=frames,
        tokens_NU=tokens_NU,
        token_lens_N=num_tokens,
        texts=[""] * len(durations),
        ids=[str(i) for i in range(len(durations))],
        seconds=sum(durations),
    )


class Stepper:
    def __init__(self, model: ModelConfig, vocab: int, device: str, precision: str) -> None:
        torch.manual_seed(0)
        ctc = Schedule(initial=0.2, final=0.2) if model.ctc_head else Schedule(initial=0.0, final=0.0)
        self.model = TransducerModel(model, LossConfig(ctc=ctc), vocab).to(device).train()
        self.optimizer, self.scheduler = build_optimizer(self.model, ScaledAdamConfig())
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
        self.device = device

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        with self.autocast:
            output = self.model(batch)
        loss = torch.stack([loss_N.sum() for loss_N in output.terms.values()]).sum() / output.frames_N.sum()
        loss.backward()
        self.optimizer.step()

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def measure(stepper: Stepper, batches: list[Batch], repeat: int) -> tuple[float, float]:
    """(audio seconds per second of wall time, audio seconds per two core-seconds of CPU time)."""
    for batch in batches[-2:]:
        stepper.step(batch)
    stepper.synchronize()
    wall, cpu = time.perf_counter(), os.times()
    for _ in range(repeat):
        for batch in batches:
            stepper.step(batch)
    stepper.synchronize()
    used = os.times()
    seconds = repeat * sum(batch.seconds for batch in batches)
    core_seconds = used.user + used.system - cpu.user - cpu.system
    return seconds / (time.perf_counter() - wall), seconds / (core_seconds / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a file of conf/model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", help="only cases whose name contains this")
    parser.add_argument(
        "--profile", type=int, default=0, metavar="ROWS", help="print this many rows of the profiler's table"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as training does
    config = load(CONF, [f"model={args.model}"]).model
    for name, (low, high, rate, vocab) in CASES.items():
        if args.case and args.case not in name:
            continue
        stepper = Stepper(config, vocab, args.device, args.precision)
        batches = random_batches(low, high, rate, vocab, args.batch_seconds, args.batches, seed=1)
        batches = [batch.to(args.device) for batch in batches]
        by_wall, by_cpu = measure(stepper, batches, args.repeat)
        size = sum(p.numel() for p in stepper.model.parameters()) / 1e6
        print(
            f"{args.model} ({size:.2f} M) {name:20s} {by_wall:8.1f} audio s/s by wall, {by_cpu:8.1f} by two cores' time"
        )
        if args.profile:
            with profile(
                activities=list(ProfilerActivity) if args.device == "cuda" else [ProfilerActivity.CPU]
            ) as prof:
                stepper.step(batches[len(batches) // 2])
                stepper.synchronize()
            key = "self_cuda_time_total" if args.device == "cuda" else "self_cpu_time_total"
            print(prof.key_averages(group_by_input_shape=False).table(sort_by=key, row_limit=args.profile))


if __name__ == "__main__":
    main()
