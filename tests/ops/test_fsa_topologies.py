"""Linear FSAs, CTC topologies and graphs, alignments."""

from __future__ import annotations

import itertools

import pytest
import torch
from fsa_helpers import all_paths

import ops as k2
from ops import fsa_properties as p
from ops.paths import string_scores


def collapse(frames):
    return tuple(k for k, _ in itertools.groupby(frames) if k != 0)


def outputs(graph, frames):
    """The aux strings of all paths of the graph with these labels."""
    both = k2.connect(k2.intersect(k2.linear_fsa(list(frames)), graph, treat_epsilons_specially=False))
    return sorted(tuple(x for x in both.aux_labels[path].tolist() if x > 0) for path in all_paths(both))


def test_linear(device):
    f = k2.linear_fsa([2, 5], device=device)
    assert k2.to_str(f) == "0 1 2 0\n1 2 5 0\n2 3 -1 0\n3\n" and f.device.type == device.type
    assert k2.to_str(k2.linear_fsa([])) == "0 1 -1 0\n1\n"
    vec = k2.linear_fsa([[1], [], [2, 3]])
    assert vec.shape == (3, None, None) and k2.to_str(vec[1]) == "0 1 -1 0\n1\n"
    assert k2.to_str(vec) == k2.to_str(k2.linear_fsa(k2.RaggedTensor([[1], [], [2, 3]])))
    t = k2.linear_fst([1, 2], [3, 4])
    assert k2.to_str(t) == "0 1 1 3 0\n1 2 2 4 0\n2 3 -1 -1 0\n3\n"
    loops = k2.linear_fsa_with_self_loops(k2.linear_fsa([1, 0, 2]))
    assert k2.to_str(loops) == "0 0 0 0\n0 1 1 0\n1 1 0 0\n1 2 2 0\n2 2 0 0\n2 3 -1 0\n3\n"
    fst_loops = k2.linear_fst_with_self_loops(k2.create_fsa_vec([t, t]))
    assert k2.to_str(fst_loops[1]) == "0 0 0 0 0\n0 1 3 3 0\n1 1 0 0 0\n1 2 4 4 0\n2 2 0 0 0\n2 3 -1 -1 0\n3\n"
    for bad in (lambda: k2.linear_fsa([1, -2]), lambda: k2.linear_fst([1], [1, 2]), lambda: k2.ctc_graph([[0]])):
        with pytest.raises(ValueError):
            bad()


def test_ctc_topo():
    topo = k2.ctc_topo(2)
    assert topo.shape == (4, None) and topo.num_arcs == 12 and topo.properties & p.ARC_SORTED_AND_DETERMINISTIC
    modified = k2.ctc_topo(2, modified=True)
    assert modified.num_arcs == 1 + 4 * 2 + 1 and modified.properties & p.VALID
    for n in range(4):
        for frames in itertools.product(range(3), repeat=n):
            assert outputs(topo, frames) == [collapse(frames)]
            spans = [list(g) for _, g in itertools.groupby(frames)]
            # a run of k equal tokens may be read as any of 1 ... k tokens, in as many ways as it can be cut
            choices = [[()] if s[0] == 0 else [(s[0],) * (1 + sum(cut)) for cut in
                       itertools.product((0, 1), repeat=len(s) - 1)] for s in spans]  # fmt: skip
            expected = sorted(tuple(x for part in pick for x in part) for pick in itertools.product(*choices))
            assert outputs(modified, frames) == expected


@pytest.mark.parametrize("tokens", [[], [1], [1, 1], [1, 2], [2, 2, 1], [1, 2, 1]])
def test_ctc_graph(tokens):
    graph, modified = k2.ctc_graph(tokens), k2.ctc_graph(tokens, modified=True)
    assert graph.properties & p.VALID and graph.shape == (2 * len(tokens) + 2, None)
    for n in range(5):
        for frames in itertools.product(range(3), repeat=n):
            assert outputs(graph, frames) == ([tuple(tokens)] if collapse(frames) == tuple(tokens) else [])
            assert set(outputs(modified, frames)) <= {tuple(tokens)}
    vec = k2.ctc_graph([tokens, [1]])
    assert k2.to_str(vec[0]) == k2.to_str(graph) and vec.shape == (2, None, None)


def test_trivial_graph():
    assert k2.to_str(k2.trivial_graph(2)) == "0 0 1 1 0\n0 0 2 2 0\n0 1 -1 -1 0\n1\n"


def distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            last, row[j + 1] = row[j + 1], min(last + (x != y), row[j] + 1, row[j + 1] + 1)
    return row[-1]


def test_levenshtein():
    refs = [[1, 2, 3, 4], [5, 5], []]
    hyps = [[1, 3, 4], [1, 2, 2, 3, 4], [5, 6], [], [7]]
    which = torch.tensor([0, 0, 1, 1, 2], dtype=torch.int32)
    ans = k2.levenshtein_alignment(k2.levenshtein_graph(refs), k2.levenshtein_graph(hyps), which)
    totals = ans.get_tot_scores(True, False)
    for i, hyp in enumerate(hyps):
        ref = refs[int(which[i])]
        assert totals[i].item() == pytest.approx(-distance(ref, hyp), abs=1e-5)
        assert [x for x in ans[i].ref_labels.tolist() if x > 0] == ref
        assert [x for x in ans[i].hyp_labels.tolist() if x > 0] == hyp
    assert hasattr(k2.levenshtein_graph([1]), "aux_labels")
    with pytest.raises(ValueError):
        k2.levenshtein_graph([[1]], ins_del_score=0.5)


def test_string_scores():
    f = k2.Fsa.from_str("0 1 1 0.5\n0 1 1 0.25\n1 2 -1 0\n2")
    assert string_scores(f, [[1], [2], []], False).tolist() == [0.5, float("-inf"), float("-inf")]
