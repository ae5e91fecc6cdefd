"""Drive the threaded kernels on several threads, and check that the results are those of one; for ThreadSanitizer."""

from __future__ import annotations

import dataclasses
import os
import random

import torch

import ops as k2
from ops import rnnt_decode_batch


def automata() -> list[torch.Tensor]:
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
    index = torch.arange(24, dtype=torch.int32)
    batch = torch.ops.lattica.fsa_intersect_dense_batch(
        *graphs.splits(),
        graphs.arcs3,
        graphs.scores,
        log_probs.detach(),
        segments,
        index,
        index,
        10.0,
        8.0,
        5,
        9,
        True,
        True,
    )
    loss = k2.ctc_loss(graphs, dense, 8.0, reduction="sum") + lattice.get_tot_scores(True, True).sum()
    loss.backward()
    assert log_probs.grad is not None
    return [*out, lattice.arcs3, *batch, exact.arcs3, exact.scores.detach(), log_probs.grad]


def transducers() -> list[torch.Tensor]:
    N, T, S, V, C = 12, 15, 6, 9, 8
    am, lm = torch.randn(N, T, V, requires_grad=True), torch.randn(N, S + 1, V, requires_grad=True)
    symbols = torch.randint(1, V, (N, S))
    boundary = torch.tensor([[0, 0, 1 + i % S, T - i % 5] for i in range(N)])
    loss, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
        lm, am, symbols, 0, lm_only_scale=0.25, boundary=boundary, return_grad=True, reduction="sum"
    )
    ranges = k2.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 4)
    am_pruned, lm_pruned = k2.do_rnnt_pruning(am, lm, ranges)
    pruned = k2.rnnt_loss_pruned(torch.tanh(am_pruned + lm_pruned), symbols, ranges, 0, boundary, reduction="sum")
    am_C, lm_C = torch.randn(N, T, C, requires_grad=True), torch.randn(N, S + 1, C, requires_grad=True)
    weight, bias = torch.randn(V, C, requires_grad=True), torch.randn(V, requires_grad=True)
    fused = k2.rnnt_loss_pruned_fused(am_C, lm_C, ranges, weight, bias, symbols, 0, boundary, reduction="sum")
    (loss + pruned + fused).backward()
    grads = [x.grad for x in (am, lm, am_C, lm_C, weight, bias)]
    return [loss.detach(), pruned.detach(), fused.detach(), *[g for g in grads if g is not None]]


def lattices(config: k2.RnntDecodingConfig, n: int, padded: bool) -> k2.Fsa:
    streams = k2.RnntDecodingStreams([k2.RnntDecodingStream(k2.trivial_graph(4)) for _ in range(n)], config, padded)
    for _ in range(10):
        shape, _ = streams.get_contexts()
        streams.advance(torch.randn(shape.numel(), 5).log_softmax(-1))
    streams.terminate_and_flush_to_streams()
    return streams.format_output([10] * n)


def searches() -> list[torch.Tensor]:
    config = k2.RnntDecodingConfig(vocab_size=5, decoder_history_len=1, beam=6.0, max_states=16, max_contexts=4)
    lattice, padded = lattices(config, 12, False), []
    for k2_order, together in ((False, 1), (False, 3), (True, 3)):  # what a GPU does, each utterance by some threads
        rnnt_decode_batch.BLOCK_SIZE["cpu"] = together
        torch.manual_seed(1)
        made = lattices(dataclasses.replace(config, max_states=4, count_last_frame=not k2_order), 4, True)
        padded += [made.arcs3, made.scores]
    torch.testing.assert_close(padded[:2], padded[2:4])
    decoder = k2.ctc_decoder(None, ["-", "a", "b", "|"], blank_token="-", sil_token="|", nbest=3, beam_size=10)
    found = [hyp for hyps in decoder(torch.randn(12, 20, 4).log_softmax(-1)) for hyp in hyps]
    return [
        lattice.arcs3,
        lattice.scores,
        *padded,
        *[hyp.tokens for hyp in found],
        torch.tensor([hyp.score for hyp in found]),
    ]


def run() -> list[torch.Tensor]:
    random.seed(0)
    torch.manual_seed(0)
    return automata() + searches() + transducers()


def main() -> None:
    os.environ.pop(
        "LD_PRELOAD", None
    )  # a shell, which asks the compiler's version, does not survive ThreadSanitizer's runtime
    torch.set_num_threads(1)
    expected = run()
    torch.set_num_threads(4)
    for _ in range(3):
        for x, y in zip(expected, run(), strict=True):
            # Torch's own sums, around the losses, do depend on the number of threads in their last digit.
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    print(f"{len(expected)} results are the same on one thread and on four")


if __name__ == "__main__":
    main()
