"""FSA and transducer algorithms for PyTorch under k2's names: `import ops as k2`.

Importing compiles nothing; the first op that is called does (see ops/build). ops/README.md is the map.
"""

from ops.depthwise_conv1d import depthwise_conv1d
from ops.double_swish import double_swish
from ops.mutual_information import joint_mutual_information_recursion, mutual_information_recursion
from ops.relative_attention import relative_attention
from ops.rnnt_loss import (
    get_rnnt_logprobs,
    get_rnnt_logprobs_joint,
    get_rnnt_logprobs_pruned,
    get_rnnt_logprobs_smoothed,
    rnnt_loss,
    rnnt_loss_pruned,
    rnnt_loss_simple,
    rnnt_loss_smoothed,
)
from ops.rnnt_loss_fused import rnnt_loss_fused, rnnt_loss_pruned_fused
from ops.rnnt_memory import rnnt_loss_memory
from ops.rnnt_prune import do_rnnt_pruning, get_rnnt_prune_ranges
from ops.swoosh import (
    swoosh_l,
    swoosh_l_forward,
    swoosh_l_forward_and_deriv,
    swoosh_r,
    swoosh_r_forward,
    swoosh_r_forward_and_deriv,
)

__all__ = [
    "depthwise_conv1d",
    "do_rnnt_pruning",
    "double_swish",
    "get_rnnt_logprobs",
    "get_rnnt_logprobs_joint",
    "get_rnnt_logprobs_pruned",
    "get_rnnt_logprobs_smoothed",
    "get_rnnt_prune_ranges",
    "joint_mutual_information_recursion",
    "mutual_information_recursion",
    "relative_attention",
    "rnnt_loss",
    "rnnt_loss_fused",
    "rnnt_loss_memory",
    "rnnt_loss_pruned",
    "rnnt_loss_pruned_fused",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
    "swoosh_l",
    "swoosh_l_forward",
    "swoosh_l_forward_and_deriv",
    "swoosh_r",
    "swoosh_r_forward",
    "swoosh_r_forward_and_deriv",
]
