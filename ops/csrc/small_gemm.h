// Products of matrices that are too small for a BLAS call each: C = A · B or C += A · B for one CPU thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lattica {

// Rows of B and C must be readable and writable to a multiple of this: a vector, which is one register for float with AVX2.
constexpr int64_t kLanes = 8;
// What a tile is wide, and what `round_up` rounds to.
constexpr int64_t kStrip = 2 * kLanes;

inline int64_t round_up(int64_t n, int64_t multiple = kStrip) { return (n + multiple - 1) / multiple * multiple; }

template <typename T>
struct Vector {  // kLanes numbers, anywhere in memory
  typedef T type __attribute__((vector_size(kLanes * sizeof(T)), aligned(sizeof(T)), may_alias));
};

// A tile of C of kRows rows and kVectors vectors. 6 × 2 sums fill the registers of AVX2 beside 2 of B and 1 of A.
template <int kRows, int kVectors, typename T>
void gemm_tile(int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb, T* c, int64_t ldc,
               bool accumulate) {
  using Lanes = typename Vector<T>::type;
  Lanes sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = accumulate ? *reinterpret_cast<const Lanes*>(c + r * ldc + v * kLanes) : Lanes{};
  for (int64_t k = 0; k < depth; ++k) {
    Lanes row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) row[v] = *reinterpret_cast<const Lanes*>(b + k * ldb + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T x = a[r * a_row + k * a_col];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[r][v] += x * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Lanes*>(c + r * ldc + v * kLanes) = sums[r][v];
}

template <int kVectors, typename T>
void gemm_strip(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb, T* c,
                int64_t ldc, bool accumulate) {
  int64_t i = 0;
  for (; i + 6 <= rows; i += 6)
    gemm_tile<6, kVectors>(depth, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
  for (; i + 2 <= rows; i += 2)
    gemm_tile<2, kVectors>(depth, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
  if (i < rows) gemm_tile<1, kVectors>(depth, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
}

// C (rows × columns) = or += A (rows × depth) · B (depth × columns), columns rounded up to kLanes. Element (i, k) of A is
// a[i * a_row + k * a_col], so a transposed A needs no copy; B and C are row-major.
template <typename T>
void small_gemm(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b,
                int64_t ldb, T* c, int64_t ldc, bool accumulate = false) {
  int64_t j = 0;
  for (; j + kLanes < columns; j += kStrip)
    gemm_strip<2>(rows, depth, a, a_row, a_col, b + j, ldb, c + j, ldc, accumulate);
  if (j < columns) gemm_strip<1>(rows, depth, a, a_row, a_col, b + j, ldb, c + j, ldc, accumulate);
}

}  // namespace lattica
