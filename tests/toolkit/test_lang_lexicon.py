"""Lexicons: files, disambiguation symbols, and L as the relation between token strings and word strings."""

from __future__ import annotations

import gzip
import itertools
import math
from pathlib import Path

import pytest
import torch

import ops as k2
from toolkit.config import TokenConfig
from toolkit.data.tokenizer import Tokenizer, write_words
from toolkit.lang import Lexicon

# "c" and "d" are homophones, "a" begins "ab", and "e" has two spellings, one of them that of "a".
ENTRIES = [("a", "x"), ("ab", "x y"), ("c", "y z"), ("d", "y z"), ("e", "x"), ("e", "z z")]
PROBS = [1.0, 1.0, 1.0, 0.5, 0.25, 1.0]


@pytest.fixture
def lexicon() -> Lexicon:
    return Lexicon([(word, spelling.split()) for word, spelling in ENTRIES], PROBS)


def transduce(fsa: k2.Fsa, labels: list[int]) -> dict[tuple[int, ...], float]:
    """Every output of `fsa` for the input `labels`, with its best score."""
    # Labels of the automaton that are 0 need no input; no path here has more than a few of them.
    pairs = k2.connect(k2.compose(fsa.invert(), k2.linear_fsa(labels)))
    ans: dict[tuple[int, ...], float] = {}
    arcs = pairs.arcs3.tolist()
    scores, num_states = pairs.scores.tolist(), pairs.shape[0] or 0
    leaving = {s: [i for i, arc in enumerate(arcs) if arc[0] == s] for s in range(num_states)}
    stack: list[tuple[int, tuple[int, ...], float]] = [(0, (), 0.0)] if num_states else []
    while stack:
        state, out, score = stack.pop()
        for i in leaving[state]:
            label = arcs[i][2]
            if label == -1:
                ans[out] = max(score + scores[i], ans.get(out, -math.inf))
            else:
                stack.append((arcs[i][1], (*out, label) if label else out, score + scores[i]))
    return ans


def spelled(lexicon: Lexicon, tokens: str, max_words: int = 3) -> dict[tuple[str, ...], float]:
    """The same by trying all sequences of entries."""
    ans: dict[tuple[str, ...], float] = {}
    rows = list(zip(lexicon.entries, lexicon.probs))
    for n in range(max_words + 1):
        for chosen in itertools.product(rows, repeat=n):
            if " ".join(token for (_, spelling), _ in chosen for token in spelling) == tokens:
                words = tuple(word for (word, _), _ in chosen)
                ans[words] = max(sum(math.log(p) for _, p in chosen), ans.get(words, -math.inf))
    return ans


@pytest.mark.parametrize("tokens", ["", "x", "x y", "x y z", "y z x", "z z y z", "y", "z z z"])
def test_l_is_the_relation(lexicon: Lexicon, tokens: str) -> None:
    table, words = lexicon.token_table(), lexicon.word_table()
    fsa = lexicon.fsa(table, words)
    got = transduce(fsa, [table[t] for t in tokens.split()])
    assert {tuple(words.names(w)): pytest.approx(s, abs=1e-6) for w, s in got.items()} == spelled(lexicon, tokens)


def test_silence_is_optional_everywhere(lexicon: Lexicon) -> None:
    table = lexicon.token_table(("<blk>", "SIL"))
    words = lexicon.word_table()
    fsa = lexicon.fsa(table, words, silence="SIL", silence_prob=0.25)
    key = (words["ab"], words["e"])
    gaps = 3
    for places in itertools.product((0, 1), repeat=gaps):
        tokens = "SIL " * places[0] + "x y " + "SIL " * places[1] + "z z " + "SIL " * places[2]
        got = transduce(fsa, [table[t] for t in tokens.split()])
        silences = sum(places)
        want = silences * math.log(0.25) + (gaps - silences) * math.log(0.75)
        assert got[key] == pytest.approx(want, abs=1e-5)
    assert key not in transduce(fsa, [table[t] for t in ["x", "SIL", "y", "z", "z"]])
    assert key not in transduce(fsa, [table[t] for t in ["x", "y", "SIL", "SIL", "z", "z"]])


def test_disambiguation(lexicon: Lexicon) -> None:
    assert lexicon.disambig() == [1, 0, 1, 2, 2, 0]
    marked = [(*s, k) if k else s for (_, s), k in zip(lexicon.entries, lexicon.disambig())]
    assert len(set(marked)) == len(marked)
    assert not any(a != b and b[: len(a)] == a for a in marked for b in marked)


@pytest.mark.parametrize("silence", [None, "SIL"])
def test_l_disambig_is_l_with_marks(lexicon: Lexicon, silence: str | None) -> None:
    table, words = lexicon.token_table(("<blk>", "SIL")), lexicon.word_table()
    fsa = lexicon.fsa(table, words, disambig=True, silence=silence)
    # Nothing but the marks is new: without them the relation is L's.
    plain = fsa.clone()
    back_off = plain.labels == len(table)
    assert plain.aux_labels[back_off].tolist() == [words["#0"]]
    plain.labels = torch.where(plain.labels >= len(table), 0, plain.labels)
    plain.aux_labels = torch.where(plain.aux_labels == words["#0"], 0, plain.aux_labels)
    keep = [i for i in range(plain.num_arcs) if not back_off[i]]
    splits = torch.bincount(plain.arcs3[keep, 0].long(), minlength=plain.shape[0]).cumsum(0)
    shape = k2.RaggedShape(splits=[torch.cat([splits.new_zeros(1), splits]).int()])
    bare = k2.Fsa.from_arcs(shape, plain.arcs3[keep], plain.scores[keep])
    bare.aux_labels = plain.aux_labels[keep]
    want = lexicon.fsa(table, words, silence=silence)
    for tokens in ("x", "y z", "x y", "SIL x y SIL z z"):
        labels = [table[t] for t in tokens.split()]
        a, b = transduce(bare, labels), transduce(want, labels)
        assert a == {k: pytest.approx(v, abs=1e-6) for k, v in b.items()} and (a or silence is None)
    # And every string of tokens and marks has one reading: determinisation ends and states have one arc a label.
    det = k2.determinize(fsa if silence is None else k2.connect(k2.remove_epsilon(fsa)), max_states=1000)
    assert "ArcSortedAndDeterministic" in det.properties_str


