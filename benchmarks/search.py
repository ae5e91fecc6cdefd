"""How fast are the searches? Real-time factor and milliseconds a frame of each, batched and one by one.

    python benchmarks/search.py                            # random weights, noise for encoder outputs
    python benchmarks/search.py --exp exp/digits --override experiment=digits   # a trained model on its first test part
    python benchmarks/search.py --device cuda --model paper --batches 1 8 64 512   # RTFx by the size of the batch

Timed is the search alone, on encoder outputs that are at hand; "with encoder" adds the encoder's own time, which stands in
the first line, and "to greedy" compares that with greedy search with one symbol a frame. A random model is given the blank
bias that makes it emit at --emit of the frames, as BPE tokens do. RTF is seconds of wall clock a second of audio; CPU ms a
frame counts the process's CPU time, which another program on the machine changes less. Best of --repeats. Writes
benchmarks/results/<date>-search[-<name of the run>].md. With --batches, a random model by batch size instead: RTFx is seconds of
audio a second of wall clock, a GPU being waited for on both sides; the first run of each size, which records CUDA graphs and
compiles, is not counted.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.machine import cpu_name
from toolkit.config import load
from toolkit.search import (
    FastBeam,
    beam_search,
    ctc_greedy_search,
    fast_beam_search,
    fast_beam_search_nbest,
    greedy_search,
    modified_beam_search,
)
from toolkit.search.result import FEATURE_FRAME_SECONDS, SearchResult

REPO = Path(__file__).resolve().parent.parent
SEARCHES: dict[str, Callable[[Any, Tensor, Tensor], list[SearchResult]]] = {
    "greedy_search S=1": lambda model, x, lens: greedy_search(model, x, lens, 1),
    "greedy_search S=2": lambda model, x, lens: greedy_search(model, x, lens, 2),
    "greedy_search S=∞": lambda model, x, lens: greedy_search(model, x, lens, 0),
    "modified_beam_search B=4": lambda model, x, lens: modified_beam_search(model, x, lens, 4),
    "modified_beam_search B=8": lambda model, x, lens: modified_beam_search(model, x, lens, 8),
    "fast_beam_search, 4 contexts": lambda model, x, lens: fast_beam_search(
        model, x, lens, None, FastBeam(max_contexts=4)
    ),
    "fast_beam_search, 8 contexts": fast_beam_search,
    "fast_beam_search_nbest, 8 contexts, 100 paths": fast_beam_search_nbest,
    "beam_search B=4 S=1": lambda model, x, lens: beam_search(model, x, lens, 4, 1),
    "beam_search B=4 S=∞": lambda model, x, lens: beam_search(model, x, lens, 4, 0),
    "ctc_greedy_search": ctc_greedy_search,
}
Batches = list[tuple[Tensor, Tensor]]  # features or encoder outputs, and lengths


def random_case(
    batch: int, seconds: float, vocab_size: int, emit: float, size: str = "tiny", device: str = "cpu"
) -> tuple[Any, Batches, Batches]:
    """An untrained model, a batch of noise as features, and one as encoder outputs."""
    from toolkit.models.transducer import TransducerModel

    config = load(REPO / "conf", [f"model={size}"])
    torch.manual_seed(0)
    model = TransducerModel(config.model, config.loss, vocab_size).eval().to(device)
    frames = int(seconds / FEATURE_FRAME_SECONDS)
    features = [(torch.randn(batch, frames, 80, device=device), torch.full((batch,), frames, device=device))]
    with torch.inference_mode():
        lens_N = model.encode(*features[0])[1]
    x_NTD = torch.randn(batch, int(lens_N.max()), config.model.encoder.dim, device=device)
    for p in (model.joiner.output.weight, model.joiner.decoder_proj.weight):
        p.data.mul_(4.0)  # far enough from uniform for contexts to matter
    low, high = -100.0, 100.0
    for _ in range(12):
        model.joiner.output.bias.data[0] = (low + high) / 2
        found = sum(len(r.best.tokens) for r in greedy_search(model, x_NTD, lens_N))
        low, high = ((low + high) / 2, high) if found > emit * int(lens_N.sum()) else (low, (low + high) / 2)
    return model, features, [(x_NTD, lens_N)]


def trained_case(exp_dir: str, overrides: list[str], batch: int, most: int) -> tuple[Any, Batches, Batches]:
    """A trained model on the first test part of the config, in batches of `batch` utterances."""
    from toolkit.data.datamodule import DataModule
    from toolkit.train.checkpoint import load_model

    config = load(REPO / "conf", overrides)
    model, tokenizer, _ = load_model(exp_dir)
    data = DataModule(config, tokenizer)
    features, encoded = [], []
    utterances = [
        (x_TF[: int(n)], int(n))
        for b in data.test_batches(data.test_parts[0])
        for x_TF, n in zip(b.features_NTF, b.feature_lens_N)
    ][: most or None]
    utterances.sort(key=lambda utterance: utterance[1])
    for i in range(0, len(utterances), batch):
        chosen = utterances[i : i + batch]
        features.append((pad_sequence([x for x, _ in chosen], batch_first=True), torch.tensor([n for _, n in chosen])))
        with torch.inference_mode():
            encoded.append(model.encode(*features[-1]))
    return model, features, encoded


def split(batches: Batches, most: int) -> Batches:
    """The first `most` utterances, one by one."""
    return [(x[i : i + 1, : int(n)], lens[i : i + 1]) for x, lens in batches for i, n in enumerate(lens)][:most]


def timed(
    run: Callable[[Tensor, Tensor], Any], batches: Batches, repeats: int, warm_up: bool = True
) -> tuple[float, float, list[Any]]:
    """Least wall-clock and CPU seconds for all batches, and what came out."""
    if warm_up:
        run(*batches[0])
    wall, cpu = [], []
    out: list[Any] = []
    on_gpu = batches[0][0].is_cuda
    for _ in range(repeats):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter(), time.process_time()
        out = [run(*batch) for batch in batches]
        if on_gpu:
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return min(wall), min(cpu), out


def report(name: str, model: Any, features: Batches, encoded: Batches, repeats: int) -> list[str]:
    """Rows of the table for one way of batching."""
    frames = sum(int(lens.sum()) for _, lens in encoded)
    audio = sum(int(lens.sum()) for _, lens in features) * FEATURE_FRAME_SECONDS
    rows: list[str] = []
    greedy = 0.0

    def add(what: str, wall: float, cpu: float, rest: str) -> None:
        rows.append(f"| {name} | {what} | {wall / audio:.5f} | {1e3 * cpu / frames:.4f} | {rest} |")
        print(rows[-1], flush=True)

    with torch.inference_mode():
        encoder, cpu, _ = timed(model.encode, features, repeats)
    add("encoder", encoder, cpu, " | | ")
    for what, search in SEARCHES.items():
        if what == "ctc_greedy_search" and model.ctc_head is None:
            continue
        slow = what.startswith("beam_search")
        wall, cpu, out = timed(partial(search, model), encoded, 1 if slow else repeats, warm_up=not slow)
        tokens = sum(len(r.best.tokens) for results in out for r in results)
        greedy = greedy or encoder + wall
        add(
            what, wall, cpu, f"{(encoder + wall) / audio:.5f} | {(encoder + wall) / greedy:.2f} | {tokens / frames:.3f}"
        )
    return rows


BY_BATCH = ("greedy_search S=1", "greedy_search S=∞", "modified_beam_search B=4", "fast_beam_search, 8 contexts")


def by_batch(args: argparse.Namespace) -> list[str]:
    """Rows of the table of RTFx by size of the batch, of a random model."""
    rows = []
    for batch in args.batches:
        try:
            rows += one_batch(batch, args)
        except torch.OutOfMemoryError:
            rows.append(f"| {batch} | out of memory | | | | |")
        print(*rows[-len(BY_BATCH) :], sep="\n", flush=True)
    return rows


def one_batch(batch: int, args: argparse.Namespace) -> list[str]:
    model, features, encoded = random_case(
        batch, args.seconds, args.vocab_size, args.emit, args.model, args.device
    )  # the blank bias is found anew, with the same weights
    audio = batch * args.seconds
    with torch.inference_mode():
        encoder, _, _ = timed(model.encode, features, args.repeats)
    rows, greedy = [], 0.0
    for what in BY_BATCH:
        wall, _, _ = timed(partial(SEARCHES[what], model), encoded, args.repeats)
        greedy = greedy or encoder + wall
        rows.append(
            f"| {batch} | {what} | {audio / encoder:.0f} | {1e3 * wall:.1f} | {audio / (encoder + wall):.0f} | "
            f"{(encoder + wall) / greedy:.2f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", help="folder of a trained run; without it, random weights")
    parser.add_argument("--override", nargs="*", default=[], help="config overrides that name the corpus of --exp")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--one-by-one", type=int, default=8, help="so many utterances are also searched one by one")
    parser.add_argument("--most", type=int, default=0, help="utterances of --exp's test part; 0: all")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of random utterances")
    parser.add_argument("--vocab-size", type=int, default=500, help="of the random model")
    parser.add_argument("--emit", type=float, default=0.15, help="tokens a frame of the random model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of --batches")
    parser.add_argument("--model", default="tiny", help="of --batches: a config of conf/model")
    parser.add_argument("--batches", type=int, nargs="*", default=[], help="sizes; a random model by size of the batch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.batches:
        write_by_batch(args, by_batch(args))
        return

    if args.exp:
        title = f"trained model {Path(args.exp).name}, first test part"
        model, features, encoded = trained_case(args.exp, args.override, args.batch, args.most)
    else:
        title = f"tiny model, random weights, V={args.vocab_size}, {args.batch} utterances of {args.seconds:g} s"
        model, features, encoded = random_case(args.batch, args.seconds, args.vocab_size, args.emit)
    load_before = os.getloadavg()[0]
    rows = report(f"batches of {args.batch}", model, features, encoded, args.repeats)
    single = split(features, args.one_by_one), split(encoded, args.one_by_one)
    rows += report("one by one", model, *single, args.repeats)

    today = datetime.date.today().isoformat()
    path = REPO / "benchmarks" / "results" / f"{today}-search{'-' + Path(args.exp).name if args.exp else ''}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    exp = f" --exp exp/{Path(args.exp).name} --override {' '.join(args.override)}" if args.exp else ""
    lines = [
        f"# Searches: {title}\n",
        f"{today}, {cpu_name()}, {os.cpu_count()} CPUs, {args.threads} thread(s), torch {torch.__version__}, "
        f"load average before the run {load_before:.1f}.",
        f"Command: `python benchmarks/search.py --batch {args.batch} --seconds {args.seconds:g} "
        f"--threads {args.threads} --repeats {args.repeats} --one-by-one {args.one_by_one}{exp}`.",
        "RTF: wall clock; CPU ms a frame: the process's CPU time per encoder frame (40 ms); best of the repeats (beam_search: "
        f"one run). One by one: the first {args.one_by_one} utterances.\n",
        "| utterances | what | RTF | CPU ms a frame | RTF with encoder | to greedy | tokens a frame |",
        "|---|---|---:|---:|---:|---:|---:|",
        *rows,
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {path}")


def write_by_batch(args: argparse.Namespace, rows: list[str]) -> None:
    today, device = datetime.date.today().isoformat(), torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_name()}, {args.threads} thread(s)"
    lines = [
        f"# Searches by size of the batch: model {args.model}, random weights, V={args.vocab_size}\n",
        f"{today}, {name}, torch {torch.__version__}. Utterances of {args.seconds:g} s, tokens at {args.emit:g} of the frames, "
        f"best of {args.repeats}.",
        f"Command: `python benchmarks/search.py --device {args.device} --model {args.model} --batches "
        f"{' '.join(map(str, args.batches))} --seconds {args.seconds:g} --repeats {args.repeats} --threads {args.threads}`.\n",
        "| utterances | search | RTFx of the encoder | search ms | RTFx of both | time of both to greedy |",
        "|---:|---|---:|---:|---:|---:|",
        *rows,
    ]
    folder = Path(os.environ.get("OUT", REPO / "benchmarks" / "results"))
    path = folder / f"{today}-search-{device.type}-{args.model}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
