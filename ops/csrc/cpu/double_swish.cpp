// x · sigmoid(x - 1) and its derivative, with dropout, in one pass over memory.
#include "../check.h"
#include "../fast_exp.h"
#include "../parallel.h"

namespace lattica {
namespace {

template <bool kDrop, typename T>
void run(const T* __restrict x, const uint8_t* __restrict bytes, int32_t drop, int64_t n, T* __restrict y, T* __restrict d) {
  const T factor = T(256) / T(256 - drop);
  for (int64_t i = 0; i < n; ++i) {
    const T sigmoid = T(1) / (T(1) + fast_exp(T(1) - x[i]));
    const T value = x[i] * sigmoid;
    const T scale = kDrop ? (static_cast<int32_t>(bytes[i]) >= drop ? factor : T(0)) : T(1);
    y[i] = value * scale;
    d[i] = (sigmoid + value * (T(1) - sigmoid)) * scale;
  }
}

std::tuple<Tensor, Tensor> double_swish(const Tensor& x, std::optional<Tensor> bytes, int64_t drop) {
  STD_TORCH_CHECK(x.is_contiguous(), "double_swish: x must be contiguous");
  STD_TORCH_CHECK(0 <= drop && drop < 256, "double_swish: drop must lie in [0, 256), got ", drop);
  STD_TORCH_CHECK(!bytes || (bytes->is_contiguous() && bytes->scalar_type() == ScalarType::Byte && bytes->numel() >= x.numel()),
                  "double_swish: bytes must be contiguous uint8, one for each element of x");
  Tensor y = torch::stable::empty_like(x), derivative = torch::stable::empty_like(x);
  const uint8_t* bytes_data = bytes ? static_cast<const uint8_t*>(bytes->const_data_ptr()) : nullptr;
  constexpr int64_t kChunk = 1 << 14;
  THO_DISPATCH_V2(x.scalar_type(), "double_swish", AT_WRAP([&] {
                    const auto* in = static_cast<const scalar_t*>(x.const_data_ptr());
                    auto* out = static_cast<scalar_t*>(y.mutable_data_ptr());
                    auto* slope = static_cast<scalar_t*>(derivative.mutable_data_ptr());
                    CpuBackend{}.for_each((x.numel() + kChunk - 1) / kChunk, [&](int64_t chunk) {
                      const int64_t begin = chunk * kChunk, n = std::min<int64_t>(kChunk, x.numel() - begin);
                      if (bytes_data)
                        run<true>(in + begin, bytes_data + begin, static_cast<int32_t>(drop), n, out + begin, slope + begin);
                      else
                        run<false, scalar_t>(in + begin, nullptr, 0, n, out + begin, slope + begin);
                    });
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {y, derivative};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) { m.impl("double_swish", TORCH_BOX(&double_swish)); }

}  // namespace
}  // namespace lattica
