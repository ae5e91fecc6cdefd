"""Cells of tables: one search with one setting, of one model on one test set, measured once and kept.

A cell's result lies in a file named after all that it depends on (checkpoint, search, settings, utterances), so that a
command that was stopped goes on where it was, and a changed setting is measured anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kaldialign
import torch

from toolkit.config import Config, DecodingConfig
from toolkit.eval.decode import with_graph
from toolkit.eval.findings import Counts
from toolkit.eval.reports import write_text
from toolkit.eval.wer import Utterance, WordErrors, word_errors
from toolkit.search import SEARCHES
from toolkit.train.checkpoint import checkpoint_path, load_model

log = logging.getLogger(__name__)
VERSION = 1  # of what is in a cell's file


@dataclass(frozen=True)
class Cell:
    """A search (a name of SEARCHES) with changes to the decoding config, for the model of one experiment."""

    experiment: str
    method: str
    options: tuple[tuple[str, Any], ...] = ()  # changes to DecodingConfig
    timing: str = ""  # "batched" or "unbatched": seconds of the whole, several times, instead of errors

    def decoding(self, base: DecodingConfig) -> DecodingConfig:
        options = dict(self.options)
        graph = options.pop("graph", None)
        if graph is not None:
            options["fast_beam"] = dataclasses.replace(base.fast_beam, graph=graph)
        return dataclasses.replace(base, methods=[self.method], **options)


@dataclass
class Result:
    """What a cell's file holds."""

    counts: dict[str, Counts] = field(default_factory=dict)  # by test part
    errors: dict[str, WordErrors] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # encoder and search, each repeat
    search_seconds: list[float] = field(default_factory=list)
    audio_seconds: float = 0.0


