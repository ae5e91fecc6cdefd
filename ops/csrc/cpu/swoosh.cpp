// CPU threads over pieces of the tensor; the formulas are in activation.h.
#include <string>

#include "../activation.h"
#include "../check.h"
#include "../parallel.h"

namespace lattica {
namespace {

template <typename Activation, typename T>
void run(const Tensor& x, Tensor& y, Tensor* deriv) {
  constexpr int64_t kPiece = 1 << 12;
  const int64_t n = x.numel();
  const T* x_data = static_cast<const T*>(x.const_data_ptr());
  T* y_data = static_cast<T*>(y.mutable_data_ptr());
  T* deriv_data = deriv ? static_cast<T*>(deriv->mutable_data_ptr()) : nullptr;
  CpuBackend().for_each((n + kPiece - 1) / kPiece, [=](int64_t piece) {
    const int64_t begin = piece * kPiece, end = std::min(n, begin + kPiece);
    for (int64_t i = begin; i < end; ++i) y_data[i] = Activation::value(x_data[i]);
    if (!deriv_data) return;
    for (int64_t i = begin; i < end; ++i) deriv_data[i] = Activation::derivative(x_data[i], y_data[i]);
  });
}

template <typename Activation>
void run_any(const Tensor& x, Tensor& y, Tensor* deriv) {
  if (x.scalar_type() == ScalarType::Float) run<Activation, float>(x, y, deriv);
  else run<Activation, double>(x, y, deriv);
}

std::tuple<Tensor, Tensor> swoosh(const Tensor& x, std::string kind, bool want_deriv) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "x must be float32 or float64");
  STD_TORCH_CHECK(x.is_contiguous(), "x must be contiguous");
  STD_TORCH_CHECK(kind == "swoosh_l" || kind == "swoosh_r", "kind must be swoosh_l or swoosh_r, got ", kind);
  Tensor y = torch::stable::empty_like(x);
  Tensor deriv = want_deriv ? torch::stable::empty_like(x) : empty_like_shape(x, {0});
  if (kind == "swoosh_l") run_any<SwooshL>(x, y, want_deriv ? &deriv : nullptr);
  else run_any<SwooshR>(x, y, want_deriv ? &deriv : nullptr);
  return {y, deriv};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) { m.impl("swoosh", TORCH_BOX(&swoosh)); }

}  // namespace
}  // namespace lattica
