"""n-gram models against back-off computed from a dictionary, and against the kenlm module where it is installed."""

from __future__ import annotations

import gzip
import itertools
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ops import NgramLM
from ops import ngram as ngram_module

Ngrams = dict[tuple[str, ...], tuple[float, float]]  # words → log10 probability, log10 back-off weight


def random_model(order: int, seed: int, prune_contexts: bool = False) -> Ngrams:
    rng = random.Random(seed)
    words = ["a", "b", "c", "née", "don't"]
    out: Ngrams = {("<unk>",): (-2.5, 0.0), ("<s>",): (-99.0, -0.4), ("</s>",): (-1.25, 0.0)}
    for w in words:
        out[(w,)] = (-round(rng.uniform(0.3, 3), 5), rng.choice([0.0, -round(rng.random(), 4)]))
    previous = [g for g in out if g[0] not in ("<unk>", "</s>")]
    for n in range(2, order + 1):
        grown = [(*g, w) for g in previous for w in [*words, "</s>"] if rng.random() < 0.4]
        for g in grown:
            out[g] = (
                -round(rng.uniform(0.01, 2), 5),
                0.0 if n == order or rng.random() < 0.3 else -round(rng.random(), 4),
            )
        previous = [g for g in grown if g[-1] != "</s>"]
    if prune_contexts:  # drop n-grams that longer ones begin with, as some tools do
        for g in [g for g in out if 1 < len(g) < order and any(h[: len(g)] == g for h in out if len(h) == len(g) + 1)][
            ::3
        ]:
            del out[g]
    return out


def write_arpa(path: Path, model: Ngrams, separator: str = "\t", newline: str = "\n") -> Path:
    order = max(map(len, model))
    lines = ["", "made by a test", "\\data\\"]
    lines += [f"ngram {n}={sum(len(g) == n for g in model)}" for n in range(1, order + 1)]
    for n in range(1, order + 1):
        lines += ["", f"\\{n}-grams:"]
        for g, (p, b) in model.items():
            if len(g) == n:
                lines.append(f"{p}{separator}{' '.join(g)}" + (f"{separator}{b}" if b or n == 1 else ""))
    text = newline.join([*lines, "", "\\end\\", ""]).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def reference(model: Ngrams, context: tuple[str, ...], word: str) -> float:
    """log p(word | context), straight from the definition."""
    if (*context, word) in model:
        return model[(*context, word)][0] * math.log(10)
    return model.get(context, (0.0, 0.0))[1] * math.log(10) + reference(model, context[1:], word)