class Laboratory:
    """Measures cells. Models and encoder outputs are loaded when a cell needs them that has not been measured before."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder / "cells"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._model: tuple[Any, Any] | None = None
        self._encoded: dict[str, list[Any]] = {}

    def experiment_dir(self, experiment: str) -> Path:
        return Path(self.config.exp_root) / experiment

    def has(self, experiment: str) -> bool:
        return checkpoint_path(self.experiment_dir(experiment), self.config.decoding.checkpoint).is_file()

    def measure(self, cell: Cell) -> Result | None:
        """The result of a cell, from its file or measured now; None if there is no such model."""
        if not self.has(cell.experiment):
            return None
        path = self.folder / f"{self._key(cell)}.json"
        if path.is_file():
            return _from_json(json.loads(path.read_text()))
        log.info(
            "%s: %s %s%s", cell.experiment, cell.method, dict(cell.options), f", {cell.timing}" * bool(cell.timing)
        )
        result = self._time(cell) if cell.timing else self._decode(cell)
        write_text(path, json.dumps({"cell": dataclasses.asdict(cell), **dataclasses.asdict(result)}, indent=1) + "\n")
        return result

    def _key(self, cell: Cell) -> str:
        tables, corpus = self.config.tables, self.config.corpus
        timing = (tables.timing_utterances, tables.timing_repeats, torch.get_num_threads()) if cell.timing else ()
        depends = {
            "version": VERSION,
            "cell": dataclasses.asdict(cell),
            "checkpoint": self._checkpoint(cell.experiment),
            "decoding": dataclasses.asdict(cell.decoding(self.config.decoding)),
            "test": (corpus.name, corpus.test, tables.max_utterances, self.config.data.max_seconds),
            "timing": timing,
        }
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        return f"{cell.experiment}-{cell.method}{'-' * bool(cell.timing)}{cell.timing}-{digest}"

    # -------------------------------------------------------------------------------------------------------- measuring

    def _checkpoint(self, experiment: str) -> tuple[int, int]:
        """What tells a checkpoint from one that replaces it: a run may still be training while it is measured."""
        file = checkpoint_path(self.experiment_dir(experiment), self.config.decoding.checkpoint).stat()
        return file.st_size, file.st_mtime_ns

    def model(self, experiment: str) -> Any:
        """(model, tokenizer) of an experiment; one at a time is kept, as long as its checkpoint is the same."""
        loaded = (experiment, self._checkpoint(experiment))
        if self._model is None or self._model[0] != loaded:
            d = self.config.decoding
            model, tokenizer, _ = load_model(
                self.experiment_dir(experiment), d.checkpoint, d.avg, d.use_averaged_model, self.device
            )
            self._model, self._encoded = (loaded, (model, tokenizer)), {}
        return self._model[1]

    @property
    def device(self) -> torch.device:
        from toolkit.train.distributed import choose_device

        return choose_device(self.config.trainer.device)

    def _batches(self, tokenizer: Any, part: str, limit: int | None, max_duration: float) -> list[Any]:
        from toolkit.data.datamodule import DataModule

        decoding = dataclasses.replace(self.config.decoding, max_duration=max_duration)
        data = DataModule(dataclasses.replace(self.config, decoding=decoding), tokenizer)
        batches, count = [], 0
        for batch in data.test_batches(part):
            if limit is not None and count + len(batch) > limit:
                batch = batch.take(torch.arange(limit - count))
            count += len(batch)
            if len(batch):
                batches.append(batch)
        return batches

    @torch.inference_mode()
    def _decode(self, cell: Cell) -> Result:
        model, tokenizer = self.model(cell.experiment)
        d, result = with_graph(cell.decoding(self.config.decoding), tokenizer, self.folder), Result()
        for part in self.config.corpus.test:
            if part not in self._encoded:
                batches = self._batches(tokenizer, part, self.config.tables.max_utterances, d.max_duration)
                self._encoded[part] = [(b.ids, b.texts, *_encode(model, b, self.device)) for b in batches]
            utterances = []
            for ids, texts, encoder_out_NTD, lens_N in self._encoded[part]:
                found = SEARCHES[cell.method](model, encoder_out_NTD, lens_N, d)
                for id, text, one in zip(ids, texts, found):
                    utterances.append(Utterance(id, text.split(), tokenizer.decode(one.best.tokens).split()))
            utterances.sort(key=lambda u: u.id)
            errors = [kaldialign.edit_distance(u.ref, u.hyp)["total"] for u in utterances]
            result.counts[part] = Counts(errors, [len(u.ref) for u in utterances])
            result.errors[part] = word_errors(utterances)
        return result

    @torch.inference_mode()
    def _time(self, cell: Cell) -> Result:
        """The first test part, several times over, after one batch to warm up; features are at hand beforehand."""
        model, tokenizer = self.model(cell.experiment)
        tables, d = self.config.tables, with_graph(cell.decoding(self.config.decoding), tokenizer, self.folder)
        part, single = self.config.corpus.test[0], cell.timing == "unbatched"
        limit = tables.timing_utterances if single else tables.max_utterances
        batches = self._batches(tokenizer, part, limit, d.max_duration)
        if single:
            batches = [b.take(torch.tensor([i])) for b in batches for i in range(len(b))]
        result = Result(audio_seconds=sum(0.01 * int(b.feature_lens_N.sum()) for b in batches))
        for repeat in range(tables.timing_repeats + 1):
            encoder, search = 0.0, 0.0
            for batch in batches if repeat else batches[:1]:
                start = self._now()
                encoder_out_NTD, lens_N = _encode(model, batch, self.device)
                middle = self._now()
                SEARCHES[cell.method](model, encoder_out_NTD, lens_N, d)
                encoder, search = encoder + middle - start, search + self._now() - middle
            if repeat:
                result.seconds.append(encoder + search)
                result.search_seconds.append(search)
        return result

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _encode(model: Any, batch: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    batch = batch.to(device)
    encoder_out_NTD, lens_N = model.encode(batch.features_NTF.float(), batch.feature_lens_N)
    return encoder_out_NTD.float(), lens_N


def _from_json(kept: dict[str, Any]) -> Result:
    errors = {}
    for part, values in kept["errors"].items():
        ci95 = values.pop("ci95")
        errors[part] = WordErrors(**values, ci95=tuple(ci95) if ci95 else None)
    counts = {part: Counts(**values) for part, values in kept["counts"].items()}
    return Result(counts, errors, kept["seconds"], kept["search_seconds"], kept["audio_seconds"])
