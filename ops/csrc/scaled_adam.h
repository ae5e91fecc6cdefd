// One step of ScaledAdam for one tensor, in one pass over memory.
#pragma once

#include <cmath>
#include <cstdint>

namespace lattica {

struct ScaledAdamStep {
  double grad_factor;   // clipping: what the gradient is multiplied by
  double beta1, beta2;  // of the momentum and of the second moment
  double rate;          // what g / (sqrt(v) + eps) is multiplied by: learning rate, size and bias correction in one
  double eps;
  double scale_step;  // what the tensor itself is multiplied by, to change its scale
};

template <typename T>
void scaled_adam(const ScaledAdamStep& step, int64_t n, const T* __restrict grad, T* __restrict param, T* __restrict momentum,
                 T* __restrict second) {
  const T factor = T(step.grad_factor), beta1 = T(step.beta1), beta2 = T(step.beta2), eps = T(step.eps);
  const T rest1 = T(1.0 - step.beta1), rest2 = T(1.0 - step.beta2), rate = T(step.rate), scale_step = T(step.scale_step);
  for (int64_t i = 0; i < n; ++i) {
    const T g = grad[i] * factor;
    const T v = beta2 * second[i] + rest2 * g * g;
    const T m = beta1 * momentum[i] + rest1 * (scale_step * param[i] - rate * g / (std::sqrt(v) + eps));
    second[i] = v;
    momentum[i] = m;
    param[i] += m;
  }
}

}  // namespace lattica
