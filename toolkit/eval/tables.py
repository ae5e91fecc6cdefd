"""The tables of "Fast and Parallel Decoding for Transducer" (Kang et al., arXiv 2211.00484) for any corpus.

    1, 2  WER by transducer type, search and S, with lm_only_scale 0 and 0.25 (tables.lm_only_scales)
    3     duplicates merged by max against log_add
    4     length normalisation off and on
    5     real-time factors, batched and unbatched
    6     FSA-based search on the trivial graph against LG

Numbers are measured by cells.py, which keeps them; findings.py says what they show.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.config import Config
from toolkit.eval.cells import Cell, Laboratory, Result
from toolkit.eval.findings import Counts, Verdict, compare, compare_speed
from toolkit.eval.reports import write_text

log = logging.getLogger(__name__)

# (search, S or None): the rows of tables 1 and 2.
SEARCHES: tuple[tuple[str, int | None], ...] = (
    ("greedy_search", 1), ("greedy_search", 2), ("greedy_search", 3), ("greedy_search", 0),
    ("modified_beam_search", None), ("beam_search", 1), ("beam_search", 0), ("fast_beam_search", None),
)  # fmt: skip
MERGED = (("modified_beam_search", None), ("beam_search", 0), ("fast_beam_search_nbest", None))
NORMALISED = (("modified_beam_search", None), ("beam_search", 1), ("beam_search", 0), ("fast_beam_search_nbest", None))
TIMED = (
    ("greedy_search", 1), ("greedy_search", 0), ("modified_beam_search", None), ("beam_search", 1), ("beam_search", 0),
    ("fast_beam_search", None), ("fast_beam_search_nbest", None),
)  # fmt: skip
GRAPHS = ("fast_beam_search", "fast_beam_search_nbest")
# The paper, LibriSpeech 960 h, test-clean / test-other, lm_scale 0.25; RTF on a V100, batched. "beam" there with S = 1.
PAPER_WER = {
    ("regular", "greedy_search", 1): "2.66 / 6.25", ("regular", "modified_beam_search", None): "2.62 / 6.08",
    ("regular", "fast_beam_search", None): "2.67 / 6.20", ("constrained", "greedy_search", 1): "2.61 / 6.45",
    ("constrained", "modified_beam_search", None): "2.60 / 6.39", ("constrained", "fast_beam_search", None): "2.64 / 6.39",
}  # fmt: skip
PAPER_RTF = {
    ("greedy_search", 1): 0.0009, ("greedy_search", 0): 0.0078, ("modified_beam_search", None): 0.0068,
    ("beam_search", 0): 0.125, ("fast_beam_search", None): 0.002,
}  # fmt: skip


@dataclass
class Table:
    number: int
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        lines = [f"## Table {self.number}. {self.title}", ""]
        lines += [f"{self.note}\n"] * bool(self.note)
        rule = ["---"] * len(self.header)
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in [self.header, rule, *self.rows])]) + "\n"

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()


def make_tables(config: Config, train: Callable[[Config], Any] | None = None) -> Path:
    """Measure what has not been measured yet, write tables.md and table-<n>.csv; returns their folder.

    config: of the corpus, as for decode.py; see TablesConfig. train: what trains a missing run where tables.train is set.
    Runs that are missing are named in the tables, and the rest is made without them.
    """
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    folder = Path(config.exp_root) / f"{config.name}-tables"
    lab = Laboratory(config, folder)
    if config.tables.train and train is not None:
        train_missing(config, train)
    missing = [e for e in experiments(config).values() if not lab.has(e)]
    for name in missing:
        log.warning("no %s: tables.train=true trains it", lab.experiment_dir(name))
    tables = [table for n in config.tables.tables for table in MAKERS[n](config, lab)]
    text = [f"# Tables of arXiv 2211.00484 for {config.corpus.name}\n", protocol(config, missing)]
    text += [table.markdown() for table in tables] + [findings_text(findings(config, lab))]
    for table in tables:
        write_text(folder / f"table-{table.number}.csv", table.csv())
    write_text(folder / "tables.md", "\n".join(text))
    log.info("%s", folder / "tables.md")
    return folder


def experiments(config: Config) -> dict[tuple[str, float], str]:
    """(type, lm_only_scale) → name of the run."""
    t = config.tables
    return {(kind, s): f"{config.name}-{kind}-{round(100 * s)}" for s in t.lm_only_scales for kind in t.types}


def train_missing(config: Config, train: Callable[[Config], Any]) -> None:
    """Train every run of the tables, or go on with it; what is finished is left alone."""
    for (kind, scale), name in experiments(config).items():
        loss = dataclasses.replace(config.loss, rnnt_type=kind, lm_only_scale=scale)
        trainer = config.trainer
        if config.tables.train_minutes is not None:
            trainer = dataclasses.replace(trainer, max_minutes=config.tables.train_minutes)
        log.info("training %s", name)
        train(dataclasses.replace(config, name=name, loss=loss, trainer=trainer))


def protocol(config: Config, missing: list[str]) -> str:
    d, t = config.decoding, config.tables
    limit = f" (the first {t.max_utterances} utterances of each)" if t.max_utterances else ""
    lines = [
        f"Test parts: {', '.join(config.corpus.test)}{limit}. WER in percent with its 95 % bootstrap interval over "
        f"utterances. Checkpoint {d.checkpoint}, avg {d.avg}; beam {d.beam}; FSA-based search: beam {d.fast_beam.beam:g}, "
        f"max_states {d.fast_beam.max_states}, max_contexts {d.fast_beam.max_contexts}. S: symbols a frame; ∞ is no limit.",
        "",
        f"Timing: encoder and search, wall clock, features at hand, after a batch to warm up, the best of {t.timing_repeats} "
        f"runs over {config.corpus.test[0]}; batched: batches of up to {d.max_duration:g} s; unbatched: one utterance at a "
        f"time, the first {t.timing_utterances}. Machine: {platform.machine()}, {torch.get_num_threads()} CPU threads, "
        f"device {config.trainer.device}, torch {torch.__version__}.",
        "",
        "Beside them, as context, the paper's numbers for LibriSpeech 960 h (test-clean / test-other; RTF on a V100).",
    ]
    if missing:
        lines += ["", f"Missing runs: {', '.join(missing)}; cells without a run say so."]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------------ the tables


def name_of(search: str, s: int | None) -> str:
    return search if s is None else f"{search} S={s or '∞'}"


def cell(experiment: str, search: str, s: int | None, **options: Any) -> Cell:
    symbols = {} if s is None else {"max_symbols": s}
    return Cell(experiment, search, tuple({**symbols, **options}.items()))


def wers(config: Config, result: Result | None) -> list[str]:
    return [str(result.errors[part]) if result else "no run" for part in config.corpus.test]


def table_wer(config: Config, lab: Laboratory, number: int, scale: float) -> Iterator[Table]:
    header = ["transducer", "search", *(f"WER {part}" for part in config.corpus.test), "paper"]
    rows = []
    for kind in config.tables.types:
        for search, s in SEARCHES:
            result = lab.measure(cell(experiments(config)[kind, scale], search, s))
            paper = PAPER_WER.get((kind, search, s), "") if scale == 0.25 else ""
            rows.append([kind, name_of(search, s), *wers(config, result), paper])
    yield Table(number, f"Transducer types and searches, lm_scale {scale:g}", header, rows)


def by_scale(number: int) -> Callable[[Config, Laboratory], Iterator[Table]]:
    def make(config: Config, lab: Laboratory) -> Iterator[Table]:
        scales = config.tables.lm_only_scales
        if number <= len(scales):
            yield from table_wer(config, lab, number, scales[number - 1])

    return make


def table_option(
    number: int, title: str, option: str, values: tuple[Any, Any], searches: tuple[tuple[str, int | None], ...]
) -> Callable[[Config, Laboratory], Iterator[Table]]:
    """Two values of a decoding option side by side."""

    def make(config: Config, lab: Laboratory) -> Iterator[Table]:
        parts = config.corpus.test
        header = ["transducer", "search", *(f"{option}={value}: WER {part}" for value in values for part in parts)]
        rows = []
        for kind in config.tables.types:
            experiment = experiments(config)[kind, config.tables.lm_only_scales[-1]]
            for search, s in searches:
                results = [lab.measure(cell(experiment, search, s, **{option: value})) for value in values]
                rows.append([kind, name_of(search, s), *(x for r in results for x in wers(config, r))])
        yield Table(number, title, header, rows, f"lm_scale {config.tables.lm_only_scales[-1]:g}.")

    return make


def timed(config: Config, lab: Laboratory, search: str, s: int | None, timing: str, **options: Any) -> Result | None:
    experiment = experiments(config)[config.tables.types[0], config.tables.lm_only_scales[-1]]
    return lab.measure(dataclasses.replace(cell(experiment, search, s, **options), timing=timing))


def rtf(result: Result | None, search_only: bool = False) -> str:
    if result is None:
        return "no run"
    return f"{min(result.search_seconds if search_only else result.seconds) / result.audio_seconds:.5f}"


def table_speed(config: Config, lab: Laboratory) -> Iterator[Table]:
    header = ["search", "RTF batched", "search alone", "RTF unbatched", "search alone", "paper: batched"]
    rows = []
    for search, s in TIMED:
        both = [timed(config, lab, search, s, timing) for timing in ("batched", "unbatched")]
        numbers = [rtf(r, alone) for r in both for alone in (False, True)]
        rows.append([name_of(search, s), *numbers, f"{PAPER_RTF[search, s]:g}" if (search, s) in PAPER_RTF else ""])
    yield Table(5, f"Real-time factors ({config.tables.types[0]} transducer)", header, rows)


def table_graphs(config: Config, lab: Laboratory) -> Iterator[Table]:
    parts, scale = config.corpus.test, config.tables.lm_only_scales[-1]
    header = ["transducer", "search", "graph", *(f"WER {part}" for part in parts), "RTF batched"]
    rows = []
    for kind in config.tables.types:
        experiment = experiments(config)[kind, scale]
        graph = decoding_graph(config, lab, experiment)
        for search in GRAPHS:
            for name, options in (("trivial", {}), ("LG", {"graph": graph})):
                method = search if name == "trivial" else f"{search}_LG"
                result = lab.measure(cell(experiment, method, None, **options)) if graph or name == "trivial" else None
                speed = (
                    rtf(timed(config, lab, method, None, "batched", **options))
                    if kind == config.tables.types[0]
                    else ""
                )
                rows.append([kind, search, name, *wers(config, result), speed])
    given = config.decoding.fast_beam.graph
    made = "the words of the training transcripts, spelt by the tokenizer, and a 3-gram of the transcripts"
    note = f"lm_scale {scale:g}. LG: {made if given is None else given}. The paper's RTF with LG: 0.0025 to 0.004 against 0.002."
    yield Table(6, "Trivial graph against LG", header, rows, note)


MAKERS: dict[int, Callable[[Config, Laboratory], Iterator[Table]]] = {
    1: by_scale(1),
    2: by_scale(2),
    3: table_option(3, "Duplicates merged by max or by log_add", "merge", ("max", "log_add"), MERGED),
    4: table_option(4, "Length normalisation", "length_norm", (False, True), NORMALISED),
    5: table_speed,
    6: table_graphs,
}


def decoding_graph(config: Config, lab: Laboratory, experiment: str) -> str | None:
    """decoding.fast_beam.graph, or an LG of the training transcripts, made once; None without the run, whose tokens it wants."""
    given = config.decoding.fast_beam.graph
    if given is not None or not lab.has(experiment):
        return given
    from ops import NgramLM
    from toolkit.data.text import transcripts
    from toolkit.lang import Lexicon, make_lg, train_ngram
    from toolkit.search.graphs import save_graph

    path = lab.folder.parent / "LG.pt"
    if not path.is_file():
        tokenizer = lab.model(experiment)[1]
        arpa = lab.folder.parent / "words-3gram.arpa"
        texts = transcripts(config, config.corpus.train)
        train_ngram(texts, 3, arpa)
        lexicon = Lexicon.from_tokenizer(sorted({w for text in texts for w in text.split()}), tokenizer)
        save_graph(make_lg(lexicon, NgramLM.load(arpa), tokenizer.tokens), path)
    return str(path)


# -------------------------------------------------------------------------------------------------------------- findings


def findings(config: Config, lab: Laboratory) -> list[Verdict]:
    """What the paper's numbers say, held against the cells of the tables that were asked for."""
    t, runs = config.tables, experiments(config)
    scale = t.lm_only_scales[-1]
    wer_tables = set(t.tables) & ({1, 2} if len(t.lm_only_scales) > 1 else {1})
    verdicts: list[Verdict] = []

    def counts(kind: str, search: str, s: int | None, of: float = scale, **options: Any) -> Counts | None:
        result = lab.measure(cell(runs[kind, of], search, s, **options))
        if result is None:
            return None
        parts = [result.counts[part] for part in config.corpus.test]
        return Counts([e for c in parts for e in c.errors], [w for c in parts for w in c.words])

    def add(claim: str, a: Counts | None, b: Counts | None, expected: str) -> None:
        verdicts.append(compare(claim, a, b, expected))

    if len(t.lm_only_scales) in wer_tables:
        for kind in t.types:
            greedy, beam = counts(kind, "greedy_search", 1), counts(kind, "modified_beam_search", None)
            add(f"{kind}: greedy with S=1 is as good as with S=∞", greedy, counts(kind, "greedy_search", 0), "equal")
            add(f"{kind}: beam search with S=1 is as good as with S=∞", beam, counts(kind, "beam_search", 0), "equal")
            add(f"{kind}: beam search with S=1 is better than greedy", beam, greedy, "better")
            add(
                f"{kind}: FSA-based search is as good as greedy",
                counts(kind, "fast_beam_search", None),
                greedy,
                "equal",
            )
        if {"regular", "constrained"} <= set(t.types):
            both = [counts(kind, "greedy_search", 1) for kind in ("constrained", "regular")]
            add("constrained is as good as regular (greedy, S=1)", both[0], both[1], "equal")
    if len(wer_tables) > 1:
        for kind in t.types:
            both = [counts(kind, "greedy_search", 1, of) for of in (scale, t.lm_only_scales[0])]
            add(
                f"{kind}: lm_scale {scale:g} is better than {t.lm_only_scales[0]:g} (greedy, S=1)",
                both[0],
                both[1],
                "better",
            )
    if 3 in t.tables:
        for kind in t.types:
            both = [counts(kind, "modified_beam_search", None, merge=m) for m in ("max", "log_add")]
            add(f"{kind}: merging by max is as good as by log_add", both[0], both[1], "equal")
    if 4 in t.tables:
        for kind in t.types:
            both = [counts(kind, "modified_beam_search", None, length_norm=on) for on in (False, True)]
            add(f"{kind}: with S=1, no length normalisation is as good as any", both[0], both[1], "equal")
    if 5 in t.tables:
        verdicts += speeds(config, lab)
    return verdicts


