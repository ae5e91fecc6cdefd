// What an op written once for both devices needs around it: the back end for its tensors' device, and a way to bring a few numbers
// from there to the host. `TORCH_BOX(&Instance<op>::run)` makes a kernel of op(backend, tensor, more arguments ...).
#pragma once

#include "check.h"
#include "parallel.h"

#ifdef __CUDACC__
#include "cuda/launch.h"
#else
#include <cstring>
#endif

namespace lattica {
namespace {  // torch's stable types are hidden symbols

#ifdef __CUDACC__

using Backend = CudaBackend;

template <auto op>
struct Instance;

template <typename R, typename... Args, R (*op)(const CudaBackend&, const Tensor&, Args...)>
struct Instance<op> {
  static R run(const Tensor& first, Args... rest) {
    const DeviceOf device(first);
    R result = op(CudaBackend{device.stream}, first, rest...);
    check_launch("an op on automata");
    return result;
  }
};

// Waits for all that was launched before.
inline void read_back(const CudaBackend& backend, void* to, const void* from, size_t bytes) {
  cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, backend.stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(backend.stream);
  STD_TORCH_CHECK(error == cudaSuccess, "lattica: CUDA: ", cudaGetErrorString(error));
}

#else

using Backend = CpuBackend;

template <auto op>
struct Instance;

template <typename R, typename... Args, R (*op)(const CpuBackend&, const Tensor&, Args...)>
struct Instance<op> {
  static R run(const Tensor& first, Args... rest) { return op(CpuBackend{}, first, rest...); }
};

inline void read_back(const CpuBackend&, void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

#endif

inline Tensor zeros_like_shape(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_zeros(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), dtype);
}

// A tensor on the CPU, whatever the device of `like`.
inline Tensor on_host(const Tensor& like, const int32_t* values, int64_t n) {
  const std::initializer_list<int64_t> sizes{n};
  Tensor out = torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), 1), ScalarType::Int,
                                        std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CPU));
  for (int64_t i = 0; i < n; ++i) static_cast<int32_t*>(out.mutable_data_ptr())[i] = values[i];
  return out;
}

}  // namespace
}  // namespace lattica
