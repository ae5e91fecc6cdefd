"""The CTC decoder beside flashlight-text and pyctcdecode: seconds to reach a word error rate, loading, memory.

    python benchmarks/ctc_decoder.py --data ../shared/data/ctc --peer-python PEERS/bin/python --out benchmarks/results

Every tool runs in a process of its own, one after the other: it loads lexicon and language model, then decodes the set
with one setting after another. Peers need a Python with flashlight-text, pyctcdecode and kenlm; without --peer-python (or
LATTICA_PEER_PYTHON) only ours are measured. The LM is the KenLM binary for the peers, the ARPA file for ours (loaded twice:
parsed, and from its cache). --check compares hypotheses with flashlight's instead of measuring.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
from ctc_decoder_peers import emissions, peak_mib  # noqa: E402

from benchmarks.machine import cpu_name  # noqa: E402

WEIGHTS = {"lm_weight": 1.5, "word_score": 1.0}
FLASHLIGHT = [
    {"beam_size": b, "beam_threshold": t, "beam_size_token": k, **WEIGHTS}
    for k, pairs in {
        29: [(5, 10), (10, 7), (10, 10), (50, 10), (500, 15)],
        10: [(20, 10), (50, 10), (100, 12), (50, 15), (100, 15)],
    }.items()
    for b, t in pairs
]
FLASHLIGHT_WIDE = [{"beam_size": 50, "beam_threshold": 50, "beam_size_token": 29, **WEIGHTS}]
PYCTCDECODE = [
    {"beam_width": b, "beam_prune_logp": p, "token_min_logp": m, "alpha": 0.6, "beta": 3.0}
    for b, p, m in [
        (10, -5, -5),
        (10, -10, -5),
        (25, -10, -5),
        (50, -10, -5),
        (50, -10, -8),
        (100, -10, -8),
        (100, -15, -8),
    ]
]
OURS = [
    {"beam_size": b, "beam_threshold": t, "merge": m, "blank_skip": s, **WEIGHTS}
    for m, s in itertools.product(("history", "lm_state"), (None, 0.99))
    for b, t in zip(
        (3, 5, 5, 10, 10, 20, 50, 50, 100, 50, 200, 500, 500), (7, 7, 10, 8, 10, 10, 10, 12, 12, 15, 15, 15, 20)
    )
]
OURS_WIDE = [
    {"beam_size": b, "beam_threshold": 50, "merge": m, **WEIGHTS}
    for b, m in [(50, "history"), (1500, "history"), (1500, "lm_state")]
]
FREE = [{"beam_size": b, "beam_threshold": 50} for b in (10, 100)]


@dataclass
class Run:
    tool: str
    settings: str
    seconds: float
    wer: float
    outputs: list[Any]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path(os.environ.get("LATTICA_SHARED", "../shared")) / "data" / "ctc")
    p.add_argument("--peer-python", default=os.environ.get("LATTICA_PEER_PYTHON"))
    p.add_argument("--out", type=Path, help="folder for the dated results and the plot")
    p.add_argument("--parts", nargs="+", default=["load", "frontier", "threads", "wide", "free"])
    p.add_argument("--check", action="store_true", help="compare hypotheses with flashlight's")
    p.add_argument("--worker", nargs=2, metavar=("TASK", "RESULT"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        work(*map(Path, args.worker))
    elif args.check:
        sys.exit(check(args.data, args.peer_python))
    else:
        measure(args)


# --------------------------------------------------------------------------------------------------------------- processes


def run_tool(
    tool: str, data: Path, configs: list[dict[str, Any]], python: str | None = None, **task: Any
) -> dict[str, Any]:
    """Run a tool on all configs in a process of its own."""
    task = {
        "tool": tool,
        "data": str(data.resolve()),
        "configs": configs,
        "lexicon_free": False,
        "utterances": 0,
        "nbest": 1,
    } | task
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("task.json", "result.json")]
        Path(paths[0]).write_text(json.dumps(task))
        program = [sys.executable, str(HERE / "ctc_decoder.py"), "--worker"]
        if tool != "ours":
            assert python is not None
            program = [python, str(HERE / "ctc_decoder_peers.py")]
        env = os.environ | {"OMP_NUM_THREADS": str(task.get("threads", 1))}
        subprocess.run([*program, *paths], check=True, env=env)
        return json.loads(Path(paths[1]).read_text())


def work(task_path: Path, result_path: Path) -> None:
    """Our side, in its own process."""
    import torch

    from ops import NgramLM, build, ctc_decoder

    task = json.loads(task_path.read_text())
    torch.set_num_threads(task.get("threads", 1))
    folder = Path(task["data"])
    rows = emissions(folder, task["utterances"])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batches = []  # of 100, in the order of their lengths, as one would
    for first in range(0, len(rows), 100):
        part = [torch.from_numpy(rows[i]) for i in order[first : first + 100]]
        lengths = torch.tensor([len(x) for x in part])
        batches.append((torch.nn.utils.rnn.pad_sequence(part, batch_first=True), lengths))
    build.load()
    lexicon = None if task["lexicon_free"] else folder / "lexicon.txt.gz"
    result: dict[str, Any] = {"base_mib": peak_mib(), "runs": []}
    start = time.perf_counter()
    lm = None if task["lexicon_free"] else NgramLM.load(folder / "lm.arpa.gz", cache=task.get("cache", True))
    shared = {
        "lexicon": lexicon,
        "tokens": folder / "tokens.txt",
        "lm": lm,
        "blank_token": "<b>",
        "nbest": task["nbest"],
    }
    clock = time.perf_counter if task.get("wall") else time.process_time
    for config in task["configs"]:
        decoder = ctc_decoder(**shared, **config)
        result.setdefault("load_s", time.perf_counter() - start)
        seconds = []
        for _ in range(task.get("rounds", 1)):
            begin = clock()
            outputs = [nbest for batch in batches for nbest in decoder(*batch)]
            seconds.append(clock() - begin)
        hyps = [[[h.score, h.words, h.tokens.tolist()] for h in nbest] for nbest in outputs]
        in_order = [hyp for _, hyp in sorted(zip(order, hyps))]
        result["runs"].append({"config": config, "seconds": min(seconds), "outputs": in_order})
        decoder = None
    result["peak_mib"] = peak_mib()
    result_path.write_text(json.dumps(result))


# ----------------------------------------------------------------------------------------------------------------- check


def check(data: Path, peer_python: str | None) -> int:
    """Hypotheses beside flashlight's with the same parameters. Returns how many comparisons failed."""
    if not peer_python:
        sys.exit("--check needs --peer-python")
    failed = 0
    words = [
        {"beam_size": b, "beam_threshold": t, "beam_size_token": k, "log_add": a, **WEIGHTS}
        for b, t, k, a in [
            (10, 10, 29, False),
            (50, 10, 29, False),
            (50, 10, 29, True),
            (50, 25, 10, False),
            (200, 15, 29, False),
        ]
    ]
    free = [
        {"beam_size": b, "beam_threshold": t, "log_add": a}
        for b, t, a in [(10, 50, False), (30, 25, False), (30, 25, True)]
    ]
    for configs, task in ((words, {}), (free, {"lexicon_free": True, "utterances": 40})):
        theirs = run_tool("flashlight", data, configs, peer_python, nbest=5, **task)
        ours = run_tool("ours", data, configs, nbest=5, **task)
        for a, b in zip(theirs["runs"], ours["runs"]):
            report, same = compare(a["outputs"], b["outputs"])
            failed += not same
            print(f"{'same' if same else 'DIFFERENT'} {b['config']}: {report}", flush=True)
    return failed


