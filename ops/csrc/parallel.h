// for_each(n, f): run f(0) ... f(n-1) in any order, on CPU threads or as a CUDA grid.
//
// An algorithm is written once, as lambdas over indexes, and takes the back end as its first argument: `CpuBackend{}` in
// cpu/*.cpp, `CudaBackend{stream}` in cuda/*.cu. So the CPU tests run the logic that the GPU runs. Where a GPU wants another
// algorithm than the CPU (frame by frame over a whole batch, instead of an utterance a thread), the CPU has it too, for tests.
#pragma once

#include <cstdint>

#include "portable.h"

#ifdef __CUDACC__

#include <cuda_runtime.h>

namespace lattica {

template <typename F>
__global__ void for_each_kernel(int64_t n, F f) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) f(i);
}

template <typename Count, typename F>
__global__ void for_each_upto_kernel(const Count* n, F f) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x, end = static_cast<int64_t>(*n);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < end; i += stride) f(i);
}

struct CudaBackend {
  cudaStream_t stream;

  // The same with n in the device's memory: a loop over what an earlier kernel counted, without asking the GPU how much that was.
  // The grid fills a large GPU; each of its threads takes every so-many-th index. f must not change *n.
  template <typename Count, typename F>
  void for_each_upto(const Count* n, F f) const {
    for_each_upto_kernel<<<1056, 256, 0, stream>>>(n, f);
  }

  template <typename F>
  void for_each(int64_t n, F f) const {
    if (n == 0) return;
    constexpr int64_t kThreads = 256, kMaxBlocks = 1 << 16;
    const int64_t blocks = (n + kThreads - 1) / kThreads;
    for_each_kernel<<<static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0, stream>>>(n, f);
  }

  // In the order of the kernels. `from` may be on the CPU, and may be changed as soon as copy() is back.
  void fill(void* to, int byte, int64_t bytes) const { cudaMemsetAsync(to, byte, static_cast<size_t>(bytes), stream); }
  void copy(void* to, const void* from, int64_t bytes) const {
    cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream);
  }
};

}  // namespace lattica

#else

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#ifdef __SANITIZE_THREAD__
#include <thread>
#include <vector>
#endif

namespace lattica {

// Threads are torch's own (torch.set_num_threads). Each fetches a small share of the indexes at a time, because utterances
// differ in length and equal shares would leave one thread waiting. f must not throw.
struct CpuBackend {
  template <typename Count, typename F>
  void for_each_upto(const Count* n, const F& f) const {
    for_each(static_cast<int64_t>(*n), f);
  }

  template <typename F>
  void for_each(int64_t n, const F& f) const {
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), n);
    if (threads <= 1) {
      for (int64_t i = 0; i < n; ++i) f(i);
      return;
    }
#ifdef __SANITIZE_THREAD__
    // ThreadSanitizer does not see how torch's threads wait for each other (scripts/sanitize.sh). Here each gets its indexes
    // beforehand, else the first would have done them all before the second begins.
    std::vector<std::thread> all;
    for (int64_t k = 0; k < threads; ++k)
      all.emplace_back([&f, k, threads, n] {
        for (int64_t i = k; i < n; i += threads) f(i);
      });
    for (std::thread& thread : all) thread.join();
#else
    const int64_t chunk = std::max<int64_t>(1, n / (16 * threads));
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      for (int64_t begin; (begin = next.fetch_add(chunk)) < n;) {
        const int64_t end = std::min(n, begin + chunk);
        for (int64_t i = begin; i < end; ++i) f(i);
      }
    });
#endif
  }

  void fill(void* to, int byte, int64_t bytes) const {
    if (bytes > 0) std::memset(to, byte, static_cast<size_t>(bytes));
  }
  void copy(void* to, const void* from, int64_t bytes) const {
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
  }
};

}  // namespace lattica

#endif
