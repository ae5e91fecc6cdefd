// CPU threads over heads and utterances; the arithmetic is in relative_attention.h.
#include "../relative_attention.h"

#include "../check.h"

namespace lattica {
namespace {

AttentionShape check(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& lens, int64_t num_heads) {
  STD_TORCH_CHECK(x.dim() == 3 && cos.dim() == 2 && sin.dim() == 2 && num_heads > 0 && x.size(2) % num_heads == 0,
                  "relative_attention: x must be (N, T, H * (3 K + 2 W)), cos and sin (T, W)");
  const int64_t W = cos.size(1), K = (x.size(2) / num_heads - 2 * W) / 3;
  const AttentionShape s{x.size(0), x.size(1), num_heads, K, W};
  STD_TORCH_CHECK(K > 0 && W > 0 && s.row() == x.size(2) && cos.size(0) == s.T && sin.size(0) == s.T && sin.size(1) == W,
                  "relative_attention: x must be (N, T, H * (3 K + 2 W)), cos and sin (T, W)");
  STD_TORCH_CHECK(x.is_contiguous() && cos.is_contiguous() && sin.is_contiguous() && cos.scalar_type() == x.scalar_type() &&
                      sin.scalar_type() == x.scalar_type(),
                  "relative_attention: x, cos and sin must be contiguous and have one dtype");
  STD_TORCH_CHECK(lens.dim() == 1 && lens.size(0) == s.N && lens.is_contiguous() && lens.scalar_type() == ScalarType::Long,
                  "relative_attention: lens must be a contiguous int64 tensor (N,)");
  const int64_t* data = static_cast<const int64_t*>(lens.const_data_ptr());
  for (int64_t n = 0; n < s.N; ++n)
    STD_TORCH_CHECK(0 <= data[n] && data[n] <= s.T, "relative_attention: lens[", n, "] = ", data[n],
                    " must lie in [0, T = ", s.T, "]");
  return s;
}

template <typename T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

std::tuple<Tensor, Tensor> relative_attention(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& lens,
                                              int64_t num_heads) {
  const AttentionShape s = check(x, cos, sin, lens, num_heads);
  Tensor out = empty_like_shape(x, {s.N, s.T, s.H * s.K});
  Tensor weights = empty_like_shape(x, {s.N, s.H, s.T, s.columns()});
  THO_DISPATCH_V2(x.scalar_type(), "relative_attention", AT_WRAP([&] {
                    relative_attention_forward(CpuBackend{}, s, data<scalar_t>(x), data<scalar_t>(cos), data<scalar_t>(sin), data<int64_t>(lens),
                            static_cast<scalar_t*>(out.mutable_data_ptr()),
                            static_cast<scalar_t*>(weights.mutable_data_ptr()));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {out, weights};
}

Tensor relative_attention_backward(const Tensor& grad, const Tensor& x, const Tensor& weights, const Tensor& cos,
                                   const Tensor& sin, const Tensor& lens, int64_t num_heads) {
  const AttentionShape s = check(x, cos, sin, lens, num_heads);
  STD_TORCH_CHECK(grad.numel() == s.N * s.T * s.H * s.K && grad.is_contiguous() && grad.scalar_type() == x.scalar_type(),
                  "relative_attention: grad must be contiguous, of the output's shape and dtype");
  STD_TORCH_CHECK(weights.numel() == s.N * s.H * s.T * s.columns() && weights.is_contiguous() &&
                      weights.scalar_type() == x.scalar_type(),
                  "relative_attention: weights must be those of the forward pass");
  Tensor x_grad = empty_like_shape(x, {s.N, s.T, s.row()});
  THO_DISPATCH_V2(x.scalar_type(), "relative_attention_backward", AT_WRAP([&] {
                    relative_attention_backward(CpuBackend{}, s, data<scalar_t>(grad), data<scalar_t>(x), data<scalar_t>(weights), data<scalar_t>(cos),
                             data<scalar_t>(sin), data<int64_t>(lens), static_cast<scalar_t*>(x_grad.mutable_data_ptr()));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return x_grad;
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("relative_attention", TORCH_BOX(&relative_attention));
  m.impl("relative_attention_backward", TORCH_BOX(&relative_attention_backward));
}

}  // namespace
}  // namespace lattica
