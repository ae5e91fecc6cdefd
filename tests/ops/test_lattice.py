"""Decoding with graphs and rescoring: against all paths, and one utterance at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import ops as k2

INF = float("inf")
WORDS = k2.SymbolTable.from_str("<eps> 0\none 1\ntwo 2\nthree 3\n")
# P(three | two) = 0.6 and so on; state 3 is the empty context, reached by back-off arcs (label 0).
BIGRAM = """
0 1 1 -0.5
0 3 0 -1.0
1 2 2 -0.3
1 3 0 -0.9
2 1 3 -0.5
2 3 0 -0.7
3 1 1 -1.1
3 2 2 -1.2
3 1 3 -1.3
3 4 -1 -0.8
1 4 -1 -0.4
4
"""


def log_probs(n=3, t=6, c=4, seed=0):
    return torch.randn(n, t, c, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def lens(*values):
    return torch.tensor(values)


def collapse(labels):
    return [x for x, _ in itertools.groupby(labels) if x > 0]


def test_get_lattice_and_one_best(device):
    lp = log_probs().to(device)
    lattice = k2.get_lattice(lp, lens(6, 5, 3), k2.ctc_topo(3, device=device), 100, 100, 1, 100, frame_idx_name="frame")
    best = k2.one_best_decoding(lattice)
    expected = [lp[i, :n].argmax(-1).tolist() for i, n in enumerate((6, 5, 3))]
    assert k2.get_aux_labels(best) == [collapse(x) for x in expected]
    assert k2.get_aux_labels(best, return_ragged=True).tolist() == k2.get_aux_labels(best)
    assert best[0].labels.tolist() == [*expected[0], -1] and best[1].frame.tolist() == [0, 1, 2, 3, 4, 5]
    cut = k2.get_lattice(lp, lens(7, 5, 3), k2.ctc_topo(3, device=device), 100, 100, 1, 100, subsampling_factor=2)
    assert k2.get_aux_labels(k2.one_best_decoding(cut)) == k2.get_aux_labels(best)
    with pytest.raises(ValueError, match="does not lie inside"):
        k2.get_lattice(lp, lens(7, 5, 3), k2.ctc_topo(3, device=device))
    with pytest.raises(ValueError, match="log_prob_len"):
        k2.get_lattice(lp, lens(6, 5), k2.ctc_topo(3, device=device))
    with pytest.raises(ValueError, match="aux_labels"):
        k2.get_aux_labels(k2.linear_fsa([[1]]))


def test_utterances_without_a_path_are_named():
    lp = log_probs(4)
    lp[1] = -INF
    lp[2, 0] = float("nan")
    lattice = k2.get_lattice(lp, lens(6, 6, 6, 0), k2.ctc_topo(3))
    best = k2.one_best_decoding(lattice)
    assert k2.without_path(lattice) == [1, 2] == k2.without_path(best)
    assert k2.get_aux_labels(best)[1:] == [[], [], []]  # no frames: the path that emits nothing
    assert best.get_tot_scores(True, True).tolist()[1:] == [-INF, -INF, 0.0]
    assert k2.without_path(k2.nbest_decoding(lattice, 5)) == [1, 2]


def test_blank_only_and_silence():
    lp = torch.full((2, 5, 4), math.log(1e-4))
    lp[..., 0] = math.log(1 - 3e-4)
    best = k2.one_best_decoding(k2.get_lattice(lp, lens(5, 3), k2.ctc_topo(3)))
    assert k2.get_aux_labels(best) == [[], []] and k2.without_path(best) == []


def word_scores(lp, lm_scale, num_frames):
    """Brute force: word sequence -> (best frame labelling's score + lm_scale * best score in the bigram)."""
    fsa, ans = k2.Fsa.from_str(BIGRAM, acceptor=True), {}
    unrolled = {}
    for labels in itertools.product(range(4), repeat=num_frames):
        words = tuple(collapse(labels))
        score = sum(lp[t, x].item() for t, x in enumerate(labels))
        unrolled[words] = max(unrolled.get(words, -INF), score)
    for words, am in unrolled.items():
        linear = k2.linear_fsa([list(words)])
        both = k2.top_sort(k2.connect(k2.intersect(linear, fsa)))
        lm = both.get_tot_scores(True, False).item()
        if lm > -INF:
            ans[words] = (am + lm_scale * lm, am, lm)
    return ans


def test_rescoring_with_the_whole_lattice_is_exact():
    lp = log_probs(2, 4)
    lattice = k2.get_lattice(lp, lens(4, 3), k2.ctc_topo(3), 100, 100, 1, 100, frame_idx_name="frame")
    lattice.lm_scores = torch.full_like(lattice.scores, 0.1)  # an LM that is to be taken out again
    lattice.scores = lattice.scores + lattice.lm_scores
    G = k2.Fsa.from_str(BIGRAM, acceptor=True)
    scales = [0.0, 0.5, 2.0]
    with_loops = k2.create_fsa_vec([k2.add_epsilon_self_loops(k2.arc_sort(G))])
    whole = k2.rescore_with_whole_lattice(lattice, with_loops, scales)
    assert list(whole) == ["lm_scale_0.0", "lm_scale_0.5", "lm_scale_2.0"]
    for scale, (key, best) in zip(scales, whole.items()):
        for i, num_frames in enumerate((4, 3)):
            expected = word_scores(lp[i], scale, num_frames)
            words = tuple(k2.get_aux_labels(best)[i])
            total = best.get_tot_scores(True, False)[i].item()
            assert total == pytest.approx(max(x[0] for x in expected.values()), abs=1e-5), key
            assert expected[words][0] == pytest.approx(total, abs=1e-5)
            frames = best[i].frame.tolist()
            assert [f for f in frames if f >= 0] == list(range(num_frames + 1))  # back-off arcs take no frame
    again = k2.rescore_with_whole_lattice(lattice, G)
    best = k2.one_best_decoding(again, lm_scale_list=[1.0])["lm_scale_1.0"]
    assert k2.get_aux_labels(best) == k2.get_aux_labels(k2.one_best_decoding(again))
    with pytest.raises(ValueError, match="lm_scores"):
        k2.one_best_decoding(k2.get_lattice(lp, lens(4, 3), k2.ctc_topo(3)), lm_scale_list=[1.0])


def test_rescoring_an_nbest_list_that_holds_all_words():
    torch.manual_seed(0)
    lp = log_probs(2, 3)
    lattice = k2.get_lattice(lp, lens(3, 3), k2.ctc_topo(3), 100, 100, 1, 100)
    G = k2.create_fsa_vec([k2.Fsa.from_str(BIGRAM, acceptor=True)])
    found = k2.rescore_with_n_best_list(lattice, G, 500, [0.0, 1.5], nbest_scale=0.1)
    for key, scale in (("lm_scale_0.0", 0.0), ("lm_scale_1.5", 1.5)):
        for i in range(2):
            expected = word_scores(lp[i], scale, 3)
            words = tuple(k2.get_aux_labels(found[key])[i])
            assert expected[words][0] == pytest.approx(max(x[0] for x in expected.values()), abs=1e-5)
            path = found[key][i]
            assert path.scores.sum().item() == pytest.approx(expected[words][0], abs=1e-5)
            assert path.lm_scores.sum().item() == pytest.approx(expected[words][2], abs=1e-5)
            assert (path.scores - scale * path.lm_scores).sum().item() == pytest.approx(expected[words][1], abs=1e-5)


def test_nbest_decoding_and_oracle():
    torch.manual_seed(0)
    lp = log_probs(3, 5)
    lattice = k2.get_lattice(lp, lens(5, 4, 3), k2.ctc_topo(3), 100, 100, 1, 100)
    best = k2.nbest_decoding(lattice, 300, nbest_scale=0.5)
    assert k2.get_aux_labels(best) == k2.get_aux_labels(k2.one_best_decoding(lattice))
    refs = ["two one three", "one unknown", ""]
    oracle = k2.nbest_oracle(lattice, 500, refs, WORDS, nbest_scale=0.1)
    assert list(oracle) == ["nbest_500_nbest_scale_0.1"]
    hyps = oracle["nbest_500_nbest_scale_0.1"]
    assert hyps[0] == [2, 1, 3] and hyps[2] == [] and (1 in hyps[1]) and len(hyps[1]) <= 2


def test_batch_is_one_by_one():
    lp, lengths = log_probs(4, 8, 6), lens(8, 3, 5, 7)
    graph = k2.ctc_topo(5)
    batch = k2.get_lattice(lp, lengths, graph, 4, 3, 2, 5)
    for i in range(4):
        one = k2.get_lattice(lp[i : i + 1], lengths[i : i + 1], graph, 4, 3, 2, 5)
        assert k2.to_str(one[0]) == k2.to_str(batch[i])
        assert one[0].num_arcs > 0


def test_words_in_lists_on_the_arcs():
    """aux_labels become ragged when epsilons are removed or a graph is determinized: decoding must not mind."""
    lexicon = k2.Fsa.from_str("0 1 1 1 0\n1 0 2 0 0\n0 2 2 2 -0.1\n2 0 3 0 0\n0 3 -1 -1 0\n3", acceptor=False)
    ragged = lexicon.clone()
    ragged.aux_labels = k2.RaggedTensor([[1], [2, 3], [-1], [], []], dtype=torch.int32)
    expected = {0: [1, 2], 1: [1, 2, 3]}
    lp = torch.full((2, 4, 4), -5.0)
    for t, label in enumerate((1, 2, 2, 3)):
        lp[:, t, label] = 0.0
    G = k2.Fsa.from_str("0 0 1 -1\n0 0 2 -2\n0 0 3 -3\n0 1 -1 0\n1", acceptor=True)
    for i, graph in enumerate((lexicon, ragged)):
        lattice = k2.get_lattice(lp, lens(4, 4), graph, 50, 50, 1, 50)
        assert k2.get_aux_labels(k2.one_best_decoding(lattice)) == [expected[i]] * 2
        nbest = k2.Nbest.from_lattice(lattice, 50)
        assert expected[i] in nbest.words().tolist()
        assert nbest.intersect(lattice).words() == nbest.words()
        for found in (
            k2.nbest_decoding(lattice, 50),
            k2.rescore_with_n_best_list(lattice, G, 50, [0.1])["lm_scale_0.1"],
            k2.rescore_with_whole_lattice(lattice, G, [0.1])["lm_scale_0.1"],
        ):
            assert k2.get_aux_labels(found) == [expected[i]] * 2


def test_transcripts_the_lm_does_not_know_have_no_path():
    lp = log_probs(2, 3)
    lattice = k2.get_lattice(lp, lens(3, 3), k2.ctc_topo(3), 100, 100, 1, 100)
    only_nine = k2.Fsa.from_str("0 0 9 -1\n0 1 9 -1\n1 2 -1 0\n2", acceptor=True)
    torch.manual_seed(0)
    by_list = k2.rescore_with_n_best_list(lattice, only_nine, 100, [0.0, 1.0])
    by_lattice = k2.rescore_with_whole_lattice(lattice, only_nine, [0.0, 1.0])
    for best in (*by_list.values(), *by_lattice.values()):
        assert k2.without_path(best) == [0, 1] and k2.get_aux_labels(best) == [[], []]
        assert best.get_tot_scores(True, False).tolist() == [-INF, -INF]
