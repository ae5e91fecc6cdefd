// The transducer recursion over one utterance: the order of its cells, and the CPU's loops (CUDA's: cuda/mutual_information.cu).
//
//   p[0, 0] = 0
//   regular:   p[s, t] = log_add(p[s-1, t]   + px[s-1, t],    p[s, t-1] + py[s, t-1])
//   modified:  p[s, t] = log_add(p[s-1, t-1] + px[s-1, t-1],  p[s, t-1] + py[s, t-1])
//
// The cells of one "front" d do not depend on each other, so they are the vector lanes: d = s + t (anti-diagonals) for
// regular, d = t (columns) for modified. With inputs copied to front order, x[d][s] and y[d][s] (the two arcs into the cell),
// both kinds are the same loop:
//
//   front[d][s] = log_add(front[d-1][s-1] + x[d][s], front[d-1][s] + y[d][s])
//
// Forward overwrites x[d][s] by the share of p that came through x. Going back, a cell's occupation splits over its two
// arcs by that share; so p need not be kept, and the way back has no exponentials and no division.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "lattice.h"
#include "log_add.h"

namespace lattica {

// One utterance's lattice of (S + 1) x (T + 1) cells, and where its cells lie in front order.
struct Fronts {
  int64_t S, T;
  bool modified;

  LATTICA_BOTH int64_t last() const { return modified ? T : S + T; }
  LATTICA_BOTH int64_t width() const { return S + 1; }
  LATTICA_BOTH int64_t first_s(int64_t d) const { return modified || d < T ? 0 : d - T; }
  LATTICA_BOTH int64_t last_s(int64_t d) const { return d < S ? d : S; }
  LATTICA_BOTH int64_t px_columns() const { return modified ? T : T + 1; }
  int64_t front_of(int64_t s, int64_t t) const { return modified ? t : s + t; }
  // px[s, t] leads to cell (s + 1, t) or, modified, (s + 1, t + 1).
  int64_t x_index(int64_t s, int64_t t) const { return (front_of(s, t) + 1) * width() + s + 1; }
  int64_t y_index(int64_t s, int64_t t) const { return (front_of(s, t) + 1) * width() + s; }

  // Numbers of scratch memory: x and y in front order and two fronts with one cell of margin below.
  int64_t scratch() const { return 2 * (last() + 1) * width() + 2 * (width() + 1); }
};

template <typename T>
inline void advance_front(const T* __restrict from, T* __restrict x, const T* __restrict y, T* __restrict to,
                          int64_t begin, int64_t end) {
  for (int64_t s = begin; s <= end; ++s) to[s] = log_add_with_share(from[s - 1] + x[s], from[s] + y[s], &x[s]);
}

template <typename T>
inline void retreat_front(const T* __restrict occupation, T* __restrict x, T* __restrict y, int64_t begin, int64_t end) {
  for (int64_t s = begin; s <= end; ++s) {
    x[s] *= occupation[s];
    y[s] = occupation[s] - x[s];
  }
}

// p[S, T]; leaves in x the shares. `scratch` has f.scratch() numbers.
template <typename T>
T mutual_information_forward(const Fronts& f, Matrix<const T> px, Matrix<const T> py, T* scratch) {
  const T kMinusInf = -std::numeric_limits<T>::infinity();
  const int64_t width = f.width(), last = f.last();
  T *x = scratch, *y = x + (last + 1) * width;
  T *from = y + (last + 1) * width + 1, *to = from + width + 1;
  std::fill(from - 1, from + 2 * (width + 1) - 1, kMinusInf);

  for (int64_t s = 0; s < f.S; ++s)
    for (int64_t t = 0; t < f.px_columns(); ++t) x[f.x_index(s, t)] = px(s, t);
  for (int64_t s = 0; s <= f.S; ++s)
    for (int64_t t = 0; t < f.T; ++t) y[f.y_index(s, t)] = py(s, t);
  // No symbol leads into row 0; no blank leads into column 0 or, modified, into the diagonal s = t (cells above it cannot be
  // reached).
  for (int64_t d = 0; d <= last; ++d) x[d * width] = kMinusInf;
  for (int64_t d = 0; d <= std::min(f.S, last); ++d) y[d * width + d] = kMinusInf;

  from[0] = T(0);
  for (int64_t d = 1; d <= last; ++d) {
    advance_front(from, x + d * width, y + d * width, to, f.first_s(d), f.last_s(d));
    std::swap(from, to);
  }
  return from[f.S];
}

// Occupations of all arcs, i.e. the gradient of p[S, T], after mutual_information_forward on the same scratch.
template <typename T>
void mutual_information_backward(const Fronts& f, T* scratch, Matrix<T> px_grad, Matrix<T> py_grad) {
  const int64_t width = f.width(), last = f.last();
  T *x = scratch, *y = x + (last + 1) * width;
  T *occupation = y + (last + 1) * width + 1, *before = occupation + width + 1;
  std::fill(occupation - 1, occupation + 2 * (width + 1) - 1, T(0));

  occupation[f.S] = T(1);
  for (int64_t d = last; d >= 1; --d) {
    const int64_t begin = f.first_s(d), end = f.last_s(d);
    T *x_d = x + d * width, *y_d = y + d * width;
    retreat_front(occupation, x_d, y_d, begin, end);
    std::fill(before - 1, before + width, T(0));
    for (int64_t s = begin; s <= end; ++s) before[s] = y_d[s];
    for (int64_t s = begin; s <= end; ++s) before[s - 1] += x_d[s];
    std::swap(occupation, before);
  }
  for (int64_t s = 0; s < f.S; ++s)
    for (int64_t t = 0; t < f.px_columns(); ++t)
      px_grad(s, t) = f.modified && t < s ? T(0) : x[f.x_index(s, t)];
  for (int64_t s = 0; s <= f.S; ++s)
    for (int64_t t = 0; t < f.T; ++t) py_grad(s, t) = f.modified && t < s ? T(0) : y[f.y_index(s, t)];
}

}  // namespace lattica
