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
}
