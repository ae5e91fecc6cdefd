"""FSA and transducer algorithms for PyTorch under k2's names: `import ops as k2`.

Importing compiles nothing; the first op that is called does (see ops/build). ops/README.md is the map.
"""

import torch

from ops import autograd, dense_fsa_vec, fsa_algo, fsa_properties, ragged, sparse, utils, version
from ops.algorithms import (
    add_epsilon_self_loops,
    arc_sort,
    compose,
    connect,
    expand_ragged_attributes,
    intersect,
    intersect_device,
    invert,
    prune_on_arc_post,
    remove_epsilon_self_loops,
    top_sort,
)
from ops.ctc_decoder import CTCDecoder, CTCDecoderLM, CTCDecoderLMState, CTCHypothesis, ctc_decoder
from ops.ctc_loss import CtcLoss, ctc_loss
from ops.dense import DenseFsaVec, convert_dense_to_fsa_vec, intersect_dense, intersect_dense_pruned
from ops.depthwise_conv1d import depthwise_conv1d
from ops.double_swish import double_swish
from ops.forced_align import TokenSpan, forced_align, merge_tokens
from ops.fsa import Fsa, create_fsa_vec, to_dot, to_str, to_str_simple
from ops.fsa_attributes import compose_arc_maps
from ops.fsa_properties import to_str as properties_to_str
from ops.fsa_tensor import to_tensor
from ops.lattice import (
    get_aux_labels,
    get_lattice,
    nbest_decoding,
    nbest_oracle,
    one_best_decoding,
    rescore_with_n_best_list,
    rescore_with_whole_lattice,
    without_path,
)
from ops.matching_stats import get_best_matching_stats
from ops.mutual_information import joint_mutual_information_recursion, mutual_information_recursion
from ops.mwer_loss import MWERLoss, mwer_loss
from ops.nbest import Nbest, edit_distance
from ops.ngram import NgramLM
from ops.online_dense import DecodeStateInfo, OnlineDenseIntersecter
from ops.paths import is_rand_equivalent, levenshtein_alignment, random_paths, shortest_path
from ops.pruned_ranges import pruned_ranges_to_lattice
from ops.ragged import (
    RaggedShape,
    RaggedTensor,
    create_sparse,
    index_add,
    index_select,
    simple_ragged_index_select,
)
from ops.rational import cat, closure, replace_fsa, reverse, union
from ops.relative_attention import relative_attention
from ops.rewrite import (
    DeterminizeWeightPushingType,
    determinize,
    minimize,
    push,
    remove_epsilon,
    remove_epsilon_and_add_self_loops,
)
from ops.rnnt_decode import RnntDecodingConfig, RnntDecodingStream, RnntDecodingStreams
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
from ops.symbol_table import SymbolTable
from ops.topologies import (
    ctc_graph,
    ctc_topo,
    levenshtein_graph,
    linear_fsa,
    linear_fsa_with_self_loops,
    linear_fst,
    linear_fst_with_self_loops,
    trivial_graph,
)
from ops.utils import index_fsa, monotonic_lower_bound, random_fsa, random_fsa_vec
from ops.version import __version__

with_cuda = torch.version.cuda is not None  # k2's name for it: whether CUDA can be used where there is a GPU

__all__ = [
    "CTCDecoder",
    "CTCDecoderLM",
    "CTCDecoderLMState",
    "CTCHypothesis",
    "CtcLoss",
    "DecodeStateInfo",
    "DenseFsaVec",
    "DeterminizeWeightPushingType",
    "Fsa",
    "MWERLoss",
    "Nbest",
    "NgramLM",
    "OnlineDenseIntersecter",
    "RaggedShape",
    "RaggedTensor",
    "RnntDecodingConfig",
    "RnntDecodingStream",
    "RnntDecodingStreams",
    "SymbolTable",
    "TokenSpan",
    "__version__",
    "add_epsilon_self_loops",
    "arc_sort",
    "autograd",
    "cat",
    "closure",
    "compose",
    "compose_arc_maps",
    "connect",
    "convert_dense_to_fsa_vec",
    "create_fsa_vec",
    "create_sparse",
    "ctc_decoder",
    "ctc_graph",
    "ctc_loss",
    "ctc_topo",
    "dense_fsa_vec",
    "depthwise_conv1d",
    "determinize",
    "do_rnnt_pruning",
    "double_swish",
    "edit_distance",
    "expand_ragged_attributes",
    "forced_align",
    "fsa_algo",
    "fsa_properties",
    "get_aux_labels",
    "get_best_matching_stats",
    "get_lattice",
    "get_rnnt_logprobs",
    "get_rnnt_logprobs_joint",
    "get_rnnt_logprobs_pruned",
    "get_rnnt_logprobs_smoothed",
    "get_rnnt_prune_ranges",
    "index_add",
    "index_fsa",
    "index_select",
    "intersect",
    "intersect_dense",
    "intersect_dense_pruned",
    "intersect_device",
    "invert",
    "is_rand_equivalent",
    "joint_mutual_information_recursion",
    "levenshtein_alignment",
    "levenshtein_graph",
    "linear_fsa",
    "linear_fsa_with_self_loops",
    "linear_fst",
    "linear_fst_with_self_loops",
    "merge_tokens",
    "minimize",
    "monotonic_lower_bound",
    "mutual_information_recursion",
    "mwer_loss",
    "nbest_decoding",
    "nbest_oracle",
    "one_best_decoding",
    "properties_to_str",
    "prune_on_arc_post",
    "pruned_ranges_to_lattice",
    "push",
    "ragged",
    "random_fsa",
    "random_fsa_vec",
    "random_paths",
    "relative_attention",
    "remove_epsilon",
    "remove_epsilon_and_add_self_loops",
    "remove_epsilon_self_loops",
    "replace_fsa",
    "rescore_with_n_best_list",
    "rescore_with_whole_lattice",
    "reverse",
    "rnnt_loss",
    "rnnt_loss_fused",
    "rnnt_loss_memory",
    "rnnt_loss_pruned",
    "rnnt_loss_pruned_fused",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
    "shortest_path",
    "simple_ragged_index_select",
    "sparse",
    "swoosh_l",
    "swoosh_l_forward",
    "swoosh_l_forward_and_deriv",
    "swoosh_r",
    "swoosh_r_forward",
    "swoosh_r_forward_and_deriv",
    "to_dot",
    "to_str",
    "to_str_simple",
    "to_tensor",
    "top_sort",
    "trivial_graph",
    "union",
    "utils",
    "version",
    "with_cuda",
    "without_path",
]
