"""Slow, obvious PyTorch twins of the compiled ops: the tests' oracle, and what serves when there is no compiler.

Each has the name and the arguments of the op's schema in csrc/schemas.cpp.
"""

from ops.reference.mutual_information import mutual_information
from ops.reference.rnnt_loss_fused import joiner_hidden, joiner_hidden_grad, joiner_log_probs, joiner_logits_grad
from ops.reference.rnnt_prune import rnnt_prune_ranges
from ops.reference.swoosh import swoosh

__all__ = [
    "joiner_hidden",
    "joiner_hidden_grad",
    "joiner_log_probs",
    "joiner_logits_grad",
    "mutual_information",
    "rnnt_prune_ranges",
    "swoosh",
]
