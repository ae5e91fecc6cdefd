"""Training n-gram models: interpolated modified Kneser-Ney with pruning, written as ARPA, as KenLM's lmplz makes them.

Every n-gram of the text is a row of its order's table, which knows the row of its context (all words but the last) and of
its suffix (all but the first) in the table below. So counting is sorting integers and estimating is arithmetic on columns.

Sources: Chen and Goodman, "An empirical study of smoothing techniques for language modeling", 1998; Heafield et al.,
"Scalable modified Kneser-Ney language model estimation", 2013 (adjusted counts, sentence beginnings, pruning).
"""

from __future__ import annotations

import itertools
import logging
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from toolkit.lang.files import replacing_text

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
_CHUNK = 500_000  # rows written at once


@dataclass
class NgramTable:
    """The n-grams of one order, sorted by context, then word; columns of int64."""

    context: np.ndarray  # row of the first n-1 words in the table below (order 1: 0)
    word: np.ndarray  # the last word
    suffix: np.ndarray  # row of the last n-1 words in the table below (order 1: 0)
    count: np.ndarray  # how often it occurs

    def __len__(self) -> int:
        return self.word.size


@dataclass
class NgramCounts:
    """All n-grams of a text up to an order. Words 0, 1, 2 are <unk>, <s>, </s>; row i of table 1 is word i."""

    words: list[str]
    tables: list[NgramTable]


@dataclass
class NgramOrder:
    """The n-grams of one order of a model, with logarithms to base 10 as ARPA has them."""

    context: np.ndarray  # row of the first n-1 words in the order below
    word: np.ndarray
    log10_prob: np.ndarray  # of the word after the context
    log10_backoff: np.ndarray  # the factor for words that do not follow these n words


@dataclass
class NgramModel:
    """A back-off model: P(w | h) is that of the n-gram h w if there is one, else backoff(h) · P(w | h without its first word).

    `discounts[n - 1]` are the D1, D2, D3+ used for order n.
    """

    words: list[str]
    orders: list[NgramOrder]
    discounts: list[tuple[float, float, float]] = field(default_factory=list)

    @property
    def order(self) -> int:
        return len(self.orders)

    @property
    def num_ngrams(self) -> list[int]:
        return [o.word.size for o in self.orders]

    def save(self, path: str | Path) -> None:
        """Write ARPA, atomically; compressed if `path` ends in .gz."""
        names = np.array(self.words, dtype=object)
        with replacing_text(path) as f:
            f.write("\\data\\\n" + "".join(f"ngram {n}={k}\n" for n, k in enumerate(self.num_ngrams, 1)))
            for n, part in enumerate(self.orders, 1):
                f.write(f"\n\\{n}-grams:\n")
                last = n == self.order
                line = "%.8g\t" + " ".join(["%s"] * n) + ("\n" if last else "\t%.8g\n")
                for begin in range(0, part.word.size, _CHUNK):
                    rows = np.arange(begin, min(begin + _CHUNK, part.word.size))
                    columns = [names[c].tolist() for c in self._spell(n, rows)]
                    numbers = [part.log10_prob[rows], part.log10_backoff[rows]]
                    probs, backoffs = ((x + 0.0).tolist() for x in numbers)  # + 0.0: no "-0"
                    fields = zip(probs, *columns) if last else zip(probs, *columns, backoffs)
                    f.write("".join(map(line.__mod__, fields)))
            f.write("\n\\end\\\n")

    def _spell(self, n: int, rows: np.ndarray) -> list[np.ndarray]:
        """The words of n-grams, one array a position."""
        ans: list[np.ndarray] = []
        for part in reversed(self.orders[:n]):
            ans.insert(0, part.word[rows])
            rows = part.context[rows]
        return ans


