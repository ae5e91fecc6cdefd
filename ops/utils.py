"""k2.utils: random automata, picking FSAs out of a vector, small helpers; and k2's names for things defined
elsewhere.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from ops.fsa import Fsa, create_fsa_vec, to_dot, to_str, to_str_simple
from ops.fsa_attributes import (
    arcs_of,
    fsa_from_binary_function_tensor,
    fsa_from_unary_function_ragged,
    fsa_from_unary_function_tensor,
)
from ops.fsa_tensor import to_tensor
from ops.paths import is_rand_equivalent
from ops.ragged import create_sparse

__all__ = [
    "create_fsa_vec",
    "create_sparse",
    "fsa_from_binary_function_tensor",
    "fsa_from_unary_function_ragged",
    "fsa_from_unary_function_tensor",
    "index_fsa",
    "is_rand_equivalent",
    "monotonic_lower_bound",
    "random_fsa",
    "random_fsa_vec",
    "to_dot",
    "to_str",
    "to_str_simple",
    "to_tensor",
]


def index_fsa(src: Fsa, indexes: Tensor) -> Fsa:
    """The FsaVec of src's FSAs with these numbers (1-D int32), in this order, repeats allowed; -1: one without states."""
    if not src.is_vec():
        raise ValueError("index_fsa takes an FsaVec")
    shape, arc_map = src._shape.index(0, indexes.to(src.device))
    assert arc_map is not None
    arcs = arcs_of((shape.row_splits(1), shape.row_splits(2), src.arcs3[arc_map.long()]), True)
    return fsa_from_unary_function_tensor(src, arcs, arc_map)


def random_fsa(acyclic: bool = True, max_symbol: int = 50, min_num_arcs: int = 0, max_num_arcs: int = 1000) -> Fsa:
    """A random valid FSA, labels 0 ... max_symbol, normal scores; from Python's `random`. Not always connected."""
    if not 0 <= min_num_arcs <= max_num_arcs or max_symbol < 0:
        raise ValueError(f"need 0 <= min_num_arcs <= max_num_arcs, got {min_num_arcs}, {max_num_arcs}, {max_symbol}")
    num_arcs = random.randint(min_num_arcs, max_num_arcs)
    if num_arcs == 0:
        return Fsa.from_str("0")
    final = random.randint(1, max(1, num_arcs // 2))
    rows = []
    for _ in range(num_arcs):
        src = random.randrange(final)
        dest = random.randint(src + 1 if acyclic else 0, final)
        label = -1 if dest == final else random.randint(0, max_symbol)
        rows.append(f"{src} {dest} {label} {random.gauss(0, 1):.6f}")
    return Fsa.from_str("\n".join([*rows, str(final)]))


def random_fsa_vec(
    min_num_fsas: int = 1,
    max_num_fsas: int = 1000,
    acyclic: bool = True,
    max_symbol: int = 50,
    min_num_arcs: int = 0,
    max_num_arcs: int = 1000,
) -> Fsa:
    """An FsaVec of random_fsa's."""
    if not 1 <= min_num_fsas <= max_num_fsas:
        raise ValueError(f"need 1 <= min_num_fsas <= max_num_fsas, got {min_num_fsas}, {max_num_fsas}")
    num = random.randint(min_num_fsas, max_num_fsas)
    return create_fsa_vec([random_fsa(acyclic, max_symbol, min_num_arcs, max_num_arcs) for _ in range(num)])


def monotonic_lower_bound(src: Tensor, inplace: bool = False) -> Tensor:
    """The largest sequence that never decreases and lies nowhere above src, along the last dimension: min(src[i:])."""
    ans = torch.cummin(src.flip(-1), dim=-1).values.flip(-1)
    return src.copy_(ans) if inplace else ans