def compare(theirs: list[Any], ours: list[Any], tolerance: float = 1e-3) -> tuple[str, bool]:
    """Best hypotheses have to be the same; how often whole lists are is told, as ties may fall either way."""
    words = tokens = lists = 0
    worst = 0.0
    for a, b in zip(theirs, ours):
        words += a[0][1] == b[0][1]
        tokens += collapse(a[0][2]) == b[0][2]
        lists += [(x[1], collapse(x[2])) for x in a] == [(y[1], y[2]) for y in b]
        worst = max(worst, abs(a[0][0] - b[0][0]))
    n = len(theirs)
    text = f"words {words}/{n}, tokens {tokens}/{n}, n-best lists {lists}/{n}, scores within {worst:.1e}"
    return text, words == tokens == n and worst <= tolerance


def collapse(tokens: list[int], blank: int = 0) -> list[int]:
    return [t for i, t in enumerate(tokens) if t != blank and (i == 0 or t != tokens[i - 1])]


# --------------------------------------------------------------------------------------------------------------- measuring


def references(data: Path) -> list[list[str]]:
    return [str(text).split() for text in np.load(data / "emissions_open.npz")["reference"]]


def word_error_rate(outputs: list[Any], refs: list[list[str]]) -> float:
    import kaldialign

    errors = sum(kaldialign.edit_distance(ref, hyps[0][1] if hyps else [])["total"] for ref, hyps in zip(refs, outputs))
    return 100 * errors / sum(map(len, refs))