def test_files(lexicon: Lexicon, tmp_path: Path) -> None:
    for name in ("lexicon.txt", "lexicon.txt.gz"):
        lexicon.save(tmp_path / name)
        back = Lexicon.load(tmp_path / name)
        assert back.entries == lexicon.entries and set(back.probs) == {1.0}
    lexicon.save(tmp_path / "lexiconp.txt", with_probs=True)
    back = Lexicon.load(tmp_path / "lexiconp.txt", with_probs=True)
    assert back.entries == lexicon.entries and back.probs == PROBS
    lexicon.save(tmp_path / "flashlight.txt", separator="\t")
    assert (tmp_path / "flashlight.txt").read_text().splitlines()[1] == "ab\tx y"
    assert Lexicon.load(tmp_path / "flashlight.txt").entries == lexicon.entries
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "flashlight.txt", "lexicon.txt", "lexicon.txt.gz", "lexiconp.txt"]  # fmt: skip


def test_cmudict(tmp_path: Path) -> None:
    path = tmp_path / "dict.gz"
    with gzip.open(path, "wt") as f:
        f.write(";;; a comment\n'bout B AW1 T\na AH0\na(2) EY1 # a letter\n(paren P ER0\n")
    got = Lexicon.load_cmudict(path)
    assert got.entries == [("'BOUT", ("B", "AW", "T")), ("A", ("AH",)), ("A", ("EY",)), ("(PAREN", ("P", "ER"))]
    assert Lexicon.load_cmudict(path, upper=False, stress=True).spellings()["a"] == [("AH0",), ("EY1",)]


def test_errors_name_file_and_line(tmp_path: Path, lexicon: Lexicon) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("a x\nb\n")
    with pytest.raises(ValueError, match=r"lexicon\.txt:2: the word 'b' has no tokens"):
        Lexicon.load(path)
    for prob in ("1.5", "0", "nan", "often"):
        path.write_text(f"a 1.0 x\n\nb {prob} x y\n")
        with pytest.raises(ValueError, match=r"lexicon\.txt:3: .*prob"):
            Lexicon.load(path, with_probs=True)
    path.write_bytes(b"a x\n\xff\xfe x\n")
    with pytest.raises(ValueError, match=r"lexicon\.txt cannot be read"):
        Lexicon.load(path)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a x\n" * 1000)[:-10])
    with pytest.raises(ValueError, match=r"cut\.gz cannot be read"):
        Lexicon.load(tmp_path / "cut.gz")
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        Lexicon.load(tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"2 tokens .* 'z' \(4 times\), 'y' \(3 times\); 4 words need them, e\.g\. ab"):
        lexicon.fsa(["<blk>", "x"])
    with pytest.raises(ValueError, match="1 words are not in the word table: e"):
        lexicon.fsa(lexicon.token_table(), Lexicon([(w, s) for w, s in lexicon.entries if w != "e"]).word_table())
    with pytest.raises(ValueError, match="silence='SIL'"):
        lexicon.fsa(lexicon.token_table(), silence="SIL")


def test_restrict_names_what_is_missing(lexicon: Lexicon, caplog: pytest.LogCaptureFixture) -> None:
    small = lexicon.restrict(["a", "e", "nowhere"])
    assert small.words == ["a", "e"] and len(small) == 3 and small.probs == [1.0, 0.25, 1.0]
    assert small.left_out == ["nowhere"] and "nowhere" in caplog.text


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_from_tokenizer(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["THE CAT SAT ON THE MAT", "THE MAT SAT"] * 20
    tokenizer = Tokenizer.train(texts, TokenConfig(kind=kind, vocab_size=20))
    lexicon = Lexicon.from_tokenizer(["CAT", "MAT", "THE", "ZÜRICH"], tokenizer)
    assert lexicon.left_out == ["ZÜRICH"] and "ZÜRICH" in caplog.text
    if kind == "char":
        assert lexicon.spellings()["CAT"] == [("\u2581", "C", "A", "T")]
    for word, spelling in lexicon.entries:
        assert [tokenizer.tokens.index(t) for t in spelling] == tokenizer.encode(word)
    text = "THE MAT THE CAT"
    words = lexicon.word_table()
    got = transduce(lexicon.fsa(tokenizer.tokens, words), tokenizer.encode(text))
    assert [words.names(w) for w in got] == [text.split()]
    # The tokenizer's own words.txt has the same layout.
    write_words(["CAT", "THE MAT"], tmp_path / "words.txt")
    assert k2.SymbolTable.from_file(tmp_path / "words.txt") == words
