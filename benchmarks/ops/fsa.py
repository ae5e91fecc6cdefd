"""Algorithms on automata: time on a common set, growth with size, beside k2 and OpenFst where they are installed.

    python benchmarks/ops/fsa.py --out benchmarks/results            # the table
    python benchmarks/ops/fsa.py --growth 2000,20000,200000 --plot   # growth with a lexicon's size
    python benchmarks/ops/fsa.py --device cuda                       # what ops/README.md names no CUDA for goes by the CPU

Times are wall times of the best of several runs. OpenFst is `pip install kaldifst`; it works in place and on one thread, and
its figures leave out the copy that a run needs. Beside `ops` stand figures of k2 1.24.4 on a CPU, noted on another day.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]
import fsa_inputs as inputs  # noqa: E402

import ops  # noqa: E402
from benchmarks.machine import machine  # noqa: E402

Run = Callable[[], Any]
# k2 1.24.4 on a CPU, two threads, noted on another day; the size of its lattices was not noted, so no ratio is given for them.
NOTED_K2_MS = {
    "arc_sort, lexicon": 0.5,
    "compose L∘G": 3.1,
    "connect G": 0.85,  # of 18,000 arcs; of which automaton was not noted
    "connect LG": 0.85,
    "determinize LG": 10.0,
    "ctc_graph, 64 × 60 symbols": 0.45,
    "tot_scores + backward, log": 400.0,
    "random_paths, 100 each": 44.0,
}


def cases(
    k2: Any, num_words: int = 1400, num_bigrams: int = 13_800, beam: float = 4.0, device: str = "cpu"
) -> dict[str, tuple[str, Run]]:
    """By name: the size of what is measured, and the run. With 1,400 words L has 9,022 arcs, G 18,001, L∘G 25,621."""
    L, G = inputs.lexicon(num_words).fsa(k2).to(device), k2.Fsa(inputs.grammar(num_words, num_bigrams)).to(device)
    L_sorted, G_sorted = k2.arc_sort(L), k2.arc_sort(G)
    LG = k2.compose(L_sorted, G_sorted)
    det = k2.determinize(LG)
    texts = inputs.transcripts(64, 60, 500)
    lattice = inputs.lattices(k2, beam=beam).to(device)
    lattice.requires_grad_(True)

    def total(log_semiring: bool) -> None:
        lattice.scores.grad = None
        lattice.get_tot_scores(use_double_scores=True, log_semiring=log_semiring).sum().backward()

    linear = k2.linear_fsa(texts, device=device)
    topology = k2.create_fsa_vec([k2.arc_sort(k2.ctc_topo(500))]).to(device)
    b_to_a = torch.zeros(64, dtype=torch.int32, device=device)
    sizes = {
        "L": f"{L.num_arcs:,} arcs",
        "LG": f"{LG.num_arcs:,} arcs",
        "det": f"{det.num_arcs:,} arcs",
        "lattice": f"{lattice.num_arcs:,} arcs",
    }
    runs: dict[str, tuple[str, Run]] = {
        "arc_sort, lexicon": (sizes["L"], lambda: k2.arc_sort(L)),
        "compose L∘G": (f"{L.num_arcs:,} × {G.num_arcs:,} → {LG.num_arcs:,} arcs", lambda: k2.compose(L_sorted, G_sorted)),
        "connect G": (f"{G.num_arcs:,} arcs", lambda: k2.connect(G_sorted)),
        "connect LG": (sizes["LG"], lambda: k2.connect(LG)),
        "determinize LG": (sizes["LG"], lambda: k2.determinize(LG)),
        "remove_epsilon LG": (sizes["det"], lambda: k2.remove_epsilon(det)),
        "ctc_graph, 64 × 60 symbols": ("", lambda: k2.ctc_graph(texts, device=device)),
        "linear_fsa, 64 × 60 symbols": ("", lambda: k2.linear_fsa(texts, device=device)),
        "add_epsilon_self_loops, 64 linear": ("", lambda: k2.add_epsilon_self_loops(linear)),
        "intersect_device, 64 texts × ctc_topo(500) labels": (
            "", lambda: k2.intersect_device(topology, linear, b_to_a)),
        "tot_scores + backward, log": (sizes["lattice"], lambda: total(True)),
        "tot_scores + backward, tropical": (sizes["lattice"], lambda: total(False)),
        "get_arc_post": (sizes["lattice"], lambda: lattice.get_arc_post(True, True)),
        "random_paths, 100 each": (sizes["lattice"], lambda: k2.random_paths(lattice, True, 100)),
        "shortest_path": (sizes["lattice"], lambda: k2.shortest_path(lattice, True)),
        "top_sort": (sizes["lattice"], lambda: k2.top_sort(lattice)),
        "prune_on_arc_post": (sizes["lattice"], lambda: k2.prune_on_arc_post(lattice, 0.01, True)),
    }  # fmt: skip
    if hasattr(k2, "minimize"):
        runs["push LG"] = (sizes["det"], lambda: k2.push(det))
        runs["minimize LG"] = (sizes["det"], lambda: k2.minimize(det))
    return runs


def openfst_cases(num_words: int = 1400, num_bigrams: int = 13_800) -> dict[str, Run]:
    """The same automata in OpenFst: runs that return a time of their own, copies left out."""
    import kaldifst

    L, G = inputs.lexicon(num_words).fsa(ops), ops.Fsa(inputs.grammar(num_words, num_bigrams))
    G.aux_labels = G.labels.clone()
    pairs = [to_openfst(kaldifst, ops.arc_sort(f)) for f in (L, G)]
    kaldifst.arcsort(pairs[0], sort_type="olabel")
    kaldifst.arcsort(pairs[1], sort_type="ilabel")
    LG = kaldifst.compose(pairs[0], pairs[1])
    acceptor = to_openfst(kaldifst, ops.determinize(ops.compose(ops.arc_sort(L), ops.arc_sort(G))), transducer=False)

    def in_place(fst: Any, run: Callable[[Any], Any]) -> Run:
        def timed() -> float:
            copy = kaldifst.StdVectorFst(fst)
            start = time.perf_counter()
            run(copy)
            return time.perf_counter() - start

        return timed

    return {
        "arc_sort, lexicon": in_place(to_openfst(kaldifst, L), lambda f: kaldifst.arcsort(f, sort_type="ilabel")),
        "compose L∘G": in_place(pairs[0], lambda f: kaldifst.compose(f, pairs[1])),
        "connect LG": in_place(LG, kaldifst.connect),
        "determinize LG": in_place(LG, kaldifst.determinize_star),
        "remove_epsilon LG": in_place(acceptor, kaldifst.rmepsilon),
        "minimize LG": in_place(acceptor, kaldifst.minimize_encoded),
    }


def to_openfst(kaldifst: Any, fsa: Any, transducer: bool = True) -> Any:
    """The final state's arcs become final costs."""
    fst = kaldifst.StdVectorFst()
    final = fsa.shape[0] - 1
    for _ in range(final):
        fst.add_state()
    fst.start = 0
    aux = fsa.aux_labels.tolist() if transducer else fsa.labels.tolist()
    for (src, dest, label), out, score in zip(fsa.arcs3.tolist(), aux, fsa.scores.tolist()):
        if dest == final:
            fst.set_final(src, -score)
        else:
            fst.add_arc(src, kaldifst.StdArc(label, out, -score, dest))
    return fst


