"""n-gram training against the paper's equations, against a file that KenLM's lmplz wrote, and read by KenLM's module."""

from __future__ import annotations

import gzip
import itertools
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from toolkit.lang import ngram
from toolkit.lang.ngram import NgramCounts, NgramModel, NgramTable, count_ngrams, estimate, train_ngram

Gram = tuple[str, ...]


def some_text(num_sentences: int = 400, num_words: int = 150, seed: int = 6) -> list[str]:
    """Sentences in which few words are frequent, with repeats of short phrases, so that all counts from 1 to 4 occur."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(num_words)]
    weights = [1 / (i + 1) for i in range(num_words)]
    phrases = [" ".join(rng.choices(words, weights, k=3)) for _ in range(60)]
    pieces = [phrases, words]
    ans = [""]
    for _ in range(num_sentences):
        chosen = (rng.choice(pieces[0]) if rng.random() < 0.3 else rng.choices(words, weights)[0] for _ in range(4))
        ans.append(" ".join(list(chosen)[: rng.randint(1, 4)]))
    return ans


def as_dicts(model: NgramModel) -> list[dict[Gram, tuple[float, float]]]:
    """log10 probability and back-off of every n-gram."""
    ans = []
    for n, part in enumerate(model.orders, 1):
        columns = [[model.words[i] for i in c] for c in model._spell(n, np.arange(part.word.size))]
        ans.append(dict(zip(zip(*columns), zip(part.log10_prob.tolist(), part.log10_backoff.tolist()))))
    return ans


def read_arpa(path: Path) -> list[dict[Gram, tuple[float, float]]]:
    ans: list[dict[Gram, tuple[float, float]]] = []
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as f:  # type: ignore[operator]
        for line in f:
            if line.endswith("-grams:\n"):
                ans.append({})
            elif "\t" in line:
                prob, words, *backoff = line.rstrip("\n").split("\t")
                ans[-1][tuple(words.split(" "))] = float(prob), float(backoff[0]) if backoff else 0.0
    return ans


def prob(model: list[dict[Gram, tuple[float, float]]], history: Gram, word: str) -> float:
    """P(word | history), by the rule of back-off."""
    history = history[-(len(model) - 1) :] if len(model) > 1 else ()
    gram = (*history, word)
    if gram in model[len(history)]:
        return 10 ** model[len(history)][gram][0]
    if not history:
        return 10 ** model[0][("<unk>",)][0]
    backoff = model[len(history) - 1].get(history, (0.0, 0.0))[1]
    return 10**backoff * prob(model, history[1:], word)


class KneserNey:
    """The same model by the equations, one probability at a time."""

    def __init__(self, sentences: list[str], order: int, prune: list[int]) -> None:
        self.order, self.prune = order, prune
        lines = [["<s>", *s.split(), "</s>"] for s in sentences]
        self.counts = [
            Counter(tuple(line[i : i + n]) for line in lines for i in range(len(line) - n + 1))
            for n in range(1, order + 1)
        ]
        self.words = {w for line in lines for w in line} - {"<s>"} | {"<unk>"}
        self.before = [Counter(g[1:] for g in longer) for longer in self.counts[1:]]
        self.discounts = [self.discounts_of(n) for n in range(1, order + 1)]

    def adjusted(self, gram: Gram) -> int:
        n = len(gram)
        if gram == ("<s>",):
            return 0
        if n == self.order or gram[0] == "<s>":
            return self.counts[n - 1][gram]
        return self.before[n - 1][gram]

    def discounts_of(self, n: int) -> list[float]:
        t = Counter(self.adjusted(g) for g in self.counts[n - 1])
        y = t[1] / (t[1] + 2 * t[2])
        return [0.0] + [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)]

    def p(self, word: str, history: Gram) -> float:
        n = len(history) + 1
        followers = {g: self.adjusted(g) for g in self.counts[n - 1] if g[:-1] == history}
        total = sum(followers.values())
        kept = {g: a for g, a in followers.items() if self.counts[n - 1][g] > self.prune[n - 1] or n == 1}
        taken = {g: a - self.discounts[n - 1][min(a, 3)] for g, a in kept.items()}
        lower = self.p(word, history[1:]) if history else 1 / len(self.words)
        if not total:
            return lower
        return taken.get((*history, word), 0.0) / total + (1 - sum(taken.values()) / total) * lower


@pytest.mark.parametrize(("order", "prune"), [(1, [0]), (2, [0, 0]), (3, [0, 0, 0]), (3, [0, 0, 1]), (4, [0, 0, 1, 2])])
def test_equals_the_equations(order: int, prune: list[int]) -> None:
    text = some_text(300)
    reference = KneserNey(text, order, prune)
    model = train_ngram(text, order, prune=prune)
    assert model.discounts == [pytest.approx(d[1:]) for d in reference.discounts]
    got = as_dicts(model)
    for n, grams in enumerate(got, 1):
        kept = {g for g, c in reference.counts[n - 1].items() if n == 1 or c > prune[n - 1]}
        assert set(grams) == kept | ({("<unk>",)} if n == 1 else set())
    rng = random.Random(1)
    some = [g for grams in got for g in rng.sample(sorted(grams), min(len(grams), 60))]
    for gram in some:
        if gram[-1] != "<s>":
            assert prob(got, gram[:-1], gram[-1]) == pytest.approx(reference.p(gram[-1], gram[:-1]), rel=1e-9)


@pytest.mark.parametrize("prune", [(), (0, 1), (0, 1, 3)])
@pytest.mark.parametrize("vocabulary", [None, ["w0", "w1", "w2", "w3", "w5", "never", "ever"]])
def test_sums_to_one(prune: tuple[int, ...], vocabulary: list[str] | None) -> None:
    got = as_dicts(train_ngram(some_text(), 3, prune=prune, vocabulary=vocabulary))
    words = [w for (w,) in got[0] if w != "<s>"]
    if vocabulary is not None:
        assert set(words) == {*vocabulary, "<unk>", "</s>"}
        assert prob(got, (), "never") == prob(got, (), "ever") < prob(got, (), "<unk>")
    histories = [(), *(h for grams in got[:-1] for h in grams if h[-1] != "</s>"), ("w1", "w59"), ("never", "w2")]
    for history in random.Random(2).sample(histories, min(len(histories), 80)):
        assert sum(prob(got, history, w) for w in words) == pytest.approx(1.0, abs=1e-9), history


def test_pruned_contexts_pass_everything_on() -> None:
    """Where all that follows a history was pruned, its back-off weight is 1."""
    text = some_text()
    full, pruned = (as_dicts(train_ngram(text, 3, prune=p)) for p in ((), (0, 0, 1000)))
    assert len(pruned[2]) == 0 and len(full[2]) > 0
    assert all(backoff == 0.0 for _, backoff in pruned[1].values())
    assert {g: p for g, (p, _) in pruned[1].items()} == {g: pytest.approx(p) for g, (p, _) in full[1].items()}


def reconstruct_counts(arpa: list[dict[Gram, tuple[float, float]]]) -> Counter[Gram]:
    """The trigram counts of the text behind an unpruned interpolated model.

    (c - D(c)) / N is what P(w | u v) has over backoff(u v) P(w | v), and a history with one follower, seen c times, has
    the back-off weight D(c) / c; so the most frequent weights give D1, D2, D3, and each history N and its c.
    """
    followers: dict[Gram, list[tuple[str, float]]] = {}
    for (u, v, w), (log_prob, _) in arpa[2].items():
        own = 10**log_prob - 10 ** arpa[1][(u, v)][1] * 10 ** arpa[1][(v, w)][0]
        followers.setdefault((u, v), []).append((w, own))
    weights = Counter(round(10 ** arpa[1][h][1], 5) for h, f in followers.items() if len(f) == 1)
    discounts = np.array([0.0, *(k * weight for k, (weight, _) in enumerate(weights.most_common(3), 1))])
    ans: Counter[Gram] = Counter()
    for history, pairs in followers.items():
        if len(pairs) == 1:
            weight = 10 ** arpa[1][history][1]
            exact = [k for k in (1, 2) if abs(weight - discounts[k] / k) < 1e-3]
            ans[(*history, pairs[0][0])] = exact[0] if exact else round(discounts[3] / weight)
            continue
        own_W = np.array([x for _, x in pairs])
        for least in itertools.count(1):
            total = round((least - discounts[min(least, 3)]) / own_W.min())
            scaled_W = own_W * total
            counts_W = np.round(scaled_W + discounts[3]).astype(int)
            for k in (1, 2):
                counts_W[abs(scaled_W - (k - discounts[k])) < 0.02] = k
            if counts_W.sum() == total and abs(scaled_W + discounts[np.minimum(counts_W, 3)] - counts_W).max() < 0.02:
                break
            assert least < 500, history
        ans.update({(*history, w): int(c) for (w, _), c in zip(pairs, counts_W)})
    return ans


def counts_from_trigrams(trigrams: Counter[Gram], bigrams: list[Gram], words: list[str]) -> NgramCounts:
    """What count_ngrams would have made of the text."""
    ids = {w: i for i, w in enumerate(words)}
    pairs = sorted((ids[v], ids[w]) for v, w in bigrams)
    row = {pair: i for i, pair in enumerate(pairs)}
    triples = sorted((row[ids[u], ids[v]], ids[w], row[ids[v], ids[w]], c) for (u, v, w), c in trigrams.items())
    pair_count = Counter[int]()
    for context, _, _, c in triples:
        pair_count[context] += c
    zero = np.zeros(len(words), dtype=np.int64)
    # Only counts of bigrams that begin a sentence matter below the highest order.
    first, second = np.array(pairs).T
    below = NgramTable(first, second, second, np.array([pair_count[i] for i in range(len(pairs))]))
    return NgramCounts(words, [NgramTable(zero, np.arange(len(words)), zero, zero), below,
                               NgramTable(*np.array(triples).T)])  # fmt: skip


def test_figures_of_lmplz(shared_dir: Path) -> None:
    """All figures of a model that lmplz made from a text that we lack: its counts follow from the file."""
    want = read_arpa(shared_dir / "data/ctc/lm.arpa.gz")
    words = [w for (w,) in want[0]]
    assert words[:3] == ["<unk>", "<s>", "</s>"]
    trigrams = reconstruct_counts(want)
    # The bigram "<s> </s>" of an empty sentence has no trigram; this text had none.
    assert ("<s>", "</s>") not in want[1]
    model = estimate(counts_from_trigrams(trigrams, list(want[1]), words))
    got = as_dicts(model)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.keys() == theirs.keys()
        a, b = np.array([ours[g] for g in theirs]), np.array(list(theirs.values()))
        # lmplz was told to count 126,699 words, <s> among them; unseen words differ by 1 in 126,699.
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_kenlm_reads_it(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm")
    text = some_text()
    for order, name, prune in ((1, "1.arpa", ()), (3, "3.arpa.gz", (0, 0, 1)), (4, "4.arpa", ())):
        if order == 1:  # KenLM's module takes no unigram models
            train_ngram(text, order, tmp_path / name)
            assert as_dicts(train_ngram(text, 1))[0].keys() == read_arpa(tmp_path / name)[0].keys()
            continue
        model = as_dicts(train_ngram(text, order, tmp_path / name, prune=prune))
        theirs = kenlm.Model(str(tmp_path / name))
        assert theirs.order == order
        for sentence in [*text[:50], "w3 zzz w1", "", "zzz zzz", "w59 w58 w57"]:
            line = ["<s>", *sentence.split(), "</s>"]
            score = sum(math.log10(prob(model, tuple(line[:i]), line[i])) for i in range(1, len(line)))
            assert 10 ** (-score / (len(line) - 1)) == pytest.approx(theirs.perplexity(sentence), rel=1e-4), sentence


def test_file_is_the_model_and_the_same_every_time(tmp_path: Path) -> None:
    model = train_ngram(some_text(), 3, tmp_path / "a.arpa.gz", prune=(0, 0, 1))
    train_ngram(some_text(), 3, tmp_path / "b.arpa.gz", prune=(0, 0, 1))
    assert (tmp_path / "a.arpa.gz").read_bytes() == (tmp_path / "b.arpa.gz").read_bytes()
    with gzip.open(tmp_path / "a.arpa.gz", "rt") as f:
        head = [f.readline() for _ in range(4)]
    assert head == ["\\data\\\n", *(f"ngram {n}={k}\n" for n, k in enumerate(model.num_ngrams, 1))]
    for ours, read in zip(as_dicts(model), read_arpa(tmp_path / "a.arpa.gz"), strict=True):
        assert ours.keys() == read.keys()
        assert all(ours[g] == pytest.approx(read[g], abs=1e-6) for g in read)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.arpa.gz", "b.arpa.gz"]


def test_counts() -> None:
    counts = count_ngrams(["a b a b", "", "b"], 3)
    grams: list[Counter[Gram]] = []
    for n, table in enumerate(counts.tables, 1):
        rows = np.arange(len(table))
        columns: list[list[str]] = []
        for part in reversed(counts.tables[:n]):
            columns.insert(0, [counts.words[i] for i in part.word[rows]])
            rows = part.context[rows]
        grams.append(Counter(dict(zip(zip(*columns), table.count.tolist()))))
        if n > 1:
            suffix = [g[1:] for g in grams[-1]]
            assert suffix == [list(grams[-2])[i] for i in table.suffix]
    assert +grams[0] == Counter({("<s>",): 3, ("</s>",): 3, ("a",): 2, ("b",): 3})
    assert grams[1] == Counter({("<s>", "a"): 1, ("<s>", "</s>"): 1, ("<s>", "b"): 1, ("a", "b"): 2, ("b", "a"): 1,
                                ("b", "</s>"): 2})  # fmt: skip
    assert grams[2] == Counter({("<s>", "a", "b"): 1, ("a", "b", "a"): 1, ("b", "a", "b"): 1, ("a", "b", "</s>"): 1,
                                ("<s>", "b", "</s>"): 1})  # fmt: skip


def test_lists_of_tokens_are_taken_as_they_are() -> None:
    text = some_text(50)
    a, b = train_ngram(text, 2), train_ngram([s.split() for s in text], 2)
    assert as_dicts(a) == as_dicts(b)
    assert ("two words",) in as_dicts(train_ngram([["two words", "x"]] * 3, 2))[0]


def test_little_text_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    model = train_ngram(["a b", "a b"], 2)
    assert model.discounts == [ngram.FALLBACK_DISCOUNTS] * 2 and "little or artificial" in caplog.text
    got = as_dicts(model)
    assert sum(prob(got, ("a",), w) for w in ("a", "b", "</s>", "<unk>")) == pytest.approx(1.0)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="no sentences"):
        train_ngram([], 3)
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        train_ngram(["a"], 0)
    for text in ("a <s> b", "a </s> b"):
        with pytest.raises(ValueError, match="the text has words <s> or </s>"):
            train_ngram(["c", text], 2)
    for prune in ((1,), (0, 2, 1), (0, 0, 0, 0)):
        with pytest.raises(ValueError, match=r"prune=\["):
            train_ngram(["a b"], 3, prune=prune)
