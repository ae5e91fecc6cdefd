"""Programs as k2 users write them, run under `import ops as k2`, and that every name in README's table exists."""

from __future__ import annotations

import math
import random
import re

import pytest
import torch

import ops as k2
from ops import reference
from ops.fsa_call import call


def test_every_name_of_the_table_exists(repo_dir):
    table = (
        (repo_dir / "ops" / "README.md").read_text(encoding="utf-8").split("## k2's names", 1)[1].split("\n## ", 1)[0]
    )
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|$", table, re.M)
    names = [(name, path) for left, right in rows for name in re.findall(r"`([^`]+)`", left) for path in [right]]
    assert len(names) > 150
    for name, path in names:
        value = k2
        for part in name.split("."):
            value = getattr(value, part)
        files = re.findall(r"`([^`]+)`", path)
        assert files and all((repo_dir / "ops" / f).exists() for f in files), (name, path)
    exported = {name.split(".")[0] for name, _ in names}
    assert not set(k2.__all__) - exported, sorted(set(k2.__all__) - exported)


def test_build_print_and_change_an_fsa():
    fsa = k2.Fsa.from_str("""
    0 1 10 0.1
    0 2 20 0.2
    1 2 30 0.3
    1 3 -1 0.4
    2 3 -1 0.5
    3
    """)
    assert fsa.shape == (4, None) and fsa.num_arcs == 5 and fsa.is_cpu() and not fsa.is_cuda()
    assert fsa.labels.dtype == torch.int32 and fsa.arcs.values()[:, :3].tolist()[2] == [1, 2, 30]
    assert str(fsa) == (
        "k2.Fsa: 0 1 10 0.1\n0 2 20 0.2\n1 2 30 0.3\n1 3 -1 0.4\n2 3 -1 0.5\n3\n"
        'properties_str = "Valid|Nonempty|TopSorted|TopSortedAndAcyclic|ArcSorted|ArcSortedAndDeterministic|EpsilonFree|'
        'MaybeAccessible|MaybeCoaccessible".'
    )
    fsa.aux_labels = torch.tensor([1, 2, 3, -1, -1], dtype=torch.int32)
    fsa.tones = k2.RaggedTensor([[1, 2], [], [3], [], []])
    fsa.labels_sym = k2.SymbolTable.from_str("a 10\nb 20\nc 30")
    fsa.speaker = "anna"
    vec = k2.create_fsa_vec([fsa, fsa])
    assert vec.shape == (2, None, None) and vec[1].tones.tolist() == [[1, 2], [], [3], [], []]
    assert vec.speaker == "anna" and 'label="a:1/0.1"' in k2.to_dot(vec[0]).source
    assert k2.Fsa.from_dict(vec.as_dict()).aux_labels.tolist() == [1, 2, 3, -1, -1] * 2
    assert fsa.properties & k2.fsa_properties.TOPSORTED_AND_ACYCLIC
    assert k2.properties_to_str(k2.fsa_properties.VALID) == "Valid"


def test_forms_of_from_str():
    acceptor = k2.Fsa.from_str("0 1 2 0.5\n1 2 -1 0\n2", acceptor=True)
    transducer = k2.Fsa.from_str("0 1 2 7 0.5\n1 2 -1 -1 0\n2", acceptor=False)
    two = k2.Fsa.from_str("0 1 2 7 8 0.5\n1 2 -1 -1 -1 0\n2", num_aux_labels=2)
    named = k2.Fsa.from_str(
        "0 1 2 7 [8 9] 0.5\n1 2 -1 -1 [] 0\n2", aux_label_names=["words"], ragged_label_names=["tones"]
    )
    openfst = k2.Fsa.from_openfst("0 1 2 7 0.5\n1 0.25", acceptor=False)
    assert not hasattr(acceptor, "aux_labels") and transducer.aux_labels.tolist() == [7, -1]
    assert two.aux_labels.tolist() == [7, -1] and two.aux_labels2.tolist() == [8, -1]
    assert named.words.tolist() == [7, -1] and named.tones.tolist() == [[8, 9], []]
    assert openfst.scores.tolist() == [-0.5, -0.25] and openfst.aux_labels.tolist() == [7, -1]
    assert k2.to_str(openfst, openfst=True) == "0 1 2 7 0.5\n1 2 -1 -1 0.25\n2\n"


