"""Decoding graphs against their definition: every string's best score, found by trying all spellings and all sentences."""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ops as k2
from toolkit.lang import Lexicon, load_graph, make_hl, make_hlg, make_lg, ngram_to_fsa, train_ngram

# Homophones (c, d), a spelling that begins another (a, ab), two spellings of one word (e).
ENTRIES = [("a", "x"), ("ab", "x y"), ("c", "y z"), ("d", "y z"), ("e", "x"), ("e", "z z"), ("long", "z y x")]
PROBS = [1.0, 1.0, 1.0, 0.5, 0.25, 1.0, 1.0]
TEXT = ["a ab c", "a ab c", "a ab d", "c d e", "e e a", "long a ab", "d", "long", "a c d", "c d e ab", "", "a a a e"]


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon([(word, spelling.split()) for word, spelling in ENTRIES], PROBS)


def load_lm(folder: Path, order: int, text: list[str] = TEXT) -> k2.NgramLM:
    train_ngram(text, order, folder / f"{order}.arpa")
    return k2.NgramLM.load(folder / f"{order}.arpa", cache=False)


def best(fsa: k2.Fsa, labels: list[int]) -> float:
    """The best score of a string; 0 in the automaton counts as an epsilon."""
    return float(k2.top_sort(k2.connect(k2.intersect(fsa, k2.linear_fsa(labels)))).get_tot_scores(True, False))


def outputs(fsa: k2.Fsa, labels: list[int]) -> dict[tuple[int, ...], float]:
    """Every word sequence of an epsilon-free transducer for a string, with its best score."""
    active: dict[tuple[int, tuple[int, ...]], float] = {(0, ()): 0.0}
    arcs = fsa.arcs3.tolist()
    aux = fsa.aux_labels.tolist()
    scores, splits = fsa.scores.tolist(), fsa.splits()[1].tolist()
    for label in [*labels, -1]:
        after: dict[tuple[int, tuple[int, ...]], float] = {}
        for (state, words), score in active.items():
            for i in range(splits[state], splits[state + 1]):
                if arcs[i][2] == label:
                    added = [w for w in (aux[i] if isinstance(aux[i], list) else [aux[i]]) if w > 0]
                    key = arcs[i][1], (*words, *added)
                    after[key] = max(after.get(key, -math.inf), score + scores[i])
        active = after
    return {words: score for (_, words), score in active.items()}


def with_back_off(lm: k2.NgramLM, words: tuple[str, ...]) -> float:
    """The best score of a sentence if one may back off wherever one likes, as in an automaton."""

    def after(state: int, rest: tuple[str, ...]) -> float:
        options = [-math.inf]
        arcs = range(int(lm.arc_splits_S1[state]), int(lm.arc_splits_S1[state + 1]))
        for i in arcs:
            if int(lm.arc_words_A[i]) == (lm.word_id(rest[0]) if rest else lm.end_word):
                more = after(int(lm.arc_next_A[i]), rest[1:]) if rest else 0.0
                options.append(float(lm.arc_log_probs_A[i]) + more)
        if state:
            options.append(float(lm.backoff_log_prob_S[state]) + after(int(lm.backoff_state_S[state]), rest))
        return max(options)

    return after(lm.start_state, words)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_g_is_the_model(order: int, lexicon: Lexicon, tmp_path: Path) -> None:
    lm, words = load_lm(tmp_path, order), lexicon.word_table()
    G = ngram_to_fsa(lm, words, backoff_label=None)
    assert "Valid" in G.properties_str and "MaybeCoaccessible" in G.properties_str
    marked = ngram_to_fsa(lm, words, aux_labels=True)
    assert marked.aux_labels.tolist() == [0 if x == words["#0"] else x for x in marked.labels.tolist()]
    assert ("ArcSortedAndDeterministic" in marked.properties_str) and marked.num_arcs == G.num_arcs
    rng = random.Random(0)
    for _ in range(30):
        sentence = tuple(rng.choices(lexicon.words, k=rng.randint(0, 5)))
        score = best(G, [words[w] for w in sentence])
        assert score == pytest.approx(with_back_off(lm, sentence), abs=1e-4)
        # Backing off only where there is no other way gives what the model says.
        state, total = 0, 0.0
        arcs, scores, splits = marked.arcs3.tolist(), marked.scores.tolist(), marked.splits()[1].tolist()
        for label in [*(words[w] for w in sentence), -1]:
            while True:
                leaving = {arcs[i][2]: i for i in range(splits[state], splits[state + 1])}
                i = leaving.get(label, leaving.get(words["#0"]))
                assert i is not None
                state, total = arcs[i][1], total + scores[i]
                if arcs[i][2] == label:
                    break
        assert total == pytest.approx(lm.sentence_log_prob(sentence), abs=1e-4) and total <= score + 1e-4


