// Log-probabilities of the joiner-free transducer, P(c | t, s) = softmax_c(am[t] + lm[s]), and their gradient: see
// ops/rnnt_additive.py for what is computed.
//
// The normalisers of all (t, s) are one product of exp(am) with exp(lm), and the way back is two. Exponentials are made where
// a product wants them, a tile at a time, so nothing of am's size is kept or read twice from far memory. Going back, most
// (t, s) have an occupation below rounding error; each tile of frames multiplies only the positions that matter to it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "lattice.h"
#include "log_add.h"
#include "row_reductions.h"
#include "small_gemm.h"

namespace lattica {

enum class RnntType { kRegular, kModified, kConstrained };

template <typename T>
struct AdditiveBatch {
  int64_t N, num_frames, num_positions, C;  // num_positions = S + 1
  const T *am, *lm, *log_unigram;           // (N, frames, C), (N, positions, C), (C,) or null
  const int64_t* symbols;                   // (N, S)
  const Bounds* bounds;                     // or null
  int64_t blank;
  T joint_scale, lm_scale, am_scale;
  RnntType type;

  // Rows of exp(lm): the positions, then the unigram, if any.
  int64_t rows() const { return num_positions + (log_unigram ? 1 : 0); }
  int64_t columns() const { return round_up(rows(), kLanes); }
  int64_t px_columns() const { return type == RnntType::kRegular ? num_frames + 1 : num_frames; }
  int64_t end_frame(int64_t n) const { return bounds ? bounds[n].t_end : num_frames; }
  const int64_t* symbols_of(int64_t n) const { return symbols + n * (num_positions - 1); }
  const T* lm_row(int64_t n, int64_t s) const {
    return s == num_positions ? log_unigram : lm + (n * num_positions + s) * C;
  }
};

// What forward keeps for backward. The maxima make exponentials of at most 1.
template <typename T>
struct AdditiveSaved {
  T *am_max, *lm_max, *lm_sum;  // (N, frames), (N, rows()), (N, rows()): Σ_c exp(lm - lm_max)
  T* products;                  // (N, frames, columns()): Σ_c exp(am - am_max) exp(lm - lm_max)
};

constexpr int64_t kForwardFrames = 48, kForwardDepth = 256;  // a tile of exp(am), 48 KB
constexpr int64_t kBackwardFrames = 64, kBackwardClasses = 128;

// ------------------------------------------------------------------------------------------------------------ forward

// exp(lm - max) of one row into a column of lm_probs (C, columns()), which is how the product wants it.
template <typename T>
void additive_lm_row(const AdditiveBatch<T>& b, int64_t n, int64_t s, const AdditiveSaved<T>& saved, T* lm_probs) {
  const T* row = b.lm_row(n, s);
  const int64_t columns = b.columns();
  const T max = max_of(row, b.C, -std::numeric_limits<T>::infinity());
  T block[kForwardDepth];
  T sum = T(0);
  for (int64_t begin = 0; begin < b.C; begin += kForwardDepth) {
    const int64_t count = std::min(kForwardDepth, b.C - begin);
    for (int64_t c = 0; c < count; ++c) block[c] = exp_nonpositive(row[begin + c] - max);
    sum += sum_of(block, count);
    for (int64_t c = 0; c < count; ++c) lm_probs[(n * b.C + begin + c) * columns + s] = block[c];
  }
  saved.lm_max[n * b.rows() + s] = max;
  saved.lm_sum[n * b.rows() + s] = sum;
}

// What does not depend on the frame of log P(symbol | t, s), s < S, and log P(blank | t, s).
template <typename T>
void additive_lm_terms(const AdditiveBatch<T>& b, int64_t n, const AdditiveSaved<T>& saved, T* symbol_terms,
                       T* blank_terms) {
  const T* max = saved.lm_max + n * b.rows();
  const T* sum = saved.lm_sum + n * b.rows();
  const T scale = b.joint_scale + b.lm_scale, am_only = b.log_unigram ? b.am_scale : T(0);
  const auto term = [&](int64_t s, int64_t c) {
    T value = scale * b.lm_row(n, s)[c] - b.joint_scale * max[s];
    if (b.lm_scale != T(0)) value -= b.lm_scale * (std::log(sum[s]) + max[s]);
    if (am_only != T(0)) value += am_only * b.log_unigram[c];
    return value;
  };
  for (int64_t s = 0; s < b.num_positions; ++s) {
    blank_terms[s] = term(s, b.blank);
    if (s + 1 < b.num_positions) symbol_terms[s] = term(s, b.symbols_of(n)[s]);
  }
}

// exp(am) · exp(lm) of the frames [begin, end) of utterance n, into saved.products.
template <typename T>
void additive_products(const AdditiveBatch<T>& b, int64_t n, int64_t begin, int64_t end, const AdditiveSaved<T>& saved,
                       const T* lm_probs) {
  alignas(64) T probs[kForwardFrames * kForwardDepth];
  const int64_t count = end - begin, columns = b.columns();
  const T* am = b.am + (n * b.num_frames + begin) * b.C;
  T* max = saved.am_max + n * b.num_frames + begin;
  T* products = saved.products + (n * b.num_frames + begin) * columns;
  for (int64_t i = 0; i < count; ++i) max[i] = max_of(am + i * b.C, b.C, -std::numeric_limits<T>::infinity());
  for (int64_t first = 0; first < b.C; first += kForwardDepth) {
    const int64_t depth = std::min(kForwardDepth, b.C - first);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < depth; ++c)
        probs[i * kForwardDepth + c] = exp_nonpositive(am[i * b.C + first + c] - max[i]);
    small_gemm(count, columns, depth, probs, kForwardDepth, 1, lm_probs + (n * b.C + first) * columns, columns,
               products, columns, first > 0);
  }
}