def test_train_the_scores_of_a_graph(device):
    """Gradient ascent on the total score of what two automata share."""
    graph = k2.Fsa.from_str("0 1 1 0\n0 1 2 0\n1 2 3 0\n2 3 -1 0\n3").to(device).requires_grad_(True)
    text = k2.linear_fsa([[1, 3], [2, 3], [1, 3]], device=device)
    for _ in range(3):
        lattice = k2.connect(k2.intersect(k2.arc_sort(graph), text, treat_epsilons_specially=False))
        both = k2.create_fsa_vec([k2.top_sort(graph)])
        objective = lattice.get_tot_scores(use_double_scores=True, log_semiring=True).sum()
        objective = objective - 3 * both.get_tot_scores(use_double_scores=True, log_semiring=True).sum()
        graph.scores.grad = None
        objective.backward()
        with torch.no_grad():
            graph.scores += graph.grad
    p = graph.scores[:2].detach().softmax(0)
    assert p[0] > 0.6 and graph.grad[2:].abs().max() < 1e-5


def test_decode_with_a_lexicon_and_a_grammar():
    lexicon = k2.Fsa.from_str(
        "0 0 3 30 0\n0 1 1 10 0\n0 2 1 20 0\n0 3 -1 -1 0\n1 0 2 0 0\n2 0 3 0 0\n3", acceptor=False
    )
    grammar = k2.Fsa.from_str("0 1 10 -1\n0 2 20 -2\n1 2 20 -0.5\n1 3 -1 0\n2 3 -1 0\n3")
    lg = k2.connect(k2.compose(k2.arc_sort(lexicon), k2.arc_sort(grammar)))
    lg = k2.arc_sort(k2.connect(k2.determinize(lg)))
    assert isinstance(lg.aux_labels, k2.RaggedTensor)
    spoken = k2.linear_fsa([1, 2, 1, 3])
    best = k2.shortest_path(k2.top_sort(k2.connect(k2.intersect(spoken, lg))), use_double_scores=True)
    assert best.aux_labels.remove_values_leq(0).values.tolist() == [10, 20]
    assert best.get_tot_scores(use_double_scores=False, log_semiring=False).tolist() == [-1.5]
    flat = k2.expand_ragged_attributes(lg)
    assert k2.is_rand_equivalent(k2.invert(k2.invert(flat)), flat, log_semiring=False)


def test_ctc_training_and_decoding(device):
    torch.manual_seed(0)
    log_probs = torch.randn(2, 12, 5, device=device).log_softmax(-1).requires_grad_(True)
    segments = torch.tensor([[0, 0, 12], [1, 0, 9]], dtype=torch.int32)
    dense = k2.DenseFsaVec(log_probs, segments)
    targets = [[1, 2, 2], [4]]
    loss = k2.ctc_loss(k2.ctc_graph(targets, device=device), dense, output_beam=100, reduction="none")
    expected = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1),
        torch.tensor([1, 2, 2, 4]),
        torch.tensor([12, 9]),
        torch.tensor([3, 1]),
        reduction="none",
    )
    assert torch.allclose(loss, expected.to(loss), atol=1e-4)
    loss.sum().backward()
    assert torch.isfinite(log_probs.grad).all() and log_probs.grad[1, 9:].abs().max() == 0
    topo = k2.create_fsa_vec([k2.ctc_topo(4, device=device)])
    lattice = k2.intersect_dense_pruned(
        topo, dense, search_beam=20, output_beam=8, min_active_states=1, max_active_states=100
    )
    best = k2.shortest_path(lattice, use_double_scores=True)
    greedy = [torch.unique_consecutive(x) for x in (log_probs[0].argmax(-1), log_probs[1, :9].argmax(-1))]
    words = k2.RaggedTensor(best.arcs.shape().remove_axis(1), best.aux_labels).remove_values_leq(0)
    assert words.tolist() == [x[x > 0].tolist() for x in greedy]


def test_nbest_from_random_paths():
    torch.manual_seed(1)
    graph = k2.create_fsa_vec([k2.Fsa.from_str("0 1 1 0\n0 1 2 -1\n1 2 3 0\n1 2 3 0\n2 3 -1 0\n3")])
    paths = k2.random_paths(graph, use_double_scores=True, num_paths=50)
    labels = k2.ragged.index(graph.labels.contiguous(), paths).remove_values_leq(0)
    unique, repeats, kept = labels.unique(need_num_repeats=True, need_new2old_indexes=True)
    assert unique.tolist() == [[[1, 3], [2, 3]]] and int(repeats.sum()) == 50 and kept.numel() == 2
    linear = k2.linear_fsa(unique.remove_axis(0))
    scores = k2.connect(k2.intersect(linear, graph[0], False)).get_tot_scores(True, True)
    assert torch.allclose(scores, torch.tensor([0.0, -1.0], dtype=torch.float64) + math.log(2))


