"""Automata as text: k2's and OpenFst's line formats, read and written, and drawings in graphviz' dot language.

One arc a line, `source destination label [aux labels] [ragged labels, in brackets] [score]`, final state(s) on their
own lines. In k2's format an FSA has one final state, the last, entered by arcs with label -1. In OpenFst's format any
state may be final with a cost, costs are negated scores; reading it adds k2's final state.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ops.ragged import RaggedTensor
from ops.ragged.shape import check_num_rows

if TYPE_CHECKING:
    from ops.fsa import Fsa

_FIELD = re.compile(r"\[[^\]]*\]|\S+")
_INT32 = range(-(2**31), 2**31)


@dataclass
class ParsedFsa:
    """What a text says: arcs in order of their source states, and a list of values per label attribute."""

    num_states: int
    arcs: list[tuple[int, int, int]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    aux: list[list[int]] = field(default_factory=list)  # one list an attribute
    ragged: list[list[list[int]]] = field(default_factory=list)


@dataclass
class _Line:
    number: int
    text: str
    fields: list[str]

    def integer(self, i: int, least: int, what: str) -> int:
        try:
            value = int(self.fields[i])
        except ValueError:
            value = least - 1
        if value < least or value not in _INT32:
            raise self.error(f"{what} must be an int32 >= {least}, got {self.fields[i]!r}")
        return value

    def score(self, i: int) -> float:
        try:
            return float(self.fields[i])
        except ValueError:
            raise self.error(f"the score must be a number, got {self.fields[i]!r}") from None

    def ragged(self, i: int) -> list[int]:
        if not re.fullmatch(r"\[(\s*-?\d+)*\s*\]", self.fields[i]):
            raise self.error(f"expected a list of integers in brackets, got {self.fields[i]!r}")
        values = [int(x) for x in self.fields[i][1:-1].split()]
        if not all(value in _INT32 for value in values):
            raise self.error(f"labels must be int32, got {self.fields[i]!r}")
        return values

    def error(self, message: str) -> ValueError:
        return ValueError(f"FSA text, line {self.number}: {message}; the line is {self.text.strip()!r}")


def guess_num_aux(s: str, num_ragged: int, openfst: bool) -> int:
    """The number of aux labels a line, from the longest; OpenFst's scores may be absent, so 4 fields mean none."""
    longest = max((len(_FIELD.findall(line)) for line in s.splitlines()), default=0)
    return max(longest - 4 - num_ragged, 0) if longest > 2 or not openfst else 0


def parse(s: str, num_aux: int, num_ragged: int, openfst: bool) -> ParsedFsa:
    """Read one FSA. Raises ValueError naming the line."""
    lines = [_Line(i, t, _FIELD.findall(t)) for i, t in enumerate(s.splitlines(), 1) if t.strip()]
    if not lines:
        raise ValueError("FSA text: it is empty; the least is a line with the final state")
    rows: list[tuple] = []
    finals: list[tuple[int, float]] = []
    width = 3 + num_aux + num_ragged
    for k, line in enumerate(lines):
        if len(line.fields) in ((1, 2) if openfst else (1,)):
            if not openfst and k != len(lines) - 1:
                raise line.error("a line with one field is the final state and must be the last")
            state = line.integer(0, 0, "the final state")
            finals.append((state, -line.score(1) if len(line.fields) == 2 else 0.0))
            continue
        if len(line.fields) != width + 1 and not (openfst and len(line.fields) == width):
            raise line.error(f"expected {width + 1} fields (3 + {num_aux} aux + {num_ragged} ragged + score), "
                             f"got {len(line.fields)}")  # fmt: skip
        src, dest = line.integer(0, 0, "the source state"), line.integer(1, 0, "the destination state")
        score = line.score(width) if len(line.fields) > width else 0.0
        aux = [line.integer(3 + i, -(2**31), "an aux label") for i in range(num_aux)]
        ragged = [line.ragged(3 + num_aux + i) for i in range(num_ragged)]
        label = line.integer(2, 0 if openfst else -1, "the label")
        rows.append((src, dest, label, aux, ragged, -score if openfst else score))
    if openfst:
        rows, num_states = _to_one_final(rows, finals, num_aux, num_ragged)
    else:
        if not finals:
            raise lines[-1].error("the last line must be the final state alone")
        final = finals[0][0]
        num_states = final + 1 if rows else 0
        for line, row in zip(lines, rows):
            if max(row[0], row[1]) > final:
                raise line.error(f"the final state is {final}, no state can be above it")
            if (row[2] == -1) != (row[1] == final) or row[0] == final:
                raise line.error(f"label -1 belongs on the arcs into the final state ({final}) and on no other, "
                                 "and no arc leaves the final state")  # fmt: skip
    check_num_rows(num_states, len(rows), "states", "arcs")
    rows.sort(key=lambda row: row[0])
    return ParsedFsa(
        num_states,
        [row[:3] for row in rows],
        [row[5] for row in rows],
        [[row[3][i] for row in rows] for i in range(num_aux)],
        [[row[4][i] for row in rows] for i in range(num_ragged)],
    )


