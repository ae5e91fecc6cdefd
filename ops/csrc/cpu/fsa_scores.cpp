// CPU threads over FSAs; the recursions are in fsa_scores.h.
#include "../fsa_scores.h"

#include <atomic>

#include "../fsa_torch.h"

namespace lattica {
namespace {

void check_goes_up(const FsaVecView& fsas) {
  std::atomic<int64_t> bad{-1};
  CpuBackend{}.for_each(fsas.num_fsas, [&](int64_t i) {
    if (!goes_up(fsas[i])) bad = i;
  });
  STD_TORCH_CHECK(bad < 0, "FSA ", bad.load(), " is cyclic or not top-sorted: call top_sort first");
}

std::tuple<Tensor, Tensor, Tensor> fsa_state_scores_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs,
                                                        const Tensor& scores, bool forward, bool log_semiring,
                                                        bool want_shares) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  check_scores(scores, "scores", arcs.size(0));
  check_goes_up(fsas);
  const int64_t num_states = state_splits.size(0) - 1;
  const bool shares_made = want_shares && log_semiring && !forward;
  Tensor out = empty_like_shape(scores, {num_states}), best = new_ints(arcs, {num_states});
  Tensor shares = empty_like_shape(scores, {shares_made ? arcs.size(0) : 0});
  CpuBackend{}.for_each(fsas.num_fsas, [&](int64_t i) {
    const int32_t first = fsas.fsa_splits[i];
    double* const to = data<double>(out) + first;
    int32_t* const best_to = data<int32_t>(best) + first;
    if (forward) {
      forward_scores(fsas[i], const_data<double>(scores), log_semiring, to, best_to);
    } else {
      backward_scores(fsas[i], const_data<double>(scores), log_semiring, to, best_to, shares_made ? data<double>(shares) : nullptr);
    }
  });
  return {out, best, shares};
}

Tensor fsa_state_scores_grad_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs,
                                 const Tensor& scores, bool forward, bool log_semiring, const Tensor& state_scores,
                                 const Tensor& best, const Tensor& shares, const Tensor& state_grad) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  const int64_t num_states = state_splits.size(0) - 1;
  check_scores(scores, "scores", arcs.size(0));
  check_scores(state_scores, "state_scores", num_states);
  check_scores(state_grad, "state_grad", num_states);
  check_scores(shares, "shares", log_semiring && !forward ? arcs.size(0) : 0);
  check_ints(best, "best");
  STD_TORCH_CHECK(best.size(0) == num_states, "best must have one entry for each state");
  Tensor arc_grad = empty_like_shape(scores, {arcs.size(0)});
  std::vector<double> scratch(const_data<double>(state_grad), const_data<double>(state_grad) + num_states);
  CpuBackend{}.for_each(fsas.num_fsas, [&](int64_t i) {
    const int32_t first = fsas.fsa_splits[i];
    double* const grad = scratch.data() + first;
    if (forward) {
      forward_scores_grad(fsas[i], const_data<double>(scores), log_semiring, const_data<double>(state_scores) + first,
                          const_data<int32_t>(best) + first, grad, data<double>(arc_grad));
    } else {
      backward_scores_grad(fsas[i], const_data<int32_t>(best) + first, const_data<double>(shares), log_semiring, grad,
                           data<double>(arc_grad));
    }
  });
  return arc_grad;
}

Tensor fsa_arc_post_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores,
                        const Tensor& forward, const Tensor& backward) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  const int64_t num_states = state_splits.size(0) - 1;
  check_scores(scores, "scores", arcs.size(0));
  check_scores(forward, "forward", num_states);
  check_scores(backward, "backward", num_states);
  Tensor post = empty_like_shape(scores, {arcs.size(0)});
  const double *s = const_data<double>(scores), *f = const_data<double>(forward), *b = const_data<double>(backward);
  CpuBackend{}.for_each(fsas.num_fsas, [&](int64_t i) {
    const int32_t first = fsas.fsa_splits[i];
    arc_post(fsas[i], s, f + first, b + first, data<double>(post));
  });
  return post;
}

