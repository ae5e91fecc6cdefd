// CPU threads over chunks; the arithmetic is in double_swish.h.
#include "../double_swish.h"

#include "../check.h"
#include "../parallel.h"

namespace lattica {
namespace {

std::tuple<Tensor, Tensor> double_swish_cpu(const Tensor& x, std::optional<Tensor> bytes, int64_t drop) {
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
                        double_swish<true>(in + begin, bytes_data + begin, static_cast<int32_t>(drop), n, out + begin, slope + begin);
                      else
                        double_swish<false, scalar_t>(in + begin, nullptr, 0, n, out + begin, slope + begin);
                    });
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {y, derivative};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) { m.impl("double_swish", TORCH_BOX(&double_swish_cpu)); }

}  // namespace
}  // namespace lattica
