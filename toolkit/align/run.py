"""Align the transcripts of test sets: a checkpoint in, CTM and TextGrid files out."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from toolkit.align.ctc import align_ctc
from toolkit.align.files import ctm, textgrid
from toolkit.align.result import Alignment
from toolkit.align.transducer import align_transducer
from toolkit.config import Config
from toolkit.data.batch import Batch
from toolkit.eval.reports import write_text
from toolkit.search.result import FEATURE_FRAME_SECONDS
from toolkit.search.words import Word, to_words

log = logging.getLogger(__name__)


def align(config: Config) -> dict[str, list[str]]:
    """Align every part of config.corpus.test with the model of the run, by config.align.method.

    Writes into exp_dir/align-<method>: `<part>.ctm` (words), `<part>-tokens.ctm`, `<part>.jsonl` (tokens, frames, states),
    `<part>/<id>.TextGrid` and, where there are any, `<part>-failed.txt`: the ids of utterances that have no alignment, which
    the log names too. Returns those ids by part. Raises ValueError if the model lacks what the method needs.
    """
    from toolkit.data.datamodule import DataModule
    from toolkit.eval.decode import check_features, check_parts
    from toolkit.train.checkpoint import load_model
    from toolkit.train.distributed import choose_device

    check_parts(config)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    d, device = config.decoding, choose_device(config.trainer.device)
    model: Any
    model, tokenizer, trained = load_model(config.exp_dir, d.checkpoint, d.avg, d.use_averaged_model, device)
    check_features(config, trained)
    method = choose_method(config.align.method, trained)
    data = DataModule(config, tokenizer)
    folder = config.exp_dir / f"align-{method}"
    failed = {}
    for part in data.test_parts:
        aligner = Aligner(model, tokenizer, method, trained.loss.rnnt_type)
        found, durations = aligner.align_part(batch.to(device) for batch in data.test_batches(part))
        failed[part] = sorted(id for id, alignment in found.items() if alignment is None)
        write_alignments(folder, part, found, durations, tokenizer, model.subsampling_factor, config.align.textgrid)
        log.info("%s: %d of %d utterances aligned by %s; files in %s", part, len(found) - len(failed[part]), len(found),
                 method, folder)  # fmt: skip
        if failed[part]:
            log.warning("%s: no alignment (fewer frames than the transcript needs): %s", part, ", ".join(failed[part]))
    return failed


def choose_method(method: str, trained: Config) -> str:
    """ "auto" is the transducer where there is one; ValueError for a method that the model cannot do."""
    has = {"transducer": trained.model.transducer and trained.loss.pruned.used, "ctc": trained.model.ctc_head}
    if method == "auto":
        return "transducer" if has["transducer"] else "ctc"
    if not has[method]:
        raise ValueError(f"align.method={method}: the model was trained without (model.transducer, model.ctc_head)")
    return method


class Aligner:
    """Aligns batches with their own transcripts, by "ctc" or "transducer"."""

    def __init__(self, model: Any, tokenizer: Any, method: str, rnnt_type: str = "regular") -> None:
        self.model, self.tokenizer, self.method, self.rnnt_type = model, tokenizer, method, rnnt_type

    @torch.inference_mode()
    def align_batch(self, batch: Batch) -> list[Alignment | None]:
        encoder_out_NTD, lens_N = self.model.encode(batch.features_NTF.float(), batch.feature_lens_N)
        arguments = self.model, encoder_out_NTD.float(), lens_N, batch.tokens_NU, batch.token_lens_N
        return align_ctc(*arguments) if self.method == "ctc" else align_transducer(*arguments, self.rnnt_type)

    def align_part(self, batches: Iterable[Batch]) -> tuple[dict[str, Alignment | None], dict[str, float]]:
        """(alignments, seconds of audio) by utterance id."""
        found: dict[str, Alignment | None] = {}
        durations: dict[str, float] = {}
        for batch in batches:
            found.update(zip(batch.ids, self.align_batch(batch)))
            durations.update(zip(batch.ids, (batch.feature_lens_N * FEATURE_FRAME_SECONDS).tolist()))
        return found, durations


def write_alignments(
    folder: Path, part: str, found: dict[str, Alignment | None], durations: dict[str, float], tokenizer: Any,
    subsampling_factor: int, textgrids: bool = True,
) -> None:  # fmt: skip
    """The files of one part; see `align`."""
    folder.mkdir(parents=True, exist_ok=True)
    words: dict[str, list[Word]] = {}
    tokens: dict[str, list[Word]] = {}
    lines = []
    for id, alignment in sorted(found.items()):
        if alignment is None:
            continue
        words[id] = to_words(alignment.hypothesis, tokenizer, subsampling_factor)
        tokens[id] = token_words(alignment, tokenizer, subsampling_factor)
        lines.append(json.dumps({"id": id, **asdict(alignment)}) + "\n")
    write_text(folder / f"{part}.ctm", ctm(words))
    write_text(folder / f"{part}-tokens.ctm", ctm(tokens))
    write_text(folder / f"{part}.jsonl", "".join(lines))
    failed = folder / f"{part}-failed.txt"
    failed.unlink(missing_ok=True)
    if len(words) < len(found):
        write_text(failed, "".join(f"{id}\n" for id, alignment in sorted(found.items()) if alignment is None))
    if not textgrids:
        return
    (folder / part).mkdir(exist_ok=True)
    for id in words:
        tiers = {"words": words[id], "tokens": tokens[id]}
        rows = {name: [(w.start, w.end, w.text) for w in tier] for name, tier in tiers.items()}
        write_text(folder / part / f"{id.replace('/', '_')}.TextGrid", textgrid(rows, durations[id]))


def token_words(alignment: Alignment, tokenizer: Any, subsampling_factor: int) -> list[Word]:
    """Each token as if it were a word, so that files of tokens look like files of words."""
    seconds = subsampling_factor * FEATURE_FRAME_SECONDS
    columns = zip(alignment.tokens, alignment.starts, alignment.ends, alignment.log_probs)
    return [
        Word(tokenizer.tokens[t], round(start * seconds, 3), round(end * seconds, 3), round(math.exp(min(0.0, x)), 4))
        for t, start, end, x in columns
    ]
