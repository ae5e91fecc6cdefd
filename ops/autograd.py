"""k2.autograd: k2's module of differentiable functions, as names for ours."""

from ops.algorithms import expand_ragged_attributes
from ops.dense import intersect_dense, intersect_dense_pruned
from ops.rational import union

__all__ = ["expand_ragged_attributes", "intersect_dense", "intersect_dense_pruned", "union"]