def _to_one_final(rows: list[tuple], finals: list, num_aux: int, num_ragged: int) -> tuple[list[tuple], int]:
    """OpenFst to k2: the first line's source becomes state 0; one new final state is entered from the final ones."""
    if not rows and not finals:
        return [], 0
    start = rows[0][0] if rows else finals[0][0]

    def renumber(state: int) -> int:
        return {0: start, start: 0}.get(state, state)

    if rows and start != 0:
        rows = [(renumber(r[0]), renumber(r[1]), *r[2:]) for r in rows]
        finals = [(renumber(state), weight) for state, weight in finals]
    last = max([s for r in rows for s in r[:2]] + [state for state, _ in finals]) + 1
    for state, weight in finals:
        rows.append((state, last, -1, [-1] * num_aux, [[] for _ in range(num_ragged)], weight))
    return rows, last + 1


def format_score(score: float) -> str:
    return f"{score:.6g}"


def fsa_to_str(
    fsa: Fsa, openfst: bool = False, aux: Sequence[torch.Tensor] = (), ragged: Sequence[RaggedTensor] = ()
) -> str:
    """One FSA (two axes) as text, with the given label attributes; "" if it has no states."""
    columns: list[list[str]] = [[str(x) for x in column] for column in fsa.arcs3.t().tolist()]
    columns += [[str(x) for x in a.tolist()] for a in aux]
    columns += [["[" + " ".join(map(str, x)) + "]" for x in r.tolist()] for r in ragged]
    scores = fsa.scores.detach()
    columns.append([format_score(x) for x in (-scores if openfst else scores).tolist()])
    lines = [" ".join(row) for row in zip(*columns)]
    if fsa.shape[0]:
        lines.append(str(fsa.shape[0] - 1))
    return "".join(line + "\n" for line in lines)


class Dot:
    """A drawing: `source` is its text in the dot language; shown as SVG in notebooks if graphviz' `dot` is
    installed.
    """

    def __init__(self, source: str):
        self.source = source

    def __str__(self) -> str:
        return self.source

    def pipe(self, format: str = "svg") -> bytes:
        """The drawing as svg, png or pdf. Raises RuntimeError if the program `dot` is missing or fails."""
        if shutil.which("dot") is None:
            raise RuntimeError("drawing needs the program `dot`: install graphviz (apt-get install graphviz)")
        result = subprocess.run(["dot", f"-T{format}"], input=self.source.encode(), capture_output=True)
        if result.returncode:
            raise RuntimeError(f"dot failed: {result.stderr.decode(errors='replace').strip()}")
        return result.stdout

    def save(self, filename: str | Path) -> Path:
        """Write .svg, .png or .pdf, or (.dot, .gv) the text itself."""
        path = Path(filename)
        kind = path.suffix.lstrip(".").lower()
        if kind in ("dot", "gv"):
            path.write_text(self.source, encoding="utf-8")
        elif kind in ("svg", "png", "pdf"):
            path.write_bytes(self.pipe(kind))
        else:
            raise ValueError(f"filename must end in .svg, .png, .pdf, .dot or .gv, got {str(filename)!r}")
        return path

    def _repr_svg_(self) -> str | None:
        return self.pipe("svg").decode() if shutil.which("dot") else None


def _name(label: int, symbols: Any) -> str:
    if label == -1:
        return "-1"
    if symbols is not None and label in symbols:
        return str(symbols[label])
    return "ε" if label == 0 and symbols is not None else str(label)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def fsa_to_dot(fsa: Fsa, title: str = "", zoom: float = 1.0) -> Dot:
    """Draw one FSA: states as circles (the final one doubled), arcs as `label:aux/score`, names from symbol tables."""
    if len(fsa.shape) != 2:
        raise ValueError("to_dot draws a single FSA: take one out of the FsaVec, fsa_vec[i]")
    symbols, aux_symbols = getattr(fsa, "labels_sym", None), getattr(fsa, "aux_labels_sym", None)
    symbols = getattr(fsa, "symbols", symbols)
    aux_symbols = getattr(fsa, "aux_symbols", aux_symbols)
    lines = ["digraph {", "  rankdir=LR", f"  size={_quote(f'{8.5 * zoom:g},{11 * zoom:g}')}",
             f"  label={_quote(title)}", "  labelloc=t", "  node [shape=circle]"]  # fmt: skip
    num_states = fsa.shape[0] or 0
    for state in range(num_states):
        style = " [shape=doublecircle]" if state == num_states - 1 else ""
        lines.append(f"  {state}{style}")
    aux = fsa.aux_labels.tolist() if hasattr(fsa, "aux_labels") else None
    for i, ((src, dest, label), score) in enumerate(zip(fsa.arcs3.tolist(), fsa.scores.detach().tolist())):
        text = _name(label, symbols)
        if aux is not None:
            out = aux[i] if isinstance(aux[i], list) else [aux[i]]
            text += ":" + (" ".join(_name(x, aux_symbols) for x in out) or "ε")
        lines.append(f"  {src} -> {dest} [label={_quote(f'{text}/{format_score(score)}')}]")
    return Dot("\n".join([*lines, "}"]) + "\n")
