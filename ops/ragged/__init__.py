"""k2.ragged: ragged shapes and tensors (nested lists as flat tensors), and the functions on them."""

from __future__ import annotations

from ops.ragged.functions import (
    cat,
    create_ragged_tensor,
    create_sparse,
    index,
    index_add,
    index_and_sum,
    index_select,
    simple_ragged_index_select,
    stack,
)
from ops.ragged.shape import (
    RaggedShape,
    create_ragged_shape2,
    create_ragged_shape3,
    random_ragged_shape,
    regular_ragged_shape,
)
from ops.ragged.tensor import RaggedTensor

__all__ = [
    "RaggedShape",
    "RaggedTensor",
    "cat",
    "create_ragged_shape2",
    "create_ragged_shape3",
    "create_ragged_tensor",
    "create_sparse",
    "index",
    "index_add",
    "index_and_sum",
    "index_select",
    "random_ragged_shape",
    "regular_ragged_shape",
    "simple_ragged_index_select",
    "stack",
]
