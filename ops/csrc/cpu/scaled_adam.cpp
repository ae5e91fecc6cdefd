// CPU threads over chunks of a tensor; the arithmetic is in scaled_adam.h.
#include "../scaled_adam.h"

#include <algorithm>

#include "../check.h"
#include "../parallel.h"

namespace lattica {
namespace {

void scaled_adam_cpu(Tensor param, const Tensor& grad, Tensor momentum, Tensor second, double grad_factor, double beta1,
                     double beta2, double rate, double eps, double scale_step) {
  const ScaledAdamStep step{grad_factor, beta1, beta2, rate, eps, scale_step};
  for (const Tensor* x : {&grad, const_cast<const Tensor*>(&momentum), const_cast<const Tensor*>(&second)})
    STD_TORCH_CHECK(x->numel() == param.numel() && x->scalar_type() == param.scalar_type() && x->is_contiguous(),
                    "scaled_adam: grad, momentum and second must be contiguous, of param's size and dtype");
  STD_TORCH_CHECK(param.is_contiguous(), "scaled_adam: param must be contiguous");
  constexpr int64_t kChunk = 1 << 14;
  const int64_t n = param.numel();
  THO_DISPATCH_V2(param.scalar_type(), "scaled_adam", AT_WRAP([&] {
                    const auto* g = static_cast<const scalar_t*>(grad.const_data_ptr());
                    auto* p = static_cast<scalar_t*>(param.mutable_data_ptr());
                    auto* m = static_cast<scalar_t*>(momentum.mutable_data_ptr());
                    auto* v = static_cast<scalar_t*>(second.mutable_data_ptr());
                    CpuBackend{}.for_each((n + kChunk - 1) / kChunk, [&](int64_t chunk) {
                      const int64_t i = chunk * kChunk;
                      scaled_adam(step, std::min(kChunk, n - i), g + i, p + i, m + i, v + i);
                    });
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) { m.impl("scaled_adam", TORCH_BOX(&scaled_adam_cpu)); }

}  // namespace
}  // namespace lattica
