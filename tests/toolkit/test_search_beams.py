"""Best-first and FSA-based search against brute force, the loss's recursion and each other; grammars."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from search_fakes import FakeTransducer, all_sequences, encoder_outputs, rnnt_score
from torch import Tensor, nn

import ops
from toolkit.config import DecodingConfig, FastBeamConfig
from toolkit.eval.decode import describe_method, with_graph
from toolkit.search import (
    ORACLES,
    SEARCHES,
    FastBeam,
    beam_search,
    fast_beam_search,
    fast_beam_search_lattice,
    fast_beam_search_nbest,
    fast_beam_search_nbest_oracle,
    greedy_search,
    modified_beam_search,
    phrase_graph,
    save_graph,
)
from toolkit.search.graphs import load_graph
from toolkit.search.result import Hypothesis

WIDE = FastBeam(beam=1000.0, max_states=10_000, max_contexts=10_000)


pytestmark = pytest.mark.usefixtures("one_thread")


def check_traces(model: FakeTransducer, encoder_TD: Tensor, hypotheses: list[Hypothesis]) -> None:
    """Each token's log-probability is the model's at its frame, given the tokens before it."""
    for h in hypotheses:
        assert len(h.frames) == len(h.tokens) == len(h.log_probs) and sorted(h.frames) == h.frames
        for u, (token, frame) in enumerate(zip(h.tokens, h.frames)):
            assert h.log_probs[u] == pytest.approx(float(model.step(encoder_TD[frame], h.tokens[:u])[token]), abs=1e-4)


# ---- best-first ----
@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("seed", range(3))
def test_wide_best_first_search_finds_the_totals_of_the_loss(seed: int, rnnt_type: str) -> None:
    model = FakeTransducer(vocab_size=3, seed=seed)
    regular = rnnt_type == "regular"
    if regular:  # few symbols a frame, as a trained model has: nothing comes near the limit that "no limit" has
        with torch.no_grad():
            model.joiner.output.bias[0] += 4.0
    frames = 3 if regular else 4
    encoder_NTD = encoder_outputs(1, frames, seed=seed)
    forced = rnnt_type == "constrained"
    nbest = beam_search(model, encoder_NTD, torch.tensor([frames]), 150, 0 if regular else 1, forced_blank=forced)[
        0
    ].nbest
    assert len({tuple(h.tokens) for h in nbest}) == len(nbest) == (150 if regular else 31)
    for h in nbest[:8]:  # without a limit there are ever more alignments, each of them with less to add
        expected = rnnt_score(model, encoder_NTD[0], h.tokens, rnnt_type)
        assert h.score == pytest.approx(expected, abs=2e-3 if regular else 2e-4)
    check_traces(model, encoder_NTD[0], nbest[:8])
    best = max(all_token_lists(4), key=lambda x: rnnt_score(model, encoder_NTD[0], x, rnnt_type))
    if len(nbest[0].tokens) <= 4:
        assert nbest[0].tokens == best


def all_token_lists(longest: int) -> Iterator[list[int]]:
    for n in range(longest + 1):
        yield from (list(x) for x in itertools.product((1, 2), repeat=n))


@pytest.mark.parametrize("merge", ["log_add", "max"])
@pytest.mark.parametrize("limit", [1, 2])
def test_wide_best_first_search_is_brute_force(limit: int, merge: str) -> None:
    model = FakeTransducer(vocab_size=3, seed=7)
    encoder_TD = encoder_outputs(1, 3, seed=3)[0]
    expected: dict[tuple[int, ...], list[float]] = {}

    def walk(t: int, tokens: list[int], count: int, score: float) -> None:
        if t == 3:
            expected.setdefault(tuple(tokens), []).append(score)
            return
        for symbol, log_prob in enumerate(model.step(encoder_TD[t], tokens).tolist()):
            if symbol == 0:
                walk(t + 1, tokens, 0, score + log_prob)
            elif count + 1 == limit:
                walk(t + 1, [*tokens, symbol], 0, score + log_prob)
            else:
                walk(t, [*tokens, symbol], count + 1, score + log_prob)

    walk(0, [], 0, 0.0)
    combine = (lambda x: torch.tensor(x, dtype=torch.float64).logsumexp(0).item()) if merge == "log_add" else max
    nbest = beam_search(model, encoder_TD[None], torch.tensor([3]), 10_000, limit, merge=merge)[0].nbest
    assert {tuple(h.tokens) for h in nbest} == set(expected)
    for h in nbest:
        assert h.score == pytest.approx(combine(expected[tuple(h.tokens)]), abs=1e-4)


def test_one_symbol_a_frame_is_modified_beam_search() -> None:
    model = FakeTransducer(vocab_size=4, seed=3)
    encoder_NTD, lens_N = encoder_outputs(3, 5), torch.tensor([5, 2, 4])
    for merge in ("log_add", "max"):
        for length_norm in (False, True):
            first = beam_search(model, encoder_NTD, lens_N, 2000, 1, length_norm, merge=merge)
            batched = modified_beam_search(model, encoder_NTD, lens_N, 2000, length_norm, merge=merge)
            for a, b in zip(first, batched):
                assert [h.score for h in a.nbest] == pytest.approx([h.score for h in b.nbest], abs=1e-4)
                assert a.best.tokens == b.best.tokens and a.best.frames == b.best.frames


@pytest.mark.parametrize("limit", [1, 2, 3, 0])
def test_narrow_best_first_search_is_no_worse_than_greedy(limit: int) -> None:
    model = FakeTransducer(seed=2)
    encoder_NTD, lens_N = encoder_outputs(4, 9), torch.tensor([9, 0, 1, 6])
    results = beam_search(model, encoder_NTD, lens_N, 4, limit)
    for encoder_TD, a, b in zip(encoder_NTD, results, greedy_search(model, encoder_NTD, lens_N, limit)):
        assert a.best.score >= b.best.score - 1e-4 and len(a.nbest) <= 4
        check_traces(model, encoder_TD, a.nbest)


class ConstrainedModel(FakeTransducer):
    """A trained constrained transducer: after a symbol, a blank is certain for the rest of the frame."""

    class Joined(nn.Module):
        def __init__(self, vocab_size: int) -> None:
            super().__init__()
            self.vocab_size = vocab_size
            self.encoder_proj = nn.Identity()
            self.decoder_proj = nn.Identity()

        def forward(self, encoder: Tensor, decoder: Tensor, project_input: bool = True) -> Tensor:
            logits, tag = encoder[..., :-1], encoder[..., -1:]
            said = decoder == tag  # the last token was emitted at this frame: tags alternate with tokens
            return torch.where(said, torch.nn.functional.one_hot(torch.tensor(0), self.vocab_size) * 60.0, logits)

    class LastToken(nn.Module):
        context_size = 1

        def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
            return y[..., None].float()

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.decoder, self.joiner = self.LastToken(), self.Joined(vocab_size)


def test_constrained_models_need_one_symbol_a_frame() -> None:
    """Frame t has only the token t % 4 + 1 to offer: S = 1, S = ∞ and the FSA-based search find the same."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.arange(10)
    logits_NTV = torch.full((3, 10, 5), -60.0)
    logits_NTV[:, :, 0] = 0.0
    logits_NTV[:, frames, frames % 4 + 1] = torch.randn(3, 10, generator=generator) * 2
    encoder_NTD = torch.cat([logits_NTV, (frames % 4 + 1.0).expand(3, 10)[..., None]], dim=2)
    model, lens_N = ConstrainedModel(5), torch.tensor([10, 7, 4])
    expected = beam_search(model, encoder_NTD, lens_N, 64, 0)
    assert any(len(r.best.tokens) > 2 for r in expected)
    for S in (1, 2, 3):
        found = beam_search(model, encoder_NTD, lens_N, 64, S)
        assert [h.tokens for r in found for h in r.nbest[:5]] == [h.tokens for r in expected for h in r.nbest[:5]]
        greedy = greedy_search(model, encoder_NTD, lens_N, S)
        assert [r.best.tokens for r in greedy] == [r.best.tokens for r in greedy_search(model, encoder_NTD, lens_N, 0)]
    scores = [h.score for r in expected for h in r.nbest[:5]]
    for other in (
        modified_beam_search(model, encoder_NTD, lens_N, 64),
        fast_beam_search_nbest(model, encoder_NTD, lens_N, None, WIDE, num_paths=500, nbest_scale=0.3),
    ):
        assert [h.score for r in other for h in r.nbest[:5]] == pytest.approx(scores, abs=1e-3)


