"""What do phrases cost? Seconds of modified_beam_search with lists of 0 to 10,000 phrases, and of making the automaton.

    python benchmarks/biasing.py [--batch 16] [--frames 250] [--beam 4] [--vocab 500]

A random model of the tiny size on noise; phrases of 2 to 8 random tokens, half of them beginning with tokens that the
plain search emits, so that phrases are met all the time. Best of --repeats. Prints markdown.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch

from toolkit.config import load
from toolkit.models.transducer import TransducerModel
from toolkit.search import modified_beam_search
from toolkit.search.biasing import BiasScorer, Phrase

REPO = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 16), ("frames", 250), ("beam", 4), ("vocab", 500), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    config = load(REPO / "conf")
    torch.manual_seed(0)
    model = TransducerModel(config.model, config.loss, args.vocab).eval()
    for p in (model.joiner.output.weight, model.joiner.decoder_proj.weight):
        p.data.mul_(4.0)
    model.joiner.output.bias.data[0] = 6.0
    encoder_out_NTD = torch.randn(args.batch, args.frames, config.model.encoder.dim)
    lens_N = torch.full((args.batch,), args.frames)
    plain = modified_beam_search(model, encoder_out_NTD, lens_N, args.beam)
    said = [result.best.tokens for result in plain]
    rng = random.Random(0)

    def phrase() -> Phrase:
        tokens = [rng.randrange(1, args.vocab) for _ in range(rng.randrange(2, 9))]
        if rng.random() < 0.5:
            where = rng.choice([y for y in said if len(y) > 2])
            start = rng.randrange(len(where) - 1)
            tokens[:2] = where[start : start + 2]
        return Phrase(tuple(tokens), 1.0)

    print(f"batch {args.batch}, {args.frames} frames, beam {args.beam}, {args.vocab} tokens, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}; {sum(map(len, said))} tokens emitted\n")  # fmt: skip
    print("| phrases | nodes | arcs | making, s | search, s | first search, s |\n|---:|---:|---:|---:|---:|---:|")
    for count in (None, 0, 10, 100, 1000, 10000):
        start = time.perf_counter()
        scorer = BiasScorer([[phrase() for _ in range(count)]], args.vocab) if count is not None else None
        making = time.perf_counter() - start
        seconds = []
        for _ in range(args.repeats + 1):
            start = time.perf_counter()
            modified_beam_search(model, encoder_out_NTD, lens_N, args.beam, scorers=[scorer] if scorer else [])
            seconds.append(time.perf_counter() - start)
        size = f"{scorer.num_states} | {len(scorer.keys_A)} | {making:.3f}" if scorer else " | | "
        print(f"| {'no scorer' if count is None else count} | {size} | {min(seconds[1:]):.3f} | {seconds[0]:.3f} |")


if __name__ == "__main__":
    main()