std::tuple<Tensor, Tensor, Tensor> fsa_arc_post_grad_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs,
                                                         const Tensor& forward, const Tensor& post_grad) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  const int64_t num_states = state_splits.size(0) - 1;
  check_scores(forward, "forward", num_states);
  check_scores(post_grad, "post_grad", arcs.size(0));
  Tensor arc_grad = empty_like_shape(forward, {arcs.size(0)});
  Tensor forward_grad = torch::stable::new_zeros(forward, {num_states}), backward_grad = torch::stable::new_zeros(forward, {num_states});
  CpuBackend{}.for_each(fsas.num_fsas, [&](int64_t i) {
    const int32_t first = fsas.fsa_splits[i];
    arc_post_grad(fsas[i], const_data<double>(forward) + first, const_data<double>(post_grad), data<double>(arc_grad),
                  data<double>(forward_grad) + first, data<double>(backward_grad) + first);
  });
  return {arc_grad, forward_grad, backward_grad};
}

Tensors4 fsa_shortest_path_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& best) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  check_ints(best, "best");
  STD_TORCH_CHECK(best.size(0) == state_splits.size(0) - 1, "best must have one entry for each state");
  const int32_t* b = const_data<int32_t>(best);
  for (int64_t i = 0; i < fsas.num_fsas; ++i)
    for (int32_t s = 0; s < fsas[i].num_states; ++s) {
      const int32_t a = b[fsas.fsa_splits[i] + s];
      STD_TORCH_CHECK(a == -1 || (a >= fsas[i].first_arc() && a < fsas[i].first_arc() + fsas[i].num_arcs() &&
                                  arcs.size(0) && fsas.arcs[a].dest == s && fsas.arcs[a].src < s),
                      "best[", fsas.fsa_splits[i] + s, "] = ", a, " is no arc into that state from a lower one");
    }
  const Joined out = join(for_each_fsa(fsas.num_fsas, [&](int64_t i) { return best_path(fsas[i], b + fsas.fsa_splits[i]); }), arcs);
  return {out.fsa_splits, out.state_splits, out.arcs, out.map_a};
}

std::tuple<Tensor, Tensor> fsa_random_paths_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs,
                                                const Tensor& shares, const Tensor& path_splits, int64_t seed) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  check_scores(shares, "shares", arcs.size(0));
  check_ints(path_splits, "path_splits");
  const int64_t num_paths = path_splits.size(0) ? const_data<int32_t>(path_splits)[path_splits.size(0) - 1] : 0;
  STD_TORCH_CHECK(path_splits.size(0) == fsas.num_fsas + 1, "path_splits must have one entry more than there are FSAs");
  check_splits(path_splits, "path_splits", num_paths);
  check_goes_up(fsas);
  const int32_t* splits = const_data<int32_t>(path_splits);
  std::vector<int32_t> fsa_of(num_paths);
  for (int64_t i = 0; i < fsas.num_fsas; ++i)
    for (int32_t k = splits[i]; k < splits[i + 1]; ++k) fsa_of[k] = static_cast<int32_t>(i);
  std::vector<std::vector<int32_t>> paths(num_paths);
  CpuBackend{}.for_each(num_paths, [&](int64_t k) {
    const int32_t i = fsa_of[k];
    const uint64_t path_seed = static_cast<uint64_t>(seed) ^ (static_cast<uint64_t>(k + 1) * 0xD1342543DE82EF95ULL);
    random_path(fsas[i], const_data<double>(shares), path_seed, &paths[k]);
  });
  std::vector<int32_t> ends{0}, all;
  for (const auto& path : paths) {
    all.insert(all.end(), path.begin(), path.end());
    ends.push_back(static_cast<int32_t>(all.size()));
  }
  return {to_tensor(ends, arcs), to_tensor(all, arcs)};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("fsa_state_scores", TORCH_BOX(&fsa_state_scores_cpu));
  m.impl("fsa_state_scores_grad", TORCH_BOX(&fsa_state_scores_grad_cpu));
  m.impl("fsa_arc_post", TORCH_BOX(&fsa_arc_post_cpu));
  m.impl("fsa_arc_post_grad", TORCH_BOX(&fsa_arc_post_grad_cpu));
  m.impl("fsa_shortest_path", TORCH_BOX(&fsa_shortest_path_cpu));
  m.impl("fsa_random_paths", TORCH_BOX(&fsa_random_paths_cpu));
}

}  // namespace
}  // namespace lattica
