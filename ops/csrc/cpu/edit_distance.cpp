// CPU threads over pairs; the recursion is in edit_distance.h.
#include "../edit_distance.h"

#include "../fsa_torch.h"

namespace lattica {
namespace {

Tensor fsa_edit_distance_cpu(const Tensor& ref_splits, const Tensor& refs, const Tensor& hyp_splits, const Tensor& hyps,
                             const Tensor& hyp_to_ref) {
  check_ints(refs, "refs");
  check_ints(hyps, "hyps");
  check_splits(ref_splits, "ref_splits", refs.size(0));
  check_splits(hyp_splits, "hyp_splits", hyps.size(0));
  check_ints(hyp_to_ref, "hyp_to_ref");
  const int64_t num_refs = ref_splits.size(0) - 1, n = hyp_splits.size(0) - 1;
  STD_TORCH_CHECK(hyp_to_ref.size(0) == n, "hyp_to_ref must have one entry for each of the ", n, " hypotheses");
  const int32_t *of = const_data<int32_t>(hyp_to_ref), *r = const_data<int32_t>(ref_splits), *h = const_data<int32_t>(hyp_splits);
  for (int64_t i = 0; i < n; ++i)
    STD_TORCH_CHECK(of[i] >= 0 && of[i] < num_refs, "hyp_to_ref[", i, "] = ", of[i], " is none of ", num_refs, " references");
  Tensor out = new_ints(hyp_to_ref, {n});
  int32_t* distance = data<int32_t>(out);
  CpuBackend{}.for_each(n, [&](int64_t i) {
    const int32_t k = of[i];
    distance[i] = edit_distance(const_data<int32_t>(refs) + r[k], r[k + 1] - r[k], const_data<int32_t>(hyps) + h[i], h[i + 1] - h[i]);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) { m.impl("fsa_edit_distance", TORCH_BOX(&fsa_edit_distance_cpu)); }

}  // namespace
}  // namespace lattica
