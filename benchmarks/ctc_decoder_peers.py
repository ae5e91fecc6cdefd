"""The peers' side of benchmarks/ctc_decoder.py, run by a Python that has them: needs numpy, not torch.

    python benchmarks/ctc_decoder_peers.py TASK.json RESULT.json

TASK: tool (flashlight, pyctcdecode), data (a folder like ../shared/data/ctc), configs, lexicon_free, utterances (0: all),
nbest. RESULT: load_s (wall), peak_mib, base_mib, and for each config its CPU seconds and each utterance's hypotheses.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Decode = Callable[[np.ndarray], list[Any]]


def peak_mib() -> float:
    """The most memory that this process ever had, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def emissions(folder: Path, utterances: int) -> list[np.ndarray]:
    data = np.load(folder / "emissions_open.npz")
    ends = np.cumsum(data["length"])
    logp = data["logp"]
    return [logp[end - n : end] for n, end in zip(data["length"], ends)][: utterances or None]


def flashlight(folder: Path, lexicon_free: bool) -> Callable[[dict[str, Any]], Decode]:
    from flashlight.lib.text import decoder as fl
    from flashlight.lib.text.dictionary import Dictionary, create_word_dict, load_words

    tokens = Dictionary(str(folder / "tokens.txt"))
    sil, blank = tokens.get_index("|"), tokens.get_index("<b>")
    if lexicon_free:
        zero = fl.ZeroLM()

        def make_free(c: dict[str, Any]) -> Decode:
            limit = c.get("beam_size_token") or tokens.index_size()
            options = fl.LexiconFreeDecoderOptions(
                c["beam_size"], limit, c["beam_threshold"], 0.0, 0.0, c.get("log_add", False), fl.CriterionType.CTC
            )
            found = fl.LexiconFreeDecoder(options, zero, sil, blank, [])
            return lambda x: [[h.score, [], list(h.tokens)] for h in found.decode(x.ctypes.data, *x.shape)]

        return make_free
    from flashlight.lib.text.decoder.kenlm import KenLM

    with tempfile.NamedTemporaryFile(suffix=".txt", delete=False) as plain:
        plain.write(gzip.decompress((folder / "lexicon.txt.gz").read_bytes()))
    lexicon = load_words(plain.name)
    os.remove(plain.name)
    words = create_word_dict(lexicon)
    lm = KenLM(str(folder / "lm.bin"), words)
    trie = fl.Trie(tokens.index_size(), sil)
    start = lm.start(False)
    for word, spellings in lexicon.items():
        index = words.get_index(word)
        score = lm.score(start, index)[1]
        for spelling in spellings:
            trie.insert([tokens.get_index(token) for token in spelling], index, score)
    trie.smear(fl.SmearingMode.MAX)

    def make(c: dict[str, Any]) -> Decode:
        options = fl.LexiconDecoderOptions(
            c["beam_size"],
            c.get("beam_size_token") or tokens.index_size(),
            c["beam_threshold"],
            c["lm_weight"],
            c["word_score"],
            float("-inf"),
            0.0,
            c.get("log_add", False),
            fl.CriterionType.CTC,
        )
        found = fl.LexiconDecoder(options, trie, lm, sil, blank, words.get_index("<unk>"), [], False)

        def decode(x: np.ndarray) -> list[Any]:
            results = found.decode(x.ctypes.data, *x.shape)
            return [[h.score, [words.get_entry(w) for w in h.words if w >= 0], list(h.tokens)] for h in results]

        return decode

    return make


def pyctcdecode(folder: Path, lexicon_free: bool) -> Callable[[dict[str, Any]], Decode]:
    import logging

    from pyctcdecode import build_ctcdecoder

    logging.disable(logging.WARNING)
    lines = gzip.decompress((folder / "lexicon.txt.gz").read_bytes()).decode().splitlines()
    words = [line.split("\t")[0] for line in lines]
    labels = ["" if t == "<b>" else " " if t == "|" else t for t in (folder / "tokens.txt").read_text().split()]
    found = build_ctcdecoder(labels, str(folder / "lm.bin"), words)

    def make(c: dict[str, Any]) -> Decode:
        found.reset_params(alpha=c["alpha"], beta=c["beta"])
        settings = {key: c[key] for key in ("beam_width", "beam_prune_logp", "token_min_logp")}
        return lambda x: [[0.0, found.decode(x, **settings).split(), []]]

    return make


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(task["data"])
    inputs = [np.ascontiguousarray(x, dtype=np.float32) for x in emissions(folder, task["utterances"])]
    base = peak_mib()
    start = time.perf_counter()
    make = {"flashlight": flashlight, "pyctcdecode": pyctcdecode}[task["tool"]](folder, task["lexicon_free"])
    result: dict[str, Any] = {"load_s": time.perf_counter() - start, "base_mib": base, "runs": []}
    for config in task["configs"]:
        decode = make(config)
        start = time.process_time()
        outputs = [decode(x)[: task["nbest"]] for x in inputs]
        result["runs"].append({"config": config, "seconds": time.process_time() - start, "outputs": outputs})
    result["peak_mib"] = peak_mib()
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
