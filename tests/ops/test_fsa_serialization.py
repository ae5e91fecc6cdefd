"""Pickles, torch.save with weights_only, deep copies, and the way through DataLoader workers of what holds automata."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ops as k2


def fsa() -> k2.Fsa:
    f = k2.Fsa.from_str("0 1 1 4 0.125\n1 1 0 0 -1\n1 2 2 5 0.25\n2 4 -1 -1 0.5\n4")  # a loop, a state on no path
    f.words = k2.RaggedTensor([[1, 2], [], [], [3]])
    f.vectors = torch.arange(8.0).reshape(4, 2)
    f.note, f.words_filler, f.symbols = "kept", -1, k2.SymbolTable.from_str("a 1\nb 2")
    return f


def in_double() -> k2.Fsa:
    f = fsa()
    f.scores = f.scores.double() / 3
    return f


def with_grad() -> k2.Fsa:
    return fsa().requires_grad_(True)


MAKERS: dict[str, Callable[[], Any]] = {
    "Fsa": fsa,
    "Fsa float64": in_double,
    "Fsa that requires grad": with_grad,
    "FsaVec": lambda: k2.create_fsa_vec([fsa(), k2.Fsa.from_str("0"), fsa()]),
    "FsaVec without FSAs": lambda: k2.index_fsa(k2.create_fsa_vec([fsa()]), torch.zeros(0, dtype=torch.int32)),
    "RaggedTensor": lambda: k2.RaggedTensor([[[1.5], []], [], [[2.5, 3.5]]]),
    "RaggedTensor int64": lambda: k2.RaggedTensor([[2**40], []], dtype=torch.int64),
    "RaggedShape": lambda: k2.RaggedShape("[[x x] [] [x]]"),
    "DenseFsaVec": lambda: k2.DenseFsaVec(
        torch.arange(12.0).reshape(1, 4, 3), torch.tensor([[0, 0, 3], [0, 1, 9]]), allow_truncate=6
    ),
}


def torch_save(x: Any) -> Any:
    torch.save(x, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def torch_save_in_list(x: Any) -> Any:
    return torch_save({"batch": [x, 1]})["batch"][0]


COPIES: list[Callable[[Any], Any]] = [
    lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy, torch_save, torch_save_in_list
]  # fmt: skip


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, k2.DenseFsaVec):
        assert torch.equal(a.log_probs, b.log_probs) and torch.equal(a.segments, b.segments)
        assert torch.equal(a.scores, b.scores)
    elif isinstance(a, k2.Fsa):
        assert a.shape == b.shape and torch.equal(a.arcs3, b.arcs3) and torch.equal(a.scores, b.scores)
        assert a.scores.dtype == b.scores.dtype and a.requires_grad == b.requires_grad
        assert a.properties == b.properties and str(a) == str(b)
        x, y = (dict(f.named_tensor_attr(include_scores=False)) for f in (a, b))
        assert x.keys() == y.keys() and dict(a.named_non_tensor_attr()) == dict(b.named_non_tensor_attr())
        for name, value in x.items():
            assert torch.equal(value, y[name]) if isinstance(value, torch.Tensor) else value == y[name]
    else:
        assert a == b and str(a) == str(b)


@pytest.mark.parametrize("name", MAKERS)
def test_copies(name: str) -> None:
    for copied in COPIES:
        x = MAKERS[name]()
        y = copied(x)
        assert_equal(x, y)
        # nothing is shared
        if isinstance(x, k2.Fsa) and x.num_arcs:
            y.labels[0] = 77
            y.scores.detach()[0] = 77
        elif isinstance(x, k2.RaggedTensor):
            y.values[0] = 77
        elif isinstance(x, k2.DenseFsaVec):
            y.log_probs[:] = 77
        assert_equal(x, MAKERS[name]())


def test_a_copy_works_on() -> None:
    """Gradients flow and algorithms run on what was loaded."""
    f = k2.connect(torch_save(with_grad()))
    assert f.words.tolist() == [[1, 2], [], [], [3]] if f.num_arcs else f.shape == (0, None)
    g = torch_save(k2.ctc_graph([[1, 2], [2]])).requires_grad_(True)
    dense = torch_save(k2.DenseFsaVec(torch.zeros(2, 4, 3), torch.tensor([[0, 0, 4], [1, 0, 3]], dtype=torch.int32)))
    k2.intersect_dense(g, dense, 10.0).get_tot_scores(True, True).sum().backward()
    assert g.grad is not None and g.grad.abs().sum() > 0


def test_files_of_unknown_classes_are_refused() -> None:
    f = fsa()
    f.note = Strange()
    with pytest.raises(pickle.UnpicklingError):
        torch_save(f)


class Strange:
    """Not on torch's list of classes to load."""


class Graphs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> list[int]:
        return list(range(1, i + 2))


def collate(tokens: list[list[int]]) -> tuple:
    """What a training recipe may leave to the workers: the graphs, with algorithms run there."""
    graph = k2.arc_sort(k2.ctc_graph(tokens))
    return graph, graph[0], k2.RaggedTensor(tokens), k2.RaggedTensor(tokens).shape


def test_data_loader_workers() -> None:
    k2.arc_sort(k2.ctc_graph([[1]]))  # compiled before the workers start
    here = list(torch.utils.data.DataLoader(Graphs(), batch_size=2, collate_fn=collate))
    there = torch.utils.data.DataLoader(Graphs(), batch_size=2, collate_fn=collate, num_workers=2)
    for expected, actual in zip(here, list(there), strict=True):
        for x, y in zip(expected, actual, strict=True):
            assert_equal(x, y)
