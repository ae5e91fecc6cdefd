"""SymbolTable: symbols (words, tokens) to integers and back, in the text format of OpenFst and k2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class SymbolTable:
    """A one-to-one map between symbols and integers; `eps` is always 0.

    `table[3]` is a symbol, `table["a"]` an integer; `3 in table` and `"a" in table` both work.
    """

    _id2sym: dict[int, str] = field(default_factory=dict)
    _sym2id: dict[str, int] = field(default_factory=dict)
    eps: str = "<eps>"

    def __post_init__(self) -> None:
        pairs = [*self._id2sym.items(), *((i, s) for s, i in self._sym2id.items())]
        self._id2sym, self._sym2id = {}, {}
        for i, symbol in pairs:
            self.add(symbol, i)
        if 0 not in self._id2sym:
            self.add(self.eps, 0)
        self.eps = self._id2sym[0]

    @staticmethod
    def from_str(s: str) -> SymbolTable:
        """Lines of "symbol integer"; blank lines are left out."""
        table: dict[int, str] = {}
        seen: dict[str, int] = {}
        for number, line in enumerate(s.splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 2 or not fields[1].lstrip("-").isdigit():
                raise ValueError(f"symbol table, line {number}: expected 'symbol integer', got {line!r}")
            symbol, i = fields[0], int(fields[1])
            if i in table or symbol in seen:
                raise ValueError(f"symbol table, line {number}: {line.strip()!r} repeats a symbol or a number")
            table[i], seen[symbol] = symbol, i
        return SymbolTable(_id2sym=table, eps=table.get(0, "<eps>"))

    @staticmethod
    def from_file(filename: str | Path) -> SymbolTable:
        return SymbolTable.from_str(Path(filename).read_text(encoding="utf-8"))

    def to_str(self) -> str:
        return "".join(f"{symbol} {i}\n" for i, symbol in sorted(self._id2sym.items()))

    def to_file(self, filename: str | Path) -> None:
        Path(filename).write_text(self.to_str(), encoding="utf-8")

    def add(self, symbol: str, index: int | None = None) -> int:
        """Add a symbol under `index` (default: one above the largest); returns its number.

        Raises ValueError if the symbol or the number is taken by another.
        """
        if index is None:
            if symbol in self._sym2id:
                return self._sym2id[symbol]
            index = max(self._id2sym, default=0) + 1
        if self._sym2id.get(symbol, index) != index or self._id2sym.get(index, symbol) != symbol:
            raise ValueError(f"cannot add {symbol!r} as {index}: the symbol or the number is taken")
        self._sym2id[symbol], self._id2sym[index] = index, symbol
        return index

    def get(self, k: int | str) -> Any:
        """The symbol of a number or the number of a symbol; KeyError if there is none."""
        return self._id2sym[k] if isinstance(k, int) else self._sym2id[k]

    __getitem__ = get

    def __contains__(self, k: object) -> bool:
        return k in self._id2sym if isinstance(k, int) else k in self._sym2id

    def __len__(self) -> int:
        return len(self._id2sym)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    @property
    def ids(self) -> list[int]:
        return sorted(self._id2sym)

    @property
    def symbols(self) -> list[str]:
        return sorted(self._sym2id)

    def merge(self, other: SymbolTable) -> SymbolTable:
        """A table with the symbols of both; ValueError where they disagree."""
        ans = SymbolTable(dict(self._id2sym), eps=self.eps)
        for i, symbol in other._id2sym.items():
            ans.add(symbol, i)
        return ans

    def names(self, labels: Iterable[int]) -> list[str]:
        return [self._id2sym[i] for i in labels]


torch.serialization.add_safe_globals([SymbolTable])