# ---- FSA-based ----
@pytest.mark.parametrize("context_size", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_wide_fsa_search_is_brute_force(seed: int, context_size: int) -> None:
    model = FakeTransducer(vocab_size=3, context_size=context_size, seed=seed)
    encoder_NTD, lens_N = encoder_outputs(1, 5, seed=seed + 10), torch.tensor([5])
    best_paths = all_sequences(model, encoder_NTD[0], "max")
    best = fast_beam_search(model, encoder_NTD, lens_N, None, WIDE)[0].best
    assert best.tokens == list(max(best_paths, key=lambda x: best_paths[x]))
    assert best.score == pytest.approx(best_paths[tuple(best.tokens)], abs=1e-4)
    for merge, expected in (("max", best_paths), ("log_add", all_sequences(model, encoder_NTD[0]))):
        nbest = fast_beam_search_nbest(
            model, encoder_NTD, lens_N, None, WIDE, num_paths=2000, nbest_scale=0.2, merge=merge
        )[0].nbest
        assert len({tuple(h.tokens) for h in nbest}) == len(nbest) > 20
        for h in nbest:
            assert h.score == pytest.approx(expected[tuple(h.tokens)], abs=1e-4)
        assert nbest[0].tokens == list(max(expected, key=lambda x: expected[x]))
        check_traces(model, encoder_NTD[0], nbest)
    lattice = fast_beam_search_lattice(model, encoder_NTD, lens_N, None, WIDE)
    assert float(lattice.get_tot_scores(True, True)) == pytest.approx(0.0, abs=1e-4)  # all there is


def test_length_norm_ranks_by_score_per_token() -> None:
    model = FakeTransducer(seed=2)
    encoder_NTD, lens_N = encoder_outputs(2, 8), torch.tensor([8, 6])
    plain = fast_beam_search_nbest(model, encoder_NTD, lens_N)
    for a, b in zip(plain, fast_beam_search_nbest(model, encoder_NTD, lens_N, length_norm=True)):
        expected = sorted((h.score / (len(h.tokens) + 2) for h in a.nbest), reverse=True)
        assert [h.score for h in b.nbest] == pytest.approx(expected, abs=1e-5)


def test_one_state_is_greedy() -> None:
    model = FakeTransducer(seed=1)
    encoder_NTD, lens_N = encoder_outputs(4, 9), torch.tensor([9, 0, 1, 6])
    results = fast_beam_search(model, encoder_NTD, lens_N, None, FastBeam(max_states=1))
    for a, b in zip(results, greedy_search(model, encoder_NTD, lens_N)):
        assert (a.best.tokens, a.best.frames) == (b.best.tokens, b.best.frames)
        assert a.best.score == pytest.approx(b.best.score, abs=1e-3)


def letters(text: str) -> list[int]:
    """▁ is 1, a is 2, and so on."""
    return [1 if c == " " else ord(c) - ord("a") + 2 for c in " " + text]


PHRASES = ["a", "ab", "ca", "bcb"]


@pytest.mark.parametrize("repeat", [False, True])
def test_a_grammar_restricts_the_output_to_its_language(repeat: bool) -> None:
    graph = phrase_graph(PHRASES, letters, repeat)
    encoder_NTD, lens_N = encoder_outputs(6, 12), torch.tensor([12, 5, 8, 12, 9, 2])
    several = False
    for seed in range(4):
        model = FakeTransducer(vocab_size=5, seed=seed)
        with torch.no_grad():
            model.joiner.output.bias[0] -= 1.0
        for results in (
            fast_beam_search(model, encoder_NTD, lens_N, graph),
            fast_beam_search_nbest(model, encoder_NTD, lens_N, graph),
        ):
            for result in results:
                for h in result.nbest:
                    said = "".join(" abc"[token - 1] for token in h.tokens)
                    words = said.split()
                    assert said == "".join(" " + w for w in words) and set(words) <= set(PHRASES)
                    assert repeat or len(words) == 1
                    several |= len(words) > 1
    assert several == repeat


def test_a_grammar_search_finds_the_best_of_its_language() -> None:
    graph = phrase_graph(PHRASES, letters, repeat=True, scores=[0.0, -1.0, 0.5, 0.0])
    model = FakeTransducer(vocab_size=5, seed=0)
    encoder_NTD = encoder_outputs(1, 6)
    found = fast_beam_search_nbest(model, encoder_NTD, torch.tensor([6]), graph, WIDE, num_paths=500, nbest_scale=0.2)[
        0
    ].nbest
    weight = {(): 0.0}
    for words in itertools.chain.from_iterable(itertools.product(PHRASES, repeat=n) for n in (1, 2, 3)):
        tokens = tuple(itertools.chain.from_iterable(letters(w) for w in words))
        weight[tokens] = sum({"ab": -1.0, "ca": 0.5}.get(w, 0.0) for w in words)
    totals = {x: rnnt_score(model, encoder_NTD[0], list(x), "modified") + w for x, w in weight.items() if len(x) <= 6}
    assert found[0].tokens == list(max(totals, key=lambda x: totals[x]))
    for h in found:
        assert h.score == pytest.approx(totals[tuple(h.tokens)], abs=1e-3)
    check_traces(model, encoder_NTD[0], found)


def test_an_end_out_of_reach() -> None:
    """Two frames are too few for three tokens: nothing, or with allow_partial a beginning."""
    graph, model = phrase_graph(["bcb"], letters), FakeTransducer(vocab_size=5, seed=0)
    with torch.no_grad():
        model.joiner.output.bias[0] -= 5.0
    encoder_NTD, lens_N = encoder_outputs(1, 2), torch.tensor([2])
    for search in (fast_beam_search, fast_beam_search_nbest):
        assert search(model, encoder_NTD, lens_N, graph)[0].best == Hypothesis([], [], [], -math.inf)
        best = search(model, encoder_NTD, lens_N, graph, allow_partial=True)[0].best
        assert best.tokens == letters("bcb")[:2] and best.score > -math.inf


def test_graphs_of_each_utterance() -> None:
    model = FakeTransducer(vocab_size=5, seed=0)
    encoder_NTD, lens_N = encoder_outputs(3, 7), torch.tensor([3, 7, 5])
    graphs = [phrase_graph([p], letters) for p in ("ab", "ca", "bcb")]
    together = fast_beam_search(model, encoder_NTD, lens_N, graphs)
    assert [r.best.tokens for r in together] == [letters("ab"), letters("ca"), letters("bcb")]
    for i, graph in enumerate(graphs):
        alone = fast_beam_search(model, encoder_NTD[i : i + 1], lens_N[i : i + 1], graph)
        assert alone[0].best.tokens == together[i].best.tokens
        assert alone[0].best.score == pytest.approx(together[i].best.score, abs=1e-4)
    lattice = fast_beam_search_lattice(model, encoder_NTD, lens_N, graphs)
    assert {1} <= set(lattice.aux_labels.tolist()) <= {-1, 0, 1}


def test_oracle_puts_the_entry_with_fewest_errors_first() -> None:
    model = FakeTransducer(vocab_size=4, seed=4)
    encoder_NTD, lens_N = encoder_outputs(2, 8), torch.tensor([8, 6])
    nbest = fast_beam_search_nbest(model, encoder_NTD, lens_N)
    references = [nbest[0].nbest[3].tokens, [3, 3, 3, 3, 3, 3, 3]]
    oracle = fast_beam_search_nbest_oracle(model, encoder_NTD, lens_N, references)
    assert oracle[0].best.tokens == references[0]
    for a, b, reference in zip(nbest, oracle, references):
        assert sorted(map(repr, a.nbest)) == sorted(map(repr, b.nbest))
        errors = [errors_by_hand(reference, h.tokens) for h in b.nbest]
        assert errors == sorted(errors)
    config = DecodingConfig()
    same = ORACLES["fast_beam_search_nbest_oracle"](model, encoder_NTD, lens_N, config, references)
    assert [r.best.tokens for r in same] == [r.best.tokens for r in oracle]
    with pytest.raises(ValueError, match="references: 1 for 2"):
        fast_beam_search_nbest_oracle(model, encoder_NTD, lens_N, references[:1])


def errors_by_hand(ref: list[int], hyp: list[int]) -> int:
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, start=1):
        row, above = [i], row
        for j, h in enumerate(hyp):
            row.append(min(above[j] + (r != h), above[j + 1] + 1, row[j] + 1))
    return row[-1]


