// for_each_shared_block(backend, threads, doubles, n, f): f(i, block, memory) for i = 0 ... n - 1, where the threads of a block work on
// one i together, meet at block.sync(), and share `memory` of so many doubles: a CUDA block and its shared memory. On the CPU
// blocks run one after another with three threads each, whatever was asked for: not fast, but tests see threads that race.
#pragma once

#include "parallel.h"

#ifndef __CUDACC__
#include <barrier>
#include <thread>
#include <vector>
#endif

namespace lattica {

struct SharedBlock {
  int32_t thread, threads;
#ifndef __CUDACC__
  std::barrier<>* meeting;
  void sync() const { meeting->arrive_and_wait(); }
#else
  LATTICA_BOTH void sync() const {
#ifdef __CUDA_ARCH__
    __syncthreads();
#endif
  }
#endif
};

#ifdef __CUDACC__

template <typename F>
__global__ void __launch_bounds__(1024) for_each_shared_block_kernel(F f) {
  extern __shared__ double block_memory[];
  f(blockIdx.x, SharedBlock{static_cast<int32_t>(threadIdx.x), static_cast<int32_t>(blockDim.x)}, block_memory);
}

// The largest `doubles` that for_each_shared_block can have here.
inline int64_t most_block_memory(const CudaBackend&) {
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return most / static_cast<int64_t>(sizeof(double));
}

template <typename F>
void for_each_shared_block(const CudaBackend& backend, int64_t threads, int64_t doubles, int64_t n, F f) {
  if (n == 0) return;
  const size_t bytes = static_cast<size_t>(doubles) * sizeof(double);
  if (bytes > 48 * 1024)
    cudaFuncSetAttribute(for_each_shared_block_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  const int64_t warps = (threads + 31) / 32 * 32;
  for_each_shared_block_kernel<<<static_cast<unsigned>(n), static_cast<unsigned>(warps < 1024 ? warps : 1024), bytes, backend.stream>>>(f);
}

#else

inline int64_t most_block_memory(const CpuBackend&) { return 128; }  // little, so that tests do without it, too

template <typename F>
void for_each_shared_block(const CpuBackend&, int64_t, int64_t doubles, int64_t n, const F& f) {
  constexpr int32_t kThreads = 3;
  std::vector<double> memory(doubles);
  std::barrier<> meeting(kThreads);
  std::vector<std::thread> threads;
  for (int32_t thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&, thread] {
      for (int64_t i = 0; i < n; ++i) {
        f(i, SharedBlock{thread, kThreads, &meeting}, memory.data());
        meeting.arrive_and_wait();
      }
    });
  for (std::thread& thread : threads) thread.join();
}

#endif

}  // namespace lattica
