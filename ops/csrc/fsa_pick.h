// What follows the arcs of an automaton by an arc map: values picked one by one, summed over lists, or listed without fillers.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "fsa.h"

namespace lattica {

constexpr int64_t kPickBlock = 1 << 17;  // elements a task: for less than a tenth of a millisecond no thread is woken

// Whether all entries lie in [-1, size).
template <typename Backend>
bool map_is_good(const Backend& backend, const int32_t* map, int64_t n, int64_t size) {
  std::atomic<bool> all_good{true};
  for_each_block(backend, n, kPickBlock, [&](int64_t begin, int64_t end) {
    int32_t least = -1, most = -1;
    for (int64_t i = begin; i < end; ++i) least = std::min(least, map[i]), most = std::max(most, map[i]);
    if (least < -1 || most >= size) all_good = false;
  });
  return all_good;
}

// out[i] = src[map[i]], or `filler` where map[i] is -1.
template <typename Backend, typename T>
void pick(const Backend& backend, const T* src, int64_t size, const int32_t* map, int64_t n, T filler, T* out) {
  for_each_block(backend, n, kPickBlock, [=](int64_t begin, int64_t end) {
    if (begin < end && size == 0) std::fill(out + begin, out + end, filler);
    for (int64_t i = begin; i < end && size > 0; ++i) {
      const T value = src[std::max(map[i], 0)];  // read anyway: a branch would often be foreseen wrongly
      out[i] = map[i] < 0 ? filler : value;
    }
  });
}

// out[i] = the sum of src over the list map[splits[i]] ... map[splits[i + 1] - 1], from its first number on; -1 adds nothing.
template <typename Backend, typename T>
void pick_sum(const Backend& backend, const T* src, const int32_t* splits, const int32_t* map, int64_t rows, T* out) {
  for_each_block(backend, rows, kPickBlock, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T sum = 0;
      for (int32_t k = splits[i]; k < splits[i + 1]; ++k)
        if (map[k] >= 0) sum += src[map[k]];
      out[i] = sum;
    }
  });
}

// Into ends[i + 1]: where row i ends when only the values other than `filler` are listed (-1 in the map counts as filler).
template <typename T>
void count_listed(const T* src, const int32_t* splits, const int32_t* map, int64_t rows, T filler, int32_t* ends) {
  int32_t count = ends[0] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int32_t k = splits[i]; k < splits[i + 1]; ++k) count += map[k] >= 0 && src[map[k]] != filler;
    ends[i + 1] = count;
  }
}

template <typename T>
void list_values(const T* src, const int32_t* map, int64_t n, T filler, T* out) {
  for (int64_t k = 0; k < n; ++k)
    if (map[k] >= 0 && src[map[k]] != filler) *out++ = src[map[k]];
}

}  // namespace lattica