// px and py of the frames [begin, end) of utterance n, from their products.
template <typename T>
void additive_outputs(const AdditiveBatch<T>& b, int64_t n, int64_t begin, int64_t end, const AdditiveSaved<T>& saved,
                      const T* symbol_terms, const T* blank_terms, T* px, T* py) {
  constexpr T kMinusInf = -std::numeric_limits<T>::infinity();
  const int64_t count = end - begin, columns = b.columns(), S = b.num_positions - 1, px_columns = b.px_columns();
  const T* am = b.am + (n * b.num_frames + begin) * b.C;
  const T* products = saved.products + (n * b.num_frames + begin) * columns;
  const T* max = saved.am_max + n * b.num_frames + begin;
  const T am_scale = b.joint_scale + b.am_scale;
  px += n * S * px_columns;
  py += n * b.num_positions * b.num_frames;
  const std::unique_ptr<T[]> normalizers(new T[count * columns]);
  for (int64_t i = 0; i < count * columns; ++i)
    normalizers[i] = log_positive(products[i] + std::numeric_limits<T>::min());
  T frame_terms[kForwardFrames], blank_am[kForwardFrames];
  for (int64_t i = 0; i < count; ++i) {
    frame_terms[i] = -b.joint_scale * max[i];
    if (b.log_unigram)
      frame_terms[i] -= b.am_scale * (normalizers[i * columns + b.num_positions] + max[i] + saved.lm_max[n * b.rows() + b.num_positions]);
    blank_am[i] = am_scale * am[i * b.C + b.blank] + frame_terms[i];
  }
  for (int64_t s = S; s >= 0; --s) {  // downwards: constrained adds the blank of s + 1
    T* py_s = py + s * b.num_frames + begin;
    for (int64_t i = 0; i < count; ++i)
      py_s[i] = blank_am[i] + blank_terms[s] - b.joint_scale * normalizers[i * columns + s];
    if (s == S) continue;
    T* px_s = px + s * px_columns + begin;
    const T* am_symbol = am + b.symbols_of(n)[s];
    for (int64_t i = 0; i < count; ++i)
      px_s[i] = am_scale * am_symbol[i * b.C] + frame_terms[i] + symbol_terms[s] -
                b.joint_scale * normalizers[i * columns + s];
    if (b.type == RnntType::kConstrained)
      for (int64_t i = 0; i < count; ++i) px_s[i] += py_s[b.num_frames + i];
  }
  if (b.type != RnntType::kRegular) return;
  // Past the last frame no symbol may be emitted, so the last arc of every path is a blank.
  for (const int64_t t : {b.end_frame(n), b.num_frames})
    if ((begin <= t && t < end) || (t == b.num_frames && end == t))
      for (int64_t s = 0; s < S; ++s) px[s * px_columns + t] = kMinusInf;
}

