// Self-attention with relative positions, one head of one utterance at a time; for CPU threads. Everything is read from, and
// its gradient written to, the rows that the input projection makes, [q | a | b | k | v] for each head: nothing is transposed
// or joined in memory beforehand. See ops/relative_attention.py for the formula.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "log_add.h"
#include "parallel.h"
#include "small_gemm.h"

namespace lattica {

constexpr int64_t kQueries = 48;  // rows worked on at a time: with a thousand keys their scores still fit the second-level cache

struct AttentionShape {
  int64_t N, T, H, K, W;  // utterances, frames, heads, dimension of a head, frequencies
  int64_t head() const { return 3 * K + 2 * W; }
  int64_t row() const { return H * head(); }
  int64_t depth() const { return K + 2 * W; }  // of the product of queries with keys
  int64_t columns() const { return round_up(T); }
};

// One head of one utterance, copied out of the projection's rows in the forms that the products need.
template <typename T>
struct AttentionHead {
  AttentionHead(const AttentionShape& s, const T* x, const T* cos, const T* sin, int64_t len)
      : query_stride(round_up(s.depth(), kLanes)), value_stride(round_up(s.K, kLanes)), query(len * query_stride, T(0)),
        key(len * query_stride, T(0)), value(len * value_stride, T(0)) {
    // The product of queries and keys is scaled here: content by 1 / sqrt(K), positions by 1 / sqrt(W).
    const T content = T(1) / std::sqrt(T(s.K)), position = T(1) / std::sqrt(T(s.W));
    for (int64_t t = 0; t < len; ++t) {
      const T *q = x + t * s.row(), *a = q + s.K, *b = a + s.W, *k = b + s.W, *v = k + s.K;
      const T *c = cos + t * s.W, *d = sin + t * s.W;
      T *query_t = query.data() + t * query_stride, *key_t = key.data() + t * query_stride;
      for (int64_t i = 0; i < s.K; ++i) query_t[i] = q[i] * content;
      for (int64_t i = 0; i < s.W; ++i) query_t[s.K + i] = (a[i] * c[i] - b[i] * d[i]) * position;
      for (int64_t i = 0; i < s.W; ++i) query_t[s.K + s.W + i] = (a[i] * d[i] + b[i] * c[i]) * position;
      std::copy(k, k + s.K, key_t);
      std::copy(c, c + s.W, key_t + s.K);
      std::copy(d, d + s.W, key_t + s.K + s.W);
      std::copy(v, v + s.K, value.data() + t * value_stride);
    }
  }
  int64_t query_stride, value_stride;
  std::vector<T> query, key, value;
};

// (len × width) with rows of `stride` → (width × columns), zero from column len on.
template <typename T>
std::vector<T> transposed(const std::vector<T>& x, int64_t len, int64_t width, int64_t stride, int64_t columns) {
  std::vector<T> y(width * columns, T(0));
  for (int64_t t = 0; t < len; ++t)
    for (int64_t i = 0; i < width; ++i) y[i * columns + t] = x[t * stride + i];
  return y;
}

// Softmax of the first `len` of `columns` scores, in place; zeros behind (exp of -1e30). Sixteen maxima and sums at a time, for the vector unit.
template <typename T>
void softmax(T* row, int64_t len, int64_t columns) {
  for (int64_t j = len; j < columns; ++j) row[j] = T(-1e30);
  T maxima[kStrip], sums[kStrip] = {};
  std::copy(row, row + kStrip, maxima);
  for (int64_t j = kStrip; j < columns; j += kStrip)
    for (int64_t l = 0; l < kStrip; ++l) maxima[l] = maxima[l] > row[j + l] ? maxima[l] : row[j + l];
  const T largest = *std::max_element(maxima, maxima + kStrip);
  for (int64_t j = 0; j < columns; j += kStrip)
    for (int64_t l = 0; l < kStrip; ++l) sums[l] += row[j + l] = exp_nonpositive(row[j + l] - largest);
  T total = T(0);
  for (int64_t l = 0; l < kStrip; ++l) total += sums[l];
  const T factor = T(1) / total;
  for (int64_t j = 0; j < columns; ++j) row[j] *= factor;
}

template <typename T, typename Backend>
void relative_attention_forward(const Backend& backend, const AttentionShape& s, const T* x, const T* cos, const T* sin,
                                const int64_t* lens, T* out, T* weights) {
  backend.for_each(s.N * s.H, [&](int64_t task) {
    const int64_t n = task / s.H, h = task % s.H, len = lens[n], columns = round_up(len);
    T* out_h = out + n * s.T * s.H * s.K + h * s.K;
    for (int64_t t = len; t < s.T; ++t) std::fill_n(out_h + t * s.H * s.K, s.K, T(0));
    const AttentionHead<T> head(s, x + n * s.T * s.row() + h * s.head(), cos, sin, len);
    const std::vector<T> keys = transposed(head.key, len, s.depth(), head.query_stride, columns);
    std::vector<T> result(kQueries * head.value_stride);
    for (int64_t i = 0; i < len; i += kQueries) {
      const int64_t rows = std::min(kQueries, len - i);
      T* weights_i = weights + (task * s.T + i) * s.columns();
      small_gemm(rows, len, s.depth(), head.query.data() + i * head.query_stride, head.query_stride, int64_t(1),
                 keys.data(), columns, weights_i, s.columns());
      for (int64_t r = 0; r < rows; ++r) softmax(weights_i + r * s.columns(), len, columns);
      small_gemm(rows, s.K, len, weights_i, s.columns(), int64_t(1), head.value.data(), head.value_stride,
                 result.data(), head.value_stride);
      for (int64_t r = 0; r < rows; ++r)
        std::copy_n(result.data() + r * head.value_stride, s.K, out_h + (i + r) * s.H * s.K);
    }
  });
}

// Gradients of q, a and b of one frame, given that of its query vector.
template <typename T>
void query_grad(const AttentionShape& s, const T* grad, const T* cos, const T* sin, T* x_grad) {
  const T content = T(1) / std::sqrt(T(s.K)), position = T(1) / std::sqrt(T(s.W));
  const T *first = grad + s.K, *second = first + s.W;
  for (int64_t i = 0; i < s.K; ++i) x_grad[i] = grad[i] * content;
  for (int64_t i = 0; i < s.W; ++i) x_grad[s.K + i] = (first[i] * cos[i] + second[i] * sin[i]) * position;
  for (int64_t i = 0; i < s.W; ++i) x_grad[s.K + s.W + i] = (second[i] * cos[i] - first[i] * sin[i]) * position;
}

template <typename T, typename Backend>
void relative_attention_backward(const Backend& backend, const AttentionShape& s, const T* grad, const T* x, const T* weights,
                                 const T* cos, const T* sin, const int64_t* lens, T* x_grad) {
  backend.for_each(s.N * s.H, [&](int64_t task) {
    const int64_t n = task / s.H, h = task % s.H, len = lens[n], columns = round_up(len);
    T* x_grad_h = x_grad + n * s.T * s.row() + h * s.head();
    for (int64_t t = len; t < s.T; ++t) std::fill_n(x_grad_h + t * s.row(), s.head(), T(0));
    const AttentionHead<T> head(s, x + n * s.T * s.row() + h * s.head(), cos, sin, len);
    const int64_t query_stride = head.query_stride, value_stride = head.value_stride;
    const std::vector<T> values = transposed(head.value, len, s.K, value_stride, columns);
    std::vector<T> out_grad(len * value_stride, T(0));
    for (int64_t t = 0; t < len; ++t)
      std::copy_n(grad + (n * s.T + t) * s.H * s.K + h * s.K, s.K, out_grad.data() + t * value_stride);
    std::vector<T> scores_grad(kQueries * columns), queries_grad(kQueries * query_stride);
    std::vector<T> value_grad(len * value_stride, T(0)), key_grad(len * value_stride, T(0));
    for (int64_t i = 0; i < len; i += kQueries) {
      const int64_t rows = std::min(kQueries, len - i);
      const T* weights_i = weights + (task * s.T + i) * s.columns();
      const T* out_grad_i = out_grad.data() + i * value_stride;
      // values: y = w v
      small_gemm(len, s.K, rows, weights_i, int64_t(1), s.columns(), out_grad_i, value_stride, value_grad.data(),
                 value_stride, true);
      small_gemm(rows, len, s.K, out_grad_i, value_stride, int64_t(1), values.data(), columns, scores_grad.data(), columns);
      // softmax: dscore = w (dw - Σ w dw)
      for (int64_t r = 0; r < rows; ++r) {
        const T* w = weights_i + r * s.columns();
        T* d = scores_grad.data() + r * columns;
        T sums[kStrip] = {}, mean = T(0);
        for (int64_t j = 0; j < columns; j += kStrip)
          for (int64_t l = 0; l < kStrip; ++l) sums[l] += w[j + l] * d[j + l];
        for (int64_t l = 0; l < kStrip; ++l) mean += sums[l];
        for (int64_t j = 0; j < columns; ++j) d[j] = w[j] * (d[j] - mean);
      }
      small_gemm(rows, s.depth(), len, scores_grad.data(), columns, int64_t(1), head.key.data(), query_stride,
                 queries_grad.data(), query_stride);
      for (int64_t r = 0; r < rows; ++r)
        query_grad(s, queries_grad.data() + r * query_stride, cos + (i + r) * s.W, sin + (i + r) * s.W,
                   x_grad_h + (i + r) * s.row());
      // The sinusoids in the keys are constants: only the first K columns have a gradient.
      small_gemm(len, s.K, rows, scores_grad.data(), int64_t(1), columns, head.query.data() + i * query_stride,
                 query_stride, key_grad.data(), value_stride, true);
    }
    for (int64_t t = 0; t < len; ++t) {
      T* k_grad = x_grad_h + t * s.row() + s.K + 2 * s.W;
      std::copy_n(key_grad.data() + t * value_stride, s.K, k_grad);
      std::copy_n(value_grad.data() + t * value_stride, s.K, k_grad + s.K);
    }
  });
}

}  // namespace lattica
