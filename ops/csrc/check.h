// Checks and small helpers shared by cpu/*.cpp and cuda/*.cu.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "lattice.h"

namespace lattica {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline LatticeShape check_lattice(const Tensor& px, const Tensor& py, const char* px_name, const char* py_name) {
  STD_TORCH_CHECK(px.dim() == 3 && py.dim() == 3, px_name, " and ", py_name, " must have 3 dimensions (N, S, T), got ",
                  px.dim(), " and ", py.dim());
  const int64_t N = py.size(0), S = py.size(1) - 1, T = py.size(2), T1 = px.size(2);
  STD_TORCH_CHECK(S >= 0 && px.size(0) == N && px.size(1) == S && (T1 == T || T1 == T + 1), px_name,
                  " must be (N, S, T + 1) or (N, S, T) where ", py_name, " is (N, S + 1, T); got (", px.size(0), ", ",
                  px.size(1), ", ", T1, ") and (", N, ", ", py.size(1), ", ", T, ")");
  STD_TORCH_CHECK(px.scalar_type() == py.scalar_type(), px_name, " and ", py_name, " must have one dtype");
  STD_TORCH_CHECK(px.scalar_type() == ScalarType::Float || px.scalar_type() == ScalarType::Double, px_name, " and ",
                  py_name, " must be float32 or float64");
  return {N, S, T, T1 == T};
}

inline void check_boundary_tensor(const Tensor& boundary, int64_t N) {
  STD_TORCH_CHECK(boundary.dim() == 2 && boundary.size(0) == N && boundary.size(1) == 4,
                  "boundary must be (N, 4) with N = ", N);
  STD_TORCH_CHECK(boundary.scalar_type() == ScalarType::Long && boundary.is_contiguous(),
                  "boundary must be a contiguous int64 tensor");
}

inline void check_bounds_values(const Bounds* bounds, const LatticeShape& shape) {
  for (int64_t n = 0; n < shape.N; ++n)
    STD_TORCH_CHECK(bounds[n].valid(shape.S, shape.T), "boundary[", n, "] = [", bounds[n].s_begin, ", ",
                    bounds[n].t_begin, ", ", bounds[n].s_end, ", ", bounds[n].t_end,
                    "] must be [s_begin, t_begin, s_end, t_end] with 0 <= s_begin <= s_end <= S = ", shape.S,
                    " and 0 <= t_begin <= t_end <= T = ", shape.T);
}

inline LatticeShape check_prune_arguments(const Tensor& px_grad, const Tensor& py_grad, const Tensor& boundary,
                                          int64_t s_range) {
  const LatticeShape shape = check_lattice(px_grad, py_grad, "px_grad", "py_grad");
  STD_TORCH_CHECK(px_grad.is_contiguous() && py_grad.is_contiguous(), "px_grad and py_grad must be contiguous");
  STD_TORCH_CHECK(s_range >= 1 && s_range <= shape.S + 1, "s_range must lie in [1, S + 1 = ", shape.S + 1, "], got ",
                  s_range);
  check_boundary_tensor(boundary, shape.N);
  return shape;
}

inline Tensor empty_like_shape(const Tensor& like, std::initializer_list<int64_t> sizes,
                               std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), dtype);
}

// f(zero of the dtype), so that f can take its type.
template <typename F>
void with_float_type(const Tensor& x, F f) {
  if (x.scalar_type() == ScalarType::Float) f(0.0f);
  else if (x.scalar_type() == ScalarType::Double) f(0.0);
  else STD_TORCH_CHECK(false, "expected float32 or float64");
}

}  // namespace lattica
