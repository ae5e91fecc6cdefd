// CPU threads over the batch; the recursion is in mutual_information.h.
#include "../mutual_information.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "../check.h"
#include "../parallel.h"

namespace lattica {
namespace {

template <typename T>
void run(const Tensor& px, const Tensor& py, const Bounds* bounds, const LatticeShape& shape, Tensor& scores,
         Tensor* px_grad, Tensor* py_grad) {
  const int64_t T1 = shape.modified ? shape.T : shape.T + 1;
  const T* px_data = static_cast<const T*>(px.const_data_ptr());
  const T* py_data = static_cast<const T*>(py.const_data_ptr());
  T* scores_data = static_cast<T*>(scores.mutable_data_ptr());
  T* px_grad_data = px_grad ? static_cast<T*>(px_grad->mutable_data_ptr()) : nullptr;
  T* py_grad_data = py_grad ? static_cast<T*>(py_grad->mutable_data_ptr()) : nullptr;
  const int64_t px_strides[3] = {px.stride(0), px.stride(1), px.stride(2)};
  const int64_t py_strides[3] = {py.stride(0), py.stride(1), py.stride(2)};

  CpuBackend().for_each(shape.N, [&](int64_t n) {
    const Bounds b = bounds ? bounds[n] : Bounds{0, 0, shape.S, shape.T};
    const Fronts f{b.s_end - b.s_begin, b.t_end - b.t_begin, shape.modified};
    const Matrix<const T> px_n{px_data + n * px_strides[0] + b.s_begin * px_strides[1] + b.t_begin * px_strides[2],
                               px_strides[1], px_strides[2]};
    const Matrix<const T> py_n{py_data + n * py_strides[0] + b.s_begin * py_strides[1] + b.t_begin * py_strides[2],
                               py_strides[1], py_strides[2]};
    std::unique_ptr<T[]> scratch(new T[f.scratch()]);
    scores_data[n] = mutual_information_forward(f, px_n, py_n, scratch.get());
    if (!px_grad) return;

    T* px_grad_n = px_grad_data + n * shape.S * T1;
    T* py_grad_n = py_grad_data + n * (shape.S + 1) * shape.T;
    const bool whole = f.S == shape.S && f.T == shape.T, no_path = scores_data[n] == -INFINITY;
    if (!whole || no_path) {
      std::fill(px_grad_n, px_grad_n + shape.S * T1, T(0));
      std::fill(py_grad_n, py_grad_n + (shape.S + 1) * shape.T, T(0));
    }
    if (no_path) return;  // no path, no occupation
    mutual_information_backward(f, scratch.get(), Matrix<T>{px_grad_n + b.s_begin * T1 + b.t_begin, T1, 1},
                                Matrix<T>{py_grad_n + b.s_begin * shape.T + b.t_begin, shape.T, 1});
  });
}

std::tuple<Tensor, Tensor, Tensor> mutual_information(const Tensor& px, const Tensor& py, std::optional<Tensor> boundary,
                                                      bool want_grad) {
  const LatticeShape shape = check_lattice(px, py, "px", "py");
  const Bounds* bounds = nullptr;
  if (boundary) {
    check_boundary_tensor(*boundary, shape.N);
    bounds = static_cast<const Bounds*>(boundary->const_data_ptr());
    check_bounds_values(bounds, shape);
  }
  Tensor scores = empty_like_shape(px, {shape.N});
  Tensor px_grad = want_grad ? empty_like_shape(px, {shape.N, shape.S, px.size(2)}) : empty_like_shape(px, {0});
  Tensor py_grad = want_grad ? empty_like_shape(py, {shape.N, shape.S + 1, shape.T}) : empty_like_shape(py, {0});
  THO_DISPATCH_V2(px.scalar_type(), "mutual_information", AT_WRAP([&] {
                    run<scalar_t>(px, py, bounds, shape, scores, want_grad ? &px_grad : nullptr,
                                  want_grad ? &py_grad : nullptr);
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {scores, px_grad, py_grad};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) { m.impl("mutual_information", TORCH_BOX(&mutual_information)); }

}  // namespace
}  // namespace lattica