def speeds(config: Config, lab: Laboratory) -> Iterator[Verdict]:
    """Ratios of the paper's batched real-time factors."""
    pairs = (
        ("greedy with S=1 is faster than with S=∞", ("greedy_search", 0), ("greedy_search", 1)),
        (
            "modified beam search (S=1) is faster than beam search with S=∞",
            ("beam_search", 0),
            ("modified_beam_search", None),
        ),
        (
            "FSA-based search is faster than modified beam search",
            ("modified_beam_search", None),
            ("fast_beam_search", None),
        ),
        ("greedy with S=1 is faster than FSA-based search", ("fast_beam_search", None), ("greedy_search", 1)),
    )
    for claim, slow, fast in pairs:
        a, b = (timed(config, lab, search, s, "batched") for search, s in (slow, fast))
        yield compare_speed(
            claim, a.seconds if a else None, b.seconds if b else None, PAPER_RTF[slow] / PAPER_RTF[fast]
        )


def findings_text(verdicts: list[Verdict]) -> str:
    lines = [
        "## Findings",
        "",
        "By rule (toolkit/eval/findings.py): differences are of WER over all test parts, with the 95 %",
    ]
    lines[-1] += ' interval of a paired bootstrap; "as good as" means within a tenth of the WER.\n'
    lines += ["| claim | measured | verdict |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {v.claim} | {v.measured} | {v.verdict} |" for v in verdicts)]) + "\n"
