// Sums and maxima over a row of numbers, as fast as memory allows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "log_add.h"

namespace lattica {

// Sums and maxima in kRowLanes parts: the compiler keeps the program's order of a sum, so it must be shown the lanes.
constexpr int64_t kRowLanes = 16;

template <typename T>
inline T max_of(const T* x, int64_t n, T start) {
  T lanes[kRowLanes];
  std::fill(lanes, lanes + kRowLanes, start);
  int64_t i = 0;
  for (; i + kRowLanes <= n; i += kRowLanes)
    for (int64_t k = 0; k < kRowLanes; ++k) lanes[k] = x[i + k] > lanes[k] ? x[i + k] : lanes[k];
  for (; i < n; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  return *std::max_element(lanes, lanes + kRowLanes);
}

template <typename T>
inline T sum_of(const T* x, int64_t n) {
  T lanes[kRowLanes] = {};
  int64_t i = 0;
  for (; i + kRowLanes <= n; i += kRowLanes)
    for (int64_t k = 0; k < kRowLanes; ++k) lanes[k] += x[i + k];
  for (; i < n; ++i) lanes[0] += x[i];
  T sum = T(0);
  for (int64_t k = 0; k < kRowLanes; ++k) sum += lanes[k];
  return sum;
}

template <typename T>
inline T sum_of_exp(const T* x, int64_t n, T max) {
  T lanes[kRowLanes] = {};
  int64_t i = 0;
  for (; i + kRowLanes <= n; i += kRowLanes)
    for (int64_t k = 0; k < kRowLanes; ++k) lanes[k] += exp_nonpositive(x[i + k] - max);
  for (; i < n; ++i) lanes[0] += exp_nonpositive(x[i] - max);
  T sum = T(0);
  for (int64_t k = 0; k < kRowLanes; ++k) sum += lanes[k];
  return sum;
}

}  // namespace lattica