def best_ms(run: Run, budget_s: float, device: str = "cpu", least: int = 3) -> float:
    """Milliseconds of the best run within the budget (`least` at least); a run may return its own seconds."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best, start, count = float("inf"), time.perf_counter(), 0
    while count < least or (time.perf_counter() - start < budget_s and count < 200):
        wait()
        begin = time.perf_counter()
        own = run()
        wait()
        best = min(best, own if isinstance(own, float) else time.perf_counter() - begin)
        count += 1
    return best * 1e3


def table(args: argparse.Namespace) -> str:
    ours = cases(ops, beam=args.beam, device=args.device)
    peers: dict[str, dict[str, Run]] = {}
    for name, make in (("k2", lambda: {n: r for n, (_, r) in cases(importlib.import_module("k2"), beam=args.beam).items()}),
                       ("kaldifst", openfst_cases))[:0 if args.device == "cuda" else 2]:  # fmt: skip
        try:
            peers[name] = make()
        except ImportError:
            print(f"{name} is not installed")
    columns = ["k2 1.24.4, CPU, noted", *peers]
    lines = [
        f"| algorithm | size | ops ms | {' | '.join(f'{c} ms' for c in columns)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for name, (size, run) in ours.items():
        if args.only not in name:
            continue
        mine = best_ms(run, args.seconds, args.device)
        noted = NOTED_K2_MS.get(name)
        ratio = "other lattice" if "lattice" in name or "paths" in name or "tot_scores" in name else ""
        cells = ["–" if noted is None else f"{noted:g} ({ratio or f'{noted / mine:.1f} ×'})"]
        for peer in peers.values():
            cells.append("–")
            if name in peer:
                theirs = best_ms(peer[name], args.seconds)
                cells[-1] = f"{theirs:.2f} ({theirs / mine:.1f} ×)"
        lines.append(f"| {name} | {size} | {mine:.2f} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return (
        "\n".join(lines)
        + "\n\nIn brackets: how many times as long as ops. The figure noted for connect is of 18,000 arcs "
        "of an automaton that was not noted.\n"
    )


def growth(args: argparse.Namespace) -> str:
    """Lexicons of rising size with a grammar of five times as many bigrams; the best run of half a second, or one."""
    sizes = [int(x) for x in args.growth.split(",")]
    steps = ["arc_sort", "compose", "connect", "determinize", "minimize"]
    lines = [f"| words | arcs of L, G, LG | {' | '.join(f'{s} s' for s in steps)} |", "|---" * (2 + len(steps)) + "|"]
    seconds: dict[str, list[float]] = {s: [] for s in steps}
    for n in sizes:
        L, G = inputs.lexicon(n).fsa(ops), ops.Fsa(inputs.grammar(n, 5 * n))
        state: dict[str, Any] = {"G": ops.arc_sort(G)}
        todo: dict[str, Run] = {
            "arc_sort": lambda L=L, state=state: state.update(L=ops.arc_sort(L)),
            "compose": lambda state=state: state.update(composed=ops.compose(state["L"], state["G"])),
            "connect": lambda state=state: state.update(LG=ops.connect(state["composed"])),
            "determinize": lambda state=state: state.update(det=ops.determinize(state["LG"])),
            "minimize": lambda state=state: ops.minimize(state["det"]),
        }
        for step, run in todo.items():
            seconds[step].append(best_ms(run, 0.5, least=1) / 1e3)
        sizes_text = ", ".join(f"{x:,}" for x in (L.num_arcs, G.num_arcs, state["LG"].num_arcs))
        lines.append(f"| {n:,} | {sizes_text} | {' | '.join(f'{seconds[s][-1]:.4f}' for s in steps)} |")
        print(lines[-1], flush=True)
    if args.plot:
        picture = Path(args.out or ".") / f"{datetime.date.today()}-fsa-growth.png"
        plot(sizes, seconds, picture)
        lines += ["", f"![seconds over words]({picture.name})"]
    return "\n".join(lines) + "\n"


def plot(sizes: list[int], seconds: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, values in seconds.items():
        axes.loglog(sizes, values, marker="o", label=name)
    axes.set(xlabel="words in the lexicon", ylabel="seconds")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    print(f"drew {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each figure")
    parser.add_argument("--beam", type=float, default=4.0, help="of the lattices: how large they get")
    parser.add_argument("--only", default="", help="algorithms whose name holds this")
    parser.add_argument(
        "--growth", help="numbers of words, for instance 2000,20000,200000: growth instead of the table"
    )
    parser.add_argument("--plot", action="store_true", help="draw the growth (matplotlib)")
    parser.add_argument("--out", help="directory for the dated report")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    title = "Growth" if args.growth else "FSA algorithms"
    text = f"## {title}, {args.device}, {args.threads} CPU thread(s), wall time\n\n{machine(args.device)}\n\n"
    text += f"    python benchmarks/ops/fsa.py {' '.join(sys.argv[1:])}\n\n"
    text += growth(args) if args.growth else table(args)
    if args.out:
        path = Path(args.out) / f"{datetime.date.today()}-fsa.md"
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        print(f"added to {path}")


if __name__ == "__main__":
    main()
