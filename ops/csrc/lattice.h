// What an utterance's lattice is, for the transducer ops on either device. Torch-free.
#pragma once

#include <cstdint>

#include "portable.h"

namespace lattica {

// All utterances of a batch: (S + 1) x (T + 1) cells; modified: a symbol takes a frame.
struct LatticeShape {
  int64_t N, S, T;
  bool modified;
};

// The part [s_begin, s_end] x [t_begin, t_end] that one utterance has of it.
struct Bounds {
  int64_t s_begin, t_begin, s_end, t_end;
  LATTICA_BOTH bool valid(int64_t S, int64_t T) const {
    return 0 <= s_begin && s_begin <= s_end && s_end <= S && 0 <= t_begin && t_begin <= t_end && t_end <= T;
  }
};
static_assert(sizeof(Bounds) == 4 * sizeof(int64_t), "a row of `boundary` is read as one Bounds");

// A matrix indexed (s, t) within one utterance, with any strides.
template <typename T>
struct Matrix {
  T* data;
  int64_t stride_s, stride_t;
  LATTICA_BOTH T& operator()(int64_t s, int64_t t) const { return data[s * stride_s + t * stride_t]; }
};

}  // namespace lattica
