// CPU threads over FSAs; the algorithms are in fsa_structure.h, fsa_intersect.h and fsa_rewrite.h.
#include <memory>
#include <utility>

#include "../fsa_ctc_graph.h"
#include "../fsa_determinize.h"
#include "../fsa_intersect.h"
#include "../fsa_minimize.h"
#include "../fsa_rewrite.h"
#include "../fsa_structure.h"
#include "../fsa_torch.h"

namespace lattica {
namespace {

// f(fsa, renumbering) for each FSA.
template <typename F>
Tensors4 renumbered(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const F& f) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  Renumberings out(fsas);
  CpuBackend{}.for_each(fsas.num_fsas, [&](int64_t i) { f(fsas[i], &out.fsas[i]); });
  const Joined joined = renumber(fsas, out, arcs);
  return {joined.fsa_splits, joined.state_splits, joined.arcs, joined.map_a};
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
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  std::vector<char> marks(2 * (state_splits.size(0) - 1));  // first from the starts, then from the ends
  char* const ends = marks.data() + state_splits.size(0) - 1;
  const int64_t ways = state_splits.size(0) > (1 << 16) ? 2 : 1;  // a large FSA is marked from both sides at once
  CpuBackend{}.for_each(ways * fsas.num_fsas, [&](int64_t k) {
    const int64_t i = k / ways, first = fsas.fsa_splits[i];
    if (k % ways == 0) mark_accessible(fsas[i], marks.data() + first);
    if (k % ways == ways - 1) mark_coaccessible(fsas[i], ends + first);
  });
  Renumberings out(fsas);
  CpuBackend{}.for_each(fsas.num_fsas, [&](int64_t i) {
    connect(fsas[i], marks.data() + fsas.fsa_splits[i], ends + fsas.fsa_splits[i], &out.fsas[i]);
  });
  const Joined joined = renumber(fsas, out, arcs);
  return {joined.fsa_splits, joined.state_splits, joined.arcs, joined.map_a};
}

Tensors4 fsa_top_sort_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs) {
  return renumbered(fsa_splits, state_splits, arcs, top_sort);
}

// Of the arcs those that the mask has; of the states all, or those that these arcs touch, the start and the final state.
Tensors4 fsa_keep_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& arc_mask, bool all_states) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  STD_TORCH_CHECK(arc_mask.dim() == 1 && arc_mask.scalar_type() == ScalarType::Bool && arc_mask.is_contiguous() &&
                      arc_mask.size(0) == arcs.size(0), "arc_mask must be a contiguous bool tensor with one entry for each arc");
  const bool* const mask = const_data<bool>(arc_mask);
  Renumberings out(fsas);
  CpuBackend{}.for_each(fsas.num_fsas, [&](int64_t i) { keep(fsas[i], mask, all_states, &out.fsas[i]); });
  const Joined joined = renumber(fsas, out, arcs, mask);
  return {joined.fsa_splits, joined.state_splits, joined.arcs, joined.map_a};
}

Tensor fsa_properties_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs) {
  check_ints(arcs, "arcs", 2);
  STD_TORCH_CHECK(arcs.size(1) == 3, "arcs must have 3 columns");
  check_splits(state_splits, "state_splits", arcs.size(0));
  check_splits(fsa_splits, "fsa_splits", state_splits.size(0) - 1);
  const FsaVecView fsas{fsa_splits.size(0) - 1, const_data<int32_t>(fsa_splits), const_data<int32_t>(state_splits),
                        const_data<Arc>(arcs)};
  Tensor out = new_ints(arcs, {fsas.num_fsas});
  CpuBackend{}.for_each(fsas.num_fsas, [&](int64_t i) { data<int32_t>(out)[i] = properties(fsas[i]); });
  return out;
}

