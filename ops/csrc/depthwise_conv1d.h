// Depthwise convolution over time of one utterance, for a block of channels; frames are rows, channels are columns.
//
// Channels are independent and lie next to each other in memory, so a block of kBlock of them is the vector and the sums of a few
// neighbouring frames (or kernel positions) are kept in registers. The block's frames are first copied into a small array with
// zeros around them: it stays in the first-level cache and there is no edge to look after.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lattica {

constexpr int64_t kBlock = 16;  // channels: one cache line of float32
constexpr int64_t kRows = 4;    // results kept in registers at a time

// Rows [0, T) of `x` (row stride C, `width` <= kBlock columns) into padded[halo ...], zeros before, after and beside.
template <typename T>
void copy_padded(const T* x, int64_t num_frames, int64_t C, int64_t width, int64_t halo, int64_t rows, T* padded) {
  std::fill(padded, padded + rows * kBlock, T(0));
  for (int64_t t = 0; t < num_frames; ++t)
    for (int64_t c = 0; c < width; ++c) padded[(halo + t) * kBlock + c] = x[t * C + c];
}

// sums[r][c] = Σ_i a[i][c] · b[i + r][c] for r < kRows: rows of `a` against `b` at kRows successive offsets.
template <typename T>
inline void correlate(const T* __restrict a, const T* __restrict b, int64_t n, T (&sums)[kRows][kBlock]) {
  T acc[kRows][kBlock] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t r = 0; r < kRows; ++r)
#pragma GCC unroll 16
      for (int64_t c = 0; c < kBlock; ++c) acc[r][c] += a[i * kBlock + c] * b[(i + r) * kBlock + c];
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kBlock; ++c) sums[r][c] = acc[r][c];
}

// y[t] = bias + Σ_k padded[t + k] · kernel[k], written with row stride C.
template <typename T>
void convolve(const T* padded, const T* kernel, const T* bias, int64_t num_frames, int64_t W, int64_t C, int64_t width, T* y) {
  T sums[kRows][kBlock];
  for (int64_t t = 0; t < num_frames; t += kRows) {
    correlate(kernel, padded + t * kBlock, W, sums);
    const int64_t rows = std::min(kRows, num_frames - t);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; ++c) y[(t + r) * C + c] = sums[r][c] + (bias ? bias[c] : T(0));
  }
}

// kernel_grad[k] += Σ_t grad[t] · padded[t + k] for k < W; kernel_grad has W rows, rounded up to a multiple of kRows.
template <typename T>
void add_kernel_grad(const T* grad, const T* padded, int64_t num_frames, int64_t W, T* kernel_grad) {
  T sums[kRows][kBlock];
  for (int64_t k = 0; k < W; k += kRows) {
    correlate(grad, padded + k * kBlock, num_frames, sums);
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < kBlock; ++c) kernel_grad[(k + r) * kBlock + c] += sums[r][c];
  }
}

}  // namespace lattica
