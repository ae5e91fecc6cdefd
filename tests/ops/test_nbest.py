"""Nbest: drawn paths, their words and scores against all paths; lists from lists; edit distances."""

from __future__ import annotations

import random

import pytest
import torch
from fsa_helpers import all_paths, random_text

import ops as k2

INF = float("inf")
LATTICE = """
0 1 1 10 0.1
0 1 5 10 0.11
0 1 2 20 0.2
1 2 3 30 0.3
1 2 4 40 0.4
2 3 -1 -1 0.5
3
"""


def lattices(device="cpu"):
    fsa = k2.Fsa.from_str(LATTICE, acceptor=False)
    return k2.create_fsa_vec([fsa, k2.Fsa.from_str("0", num_aux_labels=1), fsa]).to(device)


def random_lattices(seed, n=3):
    rng = random.Random(seed)
    return k2.create_fsa_vec([k2.Fsa.from_str(random_text(rng, 6, 3, epsilons=True, aux=True)) for _ in range(n)])


def test_from_lattice_keeps_the_best_path_of_each_word_sequence(device):
    torch.manual_seed(1)
    nbest = k2.Nbest.from_lattice(lattices(device), 60)
    assert nbest.shape.row_splits(1).tolist() == [0, 4, 4, 8]  # the second has no path
    assert nbest.words().tolist() == [[20, 40], [10, 40], [20, 30], [10, 30]] * 2
    assert nbest.tot_scores().values.tolist() == pytest.approx([1.1, 1.01, 1.0, 0.91] * 2, abs=1e-6)
    torch.manual_seed(1)
    again = k2.Nbest.from_lattice(lattices(device), 60)
    assert again.words() == nbest.words() and torch.equal(again.fsa.arcs3, nbest.fsa.arcs3)


def test_scores_by_source_and_gradient():
    lattice = lattices()
    weights = lattice.scores.clone().requires_grad_()
    lattice.scores = weights
    lattice.lm_scores = torch.arange(lattice.num_arcs) * 0.01
    torch.manual_seed(0)
    nbest = k2.Nbest.from_lattice(lattice, 60)
    total, am, lm = nbest.tot_scores(), nbest.compute_am_scores(), nbest.compute_lm_scores()
    assert torch.allclose(total.values, am.values + lm.values) and total.shape == lm.shape
    assert nbest.total_scores() == total
    best = [2, 4, 5]  # arcs of the best path of the first lattice
    assert lm.values[0].item() == pytest.approx(sum(0.01 * a for a in best), abs=1e-6)
    total.values[0].backward()
    assert weights.grad.nonzero().squeeze(1).tolist() == best


@pytest.mark.parametrize("seed", range(4))
def test_intersect_finds_the_best_path_with_the_same_words(seed):
    vec = random_lattices(seed)
    best: list[dict] = []
    for fsa in vec:
        scores: dict = {}
        for path in all_paths(fsa):
            words = tuple(w for w in fsa.aux_labels[path].tolist() if w > 0)
            scores[words] = max(scores.get(words, -INF), fsa.scores[path].double().sum().item())
        best.append(scores)
    torch.manual_seed(seed)
    nbest = k2.Nbest.from_lattice(vec, 200, nbest_scale=0.1)
    found = nbest.intersect(vec)
    assert found.words() == nbest.words()
    scores = [s for row in found.tot_scores().tolist() for s in row]
    rows = nbest.shape.row_ids(1).tolist()
    assert scores == pytest.approx([best[i][tuple(w)] for i, w in zip(rows, nbest.words().tolist())], abs=1e-5)
    assert [len(x) for x in best] == nbest.shape.counts(1).tolist()  # with so many draws none is missed
    path = found.best()
    assert path.get_tot_scores(True, False).tolist() == pytest.approx([max(x.values()) for x in best], abs=1e-5)


