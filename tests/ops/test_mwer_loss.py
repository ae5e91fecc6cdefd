"""MWER loss on n-best lists that hold every path: the expectation by hand, and its gradient by finite differences."""

from __future__ import annotations

import pytest
import torch
from fsa_helpers import all_paths

import ops as k2

LATTICE = """
0 1 1 10 0.1
0 1 5 11 0.9
0 1 2 20 0.2
1 2 3 30 0.3
1 2 4 40 0.4
2 3 -1 -1 0.5
3
"""
REFS = [[10, 30], [20]]


def lattices(scores=None):
    fsa = k2.Fsa.from_str(LATTICE, acceptor=False)
    vec = k2.create_fsa_vec([fsa, fsa])
    if scores is not None:
        vec.scores = scores
    return vec


def by_hand(scores, temperature):
    """[utterance][path, sorted by words] -> P(path) * errors."""
    fsa, ans = k2.Fsa.from_str(LATTICE, acceptor=False), []
    for i, ref in enumerate(REFS):
        paths = sorted(all_paths(fsa), key=lambda p: fsa.aux_labels[p].tolist())
        words = [[w for w in fsa.aux_labels[p].tolist() if w > 0] for p in paths]
        totals = torch.stack([scores[[a + i * fsa.num_arcs for a in p]].sum() for p in paths])
        errors = k2.edit_distance(*(k2.RaggedTensor(x, dtype=torch.int32) for x in ([ref] * len(words), words)))
        ans.append((totals / temperature).softmax(0) * errors)
    return torch.cat(ans)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_expectation_over_all_paths(temperature):
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(0)
    expected = by_hand(scores, temperature)
    total = k2.mwer_loss(lattices(scores), REFS, 0.1, 500, temperature)
    assert total.dtype == torch.float64 and total.item() == pytest.approx(expected.sum().item(), abs=1e-9)
    mean = k2.MWERLoss(temperature, reduction="mean")(
        lattices(scores), k2.RaggedTensor(REFS, dtype=torch.int32), 0.1, 500
    )
    assert mean.item() == pytest.approx(expected.mean().item(), abs=1e-9)
    none = k2.mwer_loss(lattices(scores), REFS, 0.1, 500, temperature, reduction="none")
    assert none.shape.row_splits(1).tolist() == [0, 6, 12]
    assert none.values.sort().values.tolist() == pytest.approx(expected.sort().values.tolist(), abs=1e-9)
    assert none.sum().tolist() == pytest.approx([expected[:6].sum().item(), expected[6:].sum().item()], abs=1e-9)
    assert k2.mwer_loss(lattices(scores), REFS, 0.1, 500, use_double_scores=False).dtype == torch.float32


def test_gradient():
    scores = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()

    def loss(x):
        torch.manual_seed(5)
        return k2.mwer_loss(lattices(x), REFS, 0.1, 500, 1.5)

    assert torch.autograd.gradcheck(loss, (scores,))


def test_training_on_it_lowers_the_errors():
    """Gradient steps on the network's scores, through intersect_dense_pruned, move the best path to the reference."""
    lp = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    refs, graph = [[1, 2, 3], [4]], k2.ctc_topo(4)
    torch.manual_seed(0)
    optimizer, losses = torch.optim.Adam([lp], lr=0.3), []
    for _ in range(25):
        lattice = k2.get_lattice(lp.log_softmax(-1), torch.tensor([8, 6]), graph, 20, 8)
        loss = k2.mwer_loss(lattice, refs, 1.0, 100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    best = k2.one_best_decoding(k2.get_lattice(lp.log_softmax(-1), torch.tensor([8, 6]), graph))
    assert k2.get_aux_labels(best) == refs and losses[-1] < 0.2 * losses[0]


def test_utterance_without_a_path_adds_nothing():
    fsa = k2.Fsa.from_str(LATTICE, acceptor=False)
    vec = k2.create_fsa_vec([fsa, k2.Fsa.from_str("0", num_aux_labels=1)]).requires_grad_(True)
    torch.manual_seed(0)
    loss = k2.mwer_loss(vec, REFS, 0.1, 500, reduction="none")
    assert loss.shape.counts(1).tolist() == [6, 0] and loss.sum()[1] == 0
    loss.sum().sum().backward()
    assert torch.isfinite(vec.grad).all()
    nothing = k2.create_fsa_vec([k2.Fsa.from_str("0", num_aux_labels=1)])
    assert k2.mwer_loss(nothing, [[1]], reduction="mean").item() == 0.0


def test_bad_arguments():
    for arguments in ({"temperature": 0.0}, {"reduction": "max"}):
        with pytest.raises(ValueError):
            k2.MWERLoss(**arguments)
    with pytest.raises(ValueError, match="1 references for 2"):
        k2.mwer_loss(lattices(), [[1]])
