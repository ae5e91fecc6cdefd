// exp as plain arithmetic without branches, so that the compiler vectorises loops with it, which it does not do with std::exp.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace lattica {

// exp(x) = 2^n · exp(r), |r| <= ln(2) / 2, with the power series of exp(r) to r^7, whose error, 6e-9, is below float32's
// resolution. x is cut off to [-87, 87], so the smallest result is 1.6e-38.
inline float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : (x > 87.0f ? 87.0f : x);
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it leaves the nearest integer in the lowest bits
  const float shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts, the first one short
  const float p =
      1.0f +
      r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720 + r * (1.0f / 5040)))))));
  return p * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127u) << 23);
}

inline double fast_exp(double x) { return std::exp(x); }

}  // namespace lattica