def strings(tokens: list[str], most: int) -> list[tuple[str, ...]]:
    return [s for n in range(most + 1) for s in itertools.product(tokens, repeat=n)]


def sentences_spelled(lexicon: Lexicon, string: tuple[str, ...], score: Callable[[tuple[str, ...]], float]) -> dict:
    """Each sentence that `string` spells, with the best score of spelling and language model."""
    found: dict[tuple[str, ...], float] = {}
    stack: list[tuple[int, tuple[str, ...], float]] = [(0, (), 0.0)]
    while stack:
        at, words, spelling_score = stack.pop()
        if at == len(string):
            found[words] = max(found.get(words, -math.inf), spelling_score + score(words))
        for (word, spelling), p in zip(lexicon.entries, lexicon.probs):
            if string[at : at + len(spelling)] == spelling:
                stack.append((at + len(spelling), (*words, word), spelling_score + math.log(p)))
    return found


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("minimize", [True, False])
def test_lg_is_the_relation(order: int, minimize: bool, lexicon: Lexicon, tmp_path: Path) -> None:
    lm, words, tokens = load_lm(tmp_path, order), lexicon.word_table(), lexicon.token_table()
    LG = make_lg(lexicon, lm, tokens, minimize=minimize)
    assert "EpsilonFree" in LG.properties_str and int(LG.labels.max()) < len(tokens)
    for string in strings(["x", "y", "z"], 4):
        got = outputs(LG, [tokens[t] for t in string])
        want = sentences_spelled(lexicon, string, lambda w: with_back_off(lm, w))
        # Of sentences that sound alike and lead to one context the best is kept, as in all of k2's graphs.
        named = {tuple(words.names(w)): s for w, s in got.items()}
        assert named == {w: pytest.approx(want[w], abs=1e-3) for w in named}
        assert max(named.values(), default=-math.inf) == pytest.approx(max(want.values(), default=-math.inf), abs=1e-3)