def runs_of(tool: str, result: dict[str, Any], refs: list[list[str]] | None) -> list[Run]:
    """Text of the settings, without what all have in common."""
    found = []
    for run in result["runs"]:
        shown = {
            k: v
            for k, v in run["config"].items()
            if k not in ("lm_weight", "word_score", "alpha", "beta") and v is not None
        }
        text = ", ".join(f"{k} {v}" for k, v in shown.items())
        found.append(
            Run(
                tool,
                text,
                run["seconds"],
                word_error_rate(run["outputs"], refs) if refs else float("nan"),
                run["outputs"],
            )
        )
    return found


def frontier(runs: list[Run]) -> list[Run]:
    """Those that no other beats in both time and WER, fastest first."""
    best: list[Run] = []
    for run in sorted(runs, key=lambda r: (r.seconds, r.wer)):
        if not best or run.wer < best[-1].wer:
            best.append(run)
    return best


def measure(args: argparse.Namespace) -> None:
    refs = references(args.data)
    report = [
        f"## CTC decoders, {datetime.date.today()}\n",
        f"{cpu_name()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; flashlight-text 0.0.7, "
        "pyctcdecode 0.5 with kenlm. 200 utterances, 73,402 frames of simulated emissions, 126,696 words, a 3-gram; "
        "lm_weight 1.5 and word_score 1, pyctcdecode alpha 0.6 and beta 3. With one thread: CPU time of the process, as "
        "other work shares the machine.\n",
        f"    python benchmarks/ctc_decoder.py --parts {' '.join(args.parts)}\n",
    ]
    tables = {
        "load": load_table,
        "frontier": frontier_table,
        "threads": threads_table,
        "wide": wide_table,
        "free": free_table,
    }
    for part in args.parts:
        print(part, flush=True)
        report += tables[part](args, refs)
    text = "\n".join(report)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{datetime.date.today()}-ctc_decoder.md").write_text(text + "\n")


def load_table(args: argparse.Namespace, refs: list[list[str]]) -> list[str]:
    config = {"beam_size": 50, "beam_threshold": 10, **WEIGHTS}
    rows = []
    if args.peer_python:
        for tool, c in (("flashlight", config), ("pyctcdecode", PYCTCDECODE[4])):
            rows.append((tool, run_tool(tool, args.data, [c], args.peer_python)))
    rows.append(("ours, ARPA.gz parsed", run_tool("ours", args.data, [config], cache=False)))
    run_tool("ours", args.data, [config])  # so that there is a cache
    rows.append(("ours, ARPA.gz cached", run_tool("ours", args.data, [config])))
    lines = [
        "### Loading lexicon and LM, and memory\n",
        "| | load s | peak MiB | of which before loading |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {r['load_s']:.2f} | {r['peak_mib']:.0f} | {r['base_mib']:.0f} |" for name, r in rows]
    return [*lines, "\nBefore loading: Python, the libraries (ours: PyTorch) and the emissions.\n"]


