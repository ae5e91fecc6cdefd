"""Text files of language material, plain or .gz: read by line number, written so that a file is whole or not there."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast


def open_text(path: str | Path) -> TextIO:
    """Open UTF-8 text for reading; what is compressed is told by its first bytes, not by its name."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as f:
        compressed = f.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding="utf-8") if compressed else open(path, encoding="utf-8")


def numbered_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """("file:line", line) of every line; a file that is damaged or no UTF-8 is a ValueError with its name."""
    with open_text(path) as f:
        try:
            for number, line in enumerate(f, 1):
                yield f"{path}:{number}", line.rstrip("\r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as e:
            raise ValueError(f"{path} cannot be read: {e}") from None


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as f:
            yield f
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_text(path: str | Path) -> Iterator[TextIO]:
    """The same for text, compressed if the name ends in .gz. The same text gives the same bytes: no time stamp is kept."""
    with replacing(path) as f:
        if Path(path).suffix != ".gz":
            out = io.TextIOWrapper(f, encoding="utf-8", newline="\n")
            yield out
            out.flush()
            out.detach()
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=f, compresslevel=3, mtime=0) as zipped:
            out = io.TextIOWrapper(cast(BinaryIO, zipped), encoding="utf-8", newline="\n")
            yield out
            out.flush()
            out.detach()
