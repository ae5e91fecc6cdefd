"""Decode test sets: a checkpoint in, result files and a WER table out.

Model config and tokens come from the checkpoint and nowhere else; the given config says what to decode (corpus, parts,
batch sizes) and how (config.decoding).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from toolkit.config import Config, DecodingConfig
from toolkit.data.batch import Batch
from toolkit.eval.reports import ResultRow, markdown_table, write_reports, write_text
from toolkit.eval.wer import Utterance, word_errors
from toolkit.search import ORACLES, SEARCHES, Word, check_methods, to_words
from toolkit.search.ctc_beam import prepared
from toolkit.search.graphs import phrase_graph, read_phrases, save_graph

log = logging.getLogger(__name__)

LOG_SECONDS = 10.0  # between two lines of progress


def decode(config: Config) -> list[ResultRow]:
    """Decode every part of config.corpus.test by every method of config.decoding.methods.

    Writes recogs-, errs-, wer-summary- and timestamps- files and wer.md into `output_dir(config)`, prints the table,
    returns its rows. Before anything is decoded it raises ValueError on an unknown method, a method that the model has
    no head for, or features of another kind than the model was trained on; FileNotFoundError if there is no such
    checkpoint or a part has not been prepared.
    """
    from toolkit.data.datamodule import DataModule
    from toolkit.train.checkpoint import load_model
    from toolkit.train.distributed import choose_device

    d = config.decoding
    check_methods(d.methods, has_ctc=True)  # a typo is said before the checkpoint is even looked for
    check_parts(config)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = choose_device(config.trainer.device)
    model, tokenizer, trained = load_model(config.exp_dir, d.checkpoint, d.avg, d.use_averaged_model, device)
    check_methods(d.methods, trained.model.ctc_head, has_transducer=trained.loss.pruned.used)
    check_features(config, trained)
    data = DataModule(config, tokenizer)

    folder = output_dir(config)
    folder.mkdir(parents=True, exist_ok=True)
    d = prepared(with_graph(d, tokenizer, folder), tokenizer, folder)
    rows: list[ResultRow] = []
    for part in data.test_parts:
        rows += decode_part(model, tokenizer, part, data.test_batches(part), d, device, folder)
    table = markdown_table(rows)
    write_text(folder / "wer.md", describe(config, device) + "\n" + table)
    print(table, flush=True)
    log.info("results are in %s", folder)
    return rows


def output_dir(config: Config) -> Path:
    """exp_dir/decode-<checkpoint>-avg<N>, marked where the plain weights were taken instead of the running average."""
    d = config.decoding
    return config.exp_dir / f"decode-{Path(d.checkpoint).stem}-avg{d.avg}{'' if d.use_averaged_model else '-plain'}"


def check_parts(config: Config) -> None:
    """Raise unless every test part has been prepared: not found out when the parts before it have been decoded."""
    from toolkit.data.prepare import part_manifest

    if not config.corpus.test:
        raise ValueError("corpus.test is empty: there is nothing to decode")
    missing = [part for part in config.corpus.test if not part_manifest(config, part).is_file()]
    if missing:
        raise FileNotFoundError(
            f"corpus.test: {', '.join(missing)} not prepared (no {part_manifest(config, missing[0])}): run "
            "recipes/librispeech/prepare.sh with the same overrides first"
        )


def check_features(config: Config, trained: Config) -> None:
    """Raise ValueError where the features to be decoded are not of the kind that the model was trained on."""
    for key in ("num_mel_bins", "sampling_rate"):
        ours, theirs = getattr(config.features, key), getattr(trained.features, key)
        if ours != theirs:
            raise ValueError(f"features.{key}={ours}: the model was trained with {theirs}")


def with_graph(d: DecodingConfig, tokenizer: Any, folder: Path) -> DecodingConfig:
    """Where d.fast_beam.graph is a list of phrases: compile it to folder/graph.pt, and name that instead.

    Raises FileNotFoundError if there is no such file, ValueError naming a phrase that the tokens cannot spell.
    """
    graph = d.fast_beam.graph
    if graph is None:
        needing = [m for m in d.methods if m.startswith("fast_beam_search") and m.endswith("_LG")]
        if needing:
            raise ValueError(f"decoding.fast_beam.graph: {', '.join(needing)} need a decoding graph")
        return d
    if not Path(graph).is_file():
        raise FileNotFoundError(f"decoding.fast_beam.graph: no {graph}")
    if not graph.endswith(".txt"):
        return d
    phrases, scores = read_phrases(graph)
    fsa = phrase_graph(phrases, tokenizer.encode, d.fast_beam.repeat, scores, tokenizer.unk_id)
    save_graph(fsa, folder / "graph.pt")
    return dataclasses.replace(d, fast_beam=dataclasses.replace(d.fast_beam, graph=str(folder / "graph.pt")))


def describe_method(method: str, d: DecodingConfig) -> str:
    """The method with the settings that matter to it."""
    fsa = d.fast_beam
    settings = {
        "greedy_search": f"max_symbols {d.max_symbols or 'unlimited'}",
        "modified_beam_search": f"beam {d.beam}",
        "beam_search": f"beam {d.beam}, max_symbols {d.max_symbols or 'unlimited'}",
    }
    if method == "ctc_beam":
        c = d.ctc_beam
        return f"ctc_beam (beam {c.beam_size}, threshold {c.beam_threshold:g}, LM {c.lm_weight:g}, word {c.word_score:g})"
    if method.startswith("fast_beam_search"):
        settings[method] = f"beam {fsa.beam:g}, max_states {fsa.max_states}, max_contexts {fsa.max_contexts}"
        if "nbest" in method:
            settings[method] += f", {fsa.num_paths} paths"
    if method not in settings:
        return method
    changed = [f"{name} {value}" for name, value, usual in (
        ("merge", d.merge, "log_add"), ("length_norm", d.length_norm, False), ("temperature", d.temperature, 1.0),
        ("blank_penalty", d.blank_penalty, 0.0),
    ) if value != usual]  # fmt: skip
    return f"{method} ({', '.join([settings[method], *changed])})"


def describe(config: Config, device: torch.device) -> str:
    d = config.decoding
    return (
        f"Model: {config.name}, checkpoint {d.checkpoint}, avg {d.avg}, "
        f"running average {'on' if d.use_averaged_model else 'off'}. "
        f"RTF: encoder and search, features not included, batches of up to {d.max_duration:g} s, {device.type}, "
        f"{torch.get_num_threads()} CPU threads.\n"
    )


@dataclass
class _Totals:
    """What is gathered over the batches of a part."""

    utterances: dict[str, list[Utterance]] = field(default_factory=lambda: defaultdict(list))
    words: dict[str, dict[str, list[Word]]] = field(default_factory=lambda: defaultdict(dict))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    audio_seconds: float = 0.0


def decode_part(
    model: Any,
    tokenizer: Any,
    part: str,
    batches: Iterable[Batch],
    d: DecodingConfig,
    device: torch.device,
    folder: Path,
) -> list[ResultRow]:
    """Decode one test set and write its files. The encoder runs once a batch, all searches on what it gave."""
    totals = _Totals()
    last_log = time.monotonic()
    for batch in batches:
        decode_batch(model, tokenizer, batch.to(device), d, totals)
        if time.monotonic() - last_log > LOG_SECONDS:
            last_log = time.monotonic()
            done = len(totals.utterances[d.methods[0]])
            log.info("%s: %d utterances, %.0f s of audio decoded", part, done, totals.audio_seconds)
    rows = []
    for method in dict.fromkeys(d.methods):
        utterances = totals.utterances[method]
        row = ResultRow(
            method,
            describe_method(method, d),
            part,
            word_errors(utterances),
            totals.audio_seconds,
            totals.seconds["encoder"],
            totals.seconds[method],
        )
        write_reports(folder, row, utterances, totals.words[method])
        log.info("%s, %s: WER %s %% of %d words", part, row.settings, row.errors, row.errors.words)
        rows.append(row)
    return rows


@torch.inference_mode()
def decode_batch(model: Any, tokenizer: Any, batch: Batch, d: DecodingConfig, totals: _Totals) -> None:
    clock = _clock(batch.features_NTF.device, totals.seconds)
    with clock("encoder"):
        encoder_out_NTD, lens_N = model.encode(batch.features_NTF.float(), batch.feature_lens_N)
    totals.audio_seconds += batch.seconds
    for method in dict.fromkeys(d.methods):
        with clock(method):
            if method in ORACLES:
                references = [tokenizer.encode(text) for text in batch.texts]
                results = ORACLES[method](model, encoder_out_NTD.float(), lens_N, d, references)
            else:
                results = SEARCHES[method](model, encoder_out_NTD.float(), lens_N, d)
        for id, text, result in zip(batch.ids, batch.texts, results):
            hyp = tokenizer.decode(result.best.tokens).split()
            totals.utterances[method].append(Utterance(id, text.split(), hyp))
            totals.words[method][id] = to_words(result.best, tokenizer, model.subsampling_factor)


def _clock(device: torch.device, seconds: dict[str, float]) -> Callable[[str], Any]:
    """Add up the wall-clock time of blocks by name; a GPU is waited for on both sides."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    @contextmanager
    def clock(name: str) -> Iterator[None]:
        start = now()
        yield
        seconds[name] += now() - start

    return clock
