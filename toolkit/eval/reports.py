"""What decoding leaves on disk: icefall's `recogs-`, `errs-` and `wer-summary-` files, word times, one table over all.

Written so that scripts made for icefall's files read these; every file appears whole or not at all.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolkit.eval.wer import GAP, Utterance, WordErrors, align
from toolkit.search.words import Word


@dataclass(frozen=True)
class ResultRow:
    """One method on one test set. Seconds are wall-clock; the encoder's are shared by all methods of a run."""

    method: str
    settings: str  # the method with its parameters, for people
    test_set: str
    errors: WordErrors
    audio_seconds: float
    encoder_seconds: float
    search_seconds: float

    @property
    def rtf(self) -> float | None:
        """Real-time factor: seconds of computing (features not included) a second of audio."""
        return (self.encoder_seconds + self.search_seconds) / self.audio_seconds if self.audio_seconds else None


def write_text(path: Path, text: str) -> None:
    """Write a file so that no reader ever sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_reports(
    folder: Path, row: ResultRow, utterances: Sequence[Utterance], words: Mapping[str, Sequence[Word]],
    tried: Sequence[ResultRow] = (),
) -> None:  # fmt: skip
    """The three icefall files of one method on one test set, and its word times (`words`, by utterance).

    tried: where the method was tried with several settings, all of them, for the summary.
    """
    suffix = f"{row.test_set}-{row.method}.txt"
    ordered = sorted(utterances, key=lambda u: u.id)
    write_text(folder / f"recogs-{suffix}", recogs(ordered))
    write_text(folder / f"errs-{suffix}", errs(ordered, row.errors))
    write_text(folder / f"wer-summary-{suffix}", wer_summary(tried or [row]))
    write_text(folder / f"timestamps-{row.test_set}-{row.method}.jsonl", timestamps(words))


def recogs(utterances: Iterable[Utterance]) -> str:
    """Two lines an utterance: `id:\\tref=['A', 'B']` and `id:\\thyp=['A']`."""
    return "".join(f"{u.id}:\tref={u.ref}\n{u.id}:\thyp={u.hyp}\n" for u in utterances)


def timestamps(words: Mapping[str, Sequence[Word]]) -> str:
    """A line of JSON an utterance: its id and its words, each with start and end in seconds and confidence."""
    lines = ({"id": id, "words": [asdict(word) for word in words[id]]} for id in sorted(words))
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def wer_summary(rows: Sequence[ResultRow]) -> str:
    """`settings<tab>WER` as icefall writes it, then the interval in two columns more. Best first."""
    lines = ["settings\tWER\tci95min\tci95max"]
    for row in sorted(rows, key=lambda row: row.errors.wer):
        low, high = (f"{x:.2f}" for x in row.errors.ci95) if row.errors.ci95 else ("n/a", "n/a")
        lines.append(f"{row.settings}\t{row.errors.wer:.2f}\t{low}\t{high}")
    return "\n".join(lines) + "\n"


def errs(utterances: Sequence[Utterance], errors: WordErrors) -> str:
    """Totals, each utterance with its errors in brackets, and what was mistaken for what how often."""
    alignments = [align(u) for u in utterances]
    counts = Counter(itertools.chain.from_iterable(alignments))
    correct = sum(n for (ref, hyp), n in counts.items() if ref == hyp)
    blocks = [
        f"%WER = {errors}",
        f"Errors: {errors.insertions} insertions, {errors.deletions} deletions, {errors.substitutions} substitutions, "
        f"over {errors.words} reference words ({correct} correct)",
        "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, "
        "PER-WORD STATS:",
        "",
        "PER-UTT DETAILS: corr or (ref->hyp)  ",
        *(f"{u.id}:\t{marked(ali)}" for u, ali in zip(utterances, alignments)),
        "",
        "SUBSTITUTIONS: count ref -> hyp",
        *(f"{n}   {ref} -> {hyp}" for (ref, hyp), n in _ranked(counts) if GAP not in (ref, hyp) and ref != hyp),
        "",
        "DELETIONS: count ref",
        *(f"{n}   {ref}" for (ref, hyp), n in _ranked(counts) if hyp == GAP),
        "",
        "INSERTIONS: count hyp",
        *(f"{n}   {hyp}" for (ref, hyp), n in _ranked(counts) if ref == GAP),
        "",
        "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp",
        *_per_word(counts),
    ]
    return "\n".join(blocks) + "\n"


def marked(ali: Iterable[tuple[str, str]]) -> str:
    """`A (B C->X) D`: neighbouring errors in one pair of brackets, `*` for no word at all."""
    parts = []
    for same, group in itertools.groupby(ali, key=lambda pair: pair[0] == pair[1]):
        refs, hyps = (" ".join(word for word in side if word != GAP) for side in zip(*group))
        parts.append(refs if same else f"({refs or '*'}->{hyps or '*'})")
    return " ".join(parts)


def _ranked(counts: Counter[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _per_word(counts: Counter[tuple[str, str]]) -> list[str]:
    correct, in_ref, in_hyp = Counter[str](), Counter[str](), Counter[str]()
    for (ref, hyp), n in counts.items():
        in_ref[ref] += n
        in_hyp[hyp] += n
        correct[ref] += n * (ref == hyp)
    # An error counts for both words that it involves.
    wrong = {word: in_ref[word] + in_hyp[word] - 2 * correct[word] for word in (in_ref | in_hyp) if word != GAP}
    ranked = sorted(wrong, key=lambda word: (-wrong[word], word))
    return [f"{word}   {correct[word]} {wrong[word]} {in_ref[word]} {in_hyp[word]}" for word in ranked]


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """All methods on all test sets."""
    lines = [
        "| test set | method | WER % [95 % CI] | ins | del | sub | words | utterances | audio s | RTF |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        e = r.errors
        rtf = "n/a" if r.rtf is None else f"{r.rtf:.4f}"
        lines.append(
            f"| {r.test_set} | {r.settings} | {e} | {e.insertions} | {e.deletions} | {e.substitutions} "
            f"| {e.words} | {e.utterances} | {r.audio_seconds:.1f} | {rtf} |"
        )
    return "\n".join(lines) + "\n"
