// What every CUDA kernel launch needs: the stream torch uses now, and an error that says which op failed.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../check.h"

namespace lattica {

// Makes the tensor's device current while it lives. `stream` by the function that torch 2.10 has, too.
struct DeviceOf {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;

  explicit DeviceOf(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
};

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "lattica::", op, ": CUDA: ", cudaGetErrorString(error));
}

// Lets `kernel` use `bytes` of dynamic shared memory; raises if the card has less.
template <typename Kernel>
void allow_shared_memory(Kernel* kernel, size_t bytes, const char* op) {
  if (bytes <= 48 * 1024) return;
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  STD_TORCH_CHECK(bytes <= static_cast<size_t>(most), "lattica::", op, ": needs ", bytes,
                  " bytes of shared memory a block, this GPU has ", most, ": S is too large");
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace lattica
