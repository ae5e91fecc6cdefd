"""Alignments on disk: CTM (NIST's, one line a word) and TextGrid (Praat's, one file an utterance)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from toolkit.search.words import Word

Interval = tuple[float, float, str]  # start and end in seconds, text


def ctm(words: Mapping[str, Sequence[Word]], channel: str = "1") -> str:
    """`id channel start duration word confidence`, utterances by id, words by time."""
    lines = (
        f"{id} {channel} {word.start:.3f} {word.end - word.start:.3f} {word.text} {word.confidence:.4f}\n"
        for id in sorted(words)
        for word in words[id]
    )
    return "".join(lines)


def textgrid(tiers: Mapping[str, Iterable[Interval]], duration: float) -> str:
    """Praat's long text format: an interval tier each, gaps filled with empty intervals, as Praat wants them.

    Intervals must be in order; one that begins before the one before it has ended is cut there, one that ends after
    `duration` (seconds) stretches the grid. Raises ValueError on an interval that ends before it begins.
    """
    filled = {}
    for name, intervals in tiers.items():
        row: list[Interval] = []
        for start, end, text in intervals:
            if end < start:
                raise ValueError(f"textgrid: tier {name!r}: {text!r} ends at {end} before it begins at {start}")
            before = row[-1][1] if row else 0.0
            start = max(start, before)
            if start > before:
                row.append((before, start, ""))
            if end > start:  # an interval without length is not valid
                row.append((start, end, text))
        filled[name] = row
    end = max([duration, *(row[-1][1] for row in filled.values() if row)])
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end:.3f}",
        "tiers? <exists>",
    ]
    lines += [f"size = {len(filled)}", "item []:"]
    for i, (name, row) in enumerate(filled.items(), 1):
        last = row[-1][1] if row else 0.0
        row = [*row, (last, end, "")] if end > last else row
        lines += [f"    item [{i}]:", '        class = "IntervalTier"', f"        name = {_quoted(name)}"]
        lines += ["        xmin = 0", f"        xmax = {end:.3f}", f"        intervals: size = {len(row)}"]
        for j, (start, stop, text) in enumerate(row, 1):
            lines += [f"        intervals [{j}]:", f"            xmin = {start:.3f}", f"            xmax = {stop:.3f}"]
            lines += [f"            text = {_quoted(text)}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
