// CPU threads over FSAs; the algorithms are in fsa_structure.h, fsa_intersect.h and fsa_rewrite.h.
#include <memory>
#include <numeric>

#include "../fsa_determinize.h"
#include "../fsa_intersect.h"
#include "../fsa_rewrite.h"
#include "../fsa_structure.h"
#include "../fsa_torch.h"

namespace lattica {
namespace {

template <typename F>
Tensors4 unary(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const F& f) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  const Joined out = join(for_each_fsa(fsas.num_fsas, [&](int64_t i) { return f(fsas[i]); }), arcs);
  return {out.fsa_splits, out.state_splits, out.arcs, out.map_a};
}

template <typename F>
Tensors5 unary_lists(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores, const F& f) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  check_scores(scores, "scores", arcs.size(0));
  const double* s = const_data<double>(scores);
  const Joined out = join(for_each_fsa(fsas.num_fsas, [&](int64_t i) { return f(fsas[i], s); }), arcs);
  return {out.fsa_splits, out.state_splits, out.arcs, out.map_splits, out.map_a};
}

Tensors4 fsa_connect_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs) {
  return unary(fsa_splits, state_splits, arcs, connect);
}

Tensors4 fsa_top_sort_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs) {
  return unary(fsa_splits, state_splits, arcs, top_sort);
}

Tensor fsa_arc_sort_cpu(const Tensor& state_splits, const Tensor& arcs) {
  check_ints(arcs, "arcs", 2);
  STD_TORCH_CHECK(arcs.size(1) == 3, "arcs must have 3 columns");
  check_splits(state_splits, "state_splits", arcs.size(0));
  Tensor out = new_ints(arcs, {arcs.size(0)});
  int32_t* order = data<int32_t>(out);
  std::iota(order, order + arcs.size(0), 0);
  const int32_t* splits = const_data<int32_t>(state_splits);
  const Arc* p = const_data<Arc>(arcs);
  const auto key = [p](int32_t a) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(p[a].label)) << 32) | static_cast<uint32_t>(p[a].dest);
  };
  CpuBackend{}.for_each(state_splits.size(0) - 1, [&](int64_t s) {
    const int32_t begin = splits[s], end = splits[s + 1];
    for (int32_t a = begin + 1; a < end; ++a)
      if (key(a) < key(a - 1)) {
        std::stable_sort(order + begin, order + end, [&](int32_t x, int32_t y) { return key(x) < key(y); });
        break;
      }
  });
  return out;
}

Tensors5 fsa_intersect_cpu(const Tensor& a_fsa_splits, const Tensor& a_state_splits, const Tensor& a_arcs, const Tensor& a_labels,
                           const Tensor& b_fsa_splits, const Tensor& b_state_splits, const Tensor& b_arcs,
                           const Tensor& a_index, const Tensor& b_index, bool epsilons) {
  const FsaVecView a = fsa_view(a_fsa_splits, a_state_splits, a_arcs), b = fsa_view(b_fsa_splits, b_state_splits, b_arcs);
  check_ints(a_labels, "a_labels");
  STD_TORCH_CHECK(a_labels.size(0) == a_arcs.size(0), "a_labels must have one entry for each arc of a");
  for (int64_t k = 0; k < a_arcs.size(0); ++k)
    STD_TORCH_CHECK((const_data<int32_t>(a_labels)[k] == -1) == (a.arcs[k].label == -1),
                    "the inner labels of a must be -1 exactly on its arcs into the final state (arc ", k, ")");
  check_ints(a_index, "a_index");
  check_ints(b_index, "b_index");
  const int64_t n = a_index.size(0);
  const int32_t *ai = const_data<int32_t>(a_index), *bi = const_data<int32_t>(b_index);
  STD_TORCH_CHECK(b_index.size(0) == n, "a_index and b_index must have one length");
  for (int64_t i = 0; i < n; ++i)
    STD_TORCH_CHECK(ai[i] >= 0 && ai[i] < a.num_fsas && bi[i] >= 0 && bi[i] < b.num_fsas, "a_index[", i, "] or b_index[", i,
                    "] is no FSA");
  std::vector<int32_t> b_labels(b_arcs.size(0));
  for (size_t k = 0; k < b_labels.size(); ++k) b_labels[k] = b.arcs[k].label;
  std::vector<std::unique_ptr<LabelOrder>> a_order(a.num_fsas), b_order(b.num_fsas);
  CpuBackend{}.for_each(a.num_fsas, [&](int64_t i) { a_order[i] = std::make_unique<LabelOrder>(a[i], const_data<int32_t>(a_labels)); });
  CpuBackend{}.for_each(b.num_fsas, [&](int64_t i) { b_order[i] = std::make_unique<LabelOrder>(b[i], b_labels.data()); });
  const Joined out = join(for_each_fsa(n, [&](int64_t i) {
    return intersect(a[ai[i]], *a_order[ai[i]], b[bi[i]], *b_order[bi[i]], epsilons);
  }), a_arcs);
  return {out.fsa_splits, out.state_splits, out.arcs, out.map_a, out.map_b};
}

Tensors5 fsa_remove_epsilon_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores,
                                bool all_paths) {
  return unary_lists(fsa_splits, state_splits, arcs, scores,
                     [&](const FsaView& fsa, const double* s) { return EpsilonRemover(fsa, s, all_paths).run(); });
}

Tensors5 fsa_determinize_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores,
                             int64_t max_states) {
  return unary_lists(fsa_splits, state_splits, arcs, scores,
                     [&](const FsaView& fsa, const double* s) { return Determinizer(fsa, s, max_states).run(); });
}

Tensors4 fsa_minimize_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores,
                          const Tensor& aux, double delta) {
  check_scores(scores, "scores", arcs.size(0));
  check_ints(aux, "aux");
  STD_TORCH_CHECK(aux.size(0) == arcs.size(0) && delta > 0, "aux must have one entry for each arc, and delta must be positive");
  return unary(fsa_splits, state_splits, arcs, [&](const FsaView& fsa) {
    return minimize(fsa, const_data<double>(scores), const_data<int32_t>(aux), delta);
  });
}

Tensor fsa_potentials_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores,
                          bool log_semiring, double tolerance, int64_t max_sweeps) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  check_scores(scores, "scores", arcs.size(0));
  Tensor out = empty_like_shape(scores, {state_splits.size(0) - 1});
  std::vector<char> ok(fsas.num_fsas);
  CpuBackend{}.for_each(fsas.num_fsas, [&](int64_t i) {
    ok[i] = potentials(fsas[i], const_data<double>(scores), log_semiring, tolerance, max_sweeps,
                       data<double>(out) + fsas.fsa_splits[i]);
  });
  for (int64_t i = 0; i < fsas.num_fsas; ++i)
    STD_TORCH_CHECK(ok[i], "the scores of the cycles of FSA ", i, " do not converge");
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("fsa_connect", TORCH_BOX(&fsa_connect_cpu));
  m.impl("fsa_top_sort", TORCH_BOX(&fsa_top_sort_cpu));
  m.impl("fsa_arc_sort", TORCH_BOX(&fsa_arc_sort_cpu));
  m.impl("fsa_intersect", TORCH_BOX(&fsa_intersect_cpu));
  m.impl("fsa_remove_epsilon", TORCH_BOX(&fsa_remove_epsilon_cpu));
  m.impl("fsa_determinize", TORCH_BOX(&fsa_determinize_cpu));
  m.impl("fsa_minimize", TORCH_BOX(&fsa_minimize_cpu));
  m.impl("fsa_potentials", TORCH_BOX(&fsa_potentials_cpu));
}

}  // namespace
}  // namespace lattica
