"""Malformed text, tensors and automata: each gives an exception with a message, none ends the process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ops as k2
from ops.ragged import RaggedShape, RaggedTensor, create_ragged_shape2, create_ragged_shape3, regular_ragged_shape

BIG = 2**31


def ints(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (f"0 {BIG} 1 0\n{BIG}", {}),  # more states than int32 counts
        (f"0 {BIG - 1} -1 0\n{BIG - 1}", {}),
        (f"0 {BIG - 2} -1 0\n{BIG - 2}", {}),  # it could count them, but the memory would be in vain
        (f"0 1 {BIG} 0\n2", {}),
        (f"0 1 {10**30} 0\n2", {}),
        ("0 1 -2 0\n2", {}),
        ("0 1 1 0\n1 0 -1 0\n2", {}),  # -1 into a state that is not the last
        ("0 2 1 0\n2", {}),  # into the last, but not with -1
        ("0 1 1 0\n2 2 1 0\n2", {}),  # from the last
        ("0 1 -1 0 0 0 0 0\n1", {"num_aux_labels": 1}),
        (f"0 1 -1 {BIG} 0\n1", {"num_aux_labels": 1}),
        (f"0 1 -1 {-BIG - 1} 0\n1", {"acceptor": False}),
        ("0 1 -1 0\n1", {"acceptor": False}),
        ("0 1 -1 1 0\n1", {"acceptor": True}),
        ("0 1 -1 1 0\n1", {"num_aux_labels": 1, "aux_label_names": ["a", "b"]}),
        ("0 1 -1 [1 0\n1", {"ragged_label_names": ["a"]}),
        ("0 1 -1 [x] 0\n1", {"ragged_label_names": ["a"]}),
        ("0 1 -1 [1.5] 0\n1", {"ragged_label_names": ["a"]}),
        (f"0 1 -1 [{BIG}] 0\n1", {"ragged_label_names": ["a"]}),
        ("0 1 -1 1 0\n1", {"ragged_label_names": ["a"]}),
        (f"0 {BIG - 1} 1 0\n{BIG - 1} 0.5", {"openfst": True}),
        ("0 1 -1 0.5\n1", {"openfst": True}),
        ("0 1 1 0.5\n1 x", {"openfst": True}),
        ("0 1 1 0.5\n-1", {"openfst": True}),
        ("0 1 1 2 3 4 5\n1", {"openfst": True, "acceptor": True}),
        ("", {"openfst": True}),
        ("\x00", {}),
        ("0 1 −1 0\n1", {}),  # a typographer's minus
    ],
)
def test_text(text: str, arguments: dict) -> None:
    with pytest.raises(ValueError, match=r".+"):
        k2.Fsa.from_str(text, **arguments)


@pytest.mark.parametrize("num_aux", [0, 1, 2])
@pytest.mark.parametrize("openfst", [False, True])
def test_random_changes_of_good_text(num_aux: int, openfst: bool) -> None:
    """A character changed, taken out or put in: a ValueError, or an FSA that algorithms take or refuse."""
    rng = random.Random(num_aux)
    aux = " 7" * num_aux
    good = f"0 1 1{aux} 0.5\n0 2 2{aux} 1\n1 3 {3 if openfst else -1}{aux} 0\n2 3 {4 if openfst else -1}{aux} 0\n3\n"
    for _ in range(150):
        i, c = rng.randrange(len(good)), rng.choice("0123456789 -[]\n.xe")
        text = rng.choice([good[:i] + c + good[i + 1 :], good[:i] + good[i + 1 :], good[:i] + c + good[i:]])
        try:
            fsa = k2.Fsa.from_str(text, num_aux_labels=num_aux, openfst=openfst)
            k2.arc_sort(k2.top_sort(k2.connect(fsa)))
        except (ValueError, RuntimeError) as error:
            assert str(error)


ONE_ARC = [[0, 1, -1, 0]]


@pytest.mark.parametrize(
    "call",
    [
        lambda: k2.Fsa(torch.tensor(ONE_ARC)),
        lambda: k2.Fsa(torch.tensor(ONE_ARC, dtype=torch.float32)),
        lambda: k2.Fsa(ints(0, 1, -1)),
        lambda: k2.Fsa(torch.zeros(2, 3, 4, dtype=torch.int32)),
        lambda: k2.Fsa(torch.tensor(0, dtype=torch.int32)),
        lambda: k2.Fsa(ONE_ARC),
        lambda: k2.Fsa(ints([0, BIG - 1, -1, 0])),
        lambda: k2.Fsa(ints([0, BIG - 2, -1, 0])),
        lambda: k2.Fsa(ints([-1, 1, -1, 0])),
        lambda: k2.Fsa(ints([0, -1, -1, 0])),
        lambda: k2.Fsa(ints([0, 5, 1, 0], [0, 1, -1, 0])),
        lambda: k2.Fsa(ints([1, 2, -1, 0], [0, 1, 1, 0])),
        lambda: k2.Fsa(ints(BIG - 1, 0, 0, 0)),
        lambda: k2.Fsa(ints(-3, 0, 0, 0)),
        lambda: k2.Fsa(ints(1, 0, 0, 2, 0, 1, 0, 7, -1, 0)),
        lambda: k2.Fsa(ints(1, 0, 0, 2, 0, 1, 0, -7, 1, 0)),
        lambda: k2.Fsa(ints(1, 0, 0, 2, 0, 1, BIG - 1, 1, -1, 0)),
        lambda: k2.Fsa(ints(1, 0, 0, BIG - 2, 0, 1, 0, 1, 1, 0)),
        lambda: k2.Fsa(ints(2, 0, 0, 3, 2, 0, 1, 1, 0, 1, -1, 0)),
        lambda: k2.Fsa(ints(ONE_ARC[0]), aux_labels=ints(1, 2)),
        lambda: k2.Fsa.from_dict({}),
        lambda: k2.Fsa.from_dict({"arcs": [1, 2]}),
        lambda: k2.Fsa.from_dict({"arcs": ints(ONE_ARC[0]), "num_states": 1}),
        lambda: k2.Fsa.from_dict({"arcs": ints(ONE_ARC[0]), "num_states": -5}),
        lambda: k2.Fsa.from_dict({"arcs": ints(ONE_ARC[0]), "num_states": 2**40}),
        lambda: k2.Fsa.from_dict({"arcs": ints(ONE_ARC[0]), "scores": [1.0]}),
        lambda: k2.Fsa.from_dict({"arcs": ints(ONE_ARC[0]), "scores": torch.zeros(2)}),
        lambda: k2.Fsa.from_dict({"arcs": ints(ONE_ARC[0]), "aux_labels": torch.zeros(2)}),
        lambda: k2.Fsa.from_arcs(RaggedShape("[[x] []]"), torch.zeros(1, 3), torch.zeros(1)),
        lambda: k2.Fsa.from_arcs(RaggedShape("[[x x] []]"), ints([0, 1, -1]), torch.zeros(1)),
        lambda: k2.Fsa.from_arcs(RaggedShape("[[[[x]]]]"), ints([0, 1, -1]), torch.zeros(1)),
        lambda: k2.create_fsa_vec([]),
        lambda: k2.create_fsa_vec([1]),
        lambda: k2.create_fsa_vec([k2.linear_fsa([1]), None]),
        lambda: setattr(k2.linear_fsa([1]), "labels", torch.tensor([0.5, -1.0])),
        lambda: setattr(k2.linear_fsa([1]), "labels", torch.tensor([BIG, -1])),
        lambda: setattr(k2.linear_fsa([1]), "labels", ints(1)),
        lambda: setattr(k2.linear_fsa([1]), "scores", torch.zeros(2, dtype=torch.complex64)),
        lambda: setattr(k2.linear_fsa([1]), "scores", torch.zeros(2, 1)),
        lambda: k2.linear_fsa([BIG]),
        lambda: k2.linear_fsa([-1]),
        lambda: k2.linear_fsa([[1], [2**70]]),
        lambda: k2.linear_fst([1], [1, 2]),
        lambda: k2.ctc_graph([0]),
        lambda: k2.ctc_graph([[1], [-4]]),
        lambda: k2.ctc_topo(-1),
        lambda: k2.ctc_topo(2**31),
        lambda: k2.trivial_graph(-1),
        lambda: k2.levenshtein_graph([[1]], ins_del_score=float("nan")),
        lambda: k2.random_paths(k2.linear_fsa([1]), True, -1),
        lambda: k2.random_paths(k2.linear_fsa([1]), True, 2**31),
        lambda: k2.random_paths(k2.linear_fsa([1]), True, torch.tensor([1, 2])),
        lambda: k2.minimize(k2.linear_fsa([1]), delta=float("nan")),
        lambda: k2.determinize(k2.linear_fsa([1]), max_states=-1),
        lambda: k2.closure(k2.linear_fsa([[1]])),
        lambda: k2.union(k2.linear_fsa([1])),
        lambda: k2.DenseFsaVec(torch.zeros(1, 4, 3), torch.tensor([[0, BIG - 1, 5]])),
        lambda: k2.DenseFsaVec(torch.zeros(1, 4, 3), torch.tensor([[2**32, 0, 4]])),
        lambda: k2.DenseFsaVec(torch.zeros(1, 4, 3), ints([0, 2, -1])),
        lambda: k2.DenseFsaVec(torch.zeros(1, 4, 3), ints([0, 0, 9]), allow_truncate=4),
        lambda: k2.DenseFsaVec(torch.zeros(4, 3), ints([0, 0, 4])),
    ],
)
def test_automata(call: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r".+"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: RaggedShape("[x"),
        lambda: RaggedShape("[[x] x]"),
        lambda: RaggedShape("[[1]]"),
        lambda: RaggedShape(""),
        lambda: RaggedShape(),
        lambda: RaggedTensor("[[1] 2]"),
        lambda: RaggedTensor("[[a]]"),
        lambda: RaggedTensor("[]]"),
        lambda: RaggedTensor([1, 2]),
        lambda: RaggedTensor([[1], 2]),
        lambda: RaggedTensor([["a"]]),
        lambda: RaggedTensor([[BIG]]),
        lambda: RaggedTensor([[2**70]]),
        lambda: RaggedTensor(3),
        lambda: RaggedTensor(torch.zeros(3)),
        lambda: RaggedTensor(torch.zeros(1).expand(2**16, 2**16)),
        lambda: RaggedTensor(RaggedShape("[[x]]"), torch.zeros(2)),
        lambda: RaggedTensor(RaggedShape("[[x]]"), torch.zeros(1, dtype=torch.bool)),
        lambda: create_ragged_shape2(),
        lambda: create_ragged_shape2(ints(1, 2)),
        lambda: create_ragged_shape2(ints(0, 3, 2)),
        lambda: create_ragged_shape2(torch.tensor([0, 2])),
        lambda: create_ragged_shape2(ints(0, 2), cached_tot_size=3),
        lambda: create_ragged_shape2(ints(0, 2), ints(0, 1)),
        lambda: create_ragged_shape2(row_ids=ints(1, 0)),
        lambda: create_ragged_shape2(row_ids=ints(-1, 0)),
        lambda: create_ragged_shape2(row_ids=ints(BIG - 1)),
        lambda: create_ragged_shape3(ints(0, 2), row_splits2=ints(0, 1)),
        lambda: regular_ragged_shape(-1, 2),
        lambda: regular_ragged_shape(2**16, 2**16),
        lambda: RaggedTensor([[1]]).index(ints(1)),
        lambda: RaggedTensor([[1]]).index(ints(-2)),
        lambda: RaggedTensor([[1]]).index(torch.zeros(1)),
        lambda: RaggedTensor([[1]]).index(ints(0), axis=7),
        lambda: RaggedTensor([[1]]).remove_axis(0),
        lambda: RaggedTensor([[1]]).shape.compose(RaggedShape("[[x] [x]]")),
        lambda: k2.ragged.cat([]),
        lambda: k2.ragged.stack([RaggedTensor([[1]]), RaggedTensor([[[1]]])]),
        lambda: k2.index_select(torch.zeros(2), ints(2)),
        lambda: k2.index_select(torch.zeros(2), ints(-2)),
        lambda: k2.index_add(ints(5), torch.zeros(1), torch.zeros(2)),
    ],
)
def test_ragged(call: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r".+"):
        call()


def test_nothing_ends_the_process(repo_dir: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(repo_dir / "tests" / "ops" / "fsa_abuse.py")],
        env={**os.environ, "PYTHONPATH": str(repo_dir)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stderr[-3000:]}"
    assert "survived" in result.stdout
