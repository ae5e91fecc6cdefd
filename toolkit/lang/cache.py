"""Graphs kept on disk: made again when anything they were made of has changed, or the file has."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ops import Fsa, NgramLM, SymbolTable, build
from ops.ngram import TENSORS
from toolkit.lang.files import replacing, replacing_text
from toolkit.lang.lexicon import Lexicon, Tokens


def cached_fsa(path: str | Path | None, inputs: Mapping[str, object], make: Callable[[], Fsa]) -> Fsa:
    """The Fsa in the file `path`, if it was made of `inputs`; else make() is called and its result written there.

    `path` holds k2's dictionary (`Fsa.from_dict(torch.load(path))`), `path`.json beside it the inputs and a checksum. A file
    that is stale or damaged is replaced, and the log says why. path None: no file.
    """
    if path is None:
        return make()
    path = Path(path)
    mark = path.with_name(path.name + ".json")
    inputs = json.loads(json.dumps({**inputs, "code": _code()}))
    fsa, why = _read(path, mark, inputs)
    if fsa is not None:
        logging.info("%s: %d states, %d arcs, read from the file", path, fsa.shape[0] or 0, fsa.num_arcs)
        return fsa
    logging.info("%s: %s; making it", path, why)
    fsa = make()
    with replacing(path) as f:
        torch.save(fsa.as_dict(), f)
    with replacing_text(mark) as g:
        json.dump({"inputs": inputs, "bytes": path.stat().st_size, "checksum": _file_digest(path)}, g, indent=1)
    return fsa


def load_graph(path: str | Path) -> Fsa:
    """The graph in a file of `cached_fsa` or of icefall (`torch.save(fsa.as_dict(), path)`)."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such graph; recipes/librispeech/prepare.sh makes it")
    return Fsa.from_dict(torch.load(path, weights_only=True))


def _read(path: Path, mark: Path, inputs: Mapping[str, object]) -> tuple[Fsa | None, str]:
    """The Fsa, or why there is none."""
    if not (path.is_file() and mark.is_file()):
        return None, "not there"
    try:
        before = json.loads(mark.read_text(encoding="utf-8"))
        changed = sorted(k for k in {*inputs, *before["inputs"]} if inputs.get(k) != before["inputs"].get(k))
        if changed:
            return None, f"{', '.join(changed)} changed since it was made"
        if path.stat().st_size != before["bytes"] or _file_digest(path) != before["checksum"]:
            return None, "the file is damaged (wrong checksum)"
        return load_graph(path), ""
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, pickle.UnpicklingError) as e:
        return None, f"it cannot be read ({type(e).__name__}: {e})"


def digest(*parts: str | bytes | Tensor | Iterable[str]) -> str:
    """A checksum of strings, bytes, tensors and lists of strings."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            data = part.contiguous().numpy().tobytes()
        else:
            data = part if isinstance(part, bytes) else ("\n".join([part] if isinstance(part, str) else part)).encode()
        state.update(b"%d:" % len(data))
        state.update(data)
    return state.hexdigest()


def lexicon_digest(lexicon: Lexicon) -> str:
    return digest((f"{word}\t{' '.join(spelling)}" for word, spelling in lexicon.entries), map(repr, lexicon.probs))


def lm_digest(lm: NgramLM) -> str:
    return digest(lm.words, *(getattr(lm, name) for name in TENSORS), str(lm.start_state))


def tokens_digest(tokens: Tokens) -> str:
    return digest(tokens.to_str() if isinstance(tokens, SymbolTable) else tokens)


def _file_digest(path: Path) -> str:
    state = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def _code() -> str:
    """Changes when what makes graphs does."""
    own = [Path(__file__).with_name(name).read_bytes() for name in ("arcs.py", "lexicon.py", "graphs.py")]
    return digest(build.source_hash(), *own)
