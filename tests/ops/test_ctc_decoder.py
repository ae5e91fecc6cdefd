"""The CTC decoder against all alignments of tiny problems, against what flashlight-text found, and against itself."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.make_ctc_decoder import ARPA, LEXICON, TOKENS, made_up
from torch import Tensor

from ops import CTCDecoderLM, CTCDecoderLMState, CTCHypothesis, NgramLM, ctc_decoder

pytestmark = pytest.mark.filterwarnings("ignore:.*'bade' is not in the language model")
LN10 = math.log(10)
SPELLINGS = {word: spellings for word, spellings in LEXICON.items() if spellings}
PHONES = {
    "x": [["a"]],
    "y": [["b"], ["a", "b"]],
    "z": [["a", "a"]],
    "w": [["c", "b"]],
    "v": [["c", "b"]],
}  # without silence


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trigram model, which lacks one of the lexicon's words."""
    path = tmp_path_factory.mktemp("lm") / "tiny.arpa"
    path.write_text(ARPA)
    return path


def emissions(frames: int, seed: int, tokens: int = len(TOKENS)) -> Tensor:
    return torch.from_numpy(made_up(frames, tokens, seed))


# ------------------------------------------------------------------------------------------------------------ brute force


def parses(tokens: list[int], spellings: dict[str, list[list[str]]], unk: bool) -> Iterator[list[str]]:
    """All ways to read tokens as words, with any silence between them."""
    if not tokens:
        yield []
        return
    if tokens[0] == 1:
        yield from parses(tokens[1:], spellings, unk)
    written = [(word, [TOKENS.index(t) for t in s]) for word, several in spellings.items() for s in several]
    for word, ids in dict.fromkeys((word, tuple(ids)) for word, ids in written):
        if tuple(tokens[: len(ids)]) == ids:
            yield from ([word, *rest] for rest in parses(tokens[len(ids) :], spellings, unk))
    complete = {tuple(ids) for _, ids in written}
    beginnings = {tuple(ids[:k]) for _, ids in written for k in range(1, len(ids))} - complete
    if unk:
        for ids in beginnings:
            if tuple(tokens[: len(ids)]) == ids:
                yield from (["<unk>", *rest] for rest in parses(tokens[len(ids) :], spellings, unk))


def all_alignments(
    x_TV: Tensor, o: dict[str, Any], spellings: dict[str, list[list[str]]] | None, lm: NgramLM | None
) -> dict[Any, list[float]]:
    """Words (or tokens) → the score of each of their alignments, straight from the definition."""
    found: dict[Any, list[float]] = defaultdict(list)
    unk = o.get("unk_score", -math.inf)
    for path in itertools.product(range(x_TV.shape[1]), repeat=len(x_TV)):
        score = sum(float(x_TV[t, v]) for t, v in enumerate(path)) + o["sil_score"] * path.count(1)
        full = [1, *path]  # the silence before the first frame
        tokens = [v for i, v in enumerate(full) if i > 0 and v != 0 and v != full[i - 1]]
        if spellings is None:
            found[tuple(tokens)].append(score)
            continue
        for words in parses(tokens, spellings, unk > -math.inf):
            extra = sum(unk if w == "<unk>" else o["word_score"] for w in words)
            found[tuple(words)].append(score + extra)
    if lm is not None:
        for words, scores in found.items():
            found[words] = [s + o["lm_weight"] * lm.sentence_log_prob(words) / LN10 for s in scores]
    return found


