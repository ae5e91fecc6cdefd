// Sums of what lies before each element, by either back end: turns counts into where each one's share begins.
#pragma once

#include "check.h"
#include "parallel.h"

#ifdef __CUDACC__
#include <cub/device/device_scan.cuh>
#endif

namespace lattica {
namespace {  // torch's stable types are hidden symbols

// splits[i] = counts[0] + ... + counts[i - 1], for i = 0 ... n: n + 1 numbers, the last one the total. Scratch memory comes from
// where `like` has its own. On CUDA nothing waits for the result.
#ifdef __CUDACC__
inline void exclusive_scan(const CudaBackend& backend, const Tensor& like, const int32_t* counts, int32_t* splits, int64_t n) {
  backend.for_each(1, [=] LATTICA_BOTH(int64_t) { splits[0] = 0; });
  if (n == 0) return;
  size_t bytes = 0;
  cub::DeviceScan::InclusiveSum(nullptr, bytes, counts, splits + 1, n, backend.stream);
  const Tensor scratch = empty_like_shape(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  cub::DeviceScan::InclusiveSum(scratch.mutable_data_ptr(), bytes, counts, splits + 1, n, backend.stream);
}
#else
inline void exclusive_scan(const CpuBackend&, const Tensor&, const int32_t* counts, int32_t* splits, int64_t n) {
  splits[0] = 0;
  for (int64_t i = 0; i < n; ++i) splits[i + 1] = splits[i] + counts[i];
}
#endif

}  // namespace
}  // namespace lattica