def test_alignment_and_errors():
    refs, hyps = k2.levenshtein_graph([[1, 2, 3], [4]]), k2.levenshtein_graph([[1, 3], [4, 5]])
    alignment = k2.levenshtein_alignment(refs, hyps, torch.tensor([0, 1], dtype=torch.int32))
    assert alignment.get_tot_scores(use_double_scores=True, log_semiring=False).tolist() == pytest.approx(
        [-1, -1], abs=1e-5
    )
    assert alignment[0].ref_labels.tolist() == [1, 2, 3, -1] and alignment[0].hyp_labels.tolist() == [1, 0, 3, -1]


def test_arc_maps_and_attributes_follow():
    src = k2.Fsa.from_str("0 1 2 0.5\n0 1 1 0.25\n1 2 -1 0\n2").requires_grad_(True)
    src.ids, src.weights = torch.tensor([7, 8, 9]).int(), torch.tensor([1.0, 2.0, 3.0])
    src.ids_filler = 99
    out, arc_map = k2.arc_sort(src, ret_arc_map=True)
    same = k2.utils.fsa_from_unary_function_tensor(src, out.arcs, arc_map)
    assert same.ids.tolist() == out.ids.tolist() == [8, 7, 9] and k2.index_select(src.ids, arc_map).tolist() == [
        8,
        7,
        9,
    ]
    looped, loop_map = k2.add_epsilon_self_loops(out, ret_arc_map=True)
    assert looped.ids.tolist() == [99, 8, 7, 99, 9]
    assert k2.compose_arc_maps(arc_map, loop_map).tolist() == [-1, 1, 0, -1, 2]
    lists = k2.RaggedTensor([[0, 1], [2]])
    made = k2.utils.fsa_from_unary_function_ragged(src, k2.linear_fsa([5]).arcs, lists)
    assert (
        made.ids.tolist() == [[7, 8], [9]]
        and made.weights.tolist() == [3.0, 3.0]
        and made.scores.tolist() == [0.75, 0.0]
    )
    made.scores.sum().backward()
    assert src.grad.tolist() == [1, 1, 1]


def test_inner_methods():
    fsa = k2.create_fsa_vec([k2.Fsa.from_str("0 1 1 1\n0 2 2 2\n1 2 3 3\n2 3 -1 4\n3"), k2.linear_fsa([5])])
    assert fsa._get_state_batches().tolist() == [[[0], [4]], [[1], [5]], [[2], [6]], [[3], []]]
    assert fsa._get_incoming_arcs().tolist() == [[[], [0], [1, 2], [3]], [[], [4], [5]]]
    assert fsa._get_dest_states().tolist() == [[[1, 2], [2], [3], []], [[5], [6], []]]
    assert fsa._get_entering_arc_batches().tolist()[2] == [[[1, 2]], [[5]]]
    assert fsa._get_leaving_arc_batches().tolist()[0] == [[[0, 1]], [[4]]]
    assert fsa._get_entering_arcs(True).tolist() == [-1, 0, 2, 3, -1, 4, 5]
    assert fsa._get_tot_scores(True, False).tolist() == [8, 0] and fsa._get_forward_scores(True, False).tolist()[3] == 8
    assert fsa._get_backward_scores(False, False).tolist()[0] == 8
    assert fsa._get_arc_post(True, False).tolist() == [0, -2, 0, 0, 0, 0]


def test_ragged_and_sparse():
    ragged = k2.RaggedTensor("[[1 2] [] [3 4 5]]", dtype=torch.float32).requires_grad_(True)
    assert (ragged.sum() * torch.tensor([1.0, 2.0, 3.0])).sum().item() == 39
    assert ragged.shape.row_ids(1).tolist() == [0, 0, 2, 2, 2]
    assert str(k2.ragged.create_ragged_shape2(torch.tensor([0, 2, 2]).int())) == "[ [ x x ] [ ] ]"
    assert k2.ragged.RaggedTensor([[3, 1], [2]]).pad(mode="constant", padding_value=0).tolist() == [[3, 1], [2, 0]]
    a = k2.create_sparse(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([-2.0, 3.0]), size=(2, 2))
    assert k2.sparse.abs(a).to_dense().tolist() == [[0, 2], [3, 0]]
    assert k2.simple_ragged_index_select(torch.tensor([0, 4]), k2.RaggedTensor([[0, 1], [0]])).tolist() == [4, 0]


