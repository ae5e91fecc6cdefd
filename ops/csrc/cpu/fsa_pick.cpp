// CPU threads over arcs; what is picked is in fsa_pick.h.
#include "../fsa_pick.h"

#include "../fsa_torch.h"

namespace lattica {
namespace {

// f(zero of the dtype) for the dtypes that arcs' values have.
template <typename F>
void with_value_type(const Tensor& src, F f) {
  STD_TORCH_CHECK(src.dim() == 1 && src.is_contiguous(), "src must be contiguous, with one dimension");
  if (src.scalar_type() == ScalarType::Int) f(int32_t{0});
  else if (src.scalar_type() == ScalarType::Long) f(int64_t{0});
  else if (src.scalar_type() == ScalarType::Float) f(0.0f);
  else if (src.scalar_type() == ScalarType::Double) f(0.0);
  else STD_TORCH_CHECK(false, "src must be int32, int64, float32 or float64");
}

const int32_t* checked_map(const Tensor& map, const Tensor& src) {
  check_ints(map, "map");
  const int32_t* p = const_data<int32_t>(map);
  STD_TORCH_CHECK(map_is_good(CpuBackend{}, p, map.size(0), src.size(0)), "map must lie in [-1, ", src.size(0), ")");
  return p;
}

Tensor fsa_pick_cpu(const Tensor& src, const Tensor& map, double filler) {
  const int32_t* const m = checked_map(map, src);
  Tensor out = empty_like_shape(src, {map.size(0)});
  with_value_type(src, [&](auto zero) {
    using T = decltype(zero);
    pick(CpuBackend{}, const_data<T>(src), src.size(0), m, map.size(0), static_cast<T>(filler), data<T>(out));
  });
  return out;
}

Tensor fsa_pick_sum_cpu(const Tensor& src, const Tensor& map_splits, const Tensor& map) {
  const int32_t* const m = checked_map(map, src);
  check_splits(map_splits, "map_splits", map.size(0));
  Tensor out = empty_like_shape(src, {map_splits.size(0) - 1});
  with_value_type(src, [&](auto zero) {
    using T = decltype(zero);
    pick_sum(CpuBackend{}, const_data<T>(src), const_data<int32_t>(map_splits), m, map_splits.size(0) - 1, data<T>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> fsa_pick_lists_cpu(const Tensor& src, const Tensor& map_splits, const Tensor& map, double filler) {
  const int32_t* const m = checked_map(map, src);
  check_splits(map_splits, "map_splits", map.size(0));
  const int64_t rows = map_splits.size(0) - 1;
  Tensor ends = new_ints(map, {rows + 1}), values = empty_like_shape(src, {0});
  with_value_type(src, [&](auto zero) {
    using T = decltype(zero);
    const T none = static_cast<T>(filler);
    count_listed(const_data<T>(src), const_data<int32_t>(map_splits), m, rows, none, data<int32_t>(ends));
    values = empty_like_shape(src, {const_data<int32_t>(ends)[rows]});
    list_values(const_data<T>(src), m, map.size(0), none, data<T>(values));
  });
  return {ends, values};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("fsa_pick", TORCH_BOX(&fsa_pick_cpu));
  m.impl("fsa_pick_sum", TORCH_BOX(&fsa_pick_sum_cpu));
  m.impl("fsa_pick_lists", TORCH_BOX(&fsa_pick_lists_cpu));
}

}  // namespace
}  // namespace lattica
