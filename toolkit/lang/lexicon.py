"""Lexicon: how words are spelled in tokens (word pieces, characters or phones), and the automaton L that knows it.

One entry is a word, its tokens and a probability; a word may have several. Files have a line an entry,
`word token token ...` as in icefall; flashlight's `word<TAB>l e t t e r s |` reads the same way.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ops.fsa import Fsa
from ops.symbol_table import SymbolTable
from toolkit.data.tokenizer import Tokenizer, word_rows
from toolkit.lang.arcs import fsa_of_arcs
from toolkit.lang.files import numbered_lines, replacing_text

Entry = tuple[str, tuple[str, ...]]
Tokens = SymbolTable | Sequence[str]


class Lexicon:
    """Entries (word, tokens) in the order given, each with a probability in (0, 1]; repeated entries count once, with the
    larger probability.

    `left_out`: words that were asked for and could not be spelled.
    """

    def __init__(self, entries: Iterable[tuple[str, Sequence[str]]], probs: Iterable[float] | None = None) -> None:
        kept: dict[Entry, float] = {}
        pairs = ((entry, 1.0) for entry in entries) if probs is None else zip(entries, probs, strict=True)
        for (word, spelling), prob in pairs:
            entry = word, tuple(spelling)
            problem = _problem(entry, prob)
            if problem:
                raise ValueError(f"lexicon: {problem}")
            kept[entry] = max(prob, kept.get(entry, 0.0))
        self.entries = list(kept)
        self.probs = list(kept.values())
        self.left_out: list[str] = []

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def words(self) -> list[str]:
        """Every word once, sorted."""
        return sorted({word for word, _ in self.entries})

    @property
    def tokens(self) -> list[str]:
        """Every token that occurs, sorted."""
        return sorted({token for _, spelling in self.entries for token in spelling})

    def spellings(self) -> dict[str, list[tuple[str, ...]]]:
        """The spellings of each word."""
        ans: dict[str, list[tuple[str, ...]]] = {}
        for word, spelling in self.entries:
            ans.setdefault(word, []).append(spelling)
        return ans

    def restrict(self, words: Iterable[str]) -> Lexicon:
        """The entries of `words`; those that have none are in `left_out` of the result, which the log counts and names."""
        wanted = set(words)
        chosen = [i for i, (word, _) in enumerate(self.entries) if word in wanted]
        ans = Lexicon([self.entries[i] for i in chosen], [self.probs[i] for i in chosen])
        ans._leave_out(wanted - {self.entries[i][0] for i in chosen}, "not in the lexicon")
        return ans

    def _leave_out(self, words: set[str], why: str) -> None:
        self.left_out = sorted(words)
        if words:
            some = ", ".join(self.left_out[:10]) + (", ..." if len(words) > 10 else "")
            logging.warning("lexicon: %d words left out, %s: %s", len(words), why, some)

    # ------------------------------------------------------------------------------------------------ where it comes from

    @classmethod
    def from_tokenizer(cls, words: Iterable[str], tokenizer: Tokenizer) -> Lexicon:
        """Each word as `tokenizer` spells it; a word that it cannot spell is left out, with a warning, into `left_out`."""
        entries, failed = [], set()
        for word in dict.fromkeys(words):
            ids = tokenizer.encode(word)
            if not ids or tokenizer.unk_id in ids:
                failed.add(word)
            else:
                entries.append((word, [tokenizer.tokens[i] for i in ids]))
        ans = cls(entries)
        ans._leave_out(failed, "the tokens cannot spell them")
        return ans

    @classmethod
    def load(cls, path: str | Path, with_probs: bool = False) -> Lexicon:
        """Read lexicon.txt(.gz), or Kaldi's lexiconp.txt (`word probability token ...`) if `with_probs`.

        Raises ValueError with file and line for a word without tokens or a probability that is none, FileNotFoundError.
        """
        entries, probs = [], []
        for where, line in numbered_lines(path):
            fields = line.split()
            if not fields:
                continue
            prob = 1.0
            if with_probs:
                try:
                    prob = float(fields.pop(1))
                except (IndexError, ValueError):
                    raise ValueError(f"{where}: expected 'word probability token ...', got {line!r}") from None
            entry = fields[0], tuple(fields[1:])
            problem = _problem(entry, prob)
            if problem:
                raise ValueError(f"{where}: {problem}")
            entries.append(entry)
            probs.append(prob)
        return cls(entries, probs)

    @classmethod
    def load_cmudict(cls, path: str | Path, upper: bool = True, stress: bool = False) -> Lexicon:
        """Read the CMU Pronouncing Dictionary, whose further pronunciations are called word(2), word(3), ...

        upper: words in upper case, as in LibriSpeech's transcripts. stress: keep the digits of vowels (`AH0`).
        """
        entries = []
        for where, line in numbered_lines(path):
            if line.startswith(";;;"):
                continue
            fields = line.split(" #")[0].split()
            if not fields:
                continue
            word = re.sub(r"(?<=.)\(\d+\)$", "", fields[0])
            phones = fields[1:] if stress else [re.sub(r"(?<=\D)\d$", "", phone) for phone in fields[1:]]
            if not phones:
                raise ValueError(f"{where}: {fields[0]!r} has no pronunciation")
            entries.append((word.upper() if upper else word, phones))
        return cls(entries)

    def save(self, path: str | Path, with_probs: bool = False, separator: str = " ") -> None:
        """Write lexicon.txt(.gz), atomically. separator="\\t" after the word is flashlight's form."""
        with replacing_text(path) as f:
            for (word, spelling), prob in zip(self.entries, self.probs):
                f.write(f"{word}{separator}{f'{prob:.6g} ' if with_probs else ''}{' '.join(spelling)}\n")

    # -------------------------------------------------------------------------------------------------------- symbols

    def word_table(self) -> SymbolTable:
        """words.txt as icefall has it: <eps> and special words, the sorted words, then #0, <s>, </s>."""
        return SymbolTable(dict(enumerate(word_rows(self.words))))

    def token_table(self, first: Sequence[str] = ("<blk>",)) -> SymbolTable:
        """tokens.txt for a lexicon that has no tokenizer, as of phones: `first` (the blank is 0), then its tokens, sorted."""
        rows = [*first, *(token for token in self.tokens if token not in first)]
        return SymbolTable(dict(enumerate(rows)))

    def check_tokens(self, tokens: Tokens) -> None:
        """Raise ValueError that names the tokens which `tokens` (the model's) lacks, and words that need them."""
        known = set(tokens.symbols if isinstance(tokens, SymbolTable) else tokens)
        missing = Counter(token for _, spelling in self.entries for token in spelling if token not in known)
        if missing:
            words = [word for word, spelling in self.entries if not known.issuperset(spelling)]
            some = ", ".join(f"{token!r} ({count} times)" for token, count in missing.most_common(10))
            raise ValueError(
                f"lexicon: {len(missing)} tokens are not among the model's {len(known)}: {some}; "
                f"{len(words)} words need them, e.g. {', '.join(words[:5])}"
            )

    def disambig(self) -> list[int]:
        """For each entry the k of the symbol #k that must follow it in L_disambig, or 0 where none is needed.

        A spelling needs one if it belongs to several words or begins another spelling: then no string of tokens with
        these symbols is ambiguous, and LG can be determinised (Mohri, Pereira and Riley, 2002). Words with one spelling
        are counted #1, #2, ...
        """
        counts = Counter(spelling for _, spelling in self.entries)
        ordered = sorted(counts)
        # What begins another one begins the one that follows it in dictionary order.
        prefixes = {a for a, b in itertools.pairwise(ordered) if b[: len(a)] == a}
        used: Counter[tuple[str, ...]] = Counter()
        ans = []
        for _, spelling in self.entries:
            if counts[spelling] > 1 or spelling in prefixes:
                used[spelling] += 1
                ans.append(used[spelling])
            else:
                ans.append(0)
        return ans

    # ----------------------------------------------------------------------------------------------------------------- L

    def fsa(
        self,
        tokens: Tokens,
        words: SymbolTable | None = None,
        disambig: bool = False,
        silence: str | None = None,
        silence_prob: float = 0.5,
    ) -> Fsa:
        """L: transduces the tokens (labels) of any sequence of words to the words (aux_labels).

        The word and the log-probability of its spelling are on a spelling's first arc. With `disambig` (L_disambig),
        #k follows the spellings that need it and label #0 loops where words begin, with word #0, to let the back-off arcs of
        G pass; #k has the number max(tokens) + 1 + k.

        Args:
          tokens: the model's tokens by number; the blank is 0.
          words: numbers of words, default word_table(). Words that it lacks are a ValueError.
          silence: a token that may stand before, between and after words with probability `silence_prob`; None: none may.
        """
        self.check_tokens(tokens)
        words = self.word_table() if words is None else words
        ids = {t: i for i, t in enumerate(tokens)} if not isinstance(tokens, SymbolTable) else dict(tokens._sym2id)
        unknown = [word for word in self.words if word not in words]
        if unknown:
            raise ValueError(f"lexicon: {len(unknown)} words are not in the word table: {', '.join(unknown[:10])}")
        if silence is not None and not (silence in ids and 0.0 < silence_prob < 1.0):
            raise ValueError(f"silence={silence!r} must be a token, silence_prob={silence_prob} between 0 and 1")
        marks = np.array(self.disambig() if disambig else [0] * len(self), dtype=np.int64)
        first_disambig = max(ids.values(), default=0) + 1
        spelled = _Spelled(self, ids, marks, first_disambig, words)
        # Silence has a mark of its own, or else silence between words could be before or after the mark of a homophone.
        silence_labels = [ids[silence]] if silence is not None else []
        if disambig and silence is not None:
            silence_labels.append(first_disambig + int(marks.max(initial=0)) + 1)
        loop = (first_disambig, words["#0"]) if disambig else None
        return spelled.fsa(silence_labels, silence_prob, loop)


