"""Try many settings of the CTC beam search on the validation set: a table, and a drawing of WER against time.

The encoder runs once; the settings are decoded beside each other, one thread each.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops import NgramLM
from toolkit.config import Config, CtcBeamConfig
from toolkit.eval.decode import check_features
from toolkit.eval.reports import write_text
from toolkit.eval.wer import Utterance, word_errors
from toolkit.search.ctc_beam import decode_log_probs, make_decoder, prepared

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepRow:
    config: CtcBeamConfig
    wer: float  # per cent
    seconds: float  # of one CPU thread

    @property
    def settings(self) -> str:
        c = self.config
        return f"beam_size {c.beam_size}, lm_weight {c.lm_weight:g}, word_score {c.word_score:g}"


def sweep(config: Config) -> list[SweepRow]:
    """Decode config.corpus.valid with all combinations of decoding.ctc_beam.sweep_…; best WER first.

    Writes exp_dir/ctc-beam-sweep/sweep.md and, where matplotlib is installed, frontier.png.
    Raises ValueError if the model has no CTC head or there is nothing to decode.
    """
    from toolkit.data.datamodule import DataModule
    from toolkit.train.checkpoint import load_model
    from toolkit.train.distributed import choose_device

    d = dataclasses.replace(config.decoding, methods=["ctc_beam"])
    device = choose_device(config.trainer.device)
    model, tokenizer, trained = load_model(config.exp_dir, d.checkpoint, d.avg, d.use_averaged_model, device)
    if not trained.model.ctc_head:
        raise ValueError("the CTC beam search needs a model with a CTC head; this one has none (model.ctc_head=false)")
    check_features(config, trained)
    folder = config.exp_dir / "ctc-beam-sweep"
    folder.mkdir(parents=True, exist_ok=True)
    settings = prepared(d, tokenizer, folder).ctc_beam
    batches, texts = _emissions(model, DataModule(config, tokenizer).valid_batches(), device)
    if not texts:
        raise ValueError(f"corpus.valid={config.corpus.valid}: nothing to decode")
    threads = config.trainer.threads or torch.get_num_threads()
    rows = sorted(decode_all(grid(settings), batches, texts, tokenizer, threads), key=lambda r: (r.wer, r.seconds))
    table = sweep_table(rows)
    write_text(folder / "sweep.md", table)
    draw(rows, folder / "frontier.png")
    print(table, flush=True)
    log.info("results are in %s", folder)
    return rows


@torch.inference_mode()
def _emissions(model: Any, valid: Any, device: torch.device) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """The CTC head's log-probabilities, on the CPU, of all batches, and what was said."""
    batches, texts = [], []
    for batch in valid:
        batch = batch.to(device)
        encoder_out_NTD, lens_N = model.encode(batch.features_NTF.float(), batch.feature_lens_N)
        batches.append((model.ctc_log_probs(encoder_out_NTD.float()).cpu(), lens_N.cpu()))
        texts += batch.texts
    return batches, texts


def grid(c: CtcBeamConfig) -> list[CtcBeamConfig]:
    """All combinations; without an LM its weight does not matter."""
    weights = c.sweep_lm_weight if c.lm else [0.0]
    scores = c.sweep_word_score if c.lexicon else [0.0]
    return [
        dataclasses.replace(c, beam_size=beam, lm_weight=weight, word_score=score)
        for beam, weight, score in itertools.product(c.sweep_beam_size, weights, scores)
    ]


def decode_all(
    configs: Sequence[CtcBeamConfig],
    batches: Sequence[tuple[Tensor, Tensor]],
    texts: Sequence[str],
    tokenizer: Any,
    threads: int,
) -> list[SweepRow]:
    """`threads` settings at a time. A setting is timed by its own thread's clock, so neighbours do not count."""
    lm = NgramLM.load(configs[0].lm) if configs and configs[0].lm else None

    def run(c: CtcBeamConfig) -> SweepRow:
        decoder = make_decoder(c, lm)
        start = time.thread_time()
        results = [result for log_probs, lens in batches for result in decode_log_probs(decoder, log_probs, lens)]
        seconds = time.thread_time() - start
        hyps = [r.best.words if r.best.words is not None else tokenizer.decode(r.best.tokens).split() for r in results]
        errors = word_errors([Utterance(str(i), ref.split(), hyp) for i, (ref, hyp) in enumerate(zip(texts, hyps))])
        row = SweepRow(c, errors.wer, seconds)
        log.info("%s: WER %.2f %%, %.2f s", row.settings, row.wer, row.seconds)
        return row

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            return list(pool.map(run, configs))
    finally:
        torch.set_num_threads(before)


def frontier(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Those that no other beats in both time and WER, fastest first."""
    best: list[SweepRow] = []
    for row in sorted(rows, key=lambda r: (r.seconds, r.wer)):
        if not best or row.wer < best[-1].wer:
            best.append(row)
    return best


def sweep_table(rows: Sequence[SweepRow]) -> str:
    """Best WER first; ★ marks the frontier."""
    on = {id(row) for row in frontier(rows)}
    lines = ["| beam_size | lm_weight | word_score | WER % | CPU s | frontier |", "|---|---|---|---|---|---|"]
    for r in rows:
        c = r.config
        star = "★" if id(r) in on else ""
        lines.append(f"| {c.beam_size} | {c.lm_weight:g} | {c.word_score:g} | {r.wer:.2f} | {r.seconds:.3f} | {star} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[SweepRow], path: Path) -> None:
    """WER against time, and the frontier as a line. Says so and draws nothing without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        log.warning("no %s: pip install matplotlib", path.name)
        return
    figure, axes = plt.subplots(figsize=(6, 4), dpi=100)
    for beam in sorted({r.config.beam_size for r in rows}):
        own = [r for r in rows if r.config.beam_size == beam]
        axes.plot([r.seconds for r in own], [r.wer for r in own], "o", markersize=4, alpha=0.5, label=f"beam {beam}")
    line = frontier(rows)
    axes.plot([r.seconds for r in line], [r.wer for r in line], "k-", linewidth=1, label="frontier")
    axes.set(xscale="log", xlabel="seconds of one thread", ylabel="WER %")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
