// Sorting by either back end, and looking up in what is sorted.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "check.h"
#include "parallel.h"

#ifdef __CUDACC__
#include <cub/device/device_radix_sort.cuh>
#endif

namespace lattica {

// The last of sorted[0] ... sorted[n - 1] that is at most x; sorted[0] must be.
template <typename T>
LATTICA_BOTH int64_t last_at_most(const T* sorted, int64_t n, T x) {
  int64_t low = 0, high = n;  // the answer is in [low, high)
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (sorted[middle] <= x) low = middle; else high = middle;
  }
  return low;
}

namespace {  // torch's stable types are hidden symbols

// sorted_keys = keys in order, values along with them. Keys are below 2^bits. On CUDA nothing waits for the result.
#ifdef __CUDACC__
inline void sort_pairs(const CudaBackend& backend, const Tensor& like, const uint64_t* keys, uint64_t* sorted_keys,
                       const int32_t* values, int32_t* sorted_values, int64_t n, int bits) {
  if (n == 0) return;
  size_t bytes = 0;
  cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, sorted_keys, values, sorted_values, n, 0, bits, backend.stream);
  const Tensor scratch = empty_like_shape(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  cub::DeviceRadixSort::SortPairs(scratch.mutable_data_ptr(), bytes, keys, sorted_keys, values, sorted_values, n, 0, bits,
                                  backend.stream);
}
#else
inline void sort_pairs(const CpuBackend&, const Tensor&, const uint64_t* keys, uint64_t* sorted_keys, const int32_t* values,
                       int32_t* sorted_values, int64_t n, int) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return keys[i] < keys[j]; });
  for (int64_t i = 0; i < n; ++i) sorted_keys[i] = keys[order[i]], sorted_values[i] = values[order[i]];
}
#endif

}  // namespace
}  // namespace lattica