def test_nothing_survives() -> None:
    model = FakeTransducer(seed=0)
    with torch.no_grad():
        model.joiner.output.bias.fill_(float("nan"))
    encoder_NTD, lens_N = encoder_outputs(2, 5), torch.tensor([5, 0])
    for search in (fast_beam_search, fast_beam_search_nbest, beam_search):
        broken, empty = search(model, encoder_NTD, lens_N)
        assert broken.best == Hypothesis([], [], [], -math.inf) and empty.best == Hypothesis([], [], [], 0.0)


# ---- graphs ----
class FakeTokenizer:
    unk_id = 9

    def encode(self, text: str) -> list[int]:
        return [x if x < 5 else 9 for x in letters(text)]


def test_graphs_in_files_and_lists_of_phrases(tmp_path: Path) -> None:
    model = FakeTransducer(vocab_size=5, seed=0)
    encoder_NTD, lens_N = encoder_outputs(2, 9), torch.tensor([9, 6])
    graph = phrase_graph(PHRASES, letters)
    save_graph(graph, tmp_path / "made.pt")
    (tmp_path / "phrases.txt").write_text("a\nab\t-0.5\n\nca\t0\nbcb\n")

    def config(name: str) -> DecodingConfig:
        return DecodingConfig(fast_beam=FastBeamConfig(graph=str(tmp_path / name), repeat=False))

    def run(config: DecodingConfig) -> list[list[int]]:
        results = SEARCHES["fast_beam_search_LG"](model, encoder_NTD, lens_N, config)
        assert results == SEARCHES["fast_beam_search_LG"](model, encoder_NTD, lens_N, config)
        return [r.best.tokens for r in results]

    assert run(config("made.pt")) == [r.best.tokens for r in fast_beam_search(model, encoder_NTD, lens_N, graph)]
    compiled = with_graph(config("phrases.txt"), FakeTokenizer(), tmp_path)
    weighted = phrase_graph(PHRASES, letters, scores=[0.0, -0.5, 0.0, 0.0])
    assert run(compiled) == [r.best.tokens for r in fast_beam_search(model, encoder_NTD, lens_N, weighted)]
    half = dataclasses.replace(compiled.fast_beam, graph_scale=0.5)
    scaled = with_graph(DecodingConfig(fast_beam=half), FakeTokenizer(), tmp_path)
    assert torch.equal(load_graph(str(scaled.fast_beam.graph)).scores, 0.5 * weighted.scores)
    assert torch.equal(load_graph(str(compiled.fast_beam.graph)).scores, weighted.scores)  # as it was
    assert "graph x 0.5" in describe_method("fast_beam_search_LG", scaled)
    assert with_graph(DecodingConfig(), FakeTokenizer(), tmp_path) == DecodingConfig()
    with pytest.raises(ValueError, match="fast_beam_search_LG need a decoding graph"):
        with_graph(DecodingConfig(methods=["greedy_search", "fast_beam_search_LG"]), FakeTokenizer(), tmp_path)
    with pytest.raises(ValueError, match=r"fast_beam\.graph"):
        SEARCHES["fast_beam_search_nbest_LG"](model, encoder_NTD, lens_N, DecodingConfig())
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        with_graph(config("nowhere.txt"), FakeTokenizer(), tmp_path)
    (tmp_path / "bad.txt").write_text("a\nzebra\n")
    with pytest.raises(ValueError, match="'zebra' cannot be spelled"):
        with_graph(config("bad.txt"), FakeTokenizer(), tmp_path)
    (tmp_path / "worse.txt").write_text("a\nab\tmuch\n")
    with pytest.raises(ValueError, match="line 2: 'much' is not a score"):
        with_graph(config("worse.txt"), FakeTokenizer(), tmp_path)


