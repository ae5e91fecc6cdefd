// log(exp(a) + exp(b)), and which share of it each of the two has, in a form that compilers vectorise.
//
// It uses polynomials, exact to about one unit in the last place, because libm's exp and log are a call per number.
// Infinities and nan behave as in exact arithmetic: log_add(-inf, -inf) = -inf, nan in gives nan out.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "portable.h"

namespace lattica {

// exp(x) for x <= 0: x = k log 2 + r, exp(r) by its Taylor series on |r| <= log(2) / 2, 2^k by setting the exponent's bits.
LATTICA_BOTH inline float exp_nonpositive(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float k = shifted - kRound;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const uint32_t exponent = (__builtin_bit_cast(uint32_t, shifted) << 23) + (127u << 23);
  const float result = p * __builtin_bit_cast(float, exponent);
  return x < -87.0f ? 0.0f : result;  // a nan is not < -87 and stays in p
#endif
}
// log(1 + x) for x in [0, 1] = 2 atanh(x / (2 + x)), whose series converges by a factor of 9 a term.
LATTICA_BOTH inline float log1p_unit(float x) {
#ifdef __CUDA_ARCH__
  return log1pf(x);
#else
  const float z = x / (2.0f + x);
  const float z2 = z * z;
  float p = 2.0f / 13.0f;
  p = p * z2 + 2.0f / 11.0f;
  p = p * z2 + 2.0f / 9.0f;
  p = p * z2 + 2.0f / 7.0f;
  p = p * z2 + 2.0f / 5.0f;
  p = p * z2 + 2.0f / 3.0f;
  p = p * z2 + 2.0f;
  return p * z;
#endif
}
// log(x) for x >= 0, at least the smallest normal number: x = 2^k m with m about 1, log(m) = 2 atanh((m - 1) / (m + 1)).
LATTICA_BOTH inline float log_positive(float x) {
#ifdef __CUDA_ARCH__
  return logf(x);
#else
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), above = bits - 0x3f3504f3u;  // the bits of sqrt(1/2)
  const float k = static_cast<float>(static_cast<int32_t>(above) >> 23);
  const float m = __builtin_bit_cast(float, bits - (above & 0xff800000u));
  const float z = (m - 1.0f) / (m + 1.0f), z2 = z * z;
  float p = 2.0f / 9.0f;
  p = p * z2 + 2.0f / 7.0f;
  p = p * z2 + 2.0f / 5.0f;
  p = p * z2 + 2.0f / 3.0f;
  p = p * z2 + 2.0f;
  const float result = k * 0.693359375f + (k * -2.12194440e-4f + p * z);
  return x <= 3.402823466e38f ? result : x;  // infinity and nan stay what they are
#endif
}
LATTICA_BOTH inline double log_positive(double x) { return log(x); }
LATTICA_BOTH inline double exp_nonpositive(double x) {
#ifdef __CUDA_ARCH__
  return exp(x);
#else
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = x * 1.4426950408889634 + kRound;
  const double k = shifted - kRound;
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const uint64_t exponent = (__builtin_bit_cast(uint64_t, shifted) << 52) + (uint64_t{1023} << 52);
  const double result = p * __builtin_bit_cast(double, exponent);
  return x < -708.0 ? 0.0 : result;
#endif
}
LATTICA_BOTH inline double log1p_unit(double x) {
#ifdef __CUDA_ARCH__
  return log1p(x);
#else
  const double z = x / (2.0 + x);
  const double z2 = z * z;
  double p = 2.0 / 33.0;
  p = p * z2 + 2.0 / 31.0;
  p = p * z2 + 2.0 / 29.0;
  p = p * z2 + 2.0 / 27.0;
  p = p * z2 + 2.0 / 25.0;
  p = p * z2 + 2.0 / 23.0;
  p = p * z2 + 2.0 / 21.0;
  p = p * z2 + 2.0 / 19.0;
  p = p * z2 + 2.0 / 17.0;
  p = p * z2 + 2.0 / 15.0;
  p = p * z2 + 2.0 / 13.0;
  p = p * z2 + 2.0 / 11.0;
  p = p * z2 + 2.0 / 9.0;
  p = p * z2 + 2.0 / 7.0;
  p = p * z2 + 2.0 / 5.0;
  p = p * z2 + 2.0 / 3.0;
  p = p * z2 + 2.0;
  return p * z;
#endif
}

// *share = exp(a) / (exp(a) + exp(b)).
template <typename T>
LATTICA_BOTH inline T log_add_with_share(T a, T b, T* share) {
  const bool a_larger = a > b;
  const T larger = a_larger ? a : b;
  const T smaller = a_larger ? b : a;
  const T difference = a == b ? T(0) : smaller - larger;  // -inf - -inf would be nan
  const T e = exp_nonpositive(difference);
  const T larger_share = T(1) / (T(1) + e);
  *share = a_larger ? larger_share : e * larger_share;
  return larger + log1p_unit(e);
}

// log(exp(a) + exp(b) + exp(c)) and the shares of b and c; where all are -inf, so is the sum, and the shares are 0.
template <typename T>
LATTICA_BOTH inline T log_add3_with_shares(T a, T b, T c, T* share_b, T* share_c) {
  const T larger = a > b ? a : b;
  const T top = larger > c ? larger : c;
  const T shift = top >= -std::numeric_limits<T>::max() ? top : T(0);  // -inf - -inf would be nan
  const T eb = exp_nonpositive(b - shift), ec = exp_nonpositive(c - shift);
  const T sum = exp_nonpositive(a - shift) + eb + ec;  // in [1, 3], or 0
  const T inverse = sum > T(0) ? T(1) / sum : T(0);
  *share_b = eb * inverse;
  *share_c = ec * inverse;
  const bool above = sum > T(2);
  const T unit = above ? sum * T(0.5) : sum;
  return top + (log1p_unit(unit - T(1)) + (above ? T(0.693147180559945309417) : T(0)));
}

}  // namespace lattica