def test_best_matching_stats():
    """The sentences "5 1 4 6" and "5 1 2 6" are keys, "5 3 4 6" is a query; 6 ends a sentence."""
    tokens = k2.RaggedTensor([[[5, 1, 4, 6], [5, 1, 2, 6], [5, 3, 4, 6]]], dtype=torch.int32)
    scores = torch.tensor([1.0, 2, 3, 4, 5, 7, 8, 6, 0, 0, 0, 0])
    counts = torch.tensor([1] * 8 + [0] * 4, dtype=torch.int32)
    mean, var, matched, order = k2.get_best_matching_stats(tokens, scores, counts, 6, 1, 6, 2)
    # 5 begins all sentences; no key says 3: all keys count; 4 follows another word; 6 follows 4, as in the first one.
    assert mean[8:].tolist() == [3, 4.5, 3, 4] and var[8:].tolist() == [4, 5.25, 0, 0]
    assert matched[8:].tolist() == [2, 0, 1, 1] and order[8:].tolist() == [2, 0, 1, 2]
    two_axes = k2.get_best_matching_stats(tokens.remove_axis(0), scores, counts, 6, 1, 6, 2)
    assert torch.equal(two_axes[0], mean)
    without_keys = k2.get_best_matching_stats(tokens, scores, 0 * counts, 6, 1, 6, 2)
    assert without_keys[0].abs().max() == 0 and without_keys[2].max() == 0
    with pytest.raises(ValueError, match="tokens"):
        k2.get_best_matching_stats(tokens, scores, counts, 6, 1, 5, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_pruned_ranges_to_lattice(dtype):
    """All paths of the lattice are the ways through the bands: the pruned loss without the last blank."""
    torch.manual_seed(0)
    ranges = torch.tensor([[[0, 1], [0, 1], [1, 2]], [[0, 1], [1, 2], [1, 2]]], dtype=torch.int32)
    symbols, frames = torch.tensor([[3, 1], [2, 2]], dtype=torch.int32), torch.tensor([3, 2], dtype=torch.int32)
    logits = torch.randn(2, 3, 2, 4).log_softmax(-1).to(dtype)
    arcs, arc_map = k2.pruned_ranges_to_lattice(ranges, frames, symbols, logits)
    lattice = k2.Fsa(arcs)
    assert lattice.properties & k2.fsa_properties.VALID and lattice.shape == (2, None, None)
    first, second, *_ = k2.to_str(lattice[1].detach()).split("\n")
    assert first == f"0 1 2 {logits[1, 0, 0, 2]:.6g}" and second == f"1 2 0 {logits[1, 0, 1, 0]:.6g}"
    expected = k2.index_select(logits.reshape(-1).float(), arc_map)
    assert torch.allclose(lattice.scores, expected)
    x = logits.double()
    ways = [  # of the first utterance: 3 in frame 0 or 1, then 1 in frame 2
        x[0, 0, 0, 3] + x[0, 0, 1, 0] + x[0, 1, 1, 0] + x[0, 2, 0, 1],
        x[0, 0, 0, 0] + x[0, 1, 0, 3] + x[0, 1, 1, 0] + x[0, 2, 0, 1],
    ]
    total = k2.connect(lattice).get_tot_scores(True, True)
    assert torch.allclose(total[0], torch.stack(ways).logsumexp(0), atol=1e-3)
    assert torch.allclose(total[1], x[1, 0, 0, 2] + x[1, 0, 1, 0] + x[1, 1, 0, 2], atol=1e-3)
    with pytest.raises(ValueError, match="frames"):
        k2.pruned_ranges_to_lattice(ranges, frames + 1, symbols, logits)


@pytest.mark.parametrize("modified", [False, True])
def test_ctc_graph_agrees_with_its_twin(modified):
    tokens = k2.RaggedTensor([[1, 1, 2], [], [3], [2, 2, 2, 1]], dtype=torch.int32)
    args = tokens.shape.row_splits(1), tokens.values, modified
    for x, y in zip(call("fsa_ctc_graph", *args), reference.fsa_ctc_graph(*args)):
        assert torch.equal(x, y)


def test_properties_agree_with_their_twin():
    random.seed(0)
    for acyclic in (True, False):
        vec = k2.random_fsa_vec(3, 6, acyclic, 3, 0, 12)
        arcs3 = vec.arcs3.clone()
        for spoil in ([0, 0, 0], [0, 99, 1], [0, -1, 1], [5, 0, 0], [0, 0, -3]):
            if arcs3.shape[0]:
                arcs3[random.randrange(arcs3.shape[0])] += torch.tensor(spoil, dtype=torch.int32)
            args = *vec.splits(), arcs3
            assert torch.equal(call("fsa_properties", *args), reference.fsa_properties(*args))