def test_phrase_graph() -> None:
    graph = phrase_graph(["a", "ab", "a"], letters, scores=[-1.0, 0.0, -0.5])
    paths = {tuple(x for x in labels if x > 0): s for labels, s in zip(*strings(graph))}
    assert paths == {tuple(letters("a")): -0.5, tuple(letters("ab")): 0.0}
    assert sorted(graph.aux_labels.tolist()) == [-1, 0, 0, 2, 3]
    loop = phrase_graph(["a", "ab"], letters, repeat=True)
    both = ops.intersect(ops.linear_fsa(letters("ab") + letters("a") + letters("ab")), loop)
    assert ops.connect(both).num_arcs == 9
    for bad, message in (([], "empty"), (["a", ""], "scores: 1 for 2")):
        with pytest.raises(ValueError, match=message):
            phrase_graph(bad, letters, scores=[0.0])
    with pytest.raises(ValueError, match="'x' cannot be spelled"):
        phrase_graph(["x"], lambda _: [])


def strings(graph: ops.Fsa) -> tuple[list[list[int]], list[float]]:
    graph = ops.top_sort(graph)
    paths = ops.random_paths(ops.create_fsa_vec([graph]), True, 200).tolist()[0]
    return [graph.labels[p].tolist() for p in paths], [float(graph.scores[p].sum()) for p in paths]


