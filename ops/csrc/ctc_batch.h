// CTC for a whole batch on a GPU: a block a segment, its threads the positions of the label sequence. The recursions are those of
// ctc.h; a frame's shares lie in global memory, in the dtype of the scores, and the front in the block's memory.
#pragma once

#include <cmath>

#include "ctc.h"
#include "fsa_device.h"
#include "shared_block.h"
#include "team.h"

namespace lattica {
namespace {  // torch's stable types are hidden symbols

constexpr double kNoPath = -std::numeric_limits<double>::infinity();

// Label sequences, one for each segment of frames; arrays of a segment have room for all T frames, so that nobody needs to ask
// the GPU how long the segments are.
struct CtcSegments {
  int64_t N, T, C, num_segments, num_tokens;
  const int32_t *segments, *splits, *tokens, *skips;

  LATTICA_BOTH int32_t utterance(int64_t i) const { return segments[3 * i]; }
  LATTICA_BOTH int32_t first_frame(int64_t i) const { return segments[3 * i + 1]; }
  LATTICA_BOTH int32_t num_frames(int64_t i) const { return segments[3 * i + 2]; }
  LATTICA_BOTH CtcTokens sequence(int64_t i) const { return {splits[i + 1] - splits[i], tokens + splits[i], skips + splits[i]}; }
  template <typename T_>
  LATTICA_BOTH CtcFrames<T_> frames(int64_t i, const T_* log_probs, int32_t blank) const {
    return {log_probs + (utterance(i) * T + first_frame(i)) * C, C, num_frames(i), blank};
  }
  // Where a segment's arrays begin that have `more` numbers than tokens.
  LATTICA_BOTH int64_t start(int64_t i, int64_t more) const { return splits[i] + i * more; }
  int64_t total(int64_t more) const { return num_tokens + num_segments * more; }
};

inline CtcSegments ctc_segments(int64_t N, int64_t T, int64_t C, const Tensor& segments, const Tensor& token_splits,
                                const Tensor& tokens, const Tensor& skips) {
  STD_TORCH_CHECK(segments.dim() == 2 && segments.size(1) == 3 && segments.scalar_type() == ScalarType::Int && segments.is_contiguous(),
                  "segments must be a contiguous int32 tensor with 3 columns");
  check_numbers(token_splits, "token_splits", ScalarType::Int, segments.size(0) + 1);
  check_numbers(tokens, "tokens", ScalarType::Int, tokens.numel());
  check_numbers(skips, "skips", ScalarType::Int, tokens.numel());
  for (const Tensor* t : {&token_splits, &tokens, &skips})
    STD_TORCH_CHECK(t->is_cuda() == segments.is_cuda(), "segments, token_splits, tokens and skips must be on one device");
  STD_TORCH_CHECK(C > 0 || segments.size(0) == 0, "log_probs have no columns");
  return {N, T, C, segments.size(0), tokens.numel(), const_data_of<int32_t>(segments), const_data_of<int32_t>(token_splits),
          const_data_of<int32_t>(tokens), const_data_of<int32_t>(skips)};
}

inline CtcSegments ctc_segments_for(const Tensor& log_probs, const Tensor& segments, const Tensor& token_splits, const Tensor& tokens,
                                    const Tensor& skips) {
  STD_TORCH_CHECK(log_probs.dim() == 3 && log_probs.is_contiguous(), "log_probs must be contiguous (N, T, C)");
  STD_TORCH_CHECK(segments.is_cuda() == log_probs.is_cuda(), "segments must be where log_probs are");
  return ctc_segments(log_probs.size(0), log_probs.size(1), log_probs.size(2), segments, token_splits, tokens, skips);
}

// The longest sequence's number of tokens. Raises where a segment lies outside the frames or a token outside the columns; the
// recursions rely on that. The one place where the host waits.
inline int64_t check_ctc_batch(const Backend& backend, const CtcSegments& batch, const Tensor& like) {
  const Tensor numbers = zeros_like_shape(like, {4}, ScalarType::Int);  // longest; faults: segment + 1, sequence + 1, splits
  uint32_t* const found = data_of<uint32_t>(numbers);
  backend.for_each(batch.num_segments, [=] LATTICA_BOTH(int64_t i) {
    const int64_t begin = batch.splits[i], end = batch.splits[i + 1];
    const int64_t first = batch.first_frame(i), frames = batch.num_frames(i);
    if (batch.utterance(i) < 0 || batch.utterance(i) >= batch.N || first < 0 || frames < 0 || first + frames > batch.T)
      atomic_max(found + 1, static_cast<uint32_t>(i + 1));
    if (begin < 0 || end < begin || end > batch.num_tokens || (i == 0 && begin != 0) ||
        (i + 1 == batch.num_segments && end != batch.num_tokens)) {
      atomic_max(found + 3, uint32_t{1});
      return;
    }
    atomic_max(found, static_cast<uint32_t>(end - begin));
    for (int64_t k = begin; k < end; ++k)
      if (batch.tokens[k] < 0 || batch.tokens[k] >= batch.C) atomic_max(found + 2, static_cast<uint32_t>(i + 1));
  });
  uint32_t host[4];
  read_back(backend, host, found, sizeof(host));
  STD_TORCH_CHECK(host[3] == 0, "token_splits must rise from 0 to ", batch.num_tokens);
  STD_TORCH_CHECK(host[1] == 0, "segment ", int64_t{host[1]} - 1, " lies outside log_probs of ", batch.N, " x ", batch.T, " frames");
  STD_TORCH_CHECK(host[2] == 0, "sequence ", int64_t{host[2]} - 1, " has a label that is none of the ", batch.C,
                  " columns of the scores");
  return host[0];
}

// The fronts of two frames: scores of blank k at blank[k], of token k at token[k]; index -1 is a margin.
struct CtcFronts {
  double *blank, *token, *other_blank, *other_token;