template <typename Backend, typename T>
void additive_log_probs(const Backend& backend, const AdditiveBatch<T>& b, const AdditiveSaved<T>& saved, T* px, T* py) {
  const int64_t rows = b.rows(), columns = b.columns(), positions = b.num_positions;
  const std::unique_ptr<T[]> lm_probs(new T[b.N * b.C * columns]);
  const std::unique_ptr<T[]> terms(new T[2 * b.N * positions]);
  backend.for_each(b.N * columns, [&](int64_t i) {
    const int64_t n = i / columns, s = i % columns;
    if (s < rows) return additive_lm_row(b, n, s, saved, lm_probs.get());
    for (int64_t c = 0; c < b.C; ++c) lm_probs[(n * b.C + c) * columns + s] = T(0);
  });
  backend.for_each(b.N, [&](int64_t n) {
    additive_lm_terms(b, n, saved, &terms[2 * n * positions], &terms[(2 * n + 1) * positions]);
  });
  const int64_t tiles = std::max<int64_t>(1, (b.num_frames + kForwardFrames - 1) / kForwardFrames);
  backend.for_each(b.N * tiles, [&](int64_t i) {
    const int64_t n = i / tiles, begin = i % tiles * kForwardFrames;
    const int64_t end = std::min(b.num_frames, begin + kForwardFrames);
    additive_products(b, n, begin, end, saved, lm_probs.get());
    additive_outputs(b, n, begin, end, saved, &terms[2 * n * positions], &terms[(2 * n + 1) * positions], px, py);
  });
}

// ----------------------------------------------------------------------------------------------------------- backward

// The gradients that arrive, brought into the forms that the products want.
template <typename T>
struct AdditiveGrads {
  // Of symbols and blanks, as if every type were "modified": (N, S, frames) with strides, (N, positions, frames).
  std::unique_ptr<T[]> symbol, blank;
  std::unique_ptr<T[]> symbol_sum, blank_sum;  // over frames: (N, positions)
  std::unique_ptr<T[]> blank_frame;            // over positions: (N, frames)
  std::unique_ptr<T[]> weights;                // (N, frames, columns()): gradient of `products`
  std::unique_ptr<int64_t[]> bands;            // (N, tiles, 2): positions of a tile's frames outside which weights are 0
};

// Sums over frames and positions of utterance n, and which (t, s) matter.
template <typename T>
void additive_weights(const AdditiveBatch<T>& b, int64_t n, const AdditiveSaved<T>& saved, const T* px_grad,
                      const T* py_grad, AdditiveGrads<T>& g) {
  const int64_t F = b.num_frames, positions = b.num_positions, S = positions - 1, columns = b.columns();
  px_grad += n * S * b.px_columns();
  py_grad += n * positions * F;
  T *symbol = &g.symbol[n * positions * F], *blank = &g.blank[n * positions * F];
  T* blank_frame = &g.blank_frame[n * F];
  std::vector<T> frame(F, T(0)), frame_abs(F, T(0)), position_abs(positions, T(0));
  std::fill(blank_frame, blank_frame + F, T(0));
  for (int64_t s = 0; s < positions; ++s) {
    T *symbol_s = symbol + s * F, *blank_s = blank + s * F;
    std::copy(py_grad + s * F, py_grad + (s + 1) * F, blank_s);
    if (s < S) std::copy(px_grad + s * b.px_columns(), px_grad + s * b.px_columns() + F, symbol_s);
    else std::fill(symbol_s, symbol_s + F, T(0));
    if (b.type == RnntType::kRegular && b.end_frame(n) < F) symbol_s[b.end_frame(n)] = T(0);
    if (b.type == RnntType::kConstrained && s > 0)
      for (int64_t t = 0; t < F; ++t) blank_s[t] += px_grad[(s - 1) * F + t];
    T symbol_sum = T(0), blank_sum = T(0), sum_abs = T(0);
    for (int64_t t = 0; t < F; ++t) {
      const T both = symbol_s[t] + blank_s[t];
      symbol_sum += symbol_s[t];
      blank_sum += blank_s[t];
      sum_abs += std::abs(both);
      blank_frame[t] += blank_s[t];
      frame[t] += both;
      frame_abs[t] += std::abs(both);
    }
    g.symbol_sum[n * positions + s] = symbol_sum;
    g.blank_sum[n * positions + s] = blank_sum;
    position_abs[s] = sum_abs;
  }
  // A weight may go if all such of its frame, and all such of its position, make less than one rounding error there.
  // Too small a product overflows when divided by; what it says is rounding error.
  const T epsilon = std::numeric_limits<T>::epsilon(), tiny = std::numeric_limits<T>::min();
  T* weights = &g.weights[n * F * columns];
  std::fill(weights, weights + F * columns, T(0));
  const int64_t tiles = (F + kBackwardFrames - 1) / kBackwardFrames;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = tile * kBackwardFrames, end = std::min(F, begin + kBackwardFrames);
    int64_t first = positions, last = -1;
    for (int64_t s = 0; s < positions; ++s) {
      const T position_limit = position_abs[s] * epsilon / static_cast<T>(F);
      bool matters = false;
      for (int64_t t = begin; t < end; ++t) {
        const T both = symbol[s * F + t] + blank[s * F + t];
        const T limit = std::min(frame_abs[t] * epsilon / static_cast<T>(positions), position_limit);
        const T product = saved.products[(n * F + t) * columns + s] + tiny;
        if (std::abs(both) <= limit || product < T(1e4) * tiny) continue;  // written so that a nan matters
        weights[t * columns + s] = -b.joint_scale * both / product;
        matters = true;
      }
      if (matters) first = std::min(first, s), last = s;
    }
    g.bands[(n * tiles + tile) * 2] = first;
    g.bands[(n * tiles + tile) * 2 + 1] = last + 1;
  }
  if (b.log_unigram)
    for (int64_t t = 0; t < F; ++t) {
      const T product = saved.products[(n * F + t) * columns + positions] + tiny;
      weights[t * columns + positions] = product < T(1e4) * tiny ? T(0) : -b.am_scale * frame[t] / product;
    }
}