def test_intersect_with_one_lm_for_all():
    nbest = k2.Nbest.from_lattice(lattices(), 60)
    # A bigram with back-off (label 0) that knows no 40; words are the labels.
    lm = k2.Fsa.from_str("0 1 20 -1.0\n0 2 0 -0.5\n1 2 0 -0.25\n1 3 30 -0.1\n2 3 30 -2\n2 1 10 -3\n3 4 -1 -0.7\n4")
    scored = nbest.intersect(lm)
    expected = {(20, 30): -1.0 - 0.1 - 0.7, (10, 30): -0.5 - 3 - 0.1 - 0.7}
    for words, score in zip(nbest.words().tolist(), scored.tot_scores().values.tolist()):
        assert score == pytest.approx(expected.get(tuple(words), -INF), abs=1e-6)
    with pytest.raises(ValueError, match="2 lattices for 3 utterances"):
        nbest.intersect(k2.create_fsa_vec([lm, lm]))


def test_top_k_shuffle_select(device):
    nbest = k2.Nbest.from_lattice(lattices(device), 60)
    assert nbest.top_k(2).words().tolist() == [[20, 40], [10, 40], [], [], [20, 40], [10, 40]]
    assert nbest.top_k(2).tot_scores().tolist()[1] == [-INF, -INF]
    assert nbest.top_k(6).words().tolist()[3:6] == [[10, 30]] * 3
    with pytest.raises(ValueError):
        nbest.top_k(0)
    torch.manual_seed(0)
    shuffled = nbest.shuffle()
    assert shuffled.shape == nbest.shape and shuffled.words() != nbest.words()
    assert shuffled.sort().words() == nbest.words() and shuffled.unique().words() == nbest.words()


def test_errors_are_those_of_the_levenshtein_alignment():
    nbest = k2.Nbest.from_lattice(lattices(), 60)
    refs = [[20, 40, 50], [10], []]
    errors = nbest.num_errors(refs)
    assert errors.tolist() == [[1, 2, 2, 3], [], [2, 2, 2, 2]]
    alignment = k2.levenshtein_alignment(
        k2.levenshtein_graph(refs), nbest.build_levenshtein_graphs(), nbest.shape.row_ids(1)
    )
    assert (-alignment.get_tot_scores(True, False)).round().int().tolist() == errors.values.tolist()
    with pytest.raises(ValueError, match="2 references for 3"):
        nbest.num_errors([[1], [2]])


@pytest.mark.parametrize("seed", range(3))
def test_edit_distance(seed, device):
    kaldialign = pytest.importorskip("kaldialign")
    rng = random.Random(seed)
    refs, hyps = ([[rng.randint(1, 4) for _ in range(rng.randint(0, 12))] for _ in range(n)] for n in (5, 40))
    owner = [rng.randrange(5) for _ in hyps]
    ragged = [k2.RaggedTensor(x, dtype=torch.int32, device=device) for x in (refs, hyps)]
    found = k2.edit_distance(*ragged, torch.tensor(owner, device=device))
    expected = [
        kaldialign.edit_distance([str(x) for x in refs[i]], [str(x) for x in h])["total"] for i, h in zip(owner, hyps)
    ]
    assert found.tolist() == expected
    with pytest.raises(RuntimeError, match="none of 5 references"):
        k2.edit_distance(*ragged, torch.full((40,), 5, device=device))


def test_nothing_at_all():
    empty = k2.create_fsa_vec([k2.Fsa.from_str("0", num_aux_labels=1)] * 2)
    nbest = k2.Nbest.from_lattice(empty, 5)
    assert nbest.shape.row_splits(1).tolist() == [0, 0, 0] and nbest.tot_scores().tolist() == [[], []]
    assert k2.without_path(nbest.best()) == [0, 1] and k2.without_path(nbest.intersect(empty).best()) == [0, 1]
    assert nbest.num_errors([[1], []]).tolist() == [[], []]
    with pytest.raises(ValueError):
        k2.Nbest(empty, k2.RaggedTensor([[0]]).shape)
