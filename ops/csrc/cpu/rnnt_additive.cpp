// CPU threads over tiles of the batch; the arithmetic is in rnnt_additive.h.
#include "../rnnt_additive.h"

#include <string>

#include "../check.h"
#include "../parallel.h"

namespace lattica {
namespace {

struct Arguments {
  const Tensor &am, &lm, &symbols;
  const std::optional<Tensor>&log_unigram, &boundary;
  int64_t blank;
  double lm_only_scale, am_only_scale;
  const std::string& rnnt_type;
};

RnntType type_of(const std::string& name) {
  if (name == "modified") return RnntType::kModified;
  if (name == "constrained") return RnntType::kConstrained;
  STD_TORCH_CHECK(name == "regular", "rnnt_type must be regular, modified or constrained, got ", name);
  return RnntType::kRegular;
}

void check_contiguous(const Tensor& x, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(x.is_contiguous() && x.scalar_type() == dtype, "rnnt_additive: ", name,
                  " must be contiguous and of the right dtype");
}

void check(const Arguments& a) {
  const auto dtype = a.am.scalar_type();
  STD_TORCH_CHECK(a.am.dim() == 3 && a.lm.dim() == 3 && a.symbols.dim() == 2 && a.lm.size(1) >= 1 &&
                      a.am.size(0) == a.lm.size(0) && a.am.size(2) == a.lm.size(2) && a.symbols.size(0) == a.am.size(0) &&
                      a.symbols.size(1) == a.lm.size(1) - 1,
                  "rnnt_additive: am must be (N, T, C), lm (N, S + 1, C) and symbols (N, S)");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "rnnt_additive: am must be float32 or float64");
  check_contiguous(a.am, "am", dtype);
  check_contiguous(a.lm, "lm", dtype);
  check_contiguous(a.symbols, "symbols", ScalarType::Long);
  const int64_t N = a.am.size(0), T = a.am.size(1), S = a.symbols.size(1), C = a.am.size(2);
  STD_TORCH_CHECK(a.blank >= 0 && a.blank < C, "rnnt_additive: blank = ", a.blank, " is outside [0, ", C, ")");
  const int64_t* symbols = static_cast<const int64_t*>(a.symbols.const_data_ptr());
  for (int64_t i = 0; i < N * S; ++i)
    STD_TORCH_CHECK(symbols[i] >= 0 && symbols[i] < C, "rnnt_additive: symbol ", symbols[i], " is outside [0, ", C, ")");
  if (a.log_unigram) {
    check_contiguous(*a.log_unigram, "log_unigram", dtype);
    STD_TORCH_CHECK(a.log_unigram->numel() == C, "rnnt_additive: log_unigram must be (C,)");
  }
  STD_TORCH_CHECK(a.log_unigram || a.am_only_scale == 0.0, "rnnt_additive: am_only_scale needs log_unigram");
  if (a.boundary) {
    check_boundary_tensor(*a.boundary, N);
    check_bounds_values(static_cast<const Bounds*>(a.boundary->const_data_ptr()), LatticeShape{N, S, T, false});
  }
}

template <typename T>
AdditiveBatch<T> batch_of(const Arguments& a) {
  return {
      a.am.size(0), a.am.size(1), a.lm.size(1), a.am.size(2),
      static_cast<const T*>(a.am.const_data_ptr()),
      static_cast<const T*>(a.lm.const_data_ptr()),
      a.log_unigram ? static_cast<const T*>(a.log_unigram->const_data_ptr()) : nullptr,
      static_cast<const int64_t*>(a.symbols.const_data_ptr()),
      a.boundary ? static_cast<const Bounds*>(a.boundary->const_data_ptr()) : nullptr,
      a.blank,
      static_cast<T>(1.0 - a.lm_only_scale - a.am_only_scale),
      static_cast<T>(a.lm_only_scale),
      static_cast<T>(a.am_only_scale),
      type_of(a.rnnt_type),
  };
}

template <typename T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

template <typename T>
AdditiveSaved<T> saved_of(const Tensor& am_max, const Tensor& lm_max, const Tensor& lm_sum, const Tensor& products) {
  return {mutable_data<T>(am_max), mutable_data<T>(lm_max), mutable_data<T>(lm_sum), mutable_data<T>(products)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rnnt_additive_log_probs(
    const Tensor& am, const Tensor& lm, std::optional<Tensor> log_unigram, const Tensor& symbols,
    std::optional<Tensor> boundary, int64_t blank, double lm_only_scale, double am_only_scale, std::string rnnt_type) {
  const Arguments a{am, lm, symbols, log_unigram, boundary, blank, lm_only_scale, am_only_scale, rnnt_type};
  check(a);
  const auto shape = batch_of<float>(a);  // its sizes do not depend on the type
  const int64_t N = shape.N, T = shape.num_frames, positions = shape.num_positions;
  Tensor px = empty_like_shape(am, {N, positions - 1, shape.px_columns()}), py = empty_like_shape(am, {N, positions, T});
  Tensor am_max = empty_like_shape(am, {N, T}), lm_max = empty_like_shape(am, {N, shape.rows()});
  Tensor lm_sum = empty_like_shape(am, {N, shape.rows()}), products = empty_like_shape(am, {N, T, shape.columns()});
  with_float_type(am, [&](auto zero) {
    using F = decltype(zero);
    additive_log_probs(CpuBackend{}, batch_of<F>(a), saved_of<F>(am_max, lm_max, lm_sum, products), mutable_data<F>(px),
                       mutable_data<F>(py));
  });
  return {px, py, am_max, lm_max, lm_sum, products};
}

std::tuple<Tensor, Tensor, Tensor> rnnt_additive_log_probs_backward(
    const Tensor& px_grad, const Tensor& py_grad, const Tensor& am, const Tensor& lm, std::optional<Tensor> log_unigram,
    const Tensor& symbols, std::optional<Tensor> boundary, const Tensor& am_max, const Tensor& lm_max,
    const Tensor& lm_sum, const Tensor& products, int64_t blank, double lm_only_scale, double am_only_scale,
    std::string rnnt_type) {
  const Arguments a{am, lm, symbols, log_unigram, boundary, blank, lm_only_scale, am_only_scale, rnnt_type};
  check(a);
  const auto shape = batch_of<float>(a);
  const int64_t N = shape.N, T = shape.num_frames, positions = shape.num_positions, C = shape.C;
  const auto check_size = [&](const Tensor& x, const char* name, int64_t numbers) {
    check_contiguous(x, name, am.scalar_type());
    STD_TORCH_CHECK(x.numel() == numbers, "rnnt_additive: ", name, " must hold ", numbers, " numbers, got ", x.numel());
  };
  check_size(px_grad, "px_grad", N * (positions - 1) * shape.px_columns());
  check_size(py_grad, "py_grad", N * positions * T);
  check_size(am_max, "am_max", N * T);
  check_size(lm_max, "lm_max", N * shape.rows());
  check_size(lm_sum, "lm_sum", N * shape.rows());
  check_size(products, "products", N * T * shape.columns());
  Tensor am_grad = empty_like_shape(am, {N, T, C}), lm_grad = empty_like_shape(am, {N, positions, C});
  Tensor unigram_grad = empty_like_shape(am, {log_unigram ? N : 0, C});
  with_float_type(am, [&](auto zero) {
    using F = decltype(zero);
    additive_log_probs_backward(CpuBackend{}, batch_of<F>(a), saved_of<F>(am_max, lm_max, lm_sum, products),
                                data<F>(px_grad), data<F>(py_grad), mutable_data<F>(am_grad), mutable_data<F>(lm_grad),
                                mutable_data<F>(unigram_grad));
  });
  return {am_grad, lm_grad, unigram_grad};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("rnnt_additive_log_probs", TORCH_BOX(&rnnt_additive_log_probs));
  m.impl("rnnt_additive_log_probs_backward", TORCH_BOX(&rnnt_additive_log_probs_backward));
}

}  // namespace
}  // namespace lattica
