// CPU threads over blocks of channels (and utterances, where their results are separate); the arithmetic is in the header.
#include "../depthwise_conv1d.h"

#include <vector>

#include "../check.h"
#include "../parallel.h"

namespace lattica {
namespace {

struct Shape {
  int64_t N, T, C, W;
  int64_t halo() const { return W / 2; }
  int64_t rows() const { return T + W + 2 * kRows; }  // of a padded block, with room for a last incomplete group
  int64_t blocks() const { return (C + kBlock - 1) / kBlock; }
  int64_t width(int64_t block) const { return std::min(kBlock, C - block * kBlock); }
};

Shape check(const Tensor& x, const Tensor& weight) {
  STD_TORCH_CHECK(x.dim() == 3 && weight.dim() == 2 && weight.size(0) == x.size(2) && weight.size(1) % 2 == 1,
                  "depthwise_conv1d: x must be (N, T, C) and weight (C, W) with W odd");
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "depthwise_conv1d: x and weight must have one dtype");
  STD_TORCH_CHECK(x.is_contiguous() && weight.is_contiguous(), "depthwise_conv1d: x and weight must be contiguous");
  return {x.size(0), x.size(1), x.size(2), weight.size(1)};
}

// weight (C, W) → rows of a block, (W, kBlock); from the last position to the first if `flipped`.
template <typename T>
std::vector<T> block_kernel(const T* weight, const Shape& s, int64_t block, bool flipped) {
  std::vector<T> kernel(s.W * kBlock, T(0));
  for (int64_t c = 0; c < s.width(block); ++c)
    for (int64_t k = 0; k < s.W; ++k)
      kernel[(flipped ? s.W - 1 - k : k) * kBlock + c] = weight[(block * kBlock + c) * s.W + k];
  return kernel;
}

template <typename T>
void forward(const Shape& s, const T* x, const T* weight, const T* bias, T* y) {
  CpuBackend{}.for_each(s.N * s.blocks(), [&](int64_t i) {
    const int64_t n = i / s.blocks(), block = i % s.blocks(), first = n * s.T * s.C + block * kBlock;
    const std::vector<T> kernel = block_kernel(weight, s, block, false);
    std::vector<T> padded(s.rows() * kBlock);
    copy_padded(x + first, s.T, s.C, s.width(block), s.halo(), s.rows(), padded.data());
    convolve(padded.data(), kernel.data(), bias ? bias + block * kBlock : nullptr, s.T, s.W, s.C, s.width(block), y + first);
  });
}

// One thread does a block of channels for all utterances, so that sums over the batch have one order.
template <typename T>
void backward(const Shape& s, const T* grad, const T* x, const T* weight, T* x_grad, T* weight_grad, T* bias_grad) {
  CpuBackend{}.for_each(s.blocks(), [&](int64_t block) {
    const std::vector<T> kernel = block_kernel(weight, s, block, true);
    std::vector<T> padded(s.rows() * kBlock), padded_grad(s.rows() * kBlock);
    std::vector<T> kernel_grad((s.W + kRows) * kBlock, T(0)), sum(kBlock, T(0));
    for (int64_t n = 0; n < s.N; ++n) {
      const int64_t first = n * s.T * s.C + block * kBlock;
      copy_padded(x + first, s.T, s.C, s.width(block), s.halo(), s.rows(), padded.data());
      copy_padded(grad + first, s.T, s.C, s.width(block), s.halo(), s.rows(), padded_grad.data());
      convolve<T>(padded_grad.data(), kernel.data(), nullptr, s.T, s.W, s.C, s.width(block), x_grad + first);
      const T* rows = padded_grad.data() + s.halo() * kBlock;
      add_kernel_grad(rows, padded.data(), s.T, s.W, kernel_grad.data());
      for (int64_t t = 0; t < s.T; ++t)
        for (int64_t c = 0; c < kBlock; ++c) sum[c] += rows[t * kBlock + c];
    }
    for (int64_t c = 0; c < s.width(block); ++c) {
      bias_grad[block * kBlock + c] = sum[c];
      for (int64_t k = 0; k < s.W; ++k) weight_grad[(block * kBlock + c) * s.W + k] = kernel_grad[k * kBlock + c];
    }
  });
}

template <typename T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
T* mutable_data(Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

Tensor depthwise_conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Shape s = check(x, weight);
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == s.C && bias.is_contiguous() && bias.scalar_type() == x.scalar_type(),
                  "depthwise_conv1d: bias must be a contiguous (C,) of x's dtype");
  Tensor y = empty_like_shape(x, {s.N, s.T, s.C});
  THO_DISPATCH_V2(x.scalar_type(), "depthwise_conv1d", AT_WRAP([&] {
                    forward(s, data<scalar_t>(x), data<scalar_t>(weight), data<scalar_t>(bias), mutable_data<scalar_t>(y));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return y;
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv1d_backward(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  const Shape s = check(x, weight);
  STD_TORCH_CHECK(grad.dim() == 3 && grad.size(0) == s.N && grad.size(1) == s.T && grad.size(2) == s.C &&
                      grad.is_contiguous() && grad.scalar_type() == x.scalar_type(),
                  "depthwise_conv1d: grad must be contiguous, of x's shape and dtype");
  Tensor x_grad = empty_like_shape(x, {s.N, s.T, s.C});
  Tensor weight_grad = empty_like_shape(x, {s.C, s.W}), bias_grad = empty_like_shape(x, {s.C});
  THO_DISPATCH_V2(x.scalar_type(), "depthwise_conv1d_backward", AT_WRAP([&] {
                    backward(s, data<scalar_t>(grad), data<scalar_t>(x), data<scalar_t>(weight),
                             mutable_data<scalar_t>(x_grad), mutable_data<scalar_t>(weight_grad),
                             mutable_data<scalar_t>(bias_grad));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {x_grad, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("depthwise_conv1d", TORCH_BOX(&depthwise_conv1d));
  m.impl("depthwise_conv1d_backward", TORCH_BOX(&depthwise_conv1d_backward));
}

}  // namespace
}  // namespace lattica
