// x · sigmoid(x - 1) and its derivative, with dropout, in one pass over memory.
#pragma once

#include <cstdint>

#include "activation.h"

namespace lattica {

// y = x · sigmoid(x - 1) and d = dy/dx for n numbers; with kDrop both are 0 where bytes < drop, and larger elsewhere by as much as
// keeps the expectation.
template <bool kDrop, typename T>
void double_swish(const T* __restrict x, const uint8_t* __restrict bytes, int32_t drop, int64_t n, T* __restrict y,
                  T* __restrict d) {
  const T factor = T(256) / T(256 - drop);
  for (int64_t i = 0; i < n; ++i) {
    const T z = x[i] - T(1), e = exp_minus_abs(z), larger = T(1) / (T(1) + e);
    const T sigmoid = z > T(0) ? larger : e * larger;
    const T value = x[i] * sigmoid;
    const T scale = kDrop ? (static_cast<int32_t>(bytes[i]) >= drop ? factor : T(0)) : T(1);
    y[i] = value * scale;
    d[i] = (sigmoid + value * (T(1) - sigmoid)) * scale;
  }
}

}  // namespace lattica
