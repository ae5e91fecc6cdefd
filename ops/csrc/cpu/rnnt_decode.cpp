// CPU threads over utterances; the algorithm is in rnnt_decode.h.
#include "../rnnt_decode.h"

#include "../fsa_torch.h"

namespace lattica {
namespace {

using Graphs = std::vector<RnntGraph>;
using Tensors8 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The arcs are checked where the search meets them: a graph may have millions, a frame meets few.
Graphs graph_views(const std::vector<Tensor>& splits, const std::vector<Tensor>& arcs, const std::vector<Tensor>& scores) {
  STD_TORCH_CHECK(splits.size() == arcs.size() && splits.size() == scores.size(), "each graph has splits, arcs and scores");
  Graphs graphs;
  for (size_t i = 0; i < splits.size(); ++i) {
    check_ints(splits[i], "state_splits");
    check_ints(arcs[i], "arcs", 2);
    STD_TORCH_CHECK(splits[i].size(0) >= 1 && arcs[i].size(1) == 3 && arcs[i].size(0) < INT32_MAX, "graph ", i,
                    ": state_splits must not be empty and arcs must be (A, 3)");
    STD_TORCH_CHECK(scores[i].dim() == 1 && scores[i].size(0) == arcs[i].size(0) && scores[i].scalar_type() == ScalarType::Float &&
                        scores[i].is_contiguous(), "the scores of a graph must be contiguous float32, one for each arc");
    graphs.push_back({static_cast<int32_t>(splits[i].size(0)) - 1, arcs[i].size(0), const_data<int32_t>(splits[i]),
                      const_data<Arc>(arcs[i]), const_data<float>(scores[i])});
  }
  return graphs;
}

const int32_t* check_graph_of(const Tensor& graph_of, int64_t n, size_t num_graphs) {
  check_ints(graph_of, "graph_of_stream");
  STD_TORCH_CHECK(graph_of.size(0) >= n, "graph_of_stream must name a graph for each of ", n, " streams");
  const int32_t* p = const_data<int32_t>(graph_of);
  for (int64_t i = 0; i < n; ++i)
    STD_TORCH_CHECK(p[i] >= 0 && p[i] < static_cast<int64_t>(num_graphs), "graph_of_stream[", i, "] is out of range");
  return p;
}

void check_vector(const Tensor& t, ScalarType type, int64_t size, const char* name) {
  STD_TORCH_CHECK(t.dim() == 1 && t.scalar_type() == type && t.is_contiguous() && t.size(0) == size, name, " must have ", size,
                  " contiguous entries of the right type");
}

Tensors8 decode_rnnt_advance_cpu(const std::vector<Tensor>& graph_splits, const std::vector<Tensor>& graph_arcs,
                                 const std::vector<Tensor>& graph_scores, const Tensor& graph_of_stream,
                                 const Tensor& stream_splits, const Tensor& context_splits, const Tensor& contexts,
                                 const Tensor& graph_states, const Tensor& scores, const Tensor& log_probs,
                                 int64_t num_context_ids, double beam, int64_t max_states, int64_t max_contexts,
                                 bool final_frame) {
  const Graphs graphs = graph_views(graph_splits, graph_arcs, graph_scores);
  const int64_t n = stream_splits.size(0) - 1, C = contexts.size(0), S = scores.size(0);
  check_splits(stream_splits, "stream_splits", C);
  check_splits(context_splits, "context_splits", S);
  check_vector(contexts, ScalarType::Long, C, "contexts");
  check_vector(graph_states, ScalarType::Int, S, "graph_states");
  check_vector(scores, ScalarType::Double, S, "scores");
  STD_TORCH_CHECK(context_splits.size(0) == C + 1, "context_splits must have ", C + 1, " entries");
  const int32_t* graph_of = check_graph_of(graph_of_stream, n, graphs.size());
  STD_TORCH_CHECK(log_probs.dim() == 2 && log_probs.size(0) == C && log_probs.scalar_type() == ScalarType::Float &&
                      log_probs.is_contiguous(), "log_probs must be contiguous float32 (", C, ", V)");
  const RnntSearch search{log_probs.size(1), num_context_ids, beam, max_states, max_contexts, final_frame};
  STD_TORCH_CHECK(search.vocab_size >= 1 && num_context_ids >= 1 && num_context_ids <= INT64_MAX / search.vocab_size && beam > 0 &&
                      max_states >= 1 && max_contexts >= 1, "vocab_size, beam, max_states and max_contexts must be positive");
  const int32_t *streams = const_data<int32_t>(stream_splits), *splits = const_data<int32_t>(context_splits);
  const int64_t* ids = const_data<int64_t>(contexts);
  for (int64_t c = 0; c < C; ++c)
    STD_TORCH_CHECK(ids[c] >= 0 && ids[c] < num_context_ids, "contexts[", c, "] is out of range");

  std::vector<RnntFrame> frames(n);
  CpuBackend{}.for_each(n, [&](int64_t i) {
    thread_local RnntAdvancer advancer;
    const int32_t c = streams[i];
    const RnntStates states{streams[i + 1] - c, ids + c, splits + c, const_data<int32_t>(graph_states), const_data<double>(scores)};
    frames[i] = advancer.run(graphs[graph_of[i]], search, states, const_data<float>(log_probs) + c * search.vocab_size, c);
  });

  int64_t num_contexts = 0, num_states = 0, num_arcs = 0;
  for (int64_t i = 0; i < n; ++i) {
    const RnntFrame& f = frames[i];
    STD_TORCH_CHECK(f.error == nullptr, f.error, f.error_value, " (stream ", i, ")");
    num_contexts += f.contexts.size(), num_states += f.scores.size(), num_arcs += f.arcs.size();
  }
  const auto make = [&](std::initializer_list<int64_t> sizes, ScalarType type) { return empty_like_shape(log_probs, sizes, type); };
  Tensors8 out{make({n + 1}, ScalarType::Int), make({num_contexts + 1}, ScalarType::Int), make({num_contexts}, ScalarType::Long),
               make({num_states}, ScalarType::Int), make({num_states}, ScalarType::Double), make({n + 1}, ScalarType::Int),
               make({num_arcs, 4}, ScalarType::Int), make({num_arcs}, ScalarType::Float)};
  int32_t *new_streams = data<int32_t>(std::get<0>(out)), *new_splits = data<int32_t>(std::get<1>(out)),
          *arc_splits = data<int32_t>(std::get<5>(out));
  int32_t c = 0, s = 0, a = 0;
  new_splits[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const RnntFrame& f = frames[i];
    new_streams[i] = c, arc_splits[i] = a;
    for (size_t k = 0; k < f.context_ends.size(); ++k) new_splits[c + 1 + k] = s + f.context_ends[k];
    std::copy(f.contexts.begin(), f.contexts.end(), data<int64_t>(std::get<2>(out)) + c);
    std::copy(f.graph_states.begin(), f.graph_states.end(), data<int32_t>(std::get<3>(out)) + s);
    std::copy(f.scores.begin(), f.scores.end(), data<double>(std::get<4>(out)) + s);
    std::copy(f.arcs.begin(), f.arcs.end(), data<RnntArc>(std::get<6>(out)) + a);
    std::copy(f.arc_scores.begin(), f.arc_scores.end(), data<float>(std::get<7>(out)) + a);
    c += f.contexts.size(), s += f.scores.size(), a += f.arcs.size();
  }
  new_streams[n] = c, arc_splits[n] = a;
  return out;
}

// One entry of the history of a stream: its part of what decode_rnnt_advance returned. Checks all that the lattice relies on.
RnntFrameView frame_view(const std::vector<Tensor>& frame, int64_t at, int64_t states_before, const RnntGraph& graph) {
  const int64_t n = frame[0].size(0) - 1;
  STD_TORCH_CHECK(at >= 0 && at < n, "a history names stream ", at, " of ", n);
  const int32_t *streams = const_data<int32_t>(frame[0]), *splits = const_data<int32_t>(frame[1]),
                *arc_splits = const_data<int32_t>(frame[3]);
  const int32_t s0 = splits[streams[at]], s1 = splits[streams[at + 1]], a0 = arc_splits[at], a1 = arc_splits[at + 1];
  const RnntFrameView view{s1 - s0, const_data<int32_t>(frame[2]) + s0, a1 - a0, const_data<RnntArc>(frame[4]) + a0,
                           const_data<float>(frame[5]) + a0, 0};
  for (int64_t s = 0; s < view.num_states; ++s)
    STD_TORCH_CHECK(view.graph_states[s] >= 0 && view.graph_states[s] < graph.num_states, "a history names a state beyond the graph");
  for (int64_t a = 0; a < view.num_arcs; ++a) {
    const RnntArc& arc = view.arcs[a];
    STD_TORCH_CHECK(arc.src >= 0 && arc.src < states_before && arc.dest >= 0 && arc.dest < view.num_states && arc.graph_arc >= -1 &&
                        arc.graph_arc < graph.num_arcs, "a history has an arc outside its states or the graph");
  }
  return view;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> decode_rnnt_lattice_cpu(
    const std::vector<Tensor>& graph_splits, const std::vector<Tensor>& graph_arcs, const std::vector<Tensor>& graph_scores,
    const Tensor& graph_of_stream, const std::vector<Tensor>& frames, const Tensor& rows_before, const Tensor& history_splits,
    const Tensor& history, bool allow_partial, bool final_frame) {
  const Graphs graphs = graph_views(graph_splits, graph_arcs, graph_scores);
  for (const RnntGraph& graph : graphs) {  // final arcs are looked for in any state
    STD_TORCH_CHECK(graph.num_states > 0, "a graph has no states");
    for (int32_t s = 0; s < graph.num_states; ++s)
      STD_TORCH_CHECK(graph.splits[s] >= 0 && graph.splits[s] <= graph.splits[s + 1] && graph.splits[s + 1] <= graph.num_arcs,
                      "the splits of a graph are broken at state ", s);
  }
  constexpr size_t kParts = 6;
  STD_TORCH_CHECK(frames.size() % kParts == 0, "frames are given in sixes");
  const int64_t num_frames = static_cast<int64_t>(frames.size() / kParts), n = history_splits.size(0) - 1;
  std::vector<std::vector<Tensor>> parts;
  for (int64_t f = 0; f < num_frames; ++f) {
    parts.emplace_back(frames.begin() + f * kParts, frames.begin() + (f + 1) * kParts);
    const std::vector<Tensor>& p = parts.back();
    check_splits(p[0], "stream_splits", p[1].size(0) - 1);
    check_splits(p[1], "context_splits", p[2].size(0));
    check_ints(p[2], "graph_states");
    check_ints(p[4], "arcs", 2);
    check_splits(p[3], "arc_splits", p[4].size(0));
    STD_TORCH_CHECK(p[4].size(1) == 4 && p[3].size(0) == p[0].size(0), "arcs must be (A, 4), with splits for each stream");
    check_vector(p[5], ScalarType::Float, p[4].size(0), "arc_scores");
  }
  check_ints(history, "history", 2);
  check_splits(history_splits, "history_splits", history.size(0));
  check_vector(rows_before, ScalarType::Long, num_frames, "rows_before");
  STD_TORCH_CHECK(history.size(1) == 2, "history must be (frames, 2)");
  const int32_t* graph_of = check_graph_of(graph_of_stream, n, graphs.size());
  const int32_t *splits = const_data<int32_t>(history_splits), *entries = const_data<int32_t>(history);

  std::vector<std::vector<RnntFrameView>> views(n);
  for (int64_t i = 0; i < n; ++i) {
    int64_t states = 1;
    for (int32_t h = splits[i]; h < splits[i + 1]; ++h) {
      const int32_t f = entries[2 * h];
      STD_TORCH_CHECK(f >= 0 && f < num_frames, "a history names frame ", f, " of ", num_frames);
      views[i].push_back(frame_view(parts[f], entries[2 * h + 1], states, graphs[graph_of[i]]));
      views[i].back().rows_before = const_data<int64_t>(rows_before)[f];
      states = views[i].back().num_states;
    }
  }
  std::vector<RnntLattice> lattices(n);
  CpuBackend{}.for_each(n, [&](int64_t i) { lattices[i] = RnntLatticeMaker(graphs[graph_of[i]], views[i], allow_partial, final_frame).run(); });
  std::vector<FsaResult> results;
  for (RnntLattice& lattice : lattices) results.push_back(std::move(lattice.fsa));
  const Joined joined = join(results, graph_of_stream);
  Tensor scores = empty_like_shape(graph_of_stream, {joined.arcs.size(0)}, ScalarType::Float);
  float* to = data<float>(scores);
  for (const RnntLattice& lattice : lattices) to = std::copy(lattice.scores.begin(), lattice.scores.end(), to);
  return {joined.fsa_splits, joined.state_splits, joined.arcs, scores, joined.map_a, joined.map_b};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("decode_rnnt_advance", TORCH_BOX(&decode_rnnt_advance_cpu));
  m.impl("decode_rnnt_lattice", TORCH_BOX(&decode_rnnt_lattice_cpu));
}

}  // namespace
}  // namespace lattica