def check(lm: NgramLM, model: Ngrams, seed: int = 0) -> None:
    rng = random.Random(seed)
    words = [w for (w,) in (g for g in model if len(g) == 1) if w not in ("<s>", "</s>")]
    for start in (True, False):
        for length in [0, 1, 2, 3, 12, 30]:
            history: list[str] = ["<s>"] if start else []
            state = torch.tensor([lm.start_state if start else 0])
            for _ in range(length):
                word = rng.choice(words)
                log_prob, after = lm.score(state, torch.tensor([lm.word_id(word)]))
                context = tuple(history)[-(lm.order - 1) :] if lm.order > 1 else ()
                assert float(log_prob) == pytest.approx(reference(model, context, word), abs=1e-4), (context, word)
                history, state = [*history, word], after
            context = tuple(history)[-(lm.order - 1) :] if lm.order > 1 else ()
            assert float(lm.final(state)) == pytest.approx(reference(model, context, "</s>"), abs=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("pruned", [False, True])
def test_scores_follow_from_the_definition(order: int, pruned: bool, tmp_path: Path) -> None:
    model = random_model(order, seed=order, prune_contexts=pruned)
    lm = NgramLM.load(write_arpa(tmp_path / "lm.arpa", model))
    assert (
        lm.order == order
        and lm.has_arcs
        and lm.words[0] == "<unk>"
        and set(lm.words) == {g[0] for g in model if len(g) == 1}
    )
    assert lm.word_id("née") > 0 and lm.word_id("nowhere") == 0
    check(lm, model)


def test_arcs_are_sorted_and_every_state_leads_on(tmp_path: Path) -> None:
    lm = NgramLM.load(write_arpa(tmp_path / "lm.arpa", random_model(4, 1)))
    splits = lm.arc_splits_S1.tolist()
    for begin, end in itertools.pairwise(splits):
        words = lm.arc_words_A[begin:end].tolist()
        assert words == sorted(set(words))
    assert splits[1] == len(lm.words) and int(lm.backoff_state_S[0]) == -1
    assert lm.num_states == len(lm.backoff_state_S) and "4" in repr(lm)


def test_gzip_spaces_and_windows_line_ends_are_the_same(tmp_path: Path) -> None:
    model = random_model(3, 5)
    plain = NgramLM.load(write_arpa(tmp_path / "a.arpa", model))
    others = [write_arpa(tmp_path / "b.arpa.gz", model), write_arpa(tmp_path / "c.arpa", model, " ", "\r\n")]
    for path in others:
        lm = NgramLM.load(path)
        assert lm.words == plain.words
        for name in ngram_module.TENSORS:
            assert torch.equal(getattr(lm, name), getattr(plain, name)), name


def test_threads_do_not_matter(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [f"w{i}" for i in range(3000)]
    model: Ngrams = {("<s>",): (-9.0, -0.5), ("</s>",): (-1.0, 0.0)} | {(w,): (-3.0, -rng.random()) for w in words}
    model |= {(rng.choice(words), rng.choice(words)): (-rng.random(), 0.0) for _ in range(40000)}
    path = write_arpa(tmp_path / "lm.arpa", model)
    before = torch.get_num_threads()
    try:
        loaded = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            loaded.append(NgramLM.load(path, cache=False))
    finally:
        torch.set_num_threads(before)
    for name in ngram_module.TENSORS:
        assert torch.equal(getattr(loaded[0], name), getattr(loaded[1], name)), name
    assert "<unk>" not in {g[0] for g in model} and loaded[0].word_id("elsewhere") == 0  # added, at log10 p = -100
    assert float(loaded[0].score(torch.tensor(0), torch.tensor(0))[0]) == pytest.approx(-100 * math.log(10))


def test_batched_query_has_the_shape_of_its_input(tmp_path: Path) -> None:
    lm = NgramLM.load(write_arpa(tmp_path / "lm.arpa", random_model(3, 2)))
    state, word = torch.zeros(2, 3, dtype=torch.int64), torch.randint(len(lm.words), (2, 3))
    log_prob, after = lm.score(state, word)
    assert log_prob.shape == after.shape == (2, 3) and log_prob.dtype == torch.float32 and after.dtype == torch.int32
    assert lm.final(after).shape == (2, 3)
    assert lm.score(state[:0], word[:0])[0].shape == (0, 3)
    for bad_state, bad_word in [(0, len(lm.words)), (0, -1), (lm.num_states, 0), (-1, 0)]:
        with pytest.raises(ValueError, match="must lie in"):
            lm.score(torch.tensor([bad_state]), torch.tensor([bad_word]))
    with pytest.raises(ValueError, match="one shape"):
        lm.score(state, word[:1])


# ------------------------------------------------------------------------------------------------------------- the cache


def test_second_load_maps_the_cached_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(3, 7)
    path = write_arpa(tmp_path / "lm.arpa", model)
    first = NgramLM.load(path)
    assert (tmp_path / "lm.arpa.lattica").is_file()

    def not_again(*_args: object) -> None:
        raise AssertionError("parsed a second time")

    with monkeypatch.context() as patch:
        patch.setattr(ngram_module, "_parse", not_again)
        second = NgramLM.load(path)
    check(second, model)
    assert second.words == first.words

    changed = {g: (p - 0.125, b) for g, (p, b) in model.items()}
    write_arpa(path, changed)
    os.utime(path, ns=(1, 1))
    check(NgramLM.load(path), changed)  # another file under the old name
    (tmp_path / "lm.arpa.lattica").write_bytes(b"half a file")
    check(NgramLM.load(path), changed)


def test_cache_folder_serves_where_the_models_own_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(2, 3)
    folder = tmp_path / "read-only"
    folder.mkdir()
    path = write_arpa(folder / "lm.arpa", model)
    monkeypatch.setenv("LATTICA_CACHE", str(tmp_path / "cache"))
    folder.chmod(0o555)
    try:
        check(NgramLM.load(path), model)
    finally:
        folder.chmod(0o755)
    assert os.listdir(folder) == ["lm.arpa"] and len(list((tmp_path / "cache" / "ngram").glob("*.lattica"))) == 1


# -------------------------------------------------------------------------------------------------------------- bad input

GOOD = """\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-1 <s> -0.5
-1 </s>
-1 <unk>
-1 a -0.25

\\2-grams:
-0.5 <s> a
-0.5 a </s>

\\end\\""".splitlines()


def replaced(line: int, text: str) -> list[str]:
    return [*GOOD[: line - 1], text, *GOOD[line:]]


@pytest.mark.parametrize(
    "lines, message",
    [
        (["nothing", "of the kind"], r"bad\.arpa: is not an ARPA"),
        ([], r"bad\.arpa: is not an ARPA"),
        (replaced(2, "ngram 1=four"), r"bad\.arpa:2: expected `ngram"),
        (replaced(3, "ngram 3=2"), r"bad\.arpa:3: expected the count of the 2-grams"),
        (replaced(6, "one <s> -0.5"), r"bad\.arpa:6: expected a log10 probability"),
        (replaced(6, "0.5 <s> -0.5"), r"bad\.arpa:6: a log10 probability above 0"),
        (replaced(9, "-1 a b c"), r"bad\.arpa:9: expected a log10 back-off"),
        (replaced(9, "-1"), r"bad\.arpa:9: fewer words"),
        (replaced(9, "-1 <s>"), r"bad\.arpa:9: the word `<s>` is listed twice"),
        (replaced(7, "-1 z"), r"bad\.arpa:\d+: the unigrams do not list </s>"),
        (replaced(12, "-0.5 <s> zebra"), r"bad\.arpa:12: the word `zebra` is not among the unigrams"),
        (replaced(13, "-0.5 <s> a"), r"bad\.arpa:13: this n-gram is listed twice"),
        (replaced(13, "-0.5 a </s> -0.1 7"), r"bad\.arpa:13: more columns"),
        (replaced(11, "\\3-grams:"), r"bad\.arpa:11: expected \\2-grams:"),
        (GOOD[:8], r"bad\.arpa:8: .*truncated"),
        (GOOD[:12], r"bad\.arpa:12: the header announces 2 2-grams, here the list ends after 1"),
        (GOOD[:10], r"bad\.arpa:10: the file ends before \\2-grams"),
        (GOOD[:13], r"bad\.arpa:13: the file ends before \\end"),
    ],
)
def test_malformed_files_name_the_line(lines: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.arpa"
    path.write_text("\n".join(GOOD) + "\n")
    NgramLM.load(path, cache=False)
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ValueError, match=message):
        NgramLM.load(path)
    assert not (tmp_path / "bad.arpa.lattica").exists()


def test_truncated_gzip_and_missing_file(tmp_path: Path) -> None:
    path = write_arpa(tmp_path / "lm.arpa.gz", random_model(3, 1))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"lm\.arpa\.gz: not a whole gzip file"):
        NgramLM.load(path)
    with pytest.raises(FileNotFoundError, match=r"none\.arpa"):
        NgramLM.load(tmp_path / "none.arpa")


def test_tensors_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    lm = NgramLM.load(write_arpa(tmp_path / "lm.arpa", random_model(3, 1)))
    good = {name: getattr(lm, name) for name in ngram_module.TENSORS}
    NgramLM(lm.order, lm.words, lm.start_state, good)
    for name, value in [
        ("arc_next_A", 10**6),
        ("backoff_state_S", 10**6),
        ("arc_words_A", -1),
        ("arc_splits_S1", 10**6),
    ]:
        bad = good | {name: good[name].clone()}
        bad[name][-1] = value
        with pytest.raises(ValueError, match="do not make up"):
            NgramLM(lm.order, lm.words, lm.start_state, bad)


# ----------------------------------------------------------------------------------------------------------------- KenLM


def test_kenlm_gives_the_same_scores(shared_dir: Path) -> None:
    kenlm = pytest.importorskip("kenlm")
    folder = shared_dir / "data" / "ctc"
    arpa, binary, peer = (
        NgramLM.load(folder / "lm.arpa.gz"),
        NgramLM.load(folder / "lm.bin"),
        kenlm.Model(str(folder / "lm.bin")),
    )
    assert not binary.has_arcs and binary.order == 3 and sorted(binary.words) == sorted(arpa.words)
    rng = random.Random(0)
    common = ["the", "of", "and", "to", "a", "in", "that", "he", "was", "i", "it", "had", "said", "you", "his"]
    for _ in range(200):
        sentence = " ".join(rng.choice(arpa.words if rng.random() < 0.3 else common) for _ in range(rng.randint(0, 12)))
        for bos, eos in itertools.product([True, False], repeat=2):
            expected = peer.score(sentence, bos=bos, eos=eos) * math.log(10)
            assert arpa.sentence_log_prob(sentence, bos, eos) == pytest.approx(expected, abs=1e-4)
            assert binary.sentence_log_prob(sentence, bos, eos) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="must lie in"):
        binary.score(torch.tensor([10**6]), torch.tensor([0]))
    with pytest.raises(RuntimeError, match="load the ARPA"):
        _ = binary.num_states