  LATTICA_BOTH CtcFronts(double* memory, int64_t width)
      : blank(memory + 1), token(blank + width), other_blank(token + width), other_token(other_blank + width) {}
  LATTICA_BOTH void swap() {
    double *const b = blank, *const t = token;
    blank = other_blank, token = other_token, other_blank = b, other_token = t;
  }
};

LATTICA_BOTH inline void fill(const SharedBlock& block, double* memory, int64_t n, double value) {
  for (int64_t i = block.thread; i < n; i += block.threads) memory[i] = value;
  block.sync();
}

// Scores of the token of a thread's first position, fetched a frame ahead, because memory takes longer to answer than a frame to
// be computed.
template <typename T>
struct CtcAhead {
  const CtcFrames<T> frames;
  const int32_t k, label;
  double next_token = kNoPath, next_blank = kNoPath;

  LATTICA_BOTH CtcAhead(const CtcTokens& tokens, const CtcFrames<T>& f, int32_t thread)
      : frames(f), k(thread), label(thread < tokens.U ? tokens.y[thread] : -1) {
    fetch(0);
  }
  LATTICA_BOTH void fetch(int32_t t) {
    if (t >= frames.num_frames) return;
    next_blank = frames.score(t, frames.blank);
    if (label >= 0) next_token = frames.score(t, label);
  }
};

// See CtcSum in ctc.h. `shares`: rows of 3 * (U + 2); the result is the same in all threads.
template <typename T>
LATTICA_BOTH double ctc_forward(const SharedBlock& block, const CtcTokens& tokens, const CtcFrames<T>& frames, double delay_penalty,
                                CtcFronts f, T* shares, double* last_token_share) {
  const int32_t U = tokens.U, width = U + 2;
  if (block.thread == 0) f.blank[0] = 0;
  CtcAhead<T> ahead(tokens, frames, block.thread);
  block.sync();
  for (int32_t t = 0; t < frames.num_frames; ++t) {
    const CtcBand band(U, frames.num_frames, t);
    const double x0 = ahead.next_blank, first_x = ahead.next_token, lead = delay_penalty * (0.5 * (frames.num_frames - 1) - t);
    ahead.fetch(t + 1);
    T* const row = shares ? shares + static_cast<int64_t>(t) * 3 * width : nullptr;
    for (int32_t k = block.thread; k <= U; k += block.threads) {
      if (k >= band.blank_begin && k < band.blank_end) {
        double from_token;
        f.other_blank[k] = x0 + log_add_with_share(f.token[k - 1], f.blank[k], &from_token);
        if (row) row[k] = static_cast<T>(from_token);
      }
      if (k >= band.token_begin && k < band.token_end) {
        const double x = k == block.thread ? first_x : frames.score(t, tokens.y[k]);
        double from_blank, skipped;
        const double skip = tokens.skip[k] ? f.token[k - 1] + lead : kNoPath;
        f.other_token[k] = x + log_add3_with_shares(f.token[k], f.blank[k] + lead, skip, &from_blank, &skipped);
        if (row) row[width + k] = static_cast<T>(from_blank), row[2 * width + k] = static_cast<T>(skipped);
      }
    }
    block.sync();
    f.swap();
  }
  return log_add_with_share(f.token[U - 1], f.blank[U], last_token_share);
}

// Fills rows of U + 1 occupations but for the blanks', which it leaves apart for each k where the shares from blanks were.
template <typename T>
LATTICA_BOTH void ctc_occupations(const SharedBlock& block, int32_t U, int32_t num_frames, double last_token_share, CtcFronts f, T* shares,
                                  T* out) {
  const int32_t width = U + 2;
  if (block.thread == 0) {
    f.blank[U] = 1.0 - last_token_share;
    f.token[U - 1] = last_token_share;  // U = 0: the margin, and 0
  }
  block.sync();
  for (int32_t t = num_frames - 1; t >= 0; --t) {
    const CtcBand band(U, num_frames, t);
    T *const from_token = shares + static_cast<int64_t>(t) * 3 * width, *const from_blank = from_token + width;
    const T* const skipped = from_blank + width;
    for (int32_t k = block.thread; k <= U; k += block.threads) {
      const bool blank_here = k >= band.blank_begin && k < band.blank_end, token_here = k >= band.token_begin && k < band.token_end;
      const double blank = blank_here ? f.blank[k] : 0.0, token = token_here ? f.token[k] : 0.0;
      double old_blank = 0.0, old_token = 0.0;
      if (blank_here) old_blank = blank - blank * from_token[k];
      if (token_here) {
        old_blank += token * from_blank[k];
        const double stayed = 1.0 - from_blank[k] - skipped[k];
        old_token = token * (stayed > 0.0 ? stayed : 0.0);
      }
      if (k + 1 >= band.blank_begin && k + 1 < band.blank_end) old_token += f.blank[k + 1] * from_token[k + 1];
      if (k + 1 >= band.token_begin && k + 1 < band.token_end) old_token += f.token[k + 1] * skipped[k + 1];
      f.other_blank[k] = old_blank;
      f.other_token[k] = old_token;
      from_blank[k] = static_cast<T>(blank);
      if (k < U) out[static_cast<int64_t>(t) * (U + 1) + 1 + k] = static_cast<T>(token);
    }
    block.sync();
    f.swap();
  }
}

template <typename T>
void ctc_loss_batch(const Backend& backend, const CtcSegments& batch, int64_t longest, const T* log_probs, double delay_penalty,
                    double* total, T* occupations, T* shares, double* fronts) {
  const bool want_grad = occupations != nullptr;
  const int64_t num_frames = batch.T;
  for_each_shared_block(backend, longest + 1, fronts ? 0 : 4 * (longest + 2), batch.num_segments,
                 [=] LATTICA_BOTH(int64_t i, SharedBlock block, double* memory) {
                   const CtcTokens tokens = batch.sequence(i);
                   const CtcFrames<T> frames = batch.frames(i, log_probs, 0);
                   const int64_t width = tokens.U + 2;
                   T* const share = want_grad ? shares + batch.start(i, 2) * 3 * num_frames : nullptr;
                   T* const out = want_grad ? occupations + batch.start(i, 1) * num_frames : nullptr;
                   double* const front = fronts ? fronts + 4 * batch.start(i, 2) : memory;
                   double score = kNoPath, last_token_share = 0.0;
                   if (tokens.U <= frames.num_frames) {
                     fill(block, front, 4 * width, kNoPath);
                     score = ctc_forward(block, tokens, frames, delay_penalty, CtcFronts(front, width), share, &last_token_share);
                   }
                   if (block.thread == 0) total[i] = score;
                   if (!want_grad) return;
                   block.sync();  // all have read the score
                   if (score == kNoPath) {  // no path, no occupation
                     for (int64_t k = block.thread; k < num_frames * (tokens.U + 1); k += block.threads) out[k] = T(0);
                     return;
                   }
                   fill(block, front, 4 * width, 0.0);
                   ctc_occupations(block, tokens.U, frames.num_frames, last_token_share, CtcFronts(front, width), share, out);
                 });
  if (!want_grad) return;
  for_each_team(backend, lanes_for(batch.num_tokens, batch.num_segments), batch.num_segments * num_frames,
                [=] LATTICA_BOTH(int64_t row, Team team) {
                  const int64_t i = row / num_frames, t = row % num_frames, U = batch.splits[i + 1] - batch.splits[i];
                  if (t >= batch.num_frames(i) || total[i] == kNoPath) return;
                  const T* const blanks = shares + batch.start(i, 2) * 3 * num_frames + (3 * t + 1) * (U + 2);
                  double sum = 0.0;
                  for (int64_t k = team.lane; k <= U; k += team.lanes) sum += blanks[k];
                  sum = team.sum(sum);
                  if (team.lane == 0) occupations[batch.start(i, 1) * num_frames + t * (U + 1)] = static_cast<T>(sum);
                });
}

inline std::tuple<Tensor, Tensor> fsa_ctc_loss_batch(const Backend& backend, const Tensor& log_probs, const Tensor& segments,
                                                     const Tensor& token_splits, const Tensor& tokens, const Tensor& skips,
                                                     double delay_penalty, bool want_grad) {
  const CtcSegments batch = ctc_segments_for(log_probs, segments, token_splits, tokens, skips);
  const int64_t longest = check_ctc_batch(backend, batch, segments);
  const Tensor total = empty_like_shape(log_probs, {batch.num_segments}, ScalarType::Double);
  const Tensor occupations = empty_like_shape(log_probs, {want_grad ? batch.T * batch.total(1) : 0});
  const Tensor shares = empty_like_shape(log_probs, {want_grad ? 3 * batch.T * batch.total(2) : 0});
  const bool fits = 4 * (longest + 2) <= most_block_memory(backend);
  const Tensor fronts = empty_like_shape(log_probs, {fits ? 0 : 4 * batch.total(2)}, ScalarType::Double);
  with_float_type(log_probs, [&](auto scalar) {
    using T = decltype(scalar);
    ctc_loss_batch<T>(backend, batch, longest, const_data_of<T>(log_probs), delay_penalty, data_of<double>(total),
                      want_grad ? data_of<T>(occupations) : nullptr, data_of<T>(shares), fits ? nullptr : data_of<double>(fronts));
  });
  return {total, occupations};
}

// Frames are added to one after another by a thread each, so that several segments may share one, and tokens a column.
template <typename T>
void ctc_grad_batch(const Backend& backend, const CtcSegments& batch, const T* occupations, const double* total_grad,
                    int32_t* first, int32_t* next, T* grad) {
  const int32_t num_segments = static_cast<int32_t>(batch.num_segments);
  backend.for_each(batch.N, [=] LATTICA_BOTH(int64_t n) {  // lists of each utterance's segments
    int32_t* link = first + n;
    for (int32_t i = 0; i < num_segments; ++i)
      if (batch.utterance(i) == n) *link = i, link = next + i;
    *link = -1;
  });
  backend.for_each(batch.N * batch.T, [=] LATTICA_BOTH(int64_t row) {
    const int32_t t = static_cast<int32_t>(row % batch.T);
    T* const out = grad + row * batch.C;
    for (int32_t i = first[row / batch.T]; i >= 0; i = next[i]) {
      const int32_t frame = t - batch.first_frame(i);
      if (frame < 0 || frame >= batch.num_frames(i)) continue;
      const CtcTokens y = batch.sequence(i);
      const T scale = static_cast<T>(total_grad[i]);
      const T* const occupation = occupations + batch.start(i, 1) * batch.T + static_cast<int64_t>(frame) * (y.U + 1);
      out[0] += scale * occupation[0];
      for (int32_t k = 0; k < y.U; ++k) out[y.y[k]] += scale * occupation[1 + k];
    }
  });
}

// What fsa_ctc_loss_batch checked is trusted here: nothing waits for the GPU.
inline Tensor fsa_ctc_loss_grad_batch(const Backend& backend, const Tensor& occupations, const Tensor& total_grad,
                                      const Tensor& segments, const Tensor& token_splits, const Tensor& tokens, int64_t N,
                                      int64_t T, int64_t C) {
  const CtcSegments batch = ctc_segments(N, T, C, segments, token_splits, tokens, tokens);
  check_numbers(total_grad, "total_grad", ScalarType::Double, batch.num_segments);
  STD_TORCH_CHECK(occupations.dim() == 1 && occupations.size(0) == T * batch.total(1) && occupations.is_contiguous(),
                  "occupations must be what fsa_ctc_loss_batch gave");
  const Tensor grad = zeros_like_shape(occupations, {N, T, C}, occupations.scalar_type());
  const Tensor first = empty_like_shape(segments, {N}), next = empty_like_shape(segments, {batch.num_segments});
  with_float_type(occupations, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    ctc_grad_batch<scalar_t>(backend, batch, const_data_of<scalar_t>(occupations), const_data_of<double>(total_grad),
                             data_of<int32_t>(first), data_of<int32_t>(next), data_of<scalar_t>(grad));
  });
  return grad;
}

// See ctc_align in ctc.h. `steps`: rows of 2 U + 1.
template <typename T>
LATTICA_BOTH void ctc_align_block(const SharedBlock& block, const CtcTokens& tokens, const CtcFrames<T>& frames, double* memory,
                                  uint8_t* steps, int32_t* label) {
  const int32_t U = tokens.U, num_states = 2 * U + 1;
  double *score = memory, *next = memory + num_states;
  fill(block, memory, 2 * num_states, kNoPath);
  if (block.thread == 0) score[0] = 0.0;
  block.sync();
  for (int32_t t = 0; t < frames.num_frames; ++t) {
    const CtcBand band(U, frames.num_frames, t);
    for (int32_t s = block.thread; s < num_states; s += block.threads) {
      const int32_t k = s / 2;
      const bool is_token = s % 2 != 0;
      if (is_token ? k < band.token_begin || k >= band.token_end : k < band.blank_begin || k >= band.blank_end) continue;
      int32_t back = s > 0 && score[s - 1] > score[s] ? 1 : 0;
      if (is_token && k > 0 && tokens.skip[k] && score[s - 2] > score[s - back]) back = 2;
      next[s] = frames.score(t, is_token ? tokens.y[k] : frames.blank) + score[s - back];
      steps[static_cast<int64_t>(t) * num_states + s] = static_cast<uint8_t>(back);
    }
    block.sync();
    double* const other = score;
    score = next, next = other;
  }
  if (block.thread != 0) return;
  int32_t s = U > 0 && score[2 * U - 1] > score[2 * U] ? 2 * U - 1 : 2 * U;
  if (score[s] == kNoPath) return;
  for (int32_t t = frames.num_frames - 1; t >= 0; --t) {
    label[t] = s % 2 ? tokens.y[s / 2] : frames.blank;
    s -= steps[static_cast<int64_t>(t) * num_states + s];
  }
}

template <typename T>
void align_batch(const Backend& backend, const CtcSegments& batch, int64_t longest, const T* log_probs, int32_t blank, double* fronts,
                 uint8_t* steps, int32_t* labels) {
  const int64_t num_frames = batch.T;
  for_each_shared_block(backend, 2 * longest + 1, fronts ? 0 : 2 * (2 * longest + 1), batch.num_segments,
                 [=] LATTICA_BOTH(int64_t i, SharedBlock block, double* memory) {
                   const CtcTokens tokens = batch.sequence(i);
                   const CtcFrames<T> frames = batch.frames(i, log_probs, blank);
                   int32_t* const label = labels + i * num_frames;
                   for (int64_t t = block.thread; t < num_frames; t += block.threads) label[t] = -1;
                   if (tokens.U > frames.num_frames) return;
                   ctc_align_block(block, tokens, frames, fronts ? fronts + 4 * batch.start(i, 1) : memory,
                                   steps + num_frames * (2 * batch.splits[i] + i), label);
                 });
}

// As fsa_ctc_align.
inline Tensor fsa_ctc_align_batch(const Backend& backend, const Tensor& log_probs, const Tensor& segments, const Tensor& token_splits,
                                  const Tensor& tokens, const Tensor& skips, int64_t blank) {
  const CtcSegments batch = ctc_segments_for(log_probs, segments, token_splits, tokens, skips);
  STD_TORCH_CHECK(blank >= 0 && (blank < batch.C || batch.num_segments == 0), "blank is no column of log_probs");
  const int64_t longest = check_ctc_batch(backend, batch, segments), num_frames = batch.T;
  const Tensor labels = empty_like_shape(segments, {batch.num_segments, num_frames});
  const Tensor all_steps = empty_like_shape(segments, {num_frames * (2 * batch.num_tokens + batch.num_segments)}, ScalarType::Byte);
  const bool fits = 2 * (2 * longest + 1) <= most_block_memory(backend);
  const Tensor fronts = empty_like_shape(log_probs, {fits ? 0 : 4 * batch.total(1)}, ScalarType::Double);
  int32_t* const label = data_of<int32_t>(labels);
  uint8_t* const steps = data_of<uint8_t>(all_steps);
  double* const front = fits ? nullptr : data_of<double>(fronts);
  with_float_type(log_probs, [&](auto scalar) {
    align_batch(backend, batch, longest, const_data_of<decltype(scalar)>(log_probs), static_cast<int32_t>(blank), front, steps, label);
  });
  return labels;
}

// As fsa_ctc_read, a thread a state. How many tokens there are follows from the number of states.
inline std::tuple<Tensor, Tensor, Tensor> fsa_ctc_read_batch(const Backend& backend, const Tensor& fsa_splits, const Tensor& state_splits,
                                                             const Tensor& arcs, std::optional<Tensor> aux) {
  const DeviceFsas fsas = device_fsas(fsa_splits, state_splits, arcs);
  if (aux) {
    check_numbers(*aux, "aux", ScalarType::Int, fsas.num_arcs);
    STD_TORCH_CHECK(aux->is_cuda() == arcs.is_cuda(), "aux must be where arcs are");
  }
  const int32_t* const aux_label = aux ? const_data_of<int32_t>(*aux) : nullptr;
  const int64_t F = fsas.num_fsas, S = fsas.num_states, num_tokens = S / 2 > F ? S / 2 - F : 0;
  const Tensor numbers = zeros_like_shape(arcs, {3}, ScalarType::Int);  // fault; no CTC graph by its size; by its arcs
  const Tensor out_splits = empty_like_shape(arcs, {F + 1}), out_tokens = empty_like_shape(arcs, {num_tokens});
  const Tensor out_skips = empty_like_shape(arcs, {num_tokens});
  uint32_t* const fault = data_of<uint32_t>(numbers);
  int32_t *const splits = data_of<int32_t>(out_splits), *const token = data_of<int32_t>(out_tokens);
  int32_t* const skip = data_of<int32_t>(out_skips);
  check_fsas(backend, fsas, false, fault);
  backend.for_each(F + 1, [=] LATTICA_BOTH(int64_t i) {
    splits[i] = static_cast<int32_t>(fsas.fsa_splits[i] / 2 - i);
    const int32_t size = i == F ? 2 : fsas.fsa_splits[i + 1] - fsas.fsa_splits[i];
    if (size < 2 || size % 2 != 0) atomic_max(fault + 1, uint32_t{1});
  });
  backend.for_each(S, [=] LATTICA_BOTH(int64_t s) {  // a token is the label of the loop on its state
    if (fault[0] != kNoFault || fault[1] != 0) return;
    const int64_t i = fsas.fsa_of(s);
    const int32_t k = static_cast<int32_t>(s - fsas.fsa_splits[i]) / 2;
    if ((s - fsas.fsa_splits[i]) % 2 == 0 || k >= splits[i + 1] - splits[i]) return;
    int32_t label = 0;
    for (int32_t a = fsas.state_splits[s]; a < fsas.state_splits[s + 1]; ++a)
      if (fsas.arcs[a].dest == fsas.arcs[a].src) label = fsas.arcs[a].label;
    if (label <= 0) atomic_max(fault + 2, uint32_t{1});
    token[splits[i] + k] = label;
    skip[splits[i] + k] = 0;
  });
  backend.for_each(S, [=] LATTICA_BOTH(int64_t s) {
    if (fault[0] != kNoFault || fault[1] != 0) return;
    const int64_t i = fsas.fsa_of(s);
    const int32_t begin = fsas.state_splits[s], end = fsas.state_splits[s + 1], final_state = 2 * (splits[i + 1] - splits[i]) + 1;
    if (s - fsas.fsa_splits[i] == final_state) return;
    if (!ctc_state_is_good(static_cast<int32_t>(s - fsas.fsa_splits[i]), final_state, fsas.arcs + begin,
                           aux_label ? aux_label + begin : nullptr, end - begin, token + splits[i], skip + splits[i]))
      atomic_max(fault + 2, uint32_t{1});
  });
  uint32_t host[3];
  read_back(backend, host, fault, sizeof(host));
  raise_fault(host[0]);
  if (host[1] || host[2]) return {empty_like_shape(arcs, {0}), empty_like_shape(arcs, {0}), empty_like_shape(arcs, {0})};
  return {out_splits, out_tokens, out_skips};
}

}  // namespace
}  // namespace lattica
