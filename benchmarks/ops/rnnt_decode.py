"""The FSA-based search of transducers (ops/rnnt_decode.py): time of its frames, of its lattices, and how it grows.

    python benchmarks/ops/rnnt_decode.py --threads 2 --out benchmarks/results

Random log-probabilities stand for the joiner, so what is timed is the search alone: 16 streams of 100 frames, V = 500,
beam 20, max_states 64, max_contexts 8 on the trivial graph; then more contexts, and more states on a lexicon of 5,000
words. Peers that are installed (k2) get the same inputs. Best of --repeats.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import random
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import ops
from benchmarks.machine import cpu_name
from toolkit.search.graphs import phrase_graph

V, STREAMS, FRAMES = 500, 16, 100


def lexicon_graph(words: int) -> ops.Fsa:
    """Any sequence of random words of one to five tokens."""
    generator = random.Random(0)
    spelled = {tuple(generator.randrange(1, V) for _ in range(generator.randint(1, 5))) for _ in range(words)}
    return phrase_graph([" ".join(map(str, word)) for word in sorted(spelled)], lambda x: map(int, x.split()), True)


def run(k2: ModuleType, graph: Any, table: Tensor, max_states: int, max_contexts: int) -> dict[str, float]:
    """Seconds of each part, and what came out."""
    start = time.perf_counter()
    config = k2.RnntDecodingConfig(
        vocab_size=V, decoder_history_len=2, beam=20.0, max_states=max_states, max_contexts=max_contexts
    )
    streams = k2.RnntDecodingStreams([k2.RnntDecodingStream(graph) for _ in range(STREAMS)], config)
    joiner = contexts = 0.0
    for t in range(FRAMES):
        shape, symbols = streams.get_contexts()
        begin = time.perf_counter()
        row = (symbols[:, 0].long() * 31 + symbols[:, 1].long() * 7 + t * 3 + shape.row_ids(1).long() * 11) % len(table)
        log_probs = table[row]
        joiner += time.perf_counter() - begin
        contexts += len(row) / (FRAMES * STREAMS)
        streams.advance(log_probs)
    advanced = time.perf_counter()
    streams.terminate_and_flush_to_streams()
    lattice = streams.format_output([FRAMES] * STREAMS, allow_partial=True)
    formatted = time.perf_counter()
    best = k2.shortest_path(lattice, use_double_scores=True)
    end = time.perf_counter()
    return {
        "advance": advanced - start - joiner,
        "lattice": formatted - advanced,
        "path": end - formatted,
        "contexts": contexts,
        "arcs": lattice.num_arcs / (FRAMES * STREAMS),
        "score": float(best.get_tot_scores(use_double_scores=True, log_semiring=False).sum()),
    }


def best_of(repeats: int, *args: Any) -> dict[str, float]:
    runs = [run(*args) for _ in range(repeats)]
    return {key: min(r[key] for r in runs) for key in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", help="folder for a dated markdown file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = (torch.randn(4096, V, generator=torch.Generator().manual_seed(0)) * 2).log_softmax(-1)
    trivial, lexicon = ops.trivial_graph(V - 1), lexicon_graph(5000)
    cases = [("trivial", trivial, 64, contexts) for contexts in (8, 1, 4, 16, 32, 64)]
    cases += [(f"lexicon, {lexicon.shape[0]} states", lexicon, states, 8) for states in (8, 16, 32, 64, 128, 256)]
    rows = []
    for name, graph, max_states, max_contexts in cases:
        r = best_of(args.repeats, ops, graph, table, max_states, max_contexts)
        rows.append(
            f"| {name} | {max_states} | {max_contexts} | {r['contexts']:.1f} | {r['arcs']:.1f} | "
            f"{1e3 * r['advance']:.1f} | {1e3 * r['lattice']:.1f} | {1e3 * r['path']:.1f} |"
        )
        print(rows[-1], flush=True)
    try:
        peer = importlib.import_module("k2")
    except ImportError:
        print("k2 is not installed: no comparison")
    else:
        r = best_of(args.repeats, peer, peer.trivial_graph(V - 1), table, 64, 8)
        rows.append(
            f"| k2 {peer.__version__}, trivial | 64 | 8 | {r['contexts']:.1f} | {r['arcs']:.1f} | "
            f"{1e3 * r['advance']:.1f} | {1e3 * r['lattice']:.1f} | {1e3 * r['path']:.1f} |"
        )
        print(rows[-1], flush=True)
    if args.out:
        today = datetime.date.today().isoformat()
        path = Path(args.out) / f"{today}-rnnt_decode.md"
        lines = [
            "# FSA-based search of transducers: the search alone\n",
            f"{today}, {cpu_name()}, {os.cpu_count()} CPUs, {args.threads} thread(s), torch {torch.__version__}.",
            f"Command: `python benchmarks/ops/rnnt_decode.py --threads {args.threads} --repeats {args.repeats}`.",
            f"{STREAMS} streams of {FRAMES} frames, V = {V}, beam 20, random log-probabilities; milliseconds for all "
            "frames of all streams, best of the repeats; contexts and arcs are means a stream and frame.\n",
            "| graph | max_states | max_contexts | contexts | lattice arcs | advance | lattice | shortest path |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *rows,
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
