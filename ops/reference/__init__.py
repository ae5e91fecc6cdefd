"""Slow, obvious PyTorch twins of the compiled ops: the tests' oracle, and what serves when there is no compiler.

Each has the name and the arguments of the op's schema in csrc/schemas.cpp.
"""

from ops.reference.depthwise_conv1d import depthwise_conv1d, depthwise_conv1d_backward
from ops.reference.double_swish import double_swish
from ops.reference.fsa_arc_sort import fsa_arc_sort
from ops.reference.fsa_ctc_graph import fsa_ctc_graph
from ops.reference.fsa_ctc_loss import fsa_ctc_loss, fsa_ctc_loss_grad
from ops.reference.fsa_edit_distance import fsa_edit_distance
from ops.reference.fsa_keep import fsa_keep
from ops.reference.fsa_pick import fsa_pick, fsa_pick_lists, fsa_pick_sum
from ops.reference.fsa_properties import fsa_properties
from ops.reference.fsa_scores import fsa_arc_post, fsa_arc_post_grad, fsa_state_scores, fsa_state_scores_grad
from ops.reference.mutual_information import mutual_information
from ops.reference.relative_attention import relative_attention, relative_attention_backward
from ops.reference.rnnt_additive import rnnt_additive_log_probs, rnnt_additive_log_probs_backward
from ops.reference.rnnt_loss_fused import joiner_hidden, joiner_hidden_grad, joiner_log_probs, joiner_logits_grad
from ops.reference.rnnt_prune import rnnt_prune_ranges
from ops.reference.scaled_adam import scaled_adam
from ops.reference.swoosh import swoosh

__all__ = [
    "depthwise_conv1d",
    "depthwise_conv1d_backward",
    "double_swish",
    "fsa_arc_post",
    "fsa_arc_post_grad",
    "fsa_arc_sort",
    "fsa_ctc_graph",
    "fsa_ctc_loss",
    "fsa_ctc_loss_grad",
    "fsa_edit_distance",
    "fsa_keep",
    "fsa_pick",
    "fsa_pick_lists",
    "fsa_pick_sum",
    "fsa_properties",
    "fsa_state_scores",
    "fsa_state_scores_grad",
    "joiner_hidden",
    "joiner_hidden_grad",
    "joiner_log_probs",
    "joiner_logits_grad",
    "mutual_information",
    "relative_attention",
    "relative_attention_backward",
    "rnnt_additive_log_probs",
    "rnnt_additive_log_probs_backward",
    "rnnt_prune_ranges",
    "scaled_adam",
    "swoosh",
]