// Gradients of am, lm and (a row of (N, C)) the unigram of utterance n in the classes [first, first + count).
template <typename T>
void additive_grad_block(const AdditiveBatch<T>& b, int64_t n, int64_t first, int64_t count,
                         const AdditiveSaved<T>& saved, const AdditiveGrads<T>& g, T* am_grad, T* lm_grad,
                         T* unigram_grad) {
  constexpr int64_t kWidth = kBackwardClasses;
  const int64_t F = b.num_frames, positions = b.num_positions, rows = b.rows(), columns = b.columns();
  const int64_t tiles = (F + kBackwardFrames - 1) / kBackwardFrames, width = round_up(count, kLanes);
  alignas(64) T am_probs[kBackwardFrames * kWidth], am_sums[kBackwardFrames * kWidth];
  std::vector<T> lm_probs(rows * kWidth, T(0)), lm_sums(rows * kWidth, T(0));
  for (int64_t s = 0; s < rows; ++s)
    for (int64_t c = 0; c < count; ++c)
      lm_probs[s * kWidth + c] = exp_nonpositive(b.lm_row(n, s)[first + c] - saved.lm_max[n * rows + s]);
  std::fill(am_probs, am_probs + kBackwardFrames * kWidth, T(0));
  std::vector<int64_t> here;  // positions whose symbol is in this block
  for (int64_t s = 0; s + 1 < positions; ++s)
    if (const int64_t c = b.symbols_of(n)[s] - first; c >= 0 && c < count) here.push_back(s);
  const bool blank_here = b.blank >= first && b.blank < first + count;
  const T am_scale = b.joint_scale + b.am_scale, lm_scale = b.joint_scale + b.lm_scale;

  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = tile * kBackwardFrames, frames = std::min(F - begin, kBackwardFrames);
    const int64_t low = g.bands[(n * tiles + tile) * 2], high = g.bands[(n * tiles + tile) * 2 + 1];
    const T* am = b.am + (n * F + begin) * b.C + first;
    T* grad = am_grad + (n * F + begin) * b.C + first;
    const T* weights = &g.weights[(n * F + begin) * columns];
    const bool any = low < high || b.log_unigram;
    if (any)
      for (int64_t i = 0; i < frames; ++i)
        for (int64_t c = 0; c < count; ++c)
          am_probs[i * kWidth + c] = exp_nonpositive(am[i * b.C + c] - saved.am_max[n * F + begin + i]);
    if (low < high) {
      small_gemm(frames, width, high - low, weights + low, columns, 1, &lm_probs[low * kWidth], kWidth, am_sums, kWidth);
      small_gemm(high - low, width, frames, weights + low, 1, columns, am_probs, kWidth, &lm_sums[low * kWidth], kWidth,
                 true);
    }
    if (b.log_unigram) {
      small_gemm(frames, width, 1, weights + positions, columns, 1, &lm_probs[positions * kWidth], kWidth, am_sums, kWidth,
                 low < high);
      small_gemm(1, width, frames, weights + positions, 1, columns, am_probs, kWidth, &lm_sums[positions * kWidth], kWidth,
                 true);
    }
    for (int64_t i = 0; i < frames; ++i)
      for (int64_t c = 0; c < count; ++c)
        grad[i * b.C + c] = any ? am_probs[i * kWidth + c] * am_sums[i * kWidth + c] : T(0);
    for (const int64_t s : here) {
      const T* symbol = &g.symbol[(n * positions + s) * F + begin];
      T* grad_s = grad + b.symbols_of(n)[s] - first;
      for (int64_t i = 0; i < frames; ++i) grad_s[i * b.C] += am_scale * symbol[i];
    }
    if (blank_here)
      for (int64_t i = 0; i < frames; ++i) grad[i * b.C + b.blank - first] += am_scale * g.blank_frame[n * F + begin + i];
  }

  for (int64_t s = 0; s < positions; ++s) {
    const T symbol_sum = g.symbol_sum[n * positions + s], blank_sum = g.blank_sum[n * positions + s];
    const T lm_only = b.lm_scale * (symbol_sum + blank_sum) / saved.lm_sum[n * rows + s];
    T* grad = lm_grad + (n * positions + s) * b.C + first;
    for (int64_t c = 0; c < count; ++c) grad[c] = lm_probs[s * kWidth + c] * (lm_sums[s * kWidth + c] - lm_only);
    if (blank_here) grad[b.blank - first] += lm_scale * blank_sum;
  }
  for (const int64_t s : here)
    lm_grad[(n * positions + s) * b.C + b.symbols_of(n)[s]] += lm_scale * g.symbol_sum[n * positions + s];
  if (!b.log_unigram) return;
  T* grad = unigram_grad + n * b.C + first;
  for (int64_t c = 0; c < count; ++c) grad[c] = lm_probs[positions * kWidth + c] * lm_sums[positions * kWidth + c];
  for (const int64_t s : here) grad[b.symbols_of(n)[s] - first] += b.am_scale * g.symbol_sum[n * positions + s];
  if (blank_here)
    for (int64_t s = 0; s < positions; ++s) grad[b.blank - first] += b.am_scale * g.blank_sum[n * positions + s];
}

