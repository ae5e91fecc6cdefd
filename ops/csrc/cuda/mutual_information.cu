// Allocates and launches; the kernel is in mutual_information.cuh.
#include "mutual_information.cuh"

#include "launch.h"

namespace lattica {
namespace {

template <typename T>
void launch(const Tensor& px, const Tensor& py, const Bounds* bounds, const LatticeShape& shape, bool want_grad, Tensor& scores,
            Tensor& px_grad, Tensor& py_grad, cudaStream_t stream) {
  if (shape.N == 0) return;
  Problem<T> p{static_cast<const T*>(px.const_data_ptr()),
               static_cast<const T*>(py.const_data_ptr()),
               {px.stride(0), px.stride(1), px.stride(2)},
               {py.stride(0), py.stride(1), py.stride(2)},
               bounds,
               shape,
               static_cast<T*>(scores.mutable_data_ptr()),
               static_cast<T*>(px_grad.mutable_data_ptr()),
               static_cast<T*>(py_grad.mutable_data_ptr()),
               want_grad};
  const size_t bytes = (want_grad ? 4 : 2) * (shape.S + 1) * sizeof(T);
  allow_shared_memory(mutual_information_kernel<T>, bytes, "mutual_information");
  const int64_t rows = (shape.S + 1 + 31) / 32 * 32;
  mutual_information_kernel<T><<<static_cast<unsigned>(shape.N), static_cast<unsigned>(rows < 1024 ? rows : 1024), bytes, stream>>>(p);
  check_launch("mutual_information");
}

std::tuple<Tensor, Tensor, Tensor> mutual_information(const Tensor& px, const Tensor& py, std::optional<Tensor> boundary,
                                                      bool want_grad) {
  const LatticeShape shape = check_lattice(px, py, "px", "py");
  const Bounds* bounds = nullptr;
  if (boundary) {
    check_boundary_tensor(*boundary, shape.N);
    STD_TORCH_CHECK(boundary->is_cuda(), "boundary must be on the GPU, as px is");
    bounds = static_cast<const Bounds*>(boundary->const_data_ptr());
  }
  const DeviceOf device(px);
  using Sizes = std::initializer_list<int64_t>;
  const auto zeros = [](const Tensor& like, Sizes sizes) {
    return torch::stable::new_zeros(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()));
  };
  Tensor scores = empty_like_shape(px, {shape.N});
  Tensor px_grad = want_grad ? zeros(px, {shape.N, shape.S, px.size(2)}) : empty_like_shape(px, {0});
  Tensor py_grad = want_grad ? zeros(py, {shape.N, shape.S + 1, shape.T}) : empty_like_shape(py, {0});
  THO_DISPATCH_V2(px.scalar_type(), "mutual_information", AT_WRAP([&] {
                    launch<scalar_t>(px, py, bounds, shape, want_grad, scores, px_grad, py_grad, device.stream);
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {scores, px_grad, py_grad};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CUDA, m) { m.impl("mutual_information", TORCH_BOX(&mutual_information)); }

}  // namespace
}  // namespace lattica
