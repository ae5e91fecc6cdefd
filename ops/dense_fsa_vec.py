"""k2.dense_fsa_vec: k2's module of frame scores, as names for ours."""

from ops.dense import DenseFsaVec, convert_dense_to_fsa_vec

__all__ = ["DenseFsaVec", "convert_dense_to_fsa_vec"]
