"""k2.fsa_algo: k2's module of algorithms, as names for ours."""

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
from ops.paths import levenshtein_alignment, random_paths, shortest_path
from ops.rational import closure, replace_fsa, reverse, union
from ops.rewrite import determinize, remove_epsilon, remove_epsilon_and_add_self_loops
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

__all__ = [
    "add_epsilon_self_loops",
    "arc_sort",
    "closure",
    "compose",
    "connect",
    "ctc_graph",
    "ctc_topo",
    "determinize",
    "expand_ragged_attributes",
    "intersect",
    "intersect_device",
    "invert",
    "levenshtein_alignment",
    "levenshtein_graph",
    "linear_fsa",
    "linear_fsa_with_self_loops",
    "linear_fst",
    "linear_fst_with_self_loops",
    "prune_on_arc_post",
    "random_paths",
    "remove_epsilon",
    "remove_epsilon_and_add_self_loops",
    "remove_epsilon_self_loops",
    "replace_fsa",
    "reverse",
    "shortest_path",
    "top_sort",
    "trivial_graph",
    "union",
]
