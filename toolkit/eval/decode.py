"""Decode test sets: a checkpoint in, result files and a WER table out.

Model config and tokens come from the checkpoint and nowhere else; the given config says what to decode (corpus, parts,
batch sizes) and how (config.decoding).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.config import Config, DecodingConfig
from toolkit.data.batch import Batch
from toolkit.eval.confidence import Pair, token_pairs, word_pairs, write_calibration
from toolkit.eval.reports import ResultRow, markdown_table, write_reports, write_text
from toolkit.eval.scoring import Variant, scoring_settings, variants
from toolkit.eval.wer import Utterance, count_errors, word_errors
from toolkit.search import (
    CTC_SEARCHES,
    LATTICE_METHODS,
    ORACLES,
    SEARCHES,
    Hypothesis,
    LatticeSearch,
    SearchResult,
    Word,
    check_methods,
    to_words,
)
from toolkit.search.ctc_beam import prepared
from toolkit.search.graphs import load_graph, phrase_graph, read_phrases, save_graph
from toolkit.search.lattice import lattice_settings, load_graphs
from toolkit.search.posteriors import with_nbest_confidences
from toolkit.search.rescoring import add_scores

log = logging.getLogger(__name__)

PLAIN = {"": Variant()}  # a search with nothing added to it
LOG_SECONDS = 10.0  # between two lines of progress


def decode(config: Config) -> list[ResultRow]:
    """Decode every part of config.corpus.test by every method of config.decoding.methods.

    Writes recogs-, errs-, wer-summary-, timestamps- and confidence- files and wer.md into `output_dir(config)`, prints the
    table, returns its rows. Methods with an LM are tried with all of decoding.lattice.lm_scales; the scale with the fewest
    errors on config.corpus.valid is reported, the others stand in wer-summary-.

    Before anything is decoded it raises ValueError on an unknown method, a method that the model has no head for, or
    features of another kind than the model was trained on; FileNotFoundError if there is no such checkpoint, no such
    language model, or a part has not been prepared.
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
    check_methods(d.methods, trained.model.ctc_head, has_transducer=trained.loss.pruned.used, lattice=d.lattice)
    check_features(config, trained)
    folder = output_dir(config)
    folder.mkdir(parents=True, exist_ok=True)
    d = prepared(with_graph(d, tokenizer, folder), tokenizer, folder)
    scoring = variants(d, tokenizer)
    without = [method for method in d.methods if not takes_scorers(method)]
    if without and (d.lm is not None or d.biasing is not None):
        log.warning("decoding.lm and decoding.biasing have no part in %s", ", ".join(without))
    lattices = None
    if any(method in LATTICE_METHODS for method in d.methods):
        lattices = LatticeSearch(model, tokenizer, d.lattice, load_graphs(d.lattice, tokenizer, device, config.exp_dir))
    # LM scales are chosen on the validation parts, which may be test parts at the same time.
    tuning = config.corpus.valid if any(len(settings(method, d)) > 1 for method in d.methods) else []
    parts = list(dict.fromkeys([*tuning, *config.corpus.test]))
    data = DataModule(dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, test=parts)), tokenizer)
    decoded: dict[str, _Totals] = {}
    chosen: dict[str, str] = {}
    rows: list[ResultRow] = []
    for part in parts:
        decoded[part] = decode_part(model, tokenizer, part, data.test_batches(part), d, device, lattices, scoring)
        if decoded.keys() >= set(tuning):
            chosen = chosen or choose_settings(d, [decoded[p] for p in tuning])
            for done in list(decoded):
                totals = decoded.pop(done)
                if done in config.corpus.test:
                    rows += report_part(done, totals, tokenizer, d, chosen, tuning, folder)
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
    """Where d.fast_beam.graph is a list of phrases, or has its scores scaled: make that graph in `folder`, and name it instead.

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
    scale = d.fast_beam.graph_scale
    if graph.endswith(".txt"):
        phrases, scores = read_phrases(graph)
        fsa = phrase_graph(phrases, tokenizer.encode, d.fast_beam.repeat, scores, tokenizer.unk_id)
    elif scale == 1.0:
        return d
    else:
        fsa = load_graph(graph).detach()  # a copy: the graph that was read is kept for others
    fsa.scores = fsa.scores * scale
    made = folder / ("graph.pt" if scale == 1.0 else f"graph-{scale:g}.pt")
    save_graph(fsa, made)
    return dataclasses.replace(d, fast_beam=dataclasses.replace(d.fast_beam, graph=str(made)))


def describe_method(method: str, d: DecodingConfig, note: str = "") -> str:
    """The method with the settings that matter to it."""
    fsa = d.fast_beam
    settings = {
        "greedy_search": f"max_symbols {d.max_symbols or 'unlimited'}",
        **dict.fromkeys(("modified_beam_search", "ctc_prefix_beam_search"), f"beam {d.beam}"),
        **dict.fromkeys(("nbest", "nbest_rescoring", "nbest_oracle"), f"{d.lattice.num_paths} paths"),
        "beam_search": f"beam {d.beam}, max_symbols {d.max_symbols or 'unlimited'}",
    }
    if method == "ctc_beam":
        c = d.ctc_beam
        return (
            f"ctc_beam (beam {c.beam_size}, threshold {c.beam_threshold:g}, LM {c.lm_weight:g}, word {c.word_score:g})"
        )
    if method.startswith("fast_beam_search"):
        settings[method] = f"beam {fsa.beam:g}, max_states {fsa.max_states}, max_contexts {fsa.max_contexts}"
        if method.endswith("_LG") and fsa.graph_scale != 1.0:
            settings[method] += f", graph x {fsa.graph_scale:g}"
        if "nbest" in method:
            settings[method] += f", {fsa.num_paths} paths"
    said = [settings[method]] if method in settings else []
    if method in settings and method not in CTC_SEARCHES:
        said += [f"{name} {value}" for name, value, usual in (
            ("merge", d.merge, "log_add"), ("length_norm", d.length_norm, False), ("temperature", d.temperature, 1.0),
            ("blank_penalty", d.blank_penalty, 0.0),
        ) if value != usual]  # fmt: skip
    said += [note] if note else []
    return f"{method} ({', '.join(said)})" if said else method


def describe(config: Config, device: torch.device) -> str:
    d = config.decoding
    return (
        f"Model: {config.name}, checkpoint {d.checkpoint}, avg {d.avg}, "
        f"running average {'on' if d.use_averaged_model else 'off'}. "
        f"RTF: encoder and search, features not included, batches of up to {d.max_duration:g} s, {device.type}, "
        f"{torch.get_num_threads()} CPU threads.\n"
    )


Run = tuple[
    str, str
]  # a method and its setting, for instance ("1best_hlg", "lm_scale 0.6"); "" where there is one only


@dataclass
class _Totals:
    """What is gathered over the batches of a part."""

    utterances: dict[Run, list[Utterance]] = field(default_factory=lambda: defaultdict(list))
    words: dict[Run, dict[str, list[Word]]] = field(default_factory=lambda: defaultdict(dict))
    tokens: dict[Run, list[Pair]] = field(default_factory=lambda: defaultdict(list))
    empty: dict[Run, list[str]] = field(default_factory=lambda: defaultdict(list))  # ids of empty hypotheses
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    audio_seconds: float = 0.0

    def add(self, run: Run, id: str, text: str, best: Hypothesis, model: Any, tokenizer: Any) -> None:
        hyp = tokenizer.decode(best.tokens).split() if best.words is None else best.words
        self.utterances[run].append(Utterance(id, text.split(), hyp))
        self.words[run][id] = to_words(best, tokenizer, model.subsampling_factor)
        self.tokens[run] += token_pairs(tokenizer.encode(text), best)
        if not hyp:
            self.empty[run].append(id)


def settings(method: str, d: DecodingConfig) -> list[str]:
    """What a method is tried with in one run."""
    if method in LATTICE_METHODS:
        return lattice_settings(method, d.lattice)
    return scoring_settings(d) if takes_scorers(method) else [""]


def takes_scorers(method: str) -> bool:
    return method in SEARCHES and method not in CTC_SEARCHES


def decode_part(
    model: Any, tokenizer: Any, part: str, batches: Iterable[Batch], d: DecodingConfig, device: torch.device,
    lattices: LatticeSearch | None = None, scoring: Mapping[str, Variant] = PLAIN,
) -> _Totals:  # fmt: skip
    """Decode one set. The encoder runs once a batch, all searches on what it gave."""
    totals = _Totals()
    last_log = time.monotonic()
    for batch, encoder_out_NTD, lens_N in encoded(model, batches, device, totals.seconds):
        decode_batch(model, tokenizer, batch, encoder_out_NTD, lens_N, d, totals, lattices, scoring)
        if time.monotonic() - last_log > LOG_SECONDS:
            last_log = time.monotonic()
            done = len(totals.utterances[d.methods[0], settings(d.methods[0], d)[0]])
            log.info("%s: %d utterances, %.0f s of audio decoded", part, done, totals.audio_seconds)
    return totals


def encoded(
    model: Any, batches: Iterable[Batch], device: torch.device, seconds: dict[str, float]
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """(batch on `device`, encoder_out_NTD float32, lens_N) of each batch, in order.

    The encoder is a batch ahead of who reads this: on a GPU it works in a stream of its own on the next batch while this one
    is searched, which leaves much of a GPU idle. Its time goes to seconds["encoder"]; where the two overlap, the seconds of
    encoder and search are more than those that pass.
    """
    aside = torch.cuda.Stream(device) if device.type == "cuda" else None
    if aside is not None:
        aside.wait_stream(torch.cuda.current_stream(device))
    measured: list[Callable[[], float]] = []

    @torch.inference_mode()
    def start(batch: Batch) -> tuple[Batch, Tensor, Tensor]:
        with torch.cuda.stream(aside):
            elapsed = _stopwatch(aside)
            batch = batch.to(device)
            encoder_out_NTD, lens_N = model.encode(batch.features_NTF.float(), batch.feature_lens_N)
            encoder_out_NTD = encoder_out_NTD.float()
            measured.append(elapsed())
        return batch, encoder_out_NTD, lens_N

    def hand_over(made: tuple[Batch, Tensor, Tensor], ready: torch.cuda.Event | None) -> tuple[Batch, Tensor, Tensor]:
        if ready is not None:
            here = torch.cuda.current_stream(device)
            here.wait_event(ready)
            tensors = [x for x in (*vars(made[0]).values(), *made[1:]) if isinstance(x, Tensor) and x.is_cuda]
            for x in tensors:  # lest their memory be given away while the search still reads it
                x.record_stream(here)
        return made

    waiting: tuple[tuple[Batch, Tensor, Tensor], torch.cuda.Event | None] | None = None
    for batch in batches:
        made = start(batch)
        upcoming = made, None if aside is None else aside.record_event()
        if waiting is not None:
            yield hand_over(*waiting)
        waiting = upcoming
    if waiting is not None:
        yield hand_over(*waiting)
    seconds["encoder"] += sum(read() for read in measured)


def _stopwatch(stream: torch.cuda.Stream | None) -> Callable[[], Callable[[], float]]:
    """Starts at once; called, it stops and returns what says the seconds, which on a GPU are known later."""
    if stream is None:
        start = time.perf_counter()

        def stop() -> Callable[[], float]:
            passed = time.perf_counter() - start
            return lambda: passed

        return stop
    begin = torch.cuda.Event(enable_timing=True)
    begin.record(stream)

    def stop_on_gpu() -> Callable[[], float]:
        end = torch.cuda.Event(enable_timing=True)
        end.record(stream)

        def passed() -> float:
            end.synchronize()
            return begin.elapsed_time(end) / 1e3

        return passed

    return stop_on_gpu


@torch.inference_mode()
def decode_batch(
    model: Any,
    tokenizer: Any,
    batch: Batch,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    d: DecodingConfig,
    totals: _Totals,
    lattices: LatticeSearch | None = None,
    scoring: Mapping[str, Variant] = PLAIN,
) -> None:
    clock = _clock(encoder_out_NTD.device, totals.seconds)
    totals.audio_seconds += batch.seconds
    for method in dict.fromkeys(d.methods):
        found: dict[str, list[SearchResult]] = {}
        if takes_scorers(method):
            for setting, variant in scoring.items():
                with clock(f"{method} {setting}"):
                    found[setting] = scored_search(method, model, encoder_out_NTD, lens_N, d, batch.ids, variant)
        else:
            with clock(method):
                if lattices is not None and method in LATTICE_METHODS:
                    found = lattices(method, encoder_out_NTD, lens_N, batch.ids, batch.texts)
                elif method in ORACLES:
                    references = [tokenizer.encode(text) for text in batch.texts]
                    found = {"": ORACLES[method](model, encoder_out_NTD, lens_N, d, references)}
                else:
                    found = {"": SEARCHES[method](model, encoder_out_NTD, lens_N, d)}
        for setting, results in found.items():
            for id, text, result in zip(batch.ids, batch.texts, results):
                best = with_nbest_confidences(result, d.lattice.posterior_scale).best
                totals.add((method, setting), id, text, best, model, tokenizer)


def scored_search(
    method: str,
    model: Any,
    encoder_out_NTD: Tensor,
    lens_N: Tensor,
    d: DecodingConfig,
    ids: Sequence[str],
    variant: Variant,
) -> list[SearchResult]:
    """A transducer search with what is added to it, and its n-best list ranked anew where that is wanted."""
    if not variant.rescoring:
        return SEARCHES[method](model, encoder_out_NTD, lens_N, d, scorers=variant.scorers(ids))
    plain = dataclasses.replace(d, length_norm=False)  # not before all scores are there
    results = SEARCHES[method](model, encoder_out_NTD, lens_N, plain, scorers=variant.scorers(ids))
    return add_scores(results, variant.rescoring, model, d.length_norm, encoder_out_NTD.device)


def choose_settings(d: DecodingConfig, tuned: Sequence[_Totals]) -> dict[str, str]:
    """For each method the setting with the fewest word errors over these sets; of equals the first."""
    chosen = {}
    for method in d.methods:
        errors = {
            setting: sum(count_errors(totals.utterances[method, setting]) for totals in tuned)
            for setting in settings(method, d)
        }
        chosen[method] = min(errors, key=lambda setting: errors[setting])
    return chosen


def report_part(
    part: str, totals: _Totals, tokenizer: Any, d: DecodingConfig, chosen: Mapping[str, str], tuning: Sequence[str],
    folder: Path,
) -> list[ResultRow]:  # fmt: skip
    """Write the files of one set, by the setting chosen for each method; returns a row a method."""
    rows = []
    for method in dict.fromkeys(d.methods):
        runs = {}
        for setting in settings(method, d):
            where = "this set" if part in tuning else ", ".join(tuning)
            note = (
                f"{setting} chosen on {where}"
                if setting == chosen[method] and len(settings(method, d)) > 1
                else setting
            )
            runs[setting] = ResultRow(
                method,
                describe_method(method, d, note),
                part,
                word_errors(totals.utterances[method, setting]),
                totals.audio_seconds,
                totals.seconds["encoder"],
                totals.seconds[f"{method} {setting}" if takes_scorers(method) else method],
            )
        row, run = runs[chosen[method]], (method, chosen[method])
        write_reports(folder, row, totals.utterances[run], totals.words[run], list(runs.values()))
        references = {u.id: u.ref for u in totals.utterances[run]}
        words = [pair for id, found in totals.words[run].items() for pair in word_pairs(references[id], found)]
        confidence = write_calibration(folder, f"{part}-{method}", words, totals.tokens[run])
        log.info("%s, %s: WER %s %% of %d words; words: %s", part, row.settings, row.errors, row.errors.words,
                 confidence["words"])  # fmt: skip
        if totals.empty[run]:
            log.warning("%s, %s: nothing recognized in %s", part, row.settings, some(totals.empty[run]))
        rows.append(row)
    return rows


def some(ids: Sequence[str], most: int = 10) -> str:
    """The ids, or the first of them and how many there are more."""
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def _clock(device: torch.device, seconds: dict[str, float]) -> Callable[[str], Any]:
    """Add up the wall-clock time of blocks by name; a GPU's current stream is waited for on both sides."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        return time.perf_counter()

    @contextmanager
    def clock(name: str) -> Iterator[None]:
        start = now()
        yield
        seconds[name] += now() - start

    return clock
