"""Fsa and FsaVec: text, attributes, properties, dictionaries, pickles, drawings."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch

from ops import fsa_properties
from ops.fsa import Fsa, create_fsa_vec, to_dot, to_str, to_str_simple
from ops.fsa_tensor import to_tensor
from ops.ragged import RaggedTensor
from ops.symbol_table import SymbolTable

CHAIN = "0 1 1 4 0.1\n1 2 2 5 0.2\n2 3 -1 -1 0.3\n3\n"


def test_text_round_trips():
    for text in (
        "0 1 2 -1.2\n0 2 10 -2.2\n1 6 -1 -3.2\n1 3 3 -4.2\n2 6 -1 -5.2\n2 4 2 -6.2\n3 6 -1 -7.2\n5 0 1 -8.2\n6\n",
        CHAIN,
        "0 1 2 22 33 -1.5\n1 2 -1 7 8 -0\n2\n",
    ):
        assert to_str(Fsa.from_str(text)) == text
    text = "0 1 2 9 [1 2] [] 0.5\n1 2 -1 -1 [] [3] 0\n2\n"
    f = Fsa.from_str(text, num_aux_labels=1, ragged_label_names=["b", "c"])
    assert to_str(f) == text and f.b.tolist() == [[1, 2], []] and f.c.tolist() == [[], [3]]
    f = Fsa.from_str("0 1 2 5 6 0.5\n1 2 -1 0 0 0\n2", aux_label_names=["x", "y"])
    assert f.x.tolist() == [5, 0] and f.y.tolist() == [6, 0]
    assert to_str_simple(f) == "0 1 2 0.5\n1 2 -1 0\n2\n"


def test_arcs_are_ordered_by_source():
    f = Fsa.from_str("1 2 -1 0.5\n0 1 3 0.25\n2")
    assert f.arcs3.tolist() == [[0, 1, 3], [1, 2, -1]] and f.scores.tolist() == [0.25, 0.5]


def test_openfst():
    text = "0 1 2 -1.2\n0 2  10 -2.2\n1 6 1  -3.2\n5 0  1  -8.2\n7\n6 -9.2\n"
    f = Fsa.from_openfst(text, acceptor=True)
    expected = "0 1 2 -1.2\n0 2 10 -2.2\n1 6 1 -3.2\n5 0 1 -8.2\n6 8 -1 -9.2\n7 8 -1 -0\n8\n"
    assert to_str(f, openfst=True) == expected
    assert torch.allclose(f.scores, torch.tensor([1.2, 2.2, 3.2, 8.2, 9.2, 0.0]))
    f = Fsa.from_openfst("0 1 2 22 -1.5\n1 2 1 16 0.25\n2 3.5", acceptor=False)
    assert f.aux_labels.tolist() == [22, 16, -1] and f.scores.tolist() == [1.5, -0.25, -3.5]
    # scores may be left out, and the state of the first line is the start
    assert to_str(Fsa.from_openfst("2 1 5\n1 0 6\n0")) == "0 1 5 -0\n1 2 6 -0\n2 3 -1 0\n3\n"


@pytest.mark.parametrize(
    "text",
    ["", "0 1 2", "0 1 2 0.5\n", "0 1 2 0.5\n1", "0 1 -1 0.5\n2", "0 5 1 0.5\n3", "a 1 2 0.5\n2", "0 1 2 x\n2",
     "-1 1 2 0.5\n2", "0 1 -2 0.5\n2", "0 1 99999999999 0.5\n2", "0 1 1 0.5\n2 3 0.5\n2", "2\n0 1 1 0.5\n2",
     "0 2 -1 1 0.5\n2 0 1 1 0.5\n2"],
)  # fmt: skip
def test_malformed_text_is_a_value_error(text):
    with pytest.raises(ValueError):
        Fsa.from_str(text)


def test_random_text_never_crashes():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("0123 -1[].\nx") for _ in range(rng.randint(0, 40)))
        for openfst in (False, True):
            try:
                Fsa.from_str(text, openfst=openfst)
            except ValueError as error:
                assert str(error)


def test_empty():
    f = Fsa.from_str("1")
    assert f.shape == (0, None) and f.num_arcs == 0 and to_str(f) == "" and not f.properties & fsa_properties.NONEMPTY
    vec = create_fsa_vec([f, Fsa.from_str(CHAIN), f])
    assert vec.shape == (3, None, None) and vec[1].shape == (4, None) and vec[2].shape == (0, None)
    assert Fsa.from_dict(vec.as_dict()).arcs.shape() == vec.arcs.shape()


def test_properties():
    cases = {
        "0 1 -1 0\n1": fsa_properties.ALL,
        "0 1 0 0\n1 2 -1 0\n2": fsa_properties.ALL & ~fsa_properties.EPSILON_FREE,
        "0 1 2 0\n0 1 1 0\n1 2 -1 0\n2": fsa_properties.ALL & ~fsa_properties.ARC_SORTED & ~0x20,
        "0 1 2 0\n0 1 2 0\n1 2 -1 0\n2": fsa_properties.ALL & ~0x20,
        "0 0 2 0\n0 1 -1 0\n1": fsa_properties.ALL & ~fsa_properties.TOPSORTED_AND_ACYCLIC,
        "0 2 1 0\n1 3 -1 0\n2 1 1 0\n3": fsa_properties.ALL & ~0x0C,
        "0 2 -1 0\n1 2 -1 0\n2": fsa_properties.ALL & ~fsa_properties.ACCESSIBLE,
        "0 1 1 0\n0 2 -1 0\n2": fsa_properties.ALL & ~fsa_properties.COACCESSIBLE,
    }
    for text, expected in cases.items():
        assert fsa_properties.to_str(Fsa.from_str(text).properties) == fsa_properties.to_str(expected)
    both = create_fsa_vec([Fsa.from_str(t) for t in cases])
    per_fsa = fsa_properties.compute(both.arcs3, *both.splits()).tolist()
    assert per_fsa == list(cases.values())
    assert both.properties == fsa_properties.VALID | fsa_properties.NONEMPTY
    f = Fsa.from_str("0 1 1 0\n1 2 -1 0\n2")
    assert f.properties & fsa_properties.EPSILON_FREE
    f.labels[0] = 0  # what icefall does to disambiguation symbols
    assert not f.properties & fsa_properties.EPSILON_FREE
    f.labels = torch.tensor([3, -1])
    assert f.properties & fsa_properties.EPSILON_FREE and f.labels.tolist() == [3, -1]


def test_attributes():
    f = Fsa.from_str(CHAIN)
    f.phones = torch.tensor([7, 8, 9], dtype=torch.int32)
    f.vectors = torch.arange(6.0).reshape(3, 2)
    f.words = RaggedTensor([[1, 2], [], [3]])
    f.note, f.phones_filler = "hello", -5
    assert f.note == "hello" and f.get_filler("phones") == -5 and f.get_filler("aux_labels") == 0
    assert [name for name, _ in f.named_tensor_attr()] == ["scores", "aux_labels", "phones", "vectors", "words"]
    assert dict(f.named_non_tensor_attr()) == {"note": "hello", "phones_filler": -5}
    for bad in (torch.tensor([1]), torch.tensor(3), RaggedTensor([[1]])):
        with pytest.raises(ValueError):
            f.bad = bad
    with pytest.raises(AttributeError):
        f.missing  # noqa: B018
    assert not hasattr(f, "missing") and hasattr(f, "words")
    vec = create_fsa_vec([f, Fsa.from_str(CHAIN), f])
    assert not hasattr(vec, "words") and vec.aux_labels.tolist() == [4, 5, -1] * 3
    vec = create_fsa_vec([f, f])
    assert vec[1].words.tolist() == [[1, 2], [], [3]] and vec[1].vectors.tolist() == f.vectors.tolist()
    f.rename_tensor_attribute_("phones", "tones")
    assert f.tones.tolist() == [7, 8, 9] and not hasattr(f, "phones")
    del f.note
    assert not hasattr(f, "note")
    f.aux_labels = torch.tensor([4, 0, -1], dtype=torch.int32)
    assert f.convert_attr_to_ragged_("aux_labels").aux_labels.tolist() == [[4], [], [-1]]
    g = create_fsa_vec([f, Fsa.from_str(CHAIN)])
    assert g.aux_labels.tolist() == [[4], [], [-1], [4], [5], [-1]]


def test_gradients_reach_the_members():
    a, b = Fsa.from_str(CHAIN).requires_grad_(True), Fsa.from_str("0 1 -1 9 0.4\n1").requires_grad_(True)
    vec = create_fsa_vec([a, b])
    assert vec.requires_grad
    (vec[0].scores * torch.arange(3)).sum().backward()
    assert a.grad.tolist() == [0, 1, 2]
    (vec[1].scores * 5).sum().backward()
    assert b.scores.grad.tolist() == [5]


def test_invert():
    f = Fsa.from_str(CHAIN)
    f.invert_()
    assert to_str(f) == "0 1 4 1 0.1\n1 2 5 2 0.2\n2 3 -1 -1 0.3\n3\n"
    assert to_str(f.invert()) == CHAIN
    with pytest.raises(ValueError):
        Fsa.from_str("0 1 -1 0\n1").invert_()


def test_tensor_and_dict():
    f = Fsa.from_str(CHAIN)
    again = Fsa(to_tensor(f), f.aux_labels)
    assert to_str(again) == CHAIN and f.arcs.values().shape == (3, 4) and f.arcs.values().dtype == torch.int32
    f.symbols = SymbolTable.from_str("a 1")
    vec = create_fsa_vec([f, f])
    back = Fsa.from_dict(vec.as_dict())
    assert to_str(back) == to_str(vec) and back.symbols["a"] == 1
    dangling = Fsa.from_str("0 1 1 0.5\n3")
    assert Fsa.from_dict(dangling.as_dict()).shape == (4, None)
    for bad in (torch.zeros(3, 3).int(), torch.zeros(2, 4), torch.tensor([2, 0, 1]).int(), torch.tensor([]).int(),
                torch.tensor([1, 0, 0, 2, 0, 1, 5, 1, 1, 0]).int()):  # fmt: skip
        with pytest.raises(ValueError):
            Fsa(bad)


def test_pickles(tmp_path):
    f = Fsa.from_str(CHAIN)
    f.words, f.note, f.symbols = RaggedTensor([[1, 2], [], [3]]), "x", SymbolTable.from_str("a 1\nb 2")
    vec = create_fsa_vec([f, f])
    torch.save(vec, tmp_path / "f.pt")
    torch.save(vec.as_dict(), tmp_path / "d.pt")
    for back in (
        torch.load(tmp_path / "f.pt", weights_only=True),
        Fsa.from_dict(torch.load(tmp_path / "d.pt", weights_only=True)),
        pickle.loads(pickle.dumps(vec)),
        copy.deepcopy(vec),
        vec.clone(),
    ):
        assert str(back) == str(vec) and back.words == vec.words and back.symbols == vec.symbols
    changed = vec.clone()
    changed.labels[0] = 9
    assert vec.labels[0] == 1


def test_to(device):
    f = create_fsa_vec([Fsa.from_str(CHAIN)]).to(device)
    f.words = RaggedTensor([[1], [], [2]]).to(device)
    assert f.device.type == device.type and f.properties & fsa_properties.VALID
    assert f.to("cpu").words.tolist() == [[1], [], [2]] and f[0].arcs.shape().row_splits(1).tolist() == [
        0,
        1,
        2,
        3,
        3,
    ]


def test_stochastic():
    f = Fsa.from_str("0 1 1 0\n0 1 2 0\n1 2 -1 0\n2")
    f.set_scores_stochastic_(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(f.scores.exp(), torch.tensor([0.2689, 0.7311, 1.0]), atol=1e-4)


def test_draw(tmp_path):
    f = Fsa.from_str(CHAIN)
    f.symbols, f.aux_symbols = SymbolTable.from_str("a 1\nb 2"), SymbolTable.from_str('x 4\n" 5')
    dot = f.draw(str(tmp_path / "f.dot"), title="chain")
    assert (tmp_path / "f.dot").read_text() == dot.source == to_dot(f, "chain").source
    assert '0 -> 1 [label="a:x/0.1"]' in dot.source and r'1 -> 2 [label="b:\"/0.2"]' in dot.source
    with pytest.raises(ValueError):
        f.draw("f.xyz")
    with pytest.raises(ValueError):
        create_fsa_vec([f]).draw("f.dot")


def test_symbol_table(tmp_path):
    table = SymbolTable.from_str("<eps> 0\na 1\nb 2\n")
    assert table["a"] == 1 and table[2] == "b" and "b" in table and 3 not in table and len(table) == 3
    assert table.add("c") == 3 and table.add("c") == 3 and table.ids == [0, 1, 2, 3]
    table.to_file(tmp_path / "t")
    assert SymbolTable.from_file(tmp_path / "t") == table
    assert table.merge(SymbolTable.from_str("d 4")).symbols == ["<eps>", "a", "b", "c", "d"]
    for bad in ("a b c", "a x", "a 1\na 2", "a 1\nb 1"):
        with pytest.raises(ValueError):
            SymbolTable.from_str(bad)
    with pytest.raises(ValueError):
        table.add("z", 1)