def test_bad_arguments_are_named() -> None:
    model, good, lens_N = FakeTransducer(), encoder_outputs(2, 5), torch.tensor([5, 5])
    with pytest.raises(ValueError, match="beam=0"):
        beam_search(model, good, lens_N, beam=0)
    with pytest.raises(ValueError, match="max_symbols=-1"):
        beam_search(model, good, lens_N, max_symbols=-1)
    with pytest.raises(ValueError, match="merge='sum'"):
        beam_search(model, good, lens_N, merge="sum")
    with pytest.raises(ValueError, match="merge='sum'"):
        fast_beam_search_nbest(model, good, lens_N, merge="sum")
    with pytest.raises(ValueError, match="num_paths=0"):
        fast_beam_search_nbest(model, good, lens_N, num_paths=0)
    with pytest.raises(ValueError, match=r"lens_N.*T=5"):
        fast_beam_search(model, good, torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="1 graphs for 2 utterances"):
        fast_beam_search(model, good, lens_N, [ops.trivial_graph(3)])
    with pytest.raises(ValueError, match="max_states=0"):
        fast_beam_search(model, good, lens_N, None, FastBeam(max_states=0))
    with pytest.raises(ValueError, match="blank_id=2"):
        fast_beam_search(FakeTransducer(blank_id=2), good, lens_N)
    with pytest.raises(RuntimeError, match="not below vocab_size: 4"):
        fast_beam_search(model, good, lens_N, ops.trivial_graph(4))
