"""Seconds and peak memory of language material: LG and HLG by the size of the lexicon, n-gram training by words of text.

    python benchmarks/lang.py graphs 2000 20000 200000        # phones of cmudict, 3-gram of lm_text; needs ../shared
    python benchmarks/lang.py graphs 20000 --minimize --decode 50
    python benchmarks/lang.py ngram 1000000 10000000

Every row is a process of its own, so that its peak memory is its own; it begins with about 230 MB for torch itself. The
20,000 words are the text's 11,000 and words that it lacks; beyond cmudict's 126,000 words, spellings are made up.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import ops
from toolkit.lang import Lexicon, make_hlg, train_ngram

SHARED = Path(os.environ.get("LATTICA_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def sentences() -> list[str]:
    with gzip.open(SHARED / "data/lm_text.txt.gz", "rt", encoding="utf-8") as f:
        return f.read().splitlines()


def lexicon_of(num_words: int, text: list[str]) -> Lexicon:
    """The text's words that cmudict knows, then others of cmudict, then made-up ones."""
    cmu = Lexicon.load_cmudict(SHARED / "data/cmudict-en-us.dict.gz")
    known = set(cmu.words)
    frequency = Counter(word for sentence in text for word in sentence.split())
    words = [word for word, _ in frequency.most_common() if word in known][:num_words]
    rest = sorted(known - set(words))
    missing = num_words - len(words)
    words += rest[:: max(1, len(rest) // max(missing, 1))][:missing]
    rng, phones = np.random.default_rng(0), cmu.tokens
    made_up = [(f"WORD{i}", rng.choice(phones, rng.integers(4, 11)).tolist()) for i in range(num_words - len(words))]
    chosen = set(words)
    return Lexicon([*(entry for entry in cmu.entries if entry[0] in chosen), *made_up])


def graph_row(num_words: int, minimize: bool, decode: int) -> dict[str, float | int | str]:
    text = sentences()
    lexicon = lexicon_of(num_words, text)
    with tempfile.TemporaryDirectory() as folder:
        model = train_ngram(text, 3, Path(folder) / "lm.arpa", vocabulary=lexicon.words)
        lm = ops.NgramLM.load(Path(folder) / "lm.arpa", cache=False)
    before, begin = peak_mb(), time.perf_counter()
    graph = make_hlg(lexicon, lm, lexicon.token_table(), minimize=minimize)
    row: dict[str, float | int | str] = {
        "words": len(lexicon.words), "spellings": len(lexicon), "n-grams": sum(model.num_ngrams),
        "HLG states": graph.shape[0] or 0, "HLG arcs": graph.num_arcs,
        "seconds": round(time.perf_counter() - begin, 1), "MB before": before, "peak MB": peak_mb(),
    }  # fmt: skip
    return row | (decoded(graph, lexicon, text[:: len(text) // decode][:decode]) if decode else {})


def decoded(graph: ops.Fsa, lexicon: Lexicon, references: list[str]) -> dict[str, float | int | str]:
    """Word errors on frame scores made of the references' phones, two frames each, with noise; and frames a second."""
    spellings, tokens = lexicon.spellings(), lexicon.token_table()
    table, rng = lexicon.word_table(), torch.Generator().manual_seed(0)
    references = [" ".join(w for w in r.split() if w in spellings) for r in references]
    errors = frames = 0
    begin = time.perf_counter()
    for reference in references:
        phones = [tokens[phone] for word in reference.split() for phone in spellings[word][0]]
        labels = [label for phone in phones for label in (phone, phone, 0)]
        logits = torch.randn(len(labels), len(tokens), generator=rng) + 4.5 * torch.eye(len(tokens))[labels]
        lattice = ops.get_lattice(logits.log_softmax(1)[None], torch.tensor([len(labels)]), graph, 16, 6, 30, 3000)
        words = [table[i] for i in ops.get_aux_labels(ops.one_best_decoding(lattice))[0]]
        errors += distance(words, reference.split())
        frames += len(labels)
    total = sum(len(r.split()) for r in references)
    return {"WER of made-up frames": f"{errors / total:.1%}", "frames/s": round(frames / (time.perf_counter() - begin))}


def distance(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(diagonal + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def ngram_row(num_words: int) -> dict[str, float | int | str]:
    """Text of two-word chains through lm_text, with one word in twenty drawn from 200,000 others by Zipf's law."""
    rng = np.random.default_rng(0)
    text = " ".join(sentences()).split()
    names, ids = np.unique(np.array(text, dtype=object), return_inverse=True)
    places = np.argsort(ids, kind="stable")
    begin = np.searchsorted(ids[places], np.arange(names.size + 1))
    length = 18
    chain = np.zeros((length, num_words // length), dtype=np.int64)
    chain[0] = rng.choice(ids, chain.shape[1])
    for i in range(1, length):
        low, high = begin[chain[i - 1]], begin[chain[i - 1] + 1]
        chain[i] = ids[(places[low + rng.integers(0, 2**31, low.size) % (high - low)] + 1) % ids.size]
    rare = 1 / np.arange(1, 200_001)
    drawn = rng.choice(rare.size, chain.size, p=rare / rare.sum()).reshape(chain.shape) + names.size
    chain = np.where(rng.random(chain.shape) < 0.05, drawn, chain)
    everything = np.concatenate([names, np.array([f"RARE{i}" for i in range(rare.size)], dtype=object)])
    lines = [" ".join(everything[column]) for column in chain.T]
    before, start = peak_mb(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = train_ngram(lines, 3, Path(folder) / "lm.arpa.gz")
    return {"words": num_words, "n-grams": " + ".join(f"{n:,}" for n in model.num_ngrams),
            "seconds": round(time.perf_counter() - start, 1), "MB before": before, "peak MB": peak_mb()}  # fmt: skip


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["graphs", "ngram"])
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--minimize", action="store_true")
    parser.add_argument("--decode", type=int, default=0, help="sentences to decode")
    parser.add_argument("--one", action="store_true", help="print one row as JSON (what every child does)")
    args = parser.parse_args()
    if args.one:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        size = args.sizes[0]
        print(json.dumps(ngram_row(size) if args.what == "ngram" else graph_row(size, args.minimize, args.decode)))
        return
    for i, size in enumerate(args.sizes):
        options = [*(["--minimize"] if args.minimize else []), f"--decode={args.decode}", "--one"]
        command = [sys.executable, __file__, args.what, str(size), *options]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        if i == 0:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
        print(f"| {' | '.join(f'{v:,}' if isinstance(v, int) else str(v) for v in row.values())} |", flush=True)


if __name__ == "__main__":
    main()