def train_ngram(
    sentences: Iterable[str | Sequence[str]],
    order: int = 3,
    path: str | Path | None = None,
    prune: Sequence[int] = (),
    vocabulary: Iterable[str] | None = None,
) -> NgramModel:
    """Train an interpolated modified Kneser-Ney model; write it to `path` (.arpa or .arpa.gz) if given.

    Args:
      sentences: text to be split at blanks, or lists of words or tokens. An empty one counts as a sentence without words.
      order: n of the longest n-grams.
      prune: n-grams of order k that occur at most prune[k - 1] times are left out (their mass goes to the back-off); the
        last number holds for all higher orders. Numbers must not fall, and the first must be 0: all words stay.
      vocabulary: the words of the model. Others count as <unk>; those that do not occur get the share of an unseen word.
        Default: the words of the text.
    Raises ValueError for a text without sentences or with <s> or </s> in it.
    """
    model = estimate(count_ngrams(sentences, order, vocabulary), prune)
    logging.info("%d-gram model: %s n-grams", order, model.num_ngrams)
    if path is not None:
        model.save(path)
    return model


# -------------------------------------------------------------------------------------------------------------- counting


def count_ngrams(
    sentences: Iterable[str | Sequence[str]], order: int, vocabulary: Iterable[str] | None = None
) -> NgramCounts:
    """All n-grams up to `order`; a sentence's first n-grams begin with one <s>, its last ones end in </s>."""
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    words, word_T = _number_words(sentences, vocabulary)
    num_words, length = len(words), word_T.size
    starts = np.flatnonzero(word_T == 1)
    position_T = np.arange(length) - np.repeat(starts, np.diff(np.append(starts, length)))
    count = np.bincount(word_T, minlength=num_words)
    zeros = np.zeros(num_words, dtype=np.int64)
    tables = [NgramTable(zeros, np.arange(num_words), zeros, count)]
    row_T = word_T.astype(np.int64)  # of the n-gram that ends here
    for n in range(2, order + 1):
        ends = np.flatnonzero(position_T >= n - 1)
        key = row_T[ends - 1] * num_words + word_T[ends]
        order_of, first = _group(key)
        group = np.empty(ends.size, dtype=np.int64)
        group[order_of] = np.repeat(np.arange(first.size), np.diff(np.append(first, ends.size)))
        example = order_of[first]
        tables.append(
            NgramTable(
                key[example] // num_words, key[example] % num_words, row_T[ends[example]],
                np.diff(np.append(first, ends.size)),
            )
        )  # fmt: skip
        row_T = np.full(length, -1, dtype=np.int64)
        row_T[ends] = group
    return NgramCounts(words, tables)


def _number_words(
    sentences: Iterable[str | Sequence[str]], vocabulary: Iterable[str] | None
) -> tuple[list[str], np.ndarray]:
    """The words by number and the text as int32 (T,): <s> word word ... </s> <s> ..."""
    closed = vocabulary is not None
    ids: dict[str, int] = defaultdict(itertools.count(3).__next__)
    ids |= {UNK: 0, BOS: 1, EOS: 2}
    for word in vocabulary or ():
        ids[word]  # numbers it
    text, num_sentences = array("i"), 0
    for sentence in sentences:
        num_sentences += 1
        split = sentence.split() if isinstance(sentence, str) else sentence
        text.append(1)
        text.extend(map(ids.get, split, itertools.repeat(0)) if closed else map(ids.__getitem__, split))  # type: ignore[arg-type]
        text.append(2)
    word_T = np.frombuffer(text, dtype=np.int32) if len(text) else np.zeros(0, dtype=np.int32)
    if not word_T.size:
        raise ValueError("n-gram training: no sentences")
    if np.count_nonzero((word_T == 1) | (word_T == 2)) != 2 * num_sentences:
        raise ValueError("n-gram training: the text has words <s> or </s>; sentences get them here")
    return list(ids), word_T


