// CPU threads over utterances; the algorithm is in fsa_dense.h.
#include "../fsa_dense.h"

#include <memory>

#include "../fsa_torch.h"

namespace lattica {
namespace {

using Tensors6 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Tensors10 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Searches = std::vector<std::unique_ptr<DenseIntersecter>>;

// What both ops take, checked.
struct DenseBatch {
  FsaVecView graphs;
  const float *arc_scores, *log_probs;
  int64_t N, T, C, n;
  const int32_t *segments, *a_index, *b_index;
  Beams beams;

  std::unique_ptr<DenseIntersecter> intersecter(int64_t i) const {
    const int32_t* s = segments + 3 * b_index[i];
    const DenseView dense{log_probs + (s[0] * T + s[1]) * C, C, s[2], static_cast<int32_t>(C)};
    return std::make_unique<DenseIntersecter>(graphs[a_index[i]], arc_scores, dense, beams);
  }
};

DenseBatch check_dense(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores,
                       const Tensor& log_probs, const Tensor& segments, const Tensor& a_index, const Tensor& b_index,
                       double search_beam, double output_beam, int64_t min_active, int64_t max_active, bool allow_partial) {
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
  for (int64_t a = 0; a < arcs.size(0); ++a)
    STD_TORCH_CHECK(graphs.arcs[a].label >= -1 && graphs.arcs[a].label < C, "intersect_dense: arc ", a,
                    " of the graphs has label ", graphs.arcs[a].label, ", but the scores have ", C, " columns");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  return {graphs, const_data<float>(scores), const_data<float>(log_probs), N, T, C, n, seg, ai, bi,
          {static_cast<float>(search_beam), static_cast<float>(output_beam), static_cast<int32_t>(std::min(min_active, kMost)),
           static_cast<int32_t>(std::min(max_active, kMost)), allow_partial}};
}

// The results one after another: fsa_splits, state_splits, arcs, map_a, frame, scores.
Tensors6 write(const Searches& searches, const Tensor& ints, const Tensor& floats, bool want_frame) {
  const int64_t n = static_cast<int64_t>(searches.size());
  std::vector<int64_t> states(n + 1, 0), arcs(n + 1, 0);
  for (int64_t i = 0; i < n; ++i) {
    states[i + 1] = states[i] + searches[i]->num_states();
    arcs[i + 1] = arcs[i] + searches[i]->num_arcs();
  }
  STD_TORCH_CHECK(states[n] < INT32_MAX && arcs[n] < INT32_MAX, "intersect_dense: the lattice has ", states[n], " states and ",
                  arcs[n], " arcs, more than 2^31 - 1: use smaller beams");
  Tensor fsa_splits = new_ints(ints, {n + 1}), state_splits = new_ints(ints, {states[n] + 1}), out = new_ints(ints, {arcs[n], 3});
  Tensor map_a = new_ints(ints, {arcs[n]}), frame = new_ints(ints, {want_frame ? arcs[n] : 0}), scores = empty_like_shape(floats, {arcs[n]});
  with_large_pages<int32_t>(out), with_large_pages<int32_t>(map_a), with_large_pages<int32_t>(frame), with_large_pages<float>(scores);
  for (int64_t i = 0; i <= n; ++i) data<int32_t>(fsa_splits)[i] = static_cast<int32_t>(states[i]);
  data<int32_t>(state_splits)[states[n]] = static_cast<int32_t>(arcs[n]);
  CpuBackend{}.for_each(n, [&](int64_t i) {
    searches[i]->write({static_cast<int32_t>(arcs[i]), data<int32_t>(state_splits) + states[i], data<Arc>(out) + arcs[i],
                        data<int32_t>(map_a) + arcs[i], want_frame ? data<int32_t>(frame) + arcs[i] : nullptr, data<float>(scores) + arcs[i]});
  });
  return {fsa_splits, state_splits, out, map_a, frame, scores};
}

Tensors6 fsa_intersect_dense_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores,
                                 const Tensor& log_probs, const Tensor& segments, const Tensor& a_index, const Tensor& b_index,
                                 double search_beam, double output_beam, int64_t min_active, int64_t max_active,
                                 bool allow_partial, bool want_frame) {
  const DenseBatch batch = check_dense(fsa_splits, state_splits, arcs, scores, log_probs, segments, a_index, b_index,
                                       search_beam, output_beam, min_active, max_active, allow_partial);
  Searches searches(batch.n);
  CpuBackend{}.for_each(batch.n, [&](int64_t i) { (searches[i] = batch.intersecter(i))->search(); });
  return write(searches, arcs, scores, want_frame);
}

Tensors10 fsa_intersect_dense_online_cpu(
    const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores, const Tensor& log_probs,
    const Tensor& segments, const Tensor& a_index, const Tensor& b_index, double search_beam, double output_beam,
    int64_t min_active, int64_t max_active, bool allow_partial, const Tensor& frame_splits, const Tensor& token_splits,
    const Tensor& token_states, const Tensor& token_scores) {
  const DenseBatch batch = check_dense(fsa_splits, state_splits, arcs, scores, log_probs, segments, a_index, b_index,
                                       search_beam, output_beam, min_active, max_active, allow_partial);
  check_ints(token_states, "token_states");
  STD_TORCH_CHECK(token_scores.dim() == 1 && token_scores.size(0) == token_states.size(0) && token_scores.is_contiguous() &&
                      token_scores.scalar_type() == ScalarType::Float, "token_scores must be contiguous float32, one a token");
  check_splits(token_splits, "token_splits", token_states.size(0));
  check_splits(frame_splits, "frame_splits", token_splits.size(0) - 1);
  STD_TORCH_CHECK(frame_splits.size(0) == batch.n + 1, "frame_splits must have one entry more than there are segments");
  const int32_t *frames = const_data<int32_t>(frame_splits), *tokens = const_data<int32_t>(token_splits);
  const int32_t* states = const_data<int32_t>(token_states);
  for (int64_t i = 0; i < batch.n; ++i) {
    const int32_t lists = frames[i + 1] - frames[i], num_states = batch.graphs[batch.a_index[i]].num_states;
    STD_TORCH_CHECK(lists <= batch.segments[3 * batch.b_index[i] + 2] + 1, "segment ", i, " is shorter than its history");
    if (lists > 0 && num_states > 0)
      STD_TORCH_CHECK(tokens[frames[i] + 1] == tokens[frames[i]] + 1, "the history of segment ", i, " must begin with one token");
    for (int32_t k = tokens[frames[i]]; k < tokens[frames[i + 1]]; ++k)
      STD_TORCH_CHECK(states[k] >= 0 && states[k] < num_states, "token ", k, " is in no state of the graph");
  }
  std::vector<TokenHistory> histories(batch.n);
  Searches searches(batch.n);
  CpuBackend{}.for_each(batch.n, [&](int64_t i) {
    searches[i] = batch.intersecter(i);
    const int32_t first = tokens[frames[i]], lists = frames[i + 1] - frames[i];
    std::vector<int32_t> ends(lists);
    for (int32_t t = 0; t < lists; ++t) ends[t] = tokens[frames[i] + t + 1] - first;
    searches[i]->resume(lists, ends.data(), states + first, const_data<float>(token_scores) + first);
    searches[i]->search();
    histories[i] = searches[i]->history();
  });
  std::vector<int32_t> new_frames{0}, new_tokens{0}, new_states;
  std::vector<float> new_scores;
  for (const TokenHistory& h : histories) {
    const int32_t before = static_cast<int32_t>(new_states.size());
    for (const int32_t end : h.frame_ends) new_tokens.push_back(before + end);
    new_states.insert(new_states.end(), h.states.begin(), h.states.end());
    new_scores.insert(new_scores.end(), h.scores.begin(), h.scores.end());
    new_frames.push_back(static_cast<int32_t>(new_tokens.size()) - 1);
  }
  Tensor score_tensor = empty_like_shape(token_scores, {static_cast<int64_t>(new_scores.size())});
  std::copy(new_scores.begin(), new_scores.end(), data<float>(score_tensor));
  return std::tuple_cat(write(searches, arcs, scores, true), std::make_tuple(to_tensor(new_frames, arcs), to_tensor(new_tokens, arcs),
                                                                       to_tensor(new_states, arcs), score_tensor));
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("fsa_intersect_dense", TORCH_BOX(&fsa_intersect_dense_cpu));
  m.impl("fsa_intersect_dense_online", TORCH_BOX(&fsa_intersect_dense_online_cpu));
}

}  // namespace
}  // namespace lattica
