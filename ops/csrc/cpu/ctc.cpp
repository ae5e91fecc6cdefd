// CPU threads over utterances; the recursions are in ctc.h.
#include "../ctc.h"

#include "../fsa_torch.h"

namespace lattica {
namespace {

// Label sequences, one for each segment of frames, with all that the recursions rely on checked.
struct CtcBatch {
  int64_t N, T, C, num_segments;
  const int32_t *segments, *splits, *tokens, *skips;

  CtcTokens sequence(int64_t i) const { return {splits[i + 1] - splits[i], tokens + splits[i], skips + splits[i]}; }
  template <typename scalar_t>
  CtcFrames<scalar_t> frames(int64_t i, const Tensor& log_probs, int32_t blank) const {
    const int32_t* s = segments + 3 * i;
    return {const_data<scalar_t>(log_probs) + (s[0] * T + s[1]) * C, C, s[2], blank};
  }
  // Where each segment's occupations begin: num_frames rows of U + 1 numbers.
  std::vector<int64_t> occupation_starts() const {
    std::vector<int64_t> starts(num_segments + 1, 0);
    for (int64_t i = 0; i < num_segments; ++i)
      starts[i + 1] = starts[i] + segments[3 * i + 2] * int64_t{splits[i + 1] - splits[i] + 1};
    return starts;
  }
};

CtcBatch check_ctc(int64_t N, int64_t T, int64_t C, const Tensor& segments, const Tensor& token_splits, const Tensor& tokens,
                   const Tensor& skips) {
  check_ints(segments, "segments", 2);
  check_ints(tokens, "tokens");
  check_ints(skips, "skips");
  check_splits(token_splits, "token_splits", tokens.size(0));
  const int64_t n = segments.size(0);
  STD_TORCH_CHECK(segments.size(1) == 3 && token_splits.size(0) == n + 1 && skips.size(0) == tokens.size(0),
                  "segments must be (S, 3), with S label sequences and one skip for each token");
  const CtcBatch batch{N, T, C, n, const_data<int32_t>(segments), const_data<int32_t>(token_splits), const_data<int32_t>(tokens),
                       const_data<int32_t>(skips)};
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* s = batch.segments + 3 * i;
    STD_TORCH_CHECK(s[0] >= 0 && s[0] < N && s[1] >= 0 && s[2] >= 0 && s[1] + int64_t{s[2]} <= T, "segment ", i,
                    " lies outside log_probs of ", N, " x ", T, " frames");
    for (int32_t k = batch.splits[i]; k < batch.splits[i + 1]; ++k)
      STD_TORCH_CHECK(batch.tokens[k] >= 0 && batch.tokens[k] < C, "sequence ", i, " has label ", batch.tokens[k],
                      ", but the scores have ", C, " columns");
  }
  STD_TORCH_CHECK(C > 0 || n == 0, "log_probs have no columns");
  return batch;
}

void check_log_probs(const Tensor& log_probs) {
  STD_TORCH_CHECK(log_probs.dim() == 3 && log_probs.is_contiguous() &&
                      (log_probs.scalar_type() == ScalarType::Float || log_probs.scalar_type() == ScalarType::Double),
                  "log_probs must be contiguous float32 or float64 (N, T, C)");
}

std::tuple<Tensor, Tensor, Tensor> fsa_ctc_read_cpu(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs,
                                                    std::optional<Tensor> aux) {
  const FsaVecView fsas = fsa_view(fsa_splits, state_splits, arcs);
  if (aux) {
    check_ints(*aux, "aux");
    STD_TORCH_CHECK(aux->size(0) == arcs.size(0), "aux must have one entry for each arc");
  }
  std::vector<int32_t> splits{0}, tokens, skips;
  for (int64_t i = 0; i < fsas.num_fsas; ++i) {
    if (!read_ctc_graph(fsas[i], aux ? const_data<int32_t>(*aux) : nullptr, &tokens, &skips))
      return {new_ints(arcs, {0}), new_ints(arcs, {0}), new_ints(arcs, {0})};
    splits.push_back(static_cast<int32_t>(tokens.size()));
  }
  return {to_tensor(splits, arcs), to_tensor(tokens, arcs), to_tensor(skips, arcs)};
}

std::tuple<Tensor, Tensor> fsa_ctc_loss_cpu(const Tensor& log_probs, const Tensor& segments, const Tensor& token_splits,
                                            const Tensor& tokens, const Tensor& skips, double delay_penalty, bool want_grad) {
  check_log_probs(log_probs);
  const CtcBatch batch = check_ctc(log_probs.size(0), log_probs.size(1), log_probs.size(2), segments, token_splits, tokens, skips);
  const std::vector<int64_t> starts = batch.occupation_starts();
  Tensor total = empty_like_shape(log_probs, {batch.num_segments}, ScalarType::Double);
  Tensor occupations = empty_like_shape(log_probs, {want_grad ? starts.back() : 0});
  const auto run = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    CpuBackend{}.for_each(batch.num_segments, [&](int64_t i) {
      CtcSum<scalar_t> sum(batch.sequence(i), batch.frames<scalar_t>(i, log_probs, 0), delay_penalty);
      const double score = data<double>(total)[i] = sum.forward();
      if (!want_grad) return;
      scalar_t* out = data<scalar_t>(occupations) + starts[i];
      if (score == -INFINITY) std::fill(out, out + (starts[i + 1] - starts[i]), scalar_t(0));  // no path, no occupation
      else sum.occupations(out);
    });
  };
  if (log_probs.scalar_type() == ScalarType::Float) run(float{}); else run(double{});
  return {total, occupations};
}