Tensors4 fsa_ctc_graph_cpu(const Tensor& row_splits, const Tensor& symbols, bool modified) {
  check_ints(symbols, "symbols");
  check_splits(row_splits, "row_splits", symbols.size(0));
  const int64_t n = row_splits.size(0) - 1;
  const int32_t *rows = const_data<int32_t>(row_splits), *tokens = const_data<int32_t>(symbols);
  STD_TORCH_CHECK(5 * symbols.size(0) + 3 * n < INT32_MAX, "ctc_graph: the result has more than 2^31 - 1 arcs");
  Tensor fsa_splits = new_ints(symbols, {n + 1}), state_splits = new_ints(symbols, {2 * (symbols.size(0) + n) + 1});
  std::vector<int32_t> first(n + 1, 0);
  for (int64_t i = 0; i < n; ++i) first[i + 1] = first[i] + ctc_num_arcs(tokens + rows[i], rows[i + 1] - rows[i], modified);
  Tensor arcs = new_ints(symbols, {first[n], 3}), aux = new_ints(symbols, {first[n]});
  int32_t *fsas = data<int32_t>(fsa_splits), *states = data<int32_t>(state_splits), *aux_out = data<int32_t>(aux);
  Arc* arcs_out = data<Arc>(arcs);
  for (int64_t i = 0; i <= n; ++i) fsas[i] = 2 * (rows[i] + static_cast<int32_t>(i));
  states[fsas[n]] = first[n];
  const auto write = [&](int64_t i) {
    ctc_graph(tokens + rows[i], rows[i + 1] - rows[i], modified, first[i], states + fsas[i], arcs_out + first[i], aux_out + first[i]);
  };
  if (first[n] < (1 << 16)) {  // waking a thread would take longer
    for (int64_t i = 0; i < n; ++i) write(i);
  } else {
    CpuBackend{}.for_each(n, write);
  }
  return {fsa_splits, state_splits, arcs, aux};
}

Tensor fsa_arc_sort_cpu(const Tensor& state_splits, const Tensor& arcs) {
  check_ints(arcs, "arcs", 2);
  STD_TORCH_CHECK(arcs.size(1) == 3, "arcs must have 3 columns");
  check_splits(state_splits, "state_splits", arcs.size(0));
  Tensor out = new_ints(arcs, {arcs.size(0)});
  int32_t* order = data<int32_t>(out);
  const int32_t* splits = const_data<int32_t>(state_splits);
  const Arc* p = const_data<Arc>(arcs);
  const int64_t num_states = state_splits.size(0) - 1;
  constexpr int64_t kBlock = 1 << 13;  // states a task
  CpuBackend{}.for_each((num_states + kBlock - 1) / kBlock, [&](int64_t block) {
    std::vector<std::pair<uint64_t, int32_t>> keys;
    const auto key = [p](int32_t a) {
      return (static_cast<uint64_t>(static_cast<uint32_t>(p[a].label)) << 32) | static_cast<uint32_t>(p[a].dest);
    };
    for (int64_t s = block * kBlock; s < std::min(num_states, (block + 1) * kBlock); ++s) {
      const int32_t begin = splits[s], end = splits[s + 1];
      bool sorted = true;
      for (int32_t a = begin; a < end; ++a) {
        order[a] = a;
        sorted &= a == begin || key(a - 1) <= key(a);
      }
      if (sorted) continue;
      keys.clear();
      for (int32_t a = begin; a < end; ++a) keys.emplace_back(key(a), a);
      std::sort(keys.begin(), keys.end());
      for (int32_t a = begin; a < end; ++a) order[a] = keys[a - begin].second;
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
  const int32_t* const inner = const_data<int32_t>(a_labels);
  for (int64_t k = 0, n = a_arcs.size(0); k < n; ++k)
    STD_TORCH_CHECK((inner[k] == -1) == (a.arcs[k].label == -1),
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
  CpuBackend{}.for_each(a.num_fsas, [&](int64_t i) { a_order[i] = std::make_unique<LabelOrder>(a[i], inner); });
  CpuBackend{}.for_each(b.num_fsas, [&](int64_t i) { b_order[i] = std::make_unique<LabelOrder>(b[i], b_labels.data()); });
  const Joined out = join(for_each_fsa(n, [&](int64_t i) {
    return Intersector(a[ai[i]], *a_order[ai[i]], b[bi[i]], *b_order[bi[i]], epsilons).run();
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
  return renumbered(fsa_splits, state_splits, arcs, [&](const FsaView& fsa, Renumbering* out) {
    Minimizer(fsa, const_data<double>(scores), const_data<int32_t>(aux), delta).run(out);
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
  m.impl("fsa_properties", TORCH_BOX(&fsa_properties_cpu));
  m.impl("fsa_ctc_graph", TORCH_BOX(&fsa_ctc_graph_cpu));
  m.impl("fsa_connect", TORCH_BOX(&fsa_connect_cpu));
  m.impl("fsa_keep", TORCH_BOX(&fsa_keep_cpu));
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