def test_minimised_lg_is_smaller(lexicon: Lexicon, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    # In a unigram model all words lead to one context, so what is left of "long" and "wrong" is the same.
    lexicon = Lexicon([*lexicon.entries, ("wrong", ["w", "z", "y", "x"])])
    lm, tokens = load_lm(tmp_path, 1, [*TEXT, "wrong"]), lexicon.token_table()
    small, large = (make_lg(lexicon, lm, tokens, minimize=m) for m in (True, False))
    assert (small.shape[0] or 0) < (large.shape[0] or 0)
    assert "LG: determinised," in caplog.text and "LG: minimised," in caplog.text


def collapse(frames: tuple[int, ...], modified: bool, length: int) -> set[tuple[int, ...]]:
    """The token strings of CTC frame labels; with the modified topology each run of frames is one token or several."""
    if not modified:
        return {tuple(k for k, _ in itertools.groupby(frames) if k)}
    runs = [(k, len(list(g))) for k, g in itertools.groupby(frames)]
    choices = [[(k,) * n for n in range(1, count + 1)] if k else [()] for k, count in runs]
    return {tuple(itertools.chain(*c)) for c in itertools.product(*choices)}


@pytest.mark.parametrize("modified", [False, True])
def test_hlg_and_hl_add_the_topology(modified: bool, lexicon: Lexicon, tmp_path: Path) -> None:
    lm, tokens = load_lm(tmp_path, 2), lexicon.token_table()
    pairs = [
        (make_lg(lexicon, lm, tokens), make_hlg(lexicon, lm, tokens, modified=modified)),
        (lexicon.fsa(tokens), make_hl(lexicon, tokens, modified=modified)),
    ]
    assert torch.equal(pairs[0][1].lm_scores, pairs[0][1].scores)
    rng = random.Random(3)
    for below, graph in pairs:
        for _ in range(60):
            frames = tuple(rng.choices(range(4), k=rng.randint(0, 6)))
            want: dict[tuple[int, ...], float] = {}
            for string in collapse(frames, modified, len(frames)):
                for sentence, score in outputs(below, list(string)).items():
                    want[sentence] = max(want.get(sentence, -math.inf), score)
            got = outputs(graph, list(frames))
            assert got == {k: pytest.approx(v, abs=1e-4) for k, v in want.items()}


def test_silence(lexicon: Lexicon, tmp_path: Path) -> None:
    lm, tokens = load_lm(tmp_path, 2), lexicon.token_table(("<blk>", "SIL"))
    words = lexicon.word_table()
    LG = make_lg(lexicon, lm, tokens, silence="SIL", silence_prob=0.25)
    hl = make_hl(lexicon, tokens, silence="SIL")
    assert "EpsilonFree" in LG.properties_str
    sentence = ("ab", "e")
    for places in itertools.product((0, 1), repeat=3):
        string = ["SIL"] * places[0] + ["x", "y"] + ["SIL"] * places[1] + ["z", "z"] + ["SIL"] * places[2]
        got = outputs(LG, [tokens[t] for t in string])[words["ab"], words["e"]]
        silence_score = sum(math.log(0.25 if p else 0.75) for p in places)
        assert got == pytest.approx(with_back_off(lm, sentence) + silence_score, abs=1e-3)
        frames = [tokens[t] for t in string]
        frames = [f for a, b in zip(frames, [*frames[1:], -1]) for f in ((a, 0) if a == b else (a,))]
        assert (words["ab"], words["e"]) in outputs(hl, frames)


def emissions(sentences: list[str], lexicon: Lexicon, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame scores of a network that heard each sentence, with some noise; and their lengths."""
    tokens, spellings, rng = lexicon.token_table(), lexicon.spellings(), torch.Generator().manual_seed(seed)
    rows = []
    for sentence in sentences:
        ids = [0]
        for word in sentence.split():
            for token in spellings[word][0]:
                ids += [tokens[token], 0]
        logits = torch.randn(len(ids), len(tokens), generator=rng) + 6 * torch.eye(len(tokens))[ids]
        rows.append(logits.log_softmax(1))
    lens = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lens


def decode(graph: k2.Fsa, log_probs_NTV: torch.Tensor, lens_N: torch.Tensor, beam: float) -> tuple[list, list[float]]:
    segments = torch.stack([torch.arange(len(lens_N)), torch.zeros_like(lens_N), lens_N], dim=1).int()
    dense = k2.DenseFsaVec(log_probs_NTV, segments)
    path = k2.shortest_path(k2.intersect_dense_pruned(graph, dense, beam, beam, 1, 100_000), True)
    words = [[w for arc in fsa.aux_labels.tolist() for w in arc if w > 0] for fsa in path]
    return words, path.get_tot_scores(True, False).tolist()


def test_hlg_decodes(lexicon: Lexicon, tmp_path: Path) -> None:
    """The words come out; a batch is as one by one; narrow beams find the best path that wide ones (exact) find."""
    lm, tokens, words = load_lm(tmp_path, 3), lexicon.token_table(), lexicon.word_table()
    sentences = ["a ab c", "long a ab", "c d e ab", "d"]
    log_probs_NTV, lens_N = emissions(sentences, lexicon, 0)
    graph = make_hlg(lexicon, lm, tokens)
    got, scores = decode(graph, log_probs_NTV, lens_N, 1e6)
    assert [" ".join(words.names(w)) for w in got[:2]] == sentences[:2]
    for i, n in enumerate(lens_N.tolist()):
        alone, score = decode(graph, log_probs_NTV[i : i + 1, :n], lens_N[i : i + 1], 1e6)
        assert alone == [got[i]] and score == [pytest.approx(scores[i], abs=1e-5)]
    pruned, pruned_scores = decode(graph, log_probs_NTV, lens_N, 12.0)
    assert pruned == got and pruned_scores == pytest.approx(scores, abs=1e-5)
    whole = make_hlg(lexicon, lm, tokens, minimize=False)
    same, same_scores = decode(whole, log_probs_NTV, lens_N, 1e6)
    assert same == got and same_scores == pytest.approx(scores, abs=1e-3)


def test_words_without_spelling_or_model_are_named(
    lexicon: Lexicon, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm = load_lm(tmp_path, 2, [*TEXT, "a strange c", "strange strange a"])
    LG = make_lg(lexicon.restrict(set(lexicon.words) - {"d"}), lm, lexicon.token_table())
    assert "2 words of the language model have no spelling and are left out: d, strange" in caplog.text
    caplog.clear()
    lm = load_lm(tmp_path, 2, [s for s in TEXT if "long" not in s])
    LG = make_lg(lexicon, lm, lexicon.token_table())
    assert "1 words are not in the language model and cannot be recognised: long" in caplog.text
    words = lexicon.word_table()
    assert words["long"] not in LG.aux_labels.values.tolist() and words["a"] in LG.aux_labels.values.tolist()
    lm = load_lm(tmp_path, 2, [s.upper() for s in TEXT])
    with pytest.raises(ValueError, match=r"none of the 6 words of the language model .* upper and lower case"):
        make_lg(lexicon, lm, lexicon.token_table())


def test_unknown_word_is_recognised_if_it_has_a_spelling(lexicon: Lexicon, tmp_path: Path) -> None:
    train_ngram(TEXT, 2, tmp_path / "lm.arpa", vocabulary=["a", "ab", "c"])
    lm = k2.NgramLM.load(tmp_path / "lm.arpa", cache=False)
    spoken = Lexicon([*lexicon.restrict(["a", "ab", "c"]).entries, ("<UNK>", ["q"])])
    tokens, words = spoken.token_table(), spoken.word_table()
    got = outputs(make_lg(spoken, lm, tokens), [tokens[t] for t in ("x", "q", "y", "z")])
    assert got == {
        (words["a"], words["<UNK>"], words["c"]): pytest.approx(with_back_off(lm, ("a", "?", "c")), abs=1e-3)
    }


def test_cache(lexicon: Lexicon, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lm, tokens, path = load_lm(tmp_path, 2), lexicon.token_table(), tmp_path / "graphs" / "HLG.pt"

    def make(**changes: object) -> str:
        caplog.clear()
        arguments: dict = {"lexicon": lexicon, "lm": lm, "tokens": tokens, "cache": path, **changes}
        graph = make_hlg(**arguments)
        del arguments["cache"]
        fresh = make_hlg(**arguments)
        for name in ("arcs3", "scores", "aux_labels", "tokens", "lm_scores"):
            a, b = getattr(graph, name), getattr(fresh, name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        return next(m for m in caplog.messages if m.startswith(str(path)))

    assert "not there; making it" in make()
    assert "read from the file" in make()
    icefall = k2.Fsa.from_dict(torch.load(path, weights_only=True))
    assert torch.equal(icefall.arcs3, load_graph(path).arcs3)
    assert sorted(p.name for p in path.parent.iterdir()) == ["HLG.pt", "HLG.pt.json"]
    assert "modified changed since it was made" in make(modified=True)
    assert "language model, modified changed" in make(lm=load_lm(tmp_path, 3))
    assert "language model, lexicon changed" in make(lexicon=Lexicon(lexicon.entries))
    assert "lexicon, tokens changed" in make(tokens=lexicon.token_table(("<blk>", "<sos/eos>")))
    assert "tokens changed" in make()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert "the file is damaged" in make()
    path.write_bytes(bytes(data[:1000]))
    assert "the file is damaged" in make()
    mark = path.with_name("HLG.pt.json")
    mark.write_text(mark.read_text()[:-20])
    assert "it cannot be read" in make()
    state = json.loads(mark.read_text())
    state["inputs"]["code"] = "older"
    mark.write_text(json.dumps(state))
    assert "code changed" in make()
    assert "read from the file" in make()
    with pytest.raises(FileNotFoundError, match="no such graph"):
        load_graph(tmp_path / "none.pt")


def test_wrong_input(lexicon: Lexicon, tmp_path: Path) -> None:
    lm = load_lm(tmp_path, 2)
    with pytest.raises(ValueError, match="no '#0'"):
        ngram_to_fsa(lm, k2.SymbolTable({1: "a"}))
    with pytest.raises(ValueError, match="tokens are not among the model's 3: 'z'"):
        make_hlg(lexicon, lm, ["<blk>", "x", "y"])
    with pytest.raises(ValueError, match=r"none of the 6 words"):
        make_lg(Lexicon([("q", ["x"])]), lm, ["<blk>", "x"])
