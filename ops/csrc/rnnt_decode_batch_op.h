// decode_rnnt_batch_advance and its scratch memory on either device: checks shapes (values stay where they are), allocates, runs.
#pragma once

#include <vector>

#include "check.h"
#include "rnnt_decode_batch.h"

namespace lattica {
namespace {  // torch's stable types are hidden symbols

using Tensors9 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
T* batch_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline void check_batch(const Tensor& t, ScalarType type, std::initializer_list<int64_t> sizes, const Tensor& beside, const char* name) {
  bool good = t.scalar_type() == type && t.is_contiguous() && t.dim() == static_cast<int64_t>(sizes.size()) &&
              t.is_cuda() == beside.is_cuda();
  int64_t d = 0;
  for (const int64_t size : sizes) {
    good = good && (size < 0 || t.size(d) == size);
    ++d;
  }
  STD_TORCH_CHECK(good, "decode_rnnt_batch_advance: ", name, " has another dtype, shape, layout or device than expected");
}

// Rows of memory for as many of `streams` as fit into `most_words`, at least one.
template <typename Backend>
Tensor rnnt_batch_scratch(const Backend& backend, const Tensor& like, int64_t streams, const RnntScratch& scratch, int64_t most_words) {
  STD_TORCH_CHECK(streams >= 0 && scratch.vocab_size >= 1 && scratch.max_contexts >= 1 && scratch.max_states >= 1 &&
                      scratch.candidates >= 1 && scratch.candidates <= INT64_MAX / 64, "decode_rnnt_batch_scratch: sizes must be positive");
  const int64_t words = scratch.words(), fitting = most_words / words, rows = fitting < 1 ? 1 : fitting < streams ? fitting : streams;
  Tensor memory = empty_like_shape(like, {rows, words}, ScalarType::Long);
  int64_t* p = batch_data<int64_t>(memory);
  const int64_t table = scratch.table_size();
  backend.for_each(rows * words, [=] LATTICA_DEVICE(int64_t k) { p[k] = k % words < table ? static_cast<int64_t>(HashSet::kEmpty) : 0; });
  return memory;
}

// graphs: fsa_splits, state_splits, arcs, scores, of_stream. states: as in RnntPaddedStates, of at least n streams.
template <typename Backend>
Tensors9 rnnt_batch_advance_op(const Backend& backend, const std::vector<Tensor>& graphs, const std::vector<Tensor>& states,
                               const Tensor& rows, const Tensor& log_probs, const Tensor& memory, int64_t n, const RnntSearch& search,
                               int64_t candidates, int64_t arc_capacity, int64_t most_graph_states, int64_t block_size) {
  STD_TORCH_CHECK(graphs.size() == 5 && states.size() == 6, "decode_rnnt_batch_advance: expected 5 tensors of graphs and 6 of states");
  check_batch(graphs[0], ScalarType::Int, {-1}, log_probs, "fsa_splits");
  check_batch(graphs[1], ScalarType::Int, {-1}, log_probs, "state_splits");
  check_batch(graphs[2], ScalarType::Int, {-1, 3}, log_probs, "arcs");
  check_batch(graphs[3], ScalarType::Float, {graphs[2].size(0)}, log_probs, "graph_scores");
  check_batch(graphs[4], ScalarType::Int, {-1}, log_probs, "graph_of_stream");
  STD_TORCH_CHECK(states[2].dim() == 2 && states[5].dim() == 2, "decode_rnnt_batch_advance: contexts and scores must be (N, …)");
  const int64_t N = states[2].size(0), C = states[2].size(1), S = states[5].size(1), V = search.vocab_size;
  check_batch(states[0], ScalarType::Int, {N}, log_probs, "num_contexts");
  check_batch(states[1], ScalarType::Int, {N}, log_probs, "num_states");
  check_batch(states[2], ScalarType::Long, {N, C}, log_probs, "contexts");
  check_batch(states[3], ScalarType::Int, {N, S}, log_probs, "slots");
  check_batch(states[4], ScalarType::Int, {N, S}, log_probs, "graph_states");
  check_batch(states[5], ScalarType::Double, {N, S}, log_probs, "scores");
  check_batch(rows, ScalarType::Int, {n}, log_probs, "rows");
  check_batch(log_probs, ScalarType::Float, {-1, V}, log_probs, "log_probs");
  const RnntScratch scratch{V, C, S, candidates};
  STD_TORCH_CHECK(0 <= n && n <= N && n <= graphs[4].size(0), "decode_rnnt_batch_advance: n must be at most the streams there are");
  STD_TORCH_CHECK(V >= 1 && search.num_contexts >= 1 && search.num_contexts <= INT64_MAX / V && search.beam > 0 && most_graph_states >= 1 &&
                      1 <= search.max_contexts && search.max_contexts <= C &&
                      search.max_states >= 1 && (search.max_states <= S || most_graph_states <= S / search.max_contexts) &&
                      candidates >= 1 && candidates <= INT64_MAX / 64 && arc_capacity >= 1 && block_size >= 1 && block_size <= 1024,
                  "decode_rnnt_batch_advance: a size is out of range");
  check_batch(memory, ScalarType::Long, {-1, scratch.words()}, log_probs, "scratch");

  const auto make = [&](std::initializer_list<int64_t> sizes, ScalarType type) { return empty_like_shape(log_probs, sizes, type); };
  Tensors9 out{make({n}, ScalarType::Int),       make({n}, ScalarType::Int),
               make({n, C}, ScalarType::Long),   make({n, S}, ScalarType::Int),
               make({n, S}, ScalarType::Int),    make({n, S}, ScalarType::Double),
               make({n}, ScalarType::Int),       make({n, arc_capacity, 4}, ScalarType::Int),
               make({n, arc_capacity}, ScalarType::Float)};
  const RnntPaddedStates to{batch_data<int32_t>(std::get<0>(out)), batch_data<int32_t>(std::get<1>(out)),
                            batch_data<int64_t>(std::get<2>(out)), batch_data<int32_t>(std::get<3>(out)),
                            batch_data<int32_t>(std::get<4>(out)), batch_data<double>(std::get<5>(out))};
  const RnntPaddedStates from{batch_data<int32_t>(states[0]), batch_data<int32_t>(states[1]), batch_data<int64_t>(states[2]),
                              batch_data<int32_t>(states[3]), batch_data<int32_t>(states[4]), batch_data<double>(states[5])};
  const RnntPaddedArcs arcs{batch_data<int32_t>(std::get<6>(out)), batch_data<RnntArc>(std::get<7>(out)),
                            batch_data<float>(std::get<8>(out)), arc_capacity};
  const RnntGraphs views{batch_data<int32_t>(graphs[0]), batch_data<int32_t>(graphs[1]), batch_data<Arc>(graphs[2]),
                         batch_data<float>(graphs[3]), batch_data<int32_t>(graphs[4]), most_graph_states};
  int64_t* contexts = to.contexts;
  int32_t* num_arcs = arcs.num;
  // What lies beyond the contexts there are is looked up in tables, too: let it be a context.
  backend.for_each(n * C, [=] LATTICA_DEVICE(int64_t k) { contexts[k] = 0; });
  backend.for_each(n, [=] LATTICA_DEVICE(int64_t i) { num_arcs[i] = 0; });
  rnnt_batch_advance(backend,
                     {views, search, scratch, from, to, arcs, batch_data<float>(log_probs), batch_data<int32_t>(rows),
                      batch_data<int64_t>(memory), 0},
                     n, memory.size(0), block_size);
  return out;
}

}  // namespace
}  // namespace lattica