class _Spelled:
    """The labels of all entries, one after another, and L made of them."""

    def __init__(
        self, lexicon: Lexicon, ids: dict[str, int], marks: np.ndarray, first_disambig: int, words: SymbolTable
    ) -> None:
        counts = np.array([len(spelling) for _, spelling in lexicon.entries], dtype=np.int64)
        flat = np.array([ids[token] for _, spelling in lexicon.entries for token in spelling], dtype=np.int64)
        ends = np.cumsum(counts)
        self.label = np.insert(flat, ends[marks > 0], first_disambig + marks[marks > 0])
        self.counts = counts + (marks > 0)
        self.word = np.array([words[word] for word, _ in lexicon.entries], dtype=np.int64)
        self.score = np.array([math.log(prob) for prob in lexicon.probs])

    def fsa(self, silence: list[int], silence_prob: float, self_loop: tuple[int, int] | None) -> Fsa:
        """State `hub` is between words. With silence, labels `silence` lead from `rest` to it, and the start before both."""
        hub = 1 if silence else 0
        rest = np.arange(2, 2 + len(silence))
        num_fixed = 1 + hub + len(silence)
        begin = np.cumsum(self.counts) - self.counts
        total = self.label.size
        entry = np.repeat(np.arange(self.counts.size), self.counts)
        inner = num_fixed + np.cumsum(self.counts - 1) - (self.counts - 1)  # the first state inside each spelling
        j = np.arange(total) - begin[entry]
        is_first, is_last = j == 0, j == self.counts[entry] - 1
        src = np.where(is_first, hub, inner[entry] + j - 1)
        dest = np.where(is_last, hub, inner[entry] + j)
        aux, score = np.where(is_first, self.word[entry], 0), np.where(is_first, self.score[entry], 0.0)
        columns = [src, dest, self.label, aux, score]
        final = num_fixed + int((self.counts - 1).sum())
        extra: list[tuple[int, int, int, int, float]] = [(hub, final, -1, -1, 0.0)]
        if self_loop is not None:
            extra.append((hub, hub, *self_loop, 0.0))
        if silence:
            score[is_last] += math.log1p(-silence_prob)
            to_rest = [c[is_last] for c in (src, np.full_like(dest, rest[0]), self.label, aux, score)]
            to_rest[4] = to_rest[4] - math.log1p(-silence_prob) + math.log(silence_prob)
            columns = [np.concatenate(pair) for pair in zip(columns, to_rest)]
            extra += [(0, hub, 0, 0, math.log1p(-silence_prob)), (0, 2, 0, 0, math.log(silence_prob))]
            extra += [(int(s), int(d), x, 0, 0.0) for s, d, x in zip(rest, [*rest[1:], hub], silence)]
        more = [np.array(column) for column in zip(*extra)]
        src, dest, label, aux, score = (np.concatenate(pair) for pair in zip(columns, more))
        return fsa_of_arcs(src, dest, label, score, final + 1, aux)


def _problem(entry: Entry, prob: float) -> str | None:
    """What is wrong with an entry."""
    word, spelling = entry
    if not word or not spelling or not all(spelling):
        return f"the word {word!r} has no tokens"
    if not 0.0 < prob <= 1.0:
        return f"the probability of {word!r} must lie in (0, 1], got {prob}"
    return None