def ranking(found: dict[Any, list[float]], log_add: bool) -> list[tuple[Any, float]]:
    total = {w: math.log(sum(map(math.exp, s))) if log_add else max(s) for w, s in found.items()}
    return sorted(total.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("log_add", [False, True])
@pytest.mark.parametrize("with_lm", [False, True])
@pytest.mark.parametrize("spellings", [SPELLINGS, PHONES], ids=["characters", "phones"])
@pytest.mark.parametrize("unk", [-math.inf, -0.7])
def test_lexicon_against_all_alignments(log_add: bool, with_lm: bool, spellings: Any, unk: float, arpa: Path) -> None:
    o = {"lm_weight": 1.7, "word_score": 0.3, "sil_score": -0.2, "unk_score": unk}
    lm = None
    if with_lm:
        renamed = {"ab": "x", "bad": "y", "cab": "z", "dad": "w", "add": "v"} if spellings is PHONES else {}
        path = arpa.with_name("renamed.arpa")
        path.write_text("".join(renamed.get(field, field) for field in re.split(r"(\s)", ARPA)))
        lm = NgramLM.load(path, cache=False)
    decoder = ctc_decoder(spellings, TOKENS, lm, nbest=5, beam_size=5000, beam_threshold=200, log_add=log_add, **o)
    for frames, seed in [(0, 1), (1, 1), (4, 2), (4, 3), (5 if unk == -math.inf else 4, 8)]:
        x = emissions(frames, seed)[:, :5].log_softmax(1)
        wide = torch.cat([x, torch.full((frames, 1), -torch.inf)], dim=1)
        expected = ranking(all_alignments(x, o, spellings, lm), log_add)
        hyps = decoder(wide[None])[0]
        assert [h.score for h in hyps] == pytest.approx([s for _, s in expected[:5]], abs=1e-4)
        for h, (words, score) in zip(hyps, expected):
            if sum(abs(score - s) < 1e-3 for _, s in expected) == 1:  # no tie
                assert tuple(h.words) == words


@pytest.mark.parametrize("log_add", [False, True])
def test_free_against_all_alignments(log_add: bool) -> None:
    o = {"lm_weight": 0.0, "word_score": 0.0, "sil_score": 0.25}
    decoder = ctc_decoder(
        None, TOKENS[:4], None, nbest=4, beam_size=5000, beam_threshold=200, log_add=log_add, sil_score=0.25
    )
    for frames, seed in [(0, 1), (1, 1), (5, 2), (6, 3)]:
        x = emissions(frames, seed, 4)
        expected = ranking(all_alignments(x, o, None, None), log_add)[:4]
        hyps = decoder(x[None])[0]
        assert [h.score for h in hyps] == pytest.approx([s for _, s in expected], abs=1e-5)
        assert [bare(h.tokens.tolist()) for h in hyps] == [bare(w) for w, _ in expected]


def bare(tokens: Sequence[int]) -> str:
    """Without silence around it: the closing one joins a run of silence, or is a token of its own."""
    return "".join(TOKENS[i] for i in tokens).strip("|")


def test_free_with_a_token_lm(tmp_path: Path) -> None:
    """The LM counts tokens as they come, and its weight is for log10."""
    lines = [
        "\\data\\",
        "ngram 1=6",
        "ngram 2=2",
        "",
        "\\1-grams:",
        "-1.5 <unk>",
        "-99 <s> -0.2",
        "-0.9 </s>",
        "-0.5 | -0.1",
    ]
    lines += ["-0.6 a -0.3", "-0.7 b", "", "\\2-grams:", "-0.1 a b", "-0.2 <s> a", "", "\\end\\", ""]
    (tmp_path / "chars.arpa").write_text("\n".join(lines))
    lm = NgramLM.load(tmp_path / "chars.arpa")
    decoder = ctc_decoder(None, TOKENS[:4], lm, nbest=3, beam_size=500, beam_threshold=100, lm_weight=0.8)
    for seed in (1, 2, 3):
        x = emissions(5, seed, 4)
        found = all_alignments(x, {"sil_score": 0.0}, None, None)
        scored = {
            tokens: [s + 0.8 * lm.sentence_log_prob([TOKENS[v] for v in tokens]) / LN10 for s in scores]
            for tokens, scores in found.items()
        }
        expected = ranking(scored, False)[:3]
        hyps = decoder(x[None])[0]
        assert [h.score for h in hyps] == pytest.approx([s for _, s in expected], abs=1e-4)
        assert bare(hyps[0].tokens.tolist()) == bare(expected[0][0])


# -------------------------------------------------------------------------------------------------------- flashlight-text


def collapse(tokens: list[int]) -> list[int]:
    return [t for i, t in enumerate(tokens) if t != 0 and (i == 0 or t != tokens[i - 1])]


def test_frozen_results_of_flashlight(repo_dir: Path, arpa: Path) -> None:
    golden = json.loads((repo_dir / "tests/golden/ctc_decoder_flashlight.json").read_text())
    compared = 0
    for entry in golden:
        case = dict(entry["case"])
        lexicon = LEXICON if case.pop("lexicon") else None
        lm = str(arpa) if lexicon else None
        decoder = ctc_decoder(lexicon, TOKENS, lm, nbest=3, **case)
        for seed, expected in enumerate(entry["results"]):
            hyps = decoder(emissions(3 + 2 * seed, seed)[None])[0]
            assert [h.score for h in hyps] == pytest.approx([e["score"] for e in expected], abs=1e-4)
            for h, e in zip(hyps, expected):
                if sum(abs(e["score"] - other["score"]) < 1e-4 for other in expected) == 1:  # no tie
                    assert (h.words, h.tokens.tolist()) == (e["words"], collapse(e["tokens"])), (case, seed)
                    compared += 1
    assert compared > 200


def test_flashlight_itself_on_the_open_set(repo_dir: Path, shared_dir: Path) -> None:
    peer = os.environ.get("LATTICA_PEER_PYTHON")
    if not peer:
        pytest.skip("LATTICA_PEER_PYTHON names no Python with flashlight-text")
    command = [sys.executable, "benchmarks/ctc_decoder.py", "--check", "--data", str(shared_dir / "data" / "ctc")]
    result = subprocess.run(command, cwd=repo_dir, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


# ------------------------------------------------------------------------------------------------------------ consistency


def same(a: list[list[CTCHypothesis]], b: list[list[CTCHypothesis]], tolerance: float = 0.0) -> None:
    assert len(a) == len(b)
    for x, y in zip(itertools.chain(*a), itertools.chain(*b)):
        assert x.words == y.words and torch.equal(x.tokens, y.tokens) and torch.equal(x.timesteps, y.timesteps)
        assert abs(x.score - y.score) <= tolerance


def batch(n: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([0, 25, 3, 40, 17, 1, 40, 30, 8][:n])
    x = torch.zeros(n, 40, len(TOKENS))
    for i, length in enumerate(lengths.tolist()):
        x[i, :length] = emissions(length, seed + i)
    return x, lengths


@pytest.mark.parametrize("lexicon", [LEXICON, None])
@pytest.mark.parametrize("merge", ["history", "lm_state"])
def test_batches_dtypes_strides_threads_and_pieces(lexicon: Any, merge: str, arpa: Path) -> None:
    lm = str(arpa) if lexicon else None
    decoder = ctc_decoder(lexicon, TOKENS, lm, nbest=3, beam_size=12, beam_threshold=12, word_score=0.5, merge=merge)
    x, lengths = batch()
    expected = decoder(x, lengths)
    assert len(expected) == 9 and all(1 <= len(hyps) <= 3 for hyps in expected)
    same(expected, [decoder(x[i : i + 1, :n])[0] for i, n in enumerate(lengths)])  # one by one
    same(expected, decoder(x.transpose(1, 2).contiguous().transpose(1, 2), lengths))  # other strides
    same(decoder(x.half().float(), lengths), decoder(x.half(), lengths))
    same(decoder(x.bfloat16().float(), lengths), decoder(x.bfloat16(), lengths))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        same(expected, decoder(x, lengths.int()))
    finally:
        torch.set_num_threads(before)
    for i, n in enumerate(lengths.tolist()):  # in pieces
        decoder.decode_begin()
        for t in range(0, n, 7):
            decoder.decode_step(x[i, t : min(n, t + 7)])
        decoder.decode_end()
        same([expected[i]], [decoder.get_final_hypothesis()])


def test_emissions_on_a_device_are_copied(device: torch.device) -> None:
    decoder = ctc_decoder(LEXICON, TOKENS, None)
    x, lengths = batch()
    same(decoder(x, lengths), decoder(x.to(device), lengths.to(device)))


def test_merging_by_lm_state_finds_the_same_best(arpa: Path) -> None:
    rows = []
    for seed in range(8):  # words that the noise nearly drowns
        sure = peaks(
            (2, "b"), (5, "a"), (7, "d"), (9, "|"), (12, "d"), (14, "|"), (17, "a"), (19, "b"), (21, "|"), frames=24
        )
        rows.append((0.6 * sure + emissions(24, seed)).log_softmax(1))
    x = torch.stack(rows)

    def best(beam: int, merge: str) -> Tensor:
        decoder = ctc_decoder(
            LEXICON, TOKENS, str(arpa), beam_size=beam, beam_threshold=100, lm_weight=1.3, merge=merge
        )
        return torch.tensor([hyps[0].score for hyps in decoder(x)])

    assert torch.allclose(best(3000, "history"), best(3000, "lm_state"), atol=1e-4)
    assert torch.allclose(best(100, "lm_state"), best(3000, "lm_state"), atol=1e-4)


def test_word_pieces_and_many_tokens() -> None:
    """More than 64 tokens take other paths through the trie; no silence token is needed."""
    torch.manual_seed(0)
    pieces = (
        ["<blk>"] + [f"▁{a}{b}" for a in "abcdefghijk" for b in "lmnopqr"] + [f"{c}{d}" for c in "stu" for d in "vwx"]
    )
    lexicon = {f"w{i}": [[pieces[1 + i], pieces[78 + i % 9]], [pieces[1 + (i * 7) % 77]]] for i in range(77)}
    x = (3 * torch.randn(3, 30, len(pieces))).log_softmax(2)
    options = {"blank_token": "<blk>", "sil_token": None, "beam_size": 40, "nbest": 2}
    found = ctc_decoder(lexicon, pieces, None, beam_threshold=25, **options)(x)
    exhaustive = ctc_decoder(lexicon, pieces, None, beam_threshold=1e6, **options)(x)
    assert [h[0].words for h in found] == [h[0].words for h in exhaustive] and all(h[0].words for h in found)
    for hyps in found:
        spelled = [pieces[i] for i in hyps[0].tokens.tolist()]
        assert list(segment(spelled, lexicon, hyps[0].words)) == hyps[0].words
    free = ctc_decoder(None, pieces, None, beam_threshold=25, **options)
    best = free(x)[0][0]
    runs = [v for v, _ in itertools.groupby(x[0].argmax(1).tolist()) if v != 0]
    assert best.tokens.tolist() == runs  # without an LM, the best path


def segment(spelled: list[str], lexicon: Any, words: list[str]) -> Iterator[str]:
    for word in words:
        spelling = next(s for s in lexicon[word] if spelled[: len(s)] == s)
        spelled = spelled[len(spelling) :]
        yield word


def test_smearing_only_guides_the_search(arpa: Path) -> None:
    x, lengths = batch(seed=11)
    results = [
        ctc_decoder(LEXICON, TOKENS, str(arpa), beam_size=3000, beam_threshold=200, smearing=s, lm_weight=1.2)(
            x, lengths
        )
        for s in ("max", "logadd", "none")
    ]
    same(results[0], results[1], 1e-4)
    same(results[0], results[2], 1e-4)


def test_blank_skip_reads_certain_blanks_as_blank(arpa: Path) -> None:
    x = torch.full((1, 30, len(TOKENS)), -12.0)
    x[0, :, 0] = -1e-4
    for t, token in [(4, "a"), (9, "b"), (14, "|"), (22, "d"), (25, "|")]:
        x[0, t] = -12.0
        x[0, t, TOKENS.index(token)] = -1e-4
    plain, skipping = (ctc_decoder(LEXICON, TOKENS, str(arpa), blank_skip=s)(x)[0][0] for s in (None, 0.99))
    assert plain.words == skipping.words == ["ab", "d"] and skipping.score == pytest.approx(plain.score, abs=1e-4)
    sure_blank = x.clone()
    sure_blank[0, 9, 0], sure_blank[0, 9, 3] = -1e-3, -7.0
    assert ctc_decoder(LEXICON, TOKENS, None, blank_skip=0.99)(sure_blank)[0][0].words == ["d"]


def test_dead_ends_and_nothing() -> None:
    decoder = ctc_decoder(LEXICON, TOKENS, None)
    nothing = decoder(torch.full((2, 3, len(TOKENS)), -torch.inf), torch.tensor([3, 0]))
    assert nothing[0] == [] and nothing[1][0].words == [] and decoder.idxs_to_tokens(nothing[1][0].tokens) == ["|"]
    assert decoder(torch.zeros(0, 5, len(TOKENS))) == []
    unfinished = torch.full((1, 1, len(TOKENS)), -torch.inf)
    unfinished[0, 0, 2] = 0.0  # only the first letter of a word: no word is complete, none is given
    assert decoder(unfinished)[0][0].words == [] and decoder.idxs_to_tokens(decoder(unfinished)[0][0].tokens) == [
        "|",
        "a",
        "|",
    ]


# ------------------------------------------------------------------------------------------------------- LMs in Python


class Wrapped(CTCDecoderLM):
    """An n-gram model behind torchaudio's three methods."""

    def __init__(self, lm: NgramLM, words: list[str]) -> None:
        self.lm, self.ids = lm, [lm.word_id(w) for w in words]
        self.known: dict[CTCDecoderLMState, int] = {}
        self.batches: list[int] = []

    def start(self, start_with_nothing: bool) -> CTCDecoderLMState:
        state = CTCDecoderLMState()
        self.known[state] = 0 if start_with_nothing else self.lm.start_state
        return state

    def score(self, state: CTCDecoderLMState, usr_token_idx: int) -> tuple[CTCDecoderLMState, float]:
        log_prob, after = self.lm.score(torch.tensor(self.known[state]), torch.tensor(self.ids[usr_token_idx]))
        child = state.child(usr_token_idx)
        self.known[child] = int(after)
        return child, float(log_prob) / LN10

    def finish(self, state: CTCDecoderLMState) -> tuple[CTCDecoderLMState, float]:
        return state.child(-1), float(self.lm.final(torch.tensor(self.known[state]))) / LN10

    def score_batch(self, states: list[CTCDecoderLMState], usr_token_idxs: list[int]) -> Any:
        self.batches.append(len(states))
        return super().score_batch(states, usr_token_idxs)


def test_a_model_in_python_gives_what_the_native_one_gives(arpa: Path) -> None:
    native = NgramLM.load(arpa)
    words = [w for w in LEXICON if LEXICON[w]]
    x, lengths = batch(6)
    options: dict[str, Any] = {"nbest": 3, "beam_size": 15, "beam_threshold": 15, "lm_weight": 1.4, "word_score": 0.5}
    expected = ctc_decoder(LEXICON, TOKENS, native, **options)(x, lengths)
    model = Wrapped(native, [*words, "<unk>"])
    decoder = ctc_decoder(LEXICON, TOKENS, model, **options)
    same(expected, decoder(x, lengths), 1e-4)
    assert max(model.batches[1:]) > 6  # several hypotheses of several utterances at once
    decoder.decode_begin()
    for frame in x[3]:
        decoder.decode_step(frame[None])
    decoder.decode_end()
    same([expected[3]], [decoder.get_final_hypothesis()], 1e-4)


def test_lm_dict_gives_the_numbers_of_words(arpa: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("zebra\n" + "\n".join(sorted(LEXICON, reverse=True)) + "\n")
    order = ["zebra", *sorted(LEXICON, reverse=True)]
    x, lengths = batch(4)
    expected = ctc_decoder(LEXICON, TOKENS, str(arpa))(x, lengths)
    model = Wrapped(NgramLM.load(arpa), order)
    decoder = ctc_decoder(LEXICON, TOKENS, model, lm_dict=str(tmp_path / "words.txt"))
    same(expected, decoder(x, lengths), 1e-4)
    (tmp_path / "words.txt").write_text("ab\nd\n")
    with pytest.raises(ValueError, match=r"'abc' is not in lm_dict=.*words\.txt"):
        ctc_decoder(LEXICON, TOKENS, None, lm_dict=str(tmp_path / "words.txt"))


def test_other_threads_run_while_a_batch_is_decoded(arpa: Path) -> None:
    decoder = ctc_decoder(LEXICON, TOKENS, str(arpa), beam_size=2000, beam_threshold=1000)
    x = emissions(1500, 1)[None]
    started, finished = threading.Event(), threading.Event()

    def decode() -> None:
        started.set()
        decoder(x)
        finished.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # a thread stops only where it lets go
    try:
        thread = threading.Thread(target=decode)
        thread.start()
        started.wait()
        turns = 0
        while not finished.is_set():
            turns += 1
            time.sleep(1e-4)
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert turns > 2


# ------------------------------------------------------------------------------------------------------ beyond torchaudio


def peaks(*at: tuple[int, str], frames: int = 20, certain: float = 0.9) -> Tensor:
    """Emissions that say which token is at which frame; the rest of the probability is spread evenly."""
    x = torch.full((frames, len(TOKENS)), (1 - certain) / (len(TOKENS) - 1))
    x[:, 0] = certain
    for t, token in at:
        x[t] = (1 - certain) / (len(TOKENS) - 1)
        x[t, TOKENS.index(token)] = certain
    return x.log()


def test_words_with_times_and_confidences() -> None:
    x = peaks((3, "a"), (4, "a"), (6, "b"), (8, "|"), (12, "d"), (13, "|"), frames=16)
    x[6] = torch.tensor([0.2, 0.05, 0.05, 0.6, 0.05, 0.05]).log()
    for lexicon in (LEXICON, None):
        decoder = ctc_decoder(lexicon, TOKENS, None)
        hyp = decoder(x[None])[0][0]
        assert decoder.idxs_to_tokens(hyp.tokens) == ["|", "a", "b", "|", "d", "|", "|"]
        assert hyp.timesteps.tolist() == [0, 4, 7, 9, 13, 14, 17]  # frame t is timestep t + 1
        words = decoder.words_with_times(hyp, 0.02)
        assert [(w.text, w.start, w.end) for w in words] == [("ab", 0.06, 0.14), ("d", 0.24, 0.26)]
        assert [w.confidence for w in words] == pytest.approx([0.6, 0.9], abs=1e-3)


def test_partial_results_settle(arpa: Path) -> None:
    decoder = ctc_decoder(LEXICON, TOKENS, str(arpa), beam_size=10, beam_threshold=8, lm_weight=0.5)
    x = peaks((2, "a"), (4, "b"), (6, "|"), (14, "d"), (16, "|"), certain=0.97)
    decoder.decode_begin()
    seen = []
    for frame in x:
        decoder.decode_step(frame[None])
        partial = decoder.get_partial()
        assert 0 <= partial.stable <= len(partial.words) and partial.stable_tokens <= len(partial.tokens)
        seen.append(partial)
    assert [p.words for p in (seen[1], seen[8], seen[19])] == [[], ["ab"], ["ab", "d"]]
    assert seen[-1].stable >= 1
    decoder.decode_end()
    assert decoder.get_final_hypothesis()[0].words == ["ab", "d"]


def test_hotwords_win_and_broken_phrases_pay_back(arpa: Path) -> None:
    x = peaks((2, "b"), (4, "a"), (6, "d"), (8, "|"), (12, "d"), (14, "|"), certain=0.5)
    plain = ctc_decoder(LEXICON, TOKENS, str(arpa), lm_weight=0.5)(x[None])[0][0]
    assert plain.words == ["bad", "d"]

    def with_hotwords(hotwords: Any, **options: Any) -> CTCHypothesis:
        return ctc_decoder(LEXICON, TOKENS, str(arpa), lm_weight=0.5, hotwords=hotwords, **options)(x[None])[0][0]

    assert with_hotwords(["bade d"], hotword_weight=0.3).words == [
        "bad",
        "d",
    ]  # same spelling: the LM decides between them
    boosted = with_hotwords({"dad": 9.0})
    assert boosted.words != plain.words and "dad" in boosted.words
    whole = with_hotwords({"bad d": 0.5})  # 4 + 2 tokens of a phrase that is there anyway
    assert whole.words == plain.words and whole.score == pytest.approx(plain.score + 6 * 0.5, abs=1e-4)
    broken = with_hotwords({"bad dad": 0.01})
    assert broken.words == plain.words and broken.score == pytest.approx(plain.score, abs=1e-4)
    many = with_hotwords({"bad d": 0.5} | dict.fromkeys(("bad", "ab", "abc d", "bad d"), 0.5))
    assert many.score == pytest.approx(whole.score, abs=1e-4)
    free = ctc_decoder(None, TOKENS, None, hotwords={"dab": 8.0})(x[None])[0][0]
    assert "dab" in "".join(TOKENS[i] for i in free.tokens.tolist())
    with pytest.raises(ValueError, match="'xyz' of 'ab xyz'"):
        with_hotwords(["ab xyz"])


def test_words_come_and_go(arpa: Path) -> None:
    decoder = ctc_decoder(LEXICON, TOKENS, None)
    x = peaks((2, "c"), (4, "d"), (6, "|"), certain=0.9)[None]
    before = decoder(x)[0][0].words
    assert "cd" not in before
    decoder.decode_begin()  # keeps the old lexicon
    decoder.add_words({"cd": [["c", "d", "|"]], "ab": [["c", "a", "d", "|"]]})
    assert decoder(x)[0][0].words == ["cd"]
    decoder.decode_step(x[0])
    decoder.decode_end()
    assert decoder.get_final_hypothesis()[0].words == before
    decoder.remove_words(["cd"])
    assert "cd" not in decoder(x)[0][0].words
    same(
        ctc_decoder(SPELLINGS | {"ab": [["a", "b", "|"], ["c", "a", "d", "|"]]}, TOKENS, None)(*batch()),
        decoder(*batch()),
    )
    with pytest.raises(ValueError, match="'never' is not in the lexicon"):
        decoder.remove_words(["never"])
    with pytest.raises(ValueError, match="no word would be left"):
        decoder.remove_words(list(SPELLINGS))
    with pytest.raises(ValueError, match="no lexicon"):
        ctc_decoder(None, TOKENS, None).add_words({"cd": [["c"]]})


def test_streams_that_go_on_for_long_stay_small(arpa: Path) -> None:
    """Tokens that no hypothesis has any more are forgotten; what is left is still right."""
    piece = peaks((2, "d"), (5, "|"), (12, "a"), (14, "b"), (17, "|"), certain=0.9)
    decoder = ctc_decoder(LEXICON, TOKENS, str(arpa), beam_size=200, beam_threshold=30, lm_weight=0.1)
    decoder.decode_begin()
    for _ in range(60):
        decoder.decode_step(piece)
    decoder.decode_end()
    assert decoder.get_final_hypothesis()[0].words == ["d", "ab"] * 60
