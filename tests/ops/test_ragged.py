"""Ragged shapes and tensors against the same things done with Python lists."""

from __future__ import annotations

import copy
import io
import pickle
import random

import pytest
import torch

from ops import ragged as k2r
from ops.ragged import RaggedShape, RaggedTensor

LISTS = [[1, 2, 3], [], [5, 1], [1], []]
DEEP = [[[1, 2], [], [3]], [], [[4, 4, 4]], [[], []]]


def random_nested(rng: random.Random, axes: int) -> list:
    if axes == 1:
        return [rng.randint(-3, 3) for _ in range(rng.randint(0, 4))]
    return [random_nested(rng, axes - 1) for _ in range(rng.randint(0, 4))]


def test_constructors_agree(device):
    a = RaggedTensor(LISTS, device=device)
    assert a.dtype == torch.int32 and a.device.type == device.type and a.num_axes == 2 and a.dim0 == 5
    assert a == RaggedTensor("[[1, 2 3] [] [5 1] [1] []]").to(device)
    shape = k2r.create_ragged_shape2(row_splits=torch.tensor([0, 3, 3, 5, 6, 6], dtype=torch.int32))
    assert a == RaggedTensor(shape.to(device), torch.tensor([1, 2, 3, 5, 1, 1], dtype=torch.int32, device=device))
    assert a.tolist() == LISTS
    assert RaggedTensor(torch.arange(6).reshape(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert RaggedTensor(torch.arange(8).reshape(2, 2, 2)).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert RaggedTensor([[1, 2.5]]).dtype == torch.float32
    assert RaggedTensor([[1]], dtype=torch.float64).dtype == torch.float64
    assert RaggedTensor([]).num_axes == 2 and RaggedTensor([[], []]).tolist() == [[], []]
    assert RaggedTensor(DEEP).num_axes == 3 and RaggedTensor(DEEP).tot_size(1) == 6


def test_prints_as_k2_does():
    assert str(RaggedTensor([[1], [2, 3, -1], []])) == (
        "RaggedTensor([[1],\n              [2, 3, -1],\n              []], dtype=torch.int32)"
    )
    assert repr(RaggedTensor([[[1], [2, 3]], [[4], []]])) == (
        "RaggedTensor([[[1],\n               [2, 3]],\n              [[4],\n               []]], dtype=torch.int32)"
    )
    assert str(RaggedTensor([])) == "RaggedTensor([], dtype=torch.int32)"
    assert RaggedTensor([[1, 3.0], [0.5]]).to_str_simple() == "RaggedTensor([[1, 3], [0.5]], dtype=torch.float32)"
    assert str(RaggedShape("[[x x] [] [x]]")) == "[ [ x x ] [ ] [ x ] ]"
    assert str(RaggedShape("[[[x] []] [[x x]]]")) == "[ [ [ x ] [ ] ] [ [ x x ] ] ]"


@pytest.mark.parametrize(
    "make",
    [
        lambda: RaggedTensor("[[1 2]"),
        lambda: RaggedTensor("[1 2]"),
        lambda: RaggedTensor("[[1] 2]"),
        lambda: RaggedTensor("[[a]]"),
        lambda: RaggedTensor([1, 2]),
        lambda: RaggedTensor([[2**40]]),
        lambda: RaggedTensor(RaggedShape("[[x]]"), torch.zeros(2)),
        lambda: RaggedShape("[[x y]]"),
        lambda: k2r.create_ragged_shape2(torch.tensor([0, 3, 2], dtype=torch.int32)),
        lambda: k2r.create_ragged_shape2(),
        lambda: k2r.create_ragged_shape2(torch.tensor([0, 2]).int(), cached_tot_size=3),
        lambda: RaggedTensor(LISTS).index(torch.tensor([5])),
        lambda: RaggedTensor(LISTS).remove_axis(0),
        lambda: RaggedTensor(LISTS).pad("mirror"),
        lambda: k2r.cat([], 0),
        lambda: k2r.cat([RaggedTensor(LISTS), RaggedTensor([[1]])], 1),
    ],
)
def test_bad_input_is_a_value_error(make):
    with pytest.raises(ValueError):
        make()


def test_shapes():
    shape = k2r.create_ragged_shape3(
        row_ids1=torch.tensor([0, 0, 1]).int(), row_splits2=torch.tensor([0, 2, 2, 3]).int(), cached_tot_size2=3
    )
    assert shape == RaggedShape("[[[x x] []] [[x]]]")
    assert shape.tot_sizes() == (2, 3, 3) and shape.max_size(2) == 2 and shape.numel() == 3
    assert shape.row_ids(2).tolist() == [0, 0, 2] and shape.row_splits(1).tolist() == [0, 2, 3]
    assert shape.get_layer(1) == RaggedShape("[[x x] [] [x]]") and shape[0] == RaggedShape("[[x x] []]")
    assert shape.get_layer(0).compose(shape.get_layer(1)) == shape
    assert shape.remove_axis(1) == RaggedShape("[[x x] [x]]") and shape.remove_axis(0) == shape.get_layer(1)
    assert shape.remove_axis(2) == shape.get_layer(0)
    assert RaggedShape.regular_ragged_shape(2, 3) == RaggedShape("[[x x x] [x x x]]")
    random.seed(0)
    for _ in range(20):
        shape = k2r.random_ragged_shape(True, 2, 4, 0, 30)
        assert 2 <= shape.num_axes <= 4 and 0 <= shape.numel() <= 30
        assert RaggedShape(str(shape)) == shape or shape.numel() == 0  # "[ ]" does not tell its number of axes


def test_indexing_and_slicing(device):
    a, deep = RaggedTensor(LISTS, device=device), RaggedTensor(DEEP, device=device)
    assert a[0].tolist() == [1, 2, 3] and a[-3].tolist() == [5, 1]
    assert [row.tolist() for row in a] == LISTS
    assert a[1:4].tolist() == LISTS[1:4] and a[::-2].tolist() == LISTS[::-2] and a[9:].tolist() == []
    assert deep[0].tolist() == DEEP[0] and deep[0, 2].tolist() == [3] and deep[3].tolist() == [[], []]
    for below in (slice(1, None), slice(None, -1), slice(0, 2), slice(-1, None), slice(None, None, 2)):
        assert a[:, below].tolist() == [row[below] for row in LISTS]
        assert deep[:, below].tolist() == [row[below] for row in DEEP]
        assert deep[:, :, below].tolist() == [[x[below] for x in row] for row in DEEP]
    with pytest.raises(IndexError):
        a[5]


def test_index(device):
    a, deep = RaggedTensor(LISTS, device=device), RaggedTensor(DEEP, device=device)
    picked, where = a.index(torch.tensor([2, -1, 0, 0], device=device), need_value_indexes=True)
    assert picked.tolist() == [[5, 1], [], [1, 2, 3], [1, 2, 3]] and where.tolist() == [3, 4, 0, 1, 2, 0, 1, 2]
    assert deep.index(torch.tensor([2, 0], dtype=torch.int32, device=device))[0].tolist() == [DEEP[2], DEEP[0]]
    assert deep.index(torch.tensor([0, 2, 2, 3], device=device), axis=1)[0].tolist() == [
        [[1, 2], [3], [3]], [], [[4, 4, 4]], []]  # fmt: skip
    assert a.index(torch.tensor([0, 2, 5], device=device), axis=1)[0].tolist() == [[1, 3], [], [], [1], []]
    by = RaggedTensor([[0, 2], [], [3, 3]], device=device)
    assert a.index(by).tolist() == [[LISTS[0], LISTS[2]], [], [[1], [1]]]
    assert k2r.index(torch.tensor([10, 20], device=device), RaggedTensor([[1, -1], [0]], device=device)).tolist() == [
        [20, 0], [10]]  # fmt: skip


def test_remove_and_arange(device):
    deep = RaggedTensor(DEEP, device=device)
    assert deep.remove_axis(0).tolist() == [x for row in DEEP for x in row]
    assert deep.remove_axis(1).tolist() == [[x for y in row for x in y] for row in DEEP]
    assert deep.remove_values_eq(4).tolist() == [[[1, 2], [], [3]], [], [[]], [[], []]]
    assert RaggedTensor(LISTS).remove_values_leq(1).tolist() == [[2, 3], [], [5], [], []]
    assert deep.arange(0, 1, 3).tolist() == DEEP[1:3]
    assert deep.arange(1, 2, 5).tolist() == [[3], [4, 4, 4], []]


def test_reductions(device):
    rng = random.Random(1)
    for axes in (2, 3):
        for _ in range(10):
            nested = random_nested(rng, axes)
            a = RaggedTensor(nested) if any(map(len, nested)) else RaggedTensor([[0]])
            a = a.to(device)
            rows = a.tolist()
            for _ in range(a.num_axes - 2):
                rows = [x for row in rows for x in row]
            assert a.sum().tolist() == [sum(r) for r in rows]
            assert a.max(-2).tolist() == [max([*r, -2]) for r in rows]
            assert a.min(2).tolist() == [min([*r, 2]) for r in rows]
            where = a.argmax().tolist()
            begin = 0
            for r, w in zip(rows, where):
                assert w == (begin + r.index(max(r)) if r else -1)
                begin += len(r)
    a = RaggedTensor([[1, 2], [], [5, 5]], device=device)
    assert a.max()[1] == torch.iinfo(torch.int32).min and a.argmax(3).tolist() == [-1, -1, 2]
    assert a.sum(10).tolist() == [13, 10, 20]
    assert a.add(torch.tensor([1, 2, 3], device=device), alpha=2).tolist() == [[3, 4], [], [11, 11]]


def test_gradients():
    shape = RaggedShape("[[x x x] [] [x] [x x]]")
    values = torch.tensor([0.3, -1.0, 2.0, 0.7, 1.5, 0.2], dtype=torch.float64, requires_grad=True)
    for f in (
        lambda v: RaggedTensor(shape, v).sum(),
        lambda v: RaggedTensor(shape, v).logsumexp()[[0, 2, 3]],
        lambda v: RaggedTensor(shape, v).logsumexp(0.5),
        lambda v: RaggedTensor(shape, v).normalize(use_log=True).values,
        lambda v: RaggedTensor(shape, v).normalize(use_log=False).values,
        lambda v: RaggedTensor(shape, v).max(-9.0),
        lambda v: RaggedTensor(shape, v).index(torch.tensor([3, 0, 3]))[0].values,
        lambda v: k2r.index_and_sum(v, RaggedTensor([[0, 0, -1], [], [5, 2]])),
        lambda v: k2r.index_select(v, torch.tensor([1, -1, 1])),
    ):
        assert torch.autograd.gradcheck(f, (values,))
    a = RaggedTensor([[1.0, 2.0], [], [5.0]], dtype=torch.float64).requires_grad_(True)
    (a.sum() * torch.tensor([10.0, 20.0, 30.0])).sum().backward()
    assert a.grad.tolist() == [10, 10, 30] and a.requires_grad


def test_logsumexp_with_infinities():
    inf = float("inf")
    a = RaggedTensor([[-inf, -inf], [], [0.0, -inf]]).requires_grad_()
    out = a.logsumexp()
    assert out.tolist() == [-inf, -inf, 0.0]
    out[2].backward()
    assert a.grad.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_sort_and_unique(device):
    a = RaggedTensor([[3, 1, 2], [], [5, 5, 7, 1]], device=device)
    assert a.sort_(need_new2old_indexes=True).tolist() == [1, 2, 0, 6, 3, 4, 5]
    assert a.tolist() == [[1, 2, 3], [], [1, 5, 5, 7]]
    assert a.sort_(descending=True) is None and a.tolist() == [[3, 2, 1], [], [7, 5, 5, 1]]
    a = RaggedTensor([[1, 3], [1, 2], [1, 2], [1, 4], [1, 3], [1, 2], [1]], device=device)
    unique, repeats, new2old = a.unique(need_num_repeats=True, need_new2old_indexes=True)
    assert unique.tolist() == [[1], [1, 2], [1, 3], [1, 4]] and repeats.tolist() == [[1, 3, 2, 1]]
    assert new2old.tolist() == [6, 1, 0, 3]
    a = RaggedTensor([[[1, 2], [2, 1], [1, 2]], [], [[], [3], [], [0]], [[]]], device=device)
    unique, repeats, new2old = a.unique(need_num_repeats=True, need_new2old_indexes=True)
    assert unique.tolist() == [[[1, 2], [2, 1]], [], [[], [0], [3]], [[]]]
    assert repeats.tolist() == [[2, 1], [], [2, 1, 1], [1]] and new2old.tolist() == [0, 1, 3, 6, 4, 7]
    assert a.unique()[1:] == (None, None)


def test_pad(device):
    a = RaggedTensor(LISTS, device=device)
    assert a.pad("constant", -1).tolist() == [[1, 2, 3], [-1, -1, -1], [5, 1, -1], [1, -1, -1], [-1, -1, -1]]
    assert a.pad("replicate", -1).tolist() == [[1, 2, 3], [-1, -1, -1], [5, 1, 1], [1, 1, 1], [-1, -1, -1]]
    assert a.pad("constant", 0, left=True).tolist() == [[1, 2, 3], [0, 0, 0], [0, 5, 1], [0, 0, 1], [0, 0, 0]]
    assert a.pad("replicate", 0, left=True).tolist()[2] == [5, 5, 1]
    assert RaggedTensor([], device=device).pad("constant", 0).shape == (0, 0)
    assert RaggedTensor([[], []], device=device).pad("replicate", 0).shape == (2, 0)


def test_cat_and_stack(device):
    a, b = RaggedTensor([[1, 2], [], [3]], device=device), RaggedTensor([[4], [5, 6], []], device=device)
    assert k2r.cat([a, b]).tolist() == a.tolist() + b.tolist()
    assert k2r.cat([a, b], axis=1).tolist() == [[1, 2, 4], [5, 6], [3]]
    assert RaggedTensor.stack([a, b], axis=0).tolist() == [a.tolist(), b.tolist()]
    assert RaggedTensor.stack([a, b, a], axis=1).tolist() == [list(x) for x in zip(a.tolist(), b.tolist(), a.tolist())]
    deep = RaggedTensor(DEEP, device=device)
    assert k2r.cat([deep, deep], axis=1).tolist() == [x + x for x in DEEP]


def test_pickles(tmp_path):
    for a in (RaggedTensor(LISTS), RaggedTensor(DEEP, dtype=torch.float64)):
        torch.save({"a": a, "shape": a.shape}, tmp_path / "a.pt")
        back = torch.load(tmp_path / "a.pt", weights_only=True)
        assert back["a"] == a and back["shape"] == a.shape
        assert pickle.loads(pickle.dumps(a)) == a and copy.deepcopy(a) == a and a.clone() == a
    state = RaggedTensor([[1, 2], [3], []]).__getstate__()
    assert state[0].tolist() == [0, 2, 3, 3] and state[1] == "row_ids1" and state[2].tolist() == [1, 2, 3]
    torch.save(RaggedTensor(LISTS), buffer := io.BytesIO())
    assert buffer.tell() > 0


def test_index_add_and_simple_select(device):
    out = torch.zeros(3, device=device)
    k2r.index_add(torch.tensor([0, -1, 2, 0], device=device), torch.tensor([1.0, 2.0, 3.0, 4.0], device=device), out)
    assert out.tolist() == [5.0, 0.0, 3.0]
    src = torch.tensor([0, 7, 0, 5], device=device)
    by = RaggedTensor([[0, 1], [], [2], [3, 3, 0]], device=device)
    assert k2r.simple_ragged_index_select(src, by).tolist() == [7, 0, 0, 5]
    with pytest.raises(ValueError):
        k2r.simple_ragged_index_select(src, RaggedTensor([[1, 3]], device=device))


def test_sparse():
    from ops import sparse

    rows, cols = torch.tensor([0, 1, 1, 0]), torch.tensor([0, -1, 2, 0])
    values = torch.tensor([-1.0, 5.0, 3.0, -2.0], requires_grad=True)
    m = k2r.create_sparse(rows, cols, values, (2, 3), min_col_index=0)
    assert m.to_dense().tolist() == [[-3.0, 0.0, 0.0], [0.0, 0.0, 3.0]]
    out = sparse.abs(m)
    assert out.to_dense().tolist() == [[3.0, 0.0, 0.0], [0.0, 0.0, 3.0]]
    torch.sparse.sum(out).backward()
    assert values.grad.tolist() == [-1.0, 0.0, 1.0, -1.0]
