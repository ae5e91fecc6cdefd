// CPU threads; the algorithm is in rnnt_prune.h.
#include "../rnnt_prune.h"

#include "../check.h"

namespace lattica {
namespace {

Tensor rnnt_prune_ranges_cpu(const Tensor& px_grad, const Tensor& py_grad, const Tensor& boundary, int64_t s_range) {
  const LatticeShape shape = check_prune_arguments(px_grad, py_grad, boundary, s_range);
  check_bounds_values(static_cast<const Bounds*>(boundary.const_data_ptr()), shape);
  Tensor ranges = empty_like_shape(boundary, {shape.N, shape.T, s_range});
  THO_DISPATCH_V2(px_grad.scalar_type(), "rnnt_prune_ranges", AT_WRAP([&] {
                    rnnt_prune_ranges(CpuBackend{}, static_cast<const scalar_t*>(px_grad.const_data_ptr()),
                                      static_cast<const scalar_t*>(py_grad.const_data_ptr()),
                                      static_cast<const int64_t*>(boundary.const_data_ptr()), shape.N, shape.S,
                                      shape.T, px_grad.size(2), s_range,
                                      static_cast<int64_t*>(ranges.mutable_data_ptr()));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return ranges;
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) { m.impl("rnnt_prune_ranges", TORCH_BOX(&rnnt_prune_ranges_cpu)); }

}  // namespace
}  // namespace lattica
