// for_each_block(backend, size, doubles, n, f): f(i, block, memory) for i = 0 ... n - 1, where the threads of a block work on one i
// together, meet at block.sync(), and share `memory` of so many doubles: a CUDA block and its shared memory, so that a whole chain
// of steps is one kernel. On the CPU, where only tests use this, a block is three threads at most, so that forgotten meetings and
// races show without a GPU; blocks then run one after another. Blocks of one thread run side by side.
//
// Within f every thread goes the same way past each sync(), and takes its share of a loop by
//   for (int64_t i = block.rank(); i < n; i += block.size()) …
#pragma once

#include <cstdint>

#include "atomics.h"
#include "parallel.h"

#ifndef __CUDACC__
#include <barrier>
#include <thread>
#include <vector>
#endif

namespace lattica {

// A class of its own for each compiler, because the linker merges what has one name.
#ifdef __CUDACC__

class CudaBlock {
 public:
  LATTICA_BOTH CudaBlock(int32_t rank, int32_t size) : rank_(rank), size_(size) {}
  LATTICA_BOTH int32_t rank() const { return rank_; }
  LATTICA_BOTH int32_t size() const { return size_; }
  LATTICA_BOTH void sync() const {
#ifdef __CUDA_ARCH__
    __syncthreads();
#endif
  }

 private:
  int32_t rank_, size_;
};

using Block = CudaBlock;

#else

class CpuBlock {
 public:
  CpuBlock(int32_t rank, int32_t size, std::barrier<>* barrier) : rank_(rank), size_(size), barrier_(barrier) {}
  int32_t rank() const { return rank_; }
  int32_t size() const { return size_; }
  void sync() const {
    if (barrier_) barrier_->arrive_and_wait();
  }

 private:
  int32_t rank_, size_;
  std::barrier<>* barrier_;
};

using Block = CpuBlock;

#endif

#ifdef __CUDACC__

template <typename F>
__global__ void __launch_bounds__(1024) for_each_block_kernel(F f) {
  extern __shared__ double block_memory[];
  f(blockIdx.x, Block(static_cast<int32_t>(threadIdx.x), static_cast<int32_t>(blockDim.x)), block_memory);
}

// The largest `doubles` that for_each_block can have here.
inline int64_t most_block_memory(const CudaBackend&) {
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return most / static_cast<int64_t>(sizeof(double));
}

template <typename F>
void for_each_block(const CudaBackend& backend, int64_t size, int64_t doubles, int64_t n, F f) {
  if (n == 0) return;
  const size_t bytes = static_cast<size_t>(doubles) * sizeof(double);
  if (bytes > 48 * 1024)
    cudaFuncSetAttribute(for_each_block_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  const int64_t warps = (size + 31) / 32 * 32;
  for_each_block_kernel<<<static_cast<unsigned>(n), static_cast<unsigned>(warps < 1024 ? warps : 1024), bytes, backend.stream>>>(f);
}

#else

inline int64_t most_block_memory(const CpuBackend&) { return 128; }  // little, so that tests do without it, too

template <typename F>
void for_each_block(const CpuBackend& backend, int64_t size, int64_t doubles, int64_t n, const F& f) {
  if (size <= 1)
    return backend.for_each(n, [&](int64_t i) {
      std::vector<double> memory(doubles);
      f(i, Block(0, 1, nullptr), memory.data());
    });
  const int32_t num_threads = size < 3 ? 2 : 3;
  std::vector<double> memory(doubles);
  std::barrier<> barrier(num_threads);
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < num_threads; ++rank)
    threads.emplace_back([&, rank] {
      for (int64_t i = 0; i < n; ++i) {
        f(i, Block(rank, num_threads, &barrier), memory.data());
        barrier.arrive_and_wait();
      }
    });
  for (std::thread& thread : threads) thread.join();
}

#endif

// Which of n numbers are the k largest (k < n): all that are above `least`, and of those equal to it as many as `ties` says;
// -1: all of them.
struct LargestCut {
  uint64_t least;
  int64_t ties;
};

// By radix, four bits a pass from the top, until the border is clear; value(i) is the i-th number. `bins`: 16 counters. The
// result is the same in all threads. Meets before it reads and after its last reading.
template <typename Value>
LATTICA_DEVICE inline LargestCut cut_largest(const Block& block, int64_t n, int64_t k, int32_t* bins, const Value& value) {
  LargestCut cut{0, k};
  uint64_t decided = 0;  // the bits of `least` that are known
  for (int shift = 60; shift >= 0; shift -= 4) {
    for (int64_t b = block.rank(); b < 16; b += block.size()) bins[b] = 0;
    block.sync();
    for (int64_t i = block.rank(); i < n; i += block.size()) {
      const uint64_t x = value(i);
      if ((x & decided) == cut.least) atomic_add(bins + ((x >> shift) & 15), 1);
    }
    block.sync();
    int b = 15;
    while (b > 0 && bins[b] < cut.ties) cut.ties -= bins[b--];
    const bool clear = bins[b] == cut.ties;
    cut.least |= static_cast<uint64_t>(b) << shift;
    decided |= uint64_t{15} << shift;
    block.sync();
    if (clear) return {cut.least, -1};
  }
  return cut;
}

}  // namespace lattica