Tensor fsa_ctc_loss_grad_cpu(const Tensor& occupations, const Tensor& total_grad, const Tensor& segments,
                             const Tensor& token_splits, const Tensor& tokens, int64_t N, int64_t T, int64_t C) {
  const CtcBatch batch = check_ctc(N, T, C, segments, token_splits, tokens, tokens);
  const std::vector<int64_t> starts = batch.occupation_starts();
  check_scores(total_grad, "total_grad", batch.num_segments);
  STD_TORCH_CHECK(occupations.dim() == 1 && occupations.size(0) == starts.back() && occupations.is_contiguous() &&
                      (occupations.scalar_type() == ScalarType::Float || occupations.scalar_type() == ScalarType::Double),
                  "occupations must be what fsa_ctc_loss gave");
  Tensor grad = empty_like_shape(occupations, {N, T, C});
  std::vector<std::vector<int64_t>> segments_of(N);  // several segments may lie in one utterance: it belongs to one thread
  for (int64_t i = 0; i < batch.num_segments; ++i) segments_of[batch.segments[3 * i]].push_back(i);
  const auto run = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    with_large_pages<scalar_t>(grad);
    CpuBackend{}.for_each(N, [&](int64_t n) {
      scalar_t* rows = data<scalar_t>(grad) + n * T * C;
      std::memset(rows, 0, sizeof(scalar_t) * T * C);
      for (const int64_t i : segments_of[n]) {
        const CtcTokens y = batch.sequence(i);
        const auto scale = static_cast<scalar_t>(const_data<double>(total_grad)[i]);
        const scalar_t* occupation = const_data<scalar_t>(occupations) + starts[i];
        scalar_t* row = rows + batch.segments[3 * i + 1] * C;
        for (int32_t t = 0; t < batch.segments[3 * i + 2]; ++t, row += C, occupation += y.U + 1) {
          row[0] += scale * occupation[0];
          for (int32_t k = 0; k < y.U; ++k) row[y.y[k]] += scale * occupation[1 + k];
        }
      }
    });
  };
  if (occupations.scalar_type() == ScalarType::Float) run(float{}); else run(double{});
  return grad;
}

Tensor fsa_ctc_align_cpu(const Tensor& log_probs, const Tensor& segments, const Tensor& token_splits, const Tensor& tokens,
                         const Tensor& skips, int64_t blank) {
  check_log_probs(log_probs);
  const CtcBatch batch = check_ctc(log_probs.size(0), log_probs.size(1), log_probs.size(2), segments, token_splits, tokens, skips);
  STD_TORCH_CHECK(blank >= 0 && (blank < batch.C || batch.num_segments == 0), "blank is no column of log_probs");
  Tensor labels = new_ints(segments, {batch.num_segments, batch.T});
  const auto run = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    CpuBackend{}.for_each(batch.num_segments, [&](int64_t i) {
      int32_t* row = data<int32_t>(labels) + i * batch.T;
      std::fill(row, row + batch.T, -1);
      ctc_align(batch.sequence(i), batch.frames<scalar_t>(i, log_probs, static_cast<int32_t>(blank)), row);
    });
  };
  if (log_probs.scalar_type() == ScalarType::Float) run(float{}); else run(double{});
  return labels;
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("fsa_ctc_read", TORCH_BOX(&fsa_ctc_read_cpu));
  m.impl("fsa_ctc_loss", TORCH_BOX(&fsa_ctc_loss_cpu));
  m.impl("fsa_ctc_loss_grad", TORCH_BOX(&fsa_ctc_loss_grad_cpu));
  m.impl("fsa_ctc_align", TORCH_BOX(&fsa_ctc_align_cpu));
}

}  // namespace
}  // namespace lattica
