"""n-gram language models: ARPA files read natively, KenLM binaries through KenLM's own library.

Legend: B queries, S states, A arcs, V words.
"""

from __future__ import annotations

import ctypes.util
import functools
import gzip
import hashlib
import importlib.util
import math
import os
import re
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from ops import build

VERSION = 1  # of what a cached automaton holds
TENSORS = ("arc_splits_S1", "arc_words_A", "arc_log_probs_A", "arc_next_A", "backoff_state_S", "backoff_log_prob_S")
KENLM_MAGIC = b"mmap lm http://kheafield.com/code"
LN10 = math.log(10.0)


class NgramLM:
    """An n-gram model with back-off, of any order. All log-probabilities are natural logarithms.

    A state is a context, an int in [0, S); state 0 is the empty one. For a word w after the context h,

        log p(w | h) = the arc's log-probability if h has an arc for w, else backoff(h) + log p(w | backoff state of h).

    Native form (ARPA), as tensors that may be mapped from a file, so do not write to them: state s has the arcs
    `arc_splits_S1[s]` to `arc_splits_S1[s + 1]` (int32), sorted by `arc_words_A` (int32), with `arc_log_probs_A`
    (float32) and the state after the word, `arc_next_A` (int32). State 0 has an arc for each word. Without an arc:
    `backoff_state_S` (int32, -1 for state 0) at `backoff_log_prob_S` (float32). A context that no longer n-gram
    begins with and that costs nothing to leave is not a state: the longest suffix of it that is one stands for it.

    A KenLM binary has no list of its n-grams: `has_arcs` is False, the tensors are absent, states are numbered as they
    are first reached and kept as long as the object lives.

    order: words of the longest n-grams. words: their spelling by id; id 0 is `<unk>`. start_state: after `<s>`.
    """

    def __init__(
        self,
        order: int,
        words: bytes | Sequence[str],
        start_state: int,
        tensors: dict[str, Tensor] | None = None,
        kenlm: int | None = None,
        end_word: int | None = None,
    ) -> None:
        """Use `load`. words: spellings by id, or their UTF-8 with a line end after each (split when first needed)."""
        self.order = order
        self.start_state = start_state
        self.kenlm_handle = kenlm
        self.words_bytes = words if isinstance(words, bytes) else "".join(f"{w}\n" for w in words).encode()
        self._end_word = end_word
        if kenlm is None:
            assert tensors is not None
            _check_automaton(tensors, start_state)
            for name in TENSORS:
                setattr(self, name, tensors[name])
        else:
            like = torch.empty(0)
            weakref.finalize(self, torch.ops.lattica.ngram_kenlm_close, like, kenlm).atexit = False

    arc_splits_S1: Tensor
    arc_words_A: Tensor
    arc_log_probs_A: Tensor
    arc_next_A: Tensor
    backoff_state_S: Tensor
    backoff_log_prob_S: Tensor

    # ------------------------------------------------------------------------------------------------------- loading

    @classmethod
    def load(cls, path: str | Path, cache: bool = True) -> NgramLM:
        """Read `path`: ARPA, ARPA compressed by gzip, or a KenLM binary (recognised by its content, not its name).

        The automaton made of an ARPA file is kept beside it (`<path>.lattica`, or in the cache folder, see
        `LATTICA_CACHE`, where that place cannot be written) and mapped into memory the next time, as long as size and
        modification time of the ARPA file stay what they were. cache=False: neither read nor write it.
        Raises FileNotFoundError; ValueError naming file and line if the file is malformed or truncated; RuntimeError
        if a KenLM binary is to be read and there is no KenLM, or one that cannot read it.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such language model")
        with path.open("rb") as file:
            magic = file.read(len(KENLM_MAGIC))
        build.load()
        if magic == KENLM_MAGIC:
            return cls._load_kenlm(path)
        stat = path.stat()
        key = f"{VERSION} {stat.st_size} {stat.st_mtime_ns}"
        if not cache:
            return cls._from_state(_parse(path, magic))
        cached = _cache_path(path)
        state = _read_cache(cached, key)
        if state is None:
            with FileLock(f"{cached}.lock"):
                state = _read_cache(cached, key)
                if state is None:
                    state = _parse(path, magic)
                    _write_cache(cached, {"key": key, **state})
        return cls._from_state(state)

    @classmethod
    def _from_state(cls, state: dict[str, Any]) -> NgramLM:
        tensors = {name: state[name] for name in TENSORS}
        return cls(state["order"], state["words"].numpy().tobytes(), state["start_state"], tensors)

    @classmethod
    def _load_kenlm(cls, path: Path) -> NgramLM:
        library = kenlm_library()
        try:
            numbers, words = torch.ops.lattica.ngram_kenlm_open(torch.empty(0), library, str(path.resolve()))
        except RuntimeError as error:
            raise RuntimeError(first_line(error)) from None
        handle, order, start_state, end_word = numbers.tolist()
        return cls(order, words.numpy().tobytes(), start_state, kenlm=handle, end_word=end_word)

    # ------------------------------------------------------------------------------------------------------ questions

    @property
    def has_arcs(self) -> bool:
        """Whether the automaton is there as tensors."""
        return self.kenlm_handle is None

    @property
    def num_states(self) -> int:
        """S. A KenLM binary has no fixed number of states: RuntimeError."""
        if not self.has_arcs:
            raise RuntimeError("the states of a KenLM binary cannot be counted: load the ARPA file instead")
        return len(self.backoff_state_S)

    @functools.cached_property
    def words(self) -> list[str]:
        return self.words_bytes.decode("utf-8", "surrogateescape").split("\n")[:-1]

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """word → id."""
        return {word: i for i, word in enumerate(self.words)}

    def word_id(self, word: str) -> int:
        """The id of `word`, 0 (`<unk>`) if it is not in the vocabulary."""
        return self.ids.get(word, 0)

    @functools.cached_property
    def end_word(self) -> int:
        """The id of `</s>`."""
        return self.ids["</s>"] if self._end_word is None else self._end_word

    def score(self, state_B: Tensor, word_B: Tensor) -> tuple[Tensor, Tensor]:
        """log p(word | state), float32, and the state after the word, int32, both (B,), on the CPU.

        state_B, word_B: integer tensors of any shape; ValueError if a state or a word id does not exist.
        """
        if state_B.shape != word_B.shape:
            raise ValueError(f"state_B {tuple(state_B.shape)} and word_B {tuple(word_B.shape)} must have one shape")
        states, words = (x.reshape(-1).to("cpu", torch.int32).contiguous() for x in (state_B, word_B))
        try:
            if self.has_arcs:
                tensors = [getattr(self, name) for name in TENSORS]
                log_prob, next_state = torch.ops.lattica.ngram_score(*tensors, states, words)
            else:
                log_prob, next_state = torch.ops.lattica.ngram_kenlm_score(states, words, self.kenlm_handle)
        except RuntimeError as error:
            raise ValueError(first_line(error)) from None
        return log_prob.view(state_B.shape), next_state.view(state_B.shape)

    def final(self, state_B: Tensor) -> Tensor:
        """log p(</s> | state), float32, of the shape of `state_B`."""
        return self.score(state_B, torch.full_like(state_B, self.end_word))[0]

    def sentence_log_prob(self, words: str | Sequence[str], start: bool = True, end: bool = True) -> float:
        """log p of a sentence (a string is split at blanks): with `<s>` before it if `start`, `</s>` behind if `end`."""
        state = torch.tensor(self.start_state if start else 0)
        total = 0.0
        for word in words.split() if isinstance(words, str) else words:
            log_prob, state = self.score(state, torch.tensor(self.word_id(word)))
            total += float(log_prob)
        return total + (float(self.final(state)) if end else 0.0)

    def __repr__(self) -> str:
        what = f"{self.num_states} states, {len(self.arc_words_A)} arcs" if self.has_arcs else "KenLM binary"
        return f"NgramLM(order={self.order}, {len(self.words)} words, {what})"


# -------------------------------------------------------------------------------------------------------------- helpers


def first_line(error: Exception) -> str:
    """What an op complained about, without the place in the C++ that torch puts before it and the stack behind it."""
    return re.sub(r"^\w+, [^,]*:\d+, ", "", str(error).split("\n")[0])


def as_bytes_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def _check_automaton(tensors: dict[str, Tensor], start_state: int) -> None:
    """Raise ValueError unless following the automaton stays inside it and comes to an end."""
    splits, words, log_probs, after, backoff, backoff_log_prob = (tensors[name] for name in TENSORS)
    num_states, num_arcs = len(backoff), len(words)
    dtypes = (torch.int32, torch.int32, torch.float32, torch.int32, torch.int32, torch.float32)
    sound = all(
        tensors[n].dtype == d and tensors[n].is_contiguous() and tensors[n].dim() == 1 for n, d in zip(TENSORS, dtypes)
    )
    sound = sound and num_states >= 1 and len(splits) == num_states + 1 and len(backoff_log_prob) == num_states
    sound = sound and len(log_probs) == num_arcs and len(after) == num_arcs and int(splits[0]) == 0
    sound = sound and int(splits[-1]) == num_arcs and bool((splits[1:] >= splits[:-1]).all())
    if sound:
        num_words = int(splits[1])
        # A state's back-off state has a lower number, as shorter contexts come first: so backing off ends.
        sound = bool((backoff[1:] >= 0).all() and (backoff < torch.arange(num_states, dtype=torch.int32)).all())
        sound = sound and bool((words[:num_words] == torch.arange(num_words, dtype=torch.int32)).all())
        sound = sound and num_words > 0 and int(words.min()) >= 0 and int(words.max()) < num_words
        sound = sound and int(after.min()) >= 0 and int(after.max()) < num_states and 0 <= start_state < num_states
    if not sound:
        raise ValueError("the tensors do not make up an n-gram automaton as ops.NgramLM describes it")


def _parse(path: Path, magic: bytes) -> dict[str, Any]:
    """Read an ARPA file, compressed or not, into what is cached."""
    if magic[:2] == b"\x1f\x8b":
        try:
            text = gzip.decompress(path.read_bytes())
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error})") from None
    else:
        text = path.read_bytes()
    try:
        *tensors, words, numbers = torch.ops.lattica.ngram_parse_arpa(as_bytes_tensor(text), str(path))
    except RuntimeError as error:
        raise ValueError(first_line(error)) from None
    order, start_state = numbers.tolist()
    return {"order": order, "start_state": start_state, "words": words, **dict(zip(TENSORS, tensors))}


def _cache_path(path: Path) -> Path:
    """Beside the file if its folder is meant to be written (root can write everywhere), else in the cache folder."""
    folder = path.resolve().parent
    if folder.stat().st_mode & 0o222 and os.access(folder, os.W_OK):
        return folder / f"{path.name}.lattica"
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    target = build.cache_dir() / "ngram"
    target.mkdir(exist_ok=True)
    return target / f"{path.name}-{name}.lattica"


def _read_cache(cached: Path, key: str) -> dict[str, Any] | None:
    if not cached.is_file():
        return None
    try:
        state = torch.load(cached, mmap=True, weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError):  # of another version, or damaged: made again
        return None
    return state if isinstance(state, dict) and state.get("key") == key else None


def _write_cache(cached: Path, state: dict[str, Any]) -> None:
    scratch = cached.with_name(f"{cached.name}.{os.getpid()}")
    try:
        torch.save(state, scratch)
        os.replace(scratch, cached)
    finally:
        scratch.unlink(missing_ok=True)


def kenlm_library() -> str:
    """Path of `libkenlm.so`: beside pip's `kenlm` module, or wherever the system's loader finds it."""
    spec = importlib.util.find_spec("kenlm")
    if spec is not None and spec.origin:
        for pattern in ("libkenlm.so*", "libkenlm.dylib", "kenlm.libs/libkenlm*", "lib/libkenlm*"):
            for found in sorted(Path(spec.origin).parent.glob(pattern)):
                return str(found)
    found_by_name = ctypes.util.find_library("kenlm")
    if found_by_name:
        return found_by_name
    raise RuntimeError("KenLM binaries are read by KenLM's own library, and there is none here: pip install kenlm")
