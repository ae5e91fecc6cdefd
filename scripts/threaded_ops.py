"""Drive every threaded FSA kernel on several threads, and check that the results are those of one; for ThreadSanitizer."""

from __future__ import annotations

import random

import torch

import ops as k2


def run() -> list[torch.Tensor]:
    random.seed(0)
    torch.manual_seed(0)
    parts = []
    for i in range(24):
        length = 5 + i
        rows = [f"{s} {s + 1} {random.randint(0, 3)} {random.random():.3f}" for s in range(length) for _ in range(3)]
        parts.append(k2.Fsa.from_str("\n".join([*rows, f"{length} {length + 1} -1 0", str(length + 1)])))
    fsas = k2.create_fsa_vec(parts)
    pruned = k2.create_fsa_vec([k2.linear_fsa([1, 2, 3])] * 24)
    results = [
        k2.connect(fsas), k2.top_sort(fsas), k2.arc_sort(fsas), k2.remove_epsilon(fsas), k2.minimize(fsas),
        k2.determinize(k2.remove_epsilon(fsas)), k2.intersect(fsas, fsas[0]), k2.intersect(fsas, pruned),
        k2.push(fsas, True), k2.shortest_path(fsas, True),
    ]  # fmt: skip
    out = [t for f in results for t in (f.arcs3, f.scores)]
    out += [k2.random_paths(fsas, True, 20).values, fsas.get_arc_post(True, True)]
    tokens = [[1 + (i + j) % 4 for j in range(1 + i % 6)] for i in range(24)]
    log_probs = torch.randn(24, 20, 5).log_softmax(-1).requires_grad_()
    segments = torch.tensor([[i, 0, 20] for i in range(24)], dtype=torch.int32)
    dense = k2.DenseFsaVec(log_probs, segments)
    graphs = k2.ctc_graph(tokens)
    lattice = k2.intersect_dense_pruned(graphs, dense, 10.0, 8.0, 5, 50)
    exact = k2.intersect_dense(graphs, dense, 8.0)
    loss = k2.ctc_loss(graphs, dense, 8.0, reduction="sum") + lattice.get_tot_scores(True, True).sum()
    loss.backward()
    assert log_probs.grad is not None
    return [*out, lattice.arcs3, exact.arcs3, exact.scores.detach(), log_probs.grad]


def main() -> None:
    torch.set_num_threads(1)
    expected = run()
    torch.set_num_threads(4)
    for _ in range(3):
        for x, y in zip(expected, run(), strict=True):
            if not torch.equal(x, y):
                raise SystemExit("results depend on the number of threads")
    print(f"{len(expected)} results are the same on one thread and on four")


if __name__ == "__main__":
    main()
