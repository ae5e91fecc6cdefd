// The schema of every op of the namespace `lattica`, one a statement. ops/build reads this file, too, when there is no
// compiler and ops/reference serves, so keep each schema in string literals of one `m.def(...)`.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lattica, m) {
  // The transducer recursion and its occupations: see ops/mutual_information.py.
  m.def("mutual_information(Tensor px, Tensor py, Tensor? boundary, bool want_grad) -> "
        "(Tensor scores, Tensor px_grad, Tensor py_grad)");

  // The bands of symbol positions that the pruned loss keeps: see ops/rnnt_prune.py.
  m.def("rnnt_prune_ranges(Tensor px_grad, Tensor py_grad, Tensor boundary, int s_range) -> Tensor");

  // Depthwise convolution over time, channels last: see ops/depthwise_conv1d.py.
  m.def("depthwise_conv1d(Tensor x, Tensor weight, Tensor bias) -> Tensor");
  m.def("depthwise_conv1d_backward(Tensor grad, Tensor x, Tensor weight) -> "
        "(Tensor x_grad, Tensor weight_grad, Tensor bias_grad)");

  // x · sigmoid(x - 1) with dropout, and its derivative: see ops/double_swish.py.
  m.def("double_swish(Tensor x, Tensor? bytes, int drop) -> (Tensor y, Tensor derivative)");

  // The steps of a tile of the fused loss between its matrix products: see ops/rnnt_loss_fused.py.
  m.def("joiner_hidden(Tensor am, Tensor lm, Tensor am_rows, Tensor lm_rows, str activation, Tensor(a!) hidden) -> ()");
  m.def("joiner_hidden_grad(Tensor am, Tensor lm, Tensor am_rows, Tensor lm_rows, str activation, Tensor hidden, "
        "Tensor hidden_grad, Tensor(a!) am_grad, Tensor(b!) lm_grad) -> ()");
  m.def("joiner_log_probs(Tensor logits, Tensor symbols, int blank, bool hat) -> "
        "(Tensor symbol, Tensor blank, Tensor normalizer)");
  m.def("joiner_logits_grad(Tensor logits, Tensor? logits_rows, Tensor normalizer, Tensor symbols, int blank, bool hat, "
        "Tensor symbol_grad, Tensor blank_grad, Tensor(a!) grad) -> ()");

  // Swoosh activations: see ops/swoosh.py.
  m.def("swoosh(Tensor x, str kind, bool want_deriv) -> (Tensor y, Tensor deriv)");

  // Self-attention with relative positions: see ops/relative_attention.py.
  m.def("relative_attention(Tensor x, Tensor cos, Tensor sin, Tensor lens, int num_heads) -> (Tensor out, Tensor weights)");
  m.def("relative_attention_backward(Tensor grad, Tensor x, Tensor weights, Tensor cos, Tensor sin, Tensor lens, "
        "int num_heads) -> Tensor");

  // The optimizer's step: see ops/scaled_adam.py.
  m.def("scaled_adam(Tensor(a!) param, Tensor grad, Tensor(b!) momentum, Tensor(c!) second, float grad_factor, float beta1, "
        "float beta2, float rate, float eps, float scale_step) -> ()");

  // FSAs: fsa_splits and state_splits say where states and arcs begin, arcs is int32 (A, 3), scores float64. Algorithms return
  // (fsa_splits, state_splits, arcs, arc map), where an arc map is one tensor, two (one for each input), or lists
  // (map_splits, map). See ops/scores.py.
  m.def("fsa_state_scores(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, bool forward, "
        "bool log_semiring, bool want_shares) -> (Tensor, Tensor, Tensor)");
  m.def("fsa_state_scores_grad(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, bool forward, "
        "bool log_semiring, Tensor state_scores, Tensor best, Tensor shares, Tensor state_grad) -> Tensor");
  m.def("fsa_shortest_path(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor best) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_random_paths(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor shares, Tensor path_splits, int seed) -> "
        "(Tensor, Tensor)");
  // See ops/fsa_properties.py, ops/topologies.py, ops/algorithms.py and ops/rewrite.py.
  m.def("fsa_properties(Tensor fsa_splits, Tensor state_splits, Tensor arcs) -> Tensor");
  m.def("fsa_ctc_graph(Tensor row_splits, Tensor symbols, bool modified) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_connect(Tensor fsa_splits, Tensor state_splits, Tensor arcs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_top_sort(Tensor fsa_splits, Tensor state_splits, Tensor arcs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_arc_sort(Tensor state_splits, Tensor arcs) -> Tensor");
  m.def("fsa_intersect(Tensor a_fsa_splits, Tensor a_state_splits, Tensor a_arcs, Tensor a_labels, Tensor b_fsa_splits, "
        "Tensor b_state_splits, Tensor b_arcs, Tensor a_index, Tensor b_index, bool epsilons) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_remove_epsilon(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, bool all_paths) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_determinize(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, int max_states) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_minimize(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, Tensor aux, float delta) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_potentials(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, bool log_semiring, "
        "float tolerance, int max_sweeps) -> Tensor");
  // See ops/dense.py.
  m.def("fsa_intersect_dense(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, Tensor log_probs, "
        "Tensor segments, Tensor a_index, Tensor b_index, float search_beam, float output_beam, int min_active, "
        "int max_active, bool allow_partial) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
