// for_each_block(backend, n, size, f): run f(block, 0) ... f(block, n - 1), each by `size` threads that share the work and meet at
// block.sync(): a CUDA block, so that a whole chain of steps is one kernel. On the CPU size 1 is one thread, and sync nothing; with
// more, for tests, forgotten meetings and races show without a GPU.
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

#ifdef __CUDACC__

struct CudaBlock {
  __device__ int64_t rank() const { return threadIdx.x; }
  __device__ int64_t size() const { return blockDim.x; }
  __device__ void sync() const { __syncthreads(); }
};

template <typename F>
__global__ void for_each_block_kernel(F f) {
  f(CudaBlock{}, static_cast<int64_t>(blockIdx.x));
}

template <typename F>
void for_each_block(const CudaBackend& backend, int64_t n, int64_t size, F f) {
  if (n > 0) for_each_block_kernel<<<static_cast<unsigned>(n), static_cast<unsigned>(size), 0, backend.stream>>>(f);
}

#else

struct CpuBlock {
  int64_t rank_, size_;
  std::barrier<>* barrier;

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }
  void sync() const {
    if (barrier) barrier->arrive_and_wait();
  }
};

template <typename F>
void for_each_block(const CpuBackend& backend, int64_t n, int64_t size, const F& f) {
  if (size <= 1) return backend.for_each(n, [&](int64_t i) { f(CpuBlock{0, 1, nullptr}, i); });
  std::barrier<> barrier(size);
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] {
      for (int64_t i = 0; i < n; ++i) f(CpuBlock{rank, size, &barrier}, i);
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
template <typename Block, typename Value>
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