template <typename Backend, typename T>
void additive_log_probs_backward(const Backend& backend, const AdditiveBatch<T>& b, const AdditiveSaved<T>& saved,
                                 const T* px_grad, const T* py_grad, T* am_grad, T* lm_grad, T* unigram_grad) {
  const int64_t F = b.num_frames, positions = b.num_positions;
  const int64_t tiles = (F + kBackwardFrames - 1) / kBackwardFrames;
  AdditiveGrads<T> g;
  for (auto* x : {&g.symbol, &g.blank}) x->reset(new T[b.N * positions * F]);
  for (auto* x : {&g.symbol_sum, &g.blank_sum}) x->reset(new T[b.N * positions]);
  g.blank_frame.reset(new T[b.N * F]);
  g.weights.reset(new T[b.N * F * b.columns()]);
  g.bands.reset(new int64_t[b.N * tiles * 2]);
  backend.for_each(b.N, [&](int64_t n) { additive_weights(b, n, saved, px_grad, py_grad, g); });
  const int64_t blocks = (b.C + kBackwardClasses - 1) / kBackwardClasses;
  backend.for_each(b.N * blocks, [&](int64_t i) {
    const int64_t n = i / blocks, first = i % blocks * kBackwardClasses;
    additive_grad_block(b, n, first, std::min(kBackwardClasses, b.C - first), saved, g, am_grad, lm_grad, unigram_grad);
  });
}

}  // namespace lattica
