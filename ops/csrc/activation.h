// The nonlinearities of joiners and feed-forward modules with their derivatives, in a form that compilers vectorise.
#pragma once

#include <cmath>
#include <cstdint>

#include "log_add.h"

namespace lattica {

// exp(-|x|), from which the functions below are made: it neither overflows nor loses digits.
template <typename T>
inline T exp_minus_abs(T x) {
  return exp_nonpositive(x > T(0) ? -x : x);
}

struct Identity {
  template <typename T>
  static T value(T x) { return x; }
  template <typename T>
  static T derivative(T, T) { return T(1); }
};

struct Tanh {
  static float value(float x) {
    // (1 - e) / (1 + e) cancels near 0, where the odd Taylor series takes over.
    const float e = exp_minus_abs(2.0f * x), magnitude = (1.0f - e) / (1.0f + e), x2 = x * x;
    float series = -1382.0f / 155925.0f;
    series = series * x2 + 62.0f / 2835.0f;
    series = series * x2 - 17.0f / 315.0f;
    series = series * x2 + 2.0f / 15.0f;
    series = series * x2 - 1.0f / 3.0f;
    series = x + x * x2 * series;
    return x2 < 0.1f ? series : (x > 0.0f ? magnitude : -magnitude);
  }
  static double value(double x) { return std::tanh(x); }
  template <typename T>
  static T derivative(T, T y) { return T(1) - y * y; }
};

// log(1 + exp(x - shift)) - 0.08 x - offset; the two linear terms are one, so that infinities do not meet.
template <typename Constants>
struct Swoosh {
  template <typename T>
  static T value(T x) {
    const T z = x - T(Constants::kShift);
    const T line = z > T(0) ? T(0.92) * x - T(Constants::kShift) : T(-0.08) * x;
    return line + log1p_unit(exp_minus_abs(z)) - T(Constants::kOffset);
  }
  template <typename T>
  static T derivative(T x, T) {
    const T z = x - T(Constants::kShift), e = exp_minus_abs(z), smaller = e / (T(1) + e);
    return (z > T(0) ? T(1) - smaller : smaller) - T(0.08);
  }
};
struct SwooshLConstants {
  static constexpr double kShift = 4.0, kOffset = 0.035;
};
struct SwooshRConstants {
  static constexpr double kShift = 1.0, kOffset = 0.313261687;  // makes swoosh_r(0) = 0
};
using SwooshL = Swoosh<SwooshLConstants>;
using SwooshR = Swoosh<SwooshRConstants>;

}  // namespace lattica