def test_damaged_kenlm_binary_is_an_error(shared_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    whole = (shared_dir / "data" / "ctc" / "lm.bin").read_bytes()
    for size in (40, 100, 200, len(whole) // 2):
        path = tmp_path / "cut.bin"
        path.write_bytes(whole[:size])
        with pytest.raises(RuntimeError, match=r"cut\.bin"):
            NgramLM.load(path)
    high_order = bytearray(whole)
    high_order[72] = 9  # the order, in the header
    path.write_bytes(high_order)
    with pytest.raises(RuntimeError, match=r"cut\.bin"):
        NgramLM.load(path)


def test_without_kenlm_a_binary_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lm.bin"
    path.write_bytes(ngram_module.KENLM_MAGIC + b" format version 5\n\0" + bytes(200))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("ctypes.util.find_library", lambda _name: None)
    with pytest.raises(RuntimeError, match="pip install kenlm"):
        NgramLM.load(path)
    monkeypatch.setattr(ngram_module, "kenlm_library", lambda: "libc.so.6")  # loads, but is no KenLM
    with pytest.raises(RuntimeError, match="not a KenLM"):
        NgramLM.load(path)
    monkeypatch.setattr(ngram_module, "kenlm_library", lambda: "libnowhere.so")
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        NgramLM.load(path)


def test_two_processes_load_at_once(tmp_path: Path) -> None:
    path = write_arpa(tmp_path / "lm.arpa", random_model(3, 4))
    code = f"from ops import NgramLM; print(NgramLM.load({str(path)!r}).num_states)"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert outputs[0] == outputs[1] and int(outputs[0]) > 1