def frontier_table(args: argparse.Namespace, refs: list[list[str]]) -> list[str]:
    ours = runs_of("ours", run_tool("ours", args.data, OURS), refs)
    peers: list[Run] = []
    if args.peer_python:
        peers += runs_of("flashlight", run_tool("flashlight", args.data, FLASHLIGHT, args.peer_python), refs)
        peers += runs_of("pyctcdecode", run_tool("pyctcdecode", args.data, PYCTCDECODE, args.peer_python), refs)
    best = frontier(ours)
    lines = [
        "### Time to WER, one thread\n",
        "| peers' joint frontier | WER % | s | ours, as good | WER % | s | times faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer in frontier(peers):
        match = next((r for r in best if r.wer <= peer.wer + 1e-9), None)
        if match is None:
            lines.append(f"| {peer.tool}: {peer.settings} | {peer.wer:.2f} | {peer.seconds:.2f} | – | – | – | – |")
            continue
        theirs = f"| {peer.tool}: {peer.settings} | {peer.wer:.2f} | {peer.seconds:.2f}"
        ours_too = f"| {match.settings} | {match.wer:.2f} | {match.seconds:.3f}"
        lines.append(f"{theirs} {ours_too} | {peer.seconds / match.seconds:.1f} |")
    lines += ["\nAll settings:\n", "| | settings | WER % | s |", "|---|---|---|---|"]
    lines += [f"| {r.tool} | {r.settings} | {r.wer:.2f} | {r.seconds:.3f} |" for r in peers + ours]
    if args.out:
        plot(peers + ours, args.out / f"{datetime.date.today()}-ctc_decoder.png")
    return [*lines, ""]


def threads_table(args: argparse.Namespace, refs: list[list[str]]) -> list[str]:
    configs = [
        c
        for c in OURS
        if c["blank_skip"] is None and (c["beam_size"], c["beam_threshold"]) in ((10, 10), (50, 15), (500, 15))
    ]
    one, two = (
        runs_of("ours", run_tool("ours", args.data, configs, threads=n, wall=True, rounds=7), None) for n in (1, 2)
    )
    lines = ["### Two threads\n", "| settings | 1 thread, best of 7, wall s | 2 threads | times |", "|---|---|---|---|"]
    return [
        *lines,
        *(
            f"| {a.settings} | {a.seconds:.3f} | {b.seconds:.3f} | {a.seconds / b.seconds:.2f} |"
            for a, b in zip(one, two)
        ),
        "",
    ]


def wide_table(args: argparse.Namespace, refs: list[list[str]]) -> list[str]:
    runs = runs_of("ours", run_tool("ours", args.data, OURS_WIDE), refs)
    if args.peer_python:
        runs += runs_of("flashlight", run_tool("flashlight", args.data, FLASHLIGHT_WIDE, args.peer_python), refs)
    lines = ["### torchaudio's default threshold, 50\n", "| | settings | WER % | s |", "|---|---|---|---|"]
    return [*lines, *(f"| {r.tool} | {r.settings} | {r.wer:.2f} | {r.seconds:.2f} |" for r in runs), ""]


def free_table(args: argparse.Namespace, refs: list[list[str]]) -> list[str]:
    runs = runs_of("ours", run_tool("ours", args.data, FREE, lexicon_free=True), None)
    if args.peer_python:
        runs += runs_of(
            "flashlight", run_tool("flashlight", args.data, FREE[:1], args.peer_python, lexicon_free=True), None
        )
    lines = ["### Without lexicon and LM\n", "| | settings | s |", "|---|---|---|"]
    return [*lines, *(f"| {r.tool} | {r.settings} | {r.seconds:.2f} |" for r in runs), ""]


def plot(runs: list[Run], path: Path) -> None:
    """WER against seconds, every tool's frontier as a line. Nothing without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, axes = plt.subplots(figsize=(6, 4), dpi=80)
    for tool in dict.fromkeys(r.tool for r in runs):
        own = [r for r in runs if r.tool == tool]
        line = frontier(own)
        (drawn,) = axes.plot([r.seconds for r in line], [r.wer for r in line], "o-", label=tool, markersize=4)
        axes.plot([r.seconds for r in own], [r.wer for r in own], ".", color=drawn.get_color(), alpha=0.3)
    axes.set(xscale="log", xlabel="seconds, one thread", ylabel="WER %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
