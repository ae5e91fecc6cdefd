// CPU threads over utterances; the algorithm is in fsa_dense.h.
#include "../fsa_dense.h"

#include "../fsa_torch.h"

namespace lattica {
namespace {

Tensors5 fsa_intersect_dense_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores,
                                 const Tensor& log_probs, const Tensor& segments, const Tensor& a_index, const Tensor& b_index,
                                 double search_beam, double output_beam, int64_t min_active, int64_t max_active,
                                 bool allow_partial) {
  const FsaVecView graphs = fsa_view(fsa_splits, state_splits, arcs);
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == arcs.size(0) && scores.scalar_type() == ScalarType::Float &&
                      scores.is_contiguous(), "scores must be contiguous float32, one for each arc");
  STD_TORCH_CHECK(log_probs.dim() == 3 && log_probs.scalar_type() == ScalarType::Float && log_probs.is_contiguous(),
                  "log_probs must be contiguous float32 (N, T, C)");
  check_ints(segments, "segments", 2);
  check_ints(a_index, "a_index");
  check_ints(b_index, "b_index");
  const int64_t N = log_probs.size(0), T = log_probs.size(1), C = log_probs.size(2), n = a_index.size(0);
  STD_TORCH_CHECK(segments.size(1) == 3 && b_index.size(0) == n, "segments must be (S, 3), a_index and b_index of one length");
  STD_TORCH_CHECK(search_beam > 0 && output_beam > 0 && min_active >= 0 && max_active >= 1 && min_active <= max_active,
                  "beams must be positive and 0 <= min_active_states <= max_active_states");
  const int32_t *ai = const_data<int32_t>(a_index), *bi = const_data<int32_t>(b_index), *seg = const_data<int32_t>(segments);
  for (int64_t i = 0; i < segments.size(0); ++i)
    STD_TORCH_CHECK(seg[3 * i] >= 0 && seg[3 * i] < N && seg[3 * i + 1] >= 0 && seg[3 * i + 2] >= 0 &&
                        seg[3 * i + 1] + int64_t{seg[3 * i + 2]} <= T,
                    "segment ", i, " lies outside log_probs of ", N, " x ", T, " frames");
  for (int64_t i = 0; i < n; ++i)
    STD_TORCH_CHECK(ai[i] >= 0 && ai[i] < graphs.num_fsas && bi[i] >= 0 && bi[i] < segments.size(0), "a_index[", i,
                    "] or b_index[", i, "] is out of range");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const Beams beams{static_cast<float>(search_beam), static_cast<float>(output_beam),
                    static_cast<int32_t>(std::min(min_active, kMost)), static_cast<int32_t>(std::min(max_active, kMost)),
                    allow_partial};
  const Joined out = join(for_each_fsa(n, [&](int64_t i) {
    const int32_t* s = seg + 3 * bi[i];
    const DenseView dense{const_data<float>(log_probs) + (s[0] * T + s[1]) * C, C, s[2], static_cast<int32_t>(C)};
    return DenseIntersecter(graphs[ai[i]], const_data<float>(scores), dense, beams).run();
  }), arcs);
  return {out.fsa_splits, out.state_splits, out.arcs, out.map_a, out.map_b};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) { m.impl("fsa_intersect_dense", TORCH_BOX(&fsa_intersect_dense_cpu)); }

}  // namespace
}  // namespace lattica