def _group(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order that sorts `key`, and where in it each new value begins. Equal keys keep their order."""
    values, order = torch.sort(torch.from_numpy(key), stable=True)
    sorted_key = values.numpy()
    first = np.flatnonzero(np.concatenate([[True], sorted_key[1:] != sorted_key[:-1]])[: key.size])
    return order.numpy(), first


# ------------------------------------------------------------------------------------------------------------ estimation


def estimate(counts: NgramCounts, prune: Sequence[int] = ()) -> NgramModel:
    """The model for given counts: see train_ngram.

    With a(g) the adjusted count of n-gram g (how often it occurs if it is of the highest order or begins with <s>, else
    how many different words come before it) and c(g) how often it occurs:

        P(w | h) = [c(hw) > prune] (a(hw) - D(a(hw))) / a(h·) + backoff(h) P(w | h'),  P() = 1 / number of words

    where a(h·) is the sum over words, h' is h without its first word, and backoff(h) makes the sum 1.
    """
    thresholds = _thresholds(prune, len(counts.tables))
    begins_sentence = np.arange(len(counts.words)) == 1
    kept_below, row_below = np.ones(1, dtype=bool), np.zeros(1, dtype=np.int64)
    prob_below = np.full(1, 1.0 / (len(counts.words) - 1))  # all words but <s>, which is never predicted
    model = NgramModel(counts.words, [])
    for n, (table, threshold) in enumerate(zip(counts.tables, thresholds), 1):
        if n > 1:
            begins_sentence = begins_sentence[table.context]
        adjusted = table.count.astype(np.float64)
        if n < len(counts.tables):
            extended = np.bincount(counts.tables[n].suffix, minlength=len(table))
            adjusted = np.where(begins_sentence, adjusted, extended)
        if n == 1:
            adjusted[1] = 0.0
        discounts = _discounts(adjusted, n)
        discount = np.array([0.0, *discounts])[np.minimum(adjusted, 3).astype(np.int64)]
        kept = table.count > threshold if threshold else np.ones(len(table), dtype=bool)
        total = np.bincount(table.context, adjusted, minlength=kept_below.size)
        spare = np.bincount(table.context, np.where(kept, discount, adjusted), minlength=kept_below.size)
        backoff = np.divide(spare, total, out=np.ones_like(spare), where=total > 0)
        if n > 1:
            model.orders[-1].log10_backoff = _log10(backoff[kept_below])
        own = (adjusted - discount) / np.maximum(total, 1.0)[table.context]
        prob = own + backoff[table.context] * prob_below[table.suffix]
        if n == 1:
            prob[1] = 1.0  # <s>: what lmplz writes
        row = np.cumsum(kept) - 1
        model.orders.append(
            NgramOrder(row_below[table.context[kept]], table.word[kept], _log10(prob[kept]), np.zeros(int(kept.sum())))
        )
        model.discounts.append(discounts)
        kept_below, row_below, prob_below = kept, row, prob
    return model


def _thresholds(prune: Sequence[int], order: int) -> list[int]:
    given = list(prune) or [0]
    if given[0] != 0 or any(a > b for a, b in itertools.pairwise(given)) or len(given) > order:
        raise ValueError(f"prune={list(prune)}: expected at most {order} numbers that begin with 0 and do not fall")
    return given + [given[-1]] * (order - len(given))


def _discounts(adjusted: np.ndarray, n: int) -> tuple[float, float, float]:
    """D1, D2, D3+ from the numbers of n-grams with adjusted counts 1 to 4 (Chen and Goodman's equation 26)."""
    n1, n2, n3, n4 = (int(np.count_nonzero(adjusted == k)) for k in (1, 2, 3, 4))
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 <= d <= k for k, d in enumerate(found, 1)):
            return found
    logging.warning(
        "%d-grams: %d, %d, %d, %d of them with counts 1, 2, 3, 4 give no discounts (little or artificial text?); using %s",
        n, n1, n2, n3, n4, FALLBACK_DISCOUNTS,
    )  # fmt: skip
    return FALLBACK_DISCOUNTS


def _log10(x: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(x, 1e-99))
