// CTC for one utterance and one label sequence y_0 ... y_{U-1}: total score and occupations, or the best alignment.
//
// The graph (see ctc_graph in ops/topologies.py) has states blank_0, token_0, blank_1, ... blank_U. With frame t's scores x,
//
//   blank_k' = log_add(blank_k, token_{k-1}) + x[0]
//   token_k' = log_add(token_k, blank_k + d_t, token_{k-1} + d_t if `skip` allows) + x[y_k],
//
// where d_t is the delay penalty's share of a token that begins at t. States of a frame do not depend on each other: they are the
// vector lanes. Only states from which the end can be reached, and that can be reached, are visited. Going forward keeps the
// share of each arc in its state's sum; going back, occupations flow through these shares without an exponential.
// Source: Graves et al., "Connectionist temporal classification", 2006.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "fsa.h"
#include "log_add.h"

namespace lattica {

struct CtcTokens {
  int32_t U;
  const int32_t* y;
  const int32_t* skip;  // whether token k may follow token k - 1 without a blank
};

template <typename T>
struct CtcFrames {
  const T* log_probs;  // of the first frame
  int64_t stride;
  int32_t num_frames, blank;

  // What is no number counts as impossible.
  LATTICA_BOTH double score(int32_t t, int32_t label) const {
    const double x = log_probs[t * stride + label];
    return x - x == 0 ? x : -std::numeric_limits<double>::infinity();
  }
};

// States [begin, end) worth visiting after frame t.
struct CtcBand {
  int32_t blank_begin, blank_end, token_begin, token_end;
  LATTICA_BOTH CtcBand(int32_t U, int32_t T, int32_t t) {
    const int32_t left = T - 1 - t;
    blank_begin = std::max(0, U - left);
    blank_end = std::min(U, t) + 1;
    token_begin = std::max(0, U - 1 - left);
    token_end = std::min(U - 1, t) + 1;
  }
};

template <typename T>
class CtcSum {
 public:
  CtcSum(const CtcTokens& tokens, const CtcFrames<T>& frames, double delay_penalty)
      : tokens_(tokens), frames_(frames), delay_penalty_(delay_penalty), width_(tokens.U + 2) {}

  // log of the sum over all alignments; keeps the shares for occupations().
  double forward() {
    const int32_t U = tokens_.U, num_frames = frames_.num_frames;
    if (U > num_frames) return kNone;
    // Row of a frame: shares of token_{k-1} in blank_k, of blank_k in token_k, of token_{k-1} in token_k.
    shares_.resize(static_cast<size_t>(num_frames) * 3 * width_);
    std::vector<double> fronts(4 * width_, kNone), x(width_), skip(width_);
    double *blank = fronts.data() + 1, *token = blank + width_, *new_blank = token + width_, *new_token = new_blank + width_;
    for (int32_t k = 0; k < U; ++k) skip[k] = tokens_.skip[k] ? 0.0 : kNone;
    blank[0] = 0.0;
    for (int32_t t = 0; t < num_frames; ++t) {
      const CtcBand band(U, num_frames, t);
      const double x0 = frames_.score(t, frames_.blank), lead = delay_penalty_ * (0.5 * (num_frames - 1) - t);
      for (int32_t k = band.token_begin; k < band.token_end; ++k) x[k] = frames_.score(t, tokens_.y[k]);
      double* row = shares(t);
      advance(band, x0, lead, x.data(), skip.data(), blank, token, new_blank, new_token, row, row + width_, row + 2 * width_);
      std::swap(blank, new_blank);
      std::swap(token, new_token);
    }
    return log_add_with_share(token[U - 1], blank[U], &last_token_share_);
  }

  // Occupations of the frames' labels, after forward(): out[t * (U + 1)] of blank, out[t * (U + 1) + 1 + k] of token k.
  void occupations(T* out) {
    const int32_t U = tokens_.U, num_frames = frames_.num_frames;
    std::vector<double> fronts(4 * width_, 0.0);
    double *blank = fronts.data() + 1, *token = blank + width_, *old_blank = token + width_, *old_token = old_blank + width_;
    blank[U] = 1.0 - last_token_share_;
    token[U - 1] = last_token_share_;  // U = 0: the margin, and 0
    std::fill(out, out + static_cast<int64_t>(num_frames) * (U + 1), T(0));
    for (int32_t t = num_frames - 1; t >= 0; --t) {
      const CtcBand band(U, num_frames, t);
      T* row = out + static_cast<int64_t>(t) * (U + 1);
      double sum = 0.0;
      for (int32_t k = band.blank_begin; k < band.blank_end; ++k) sum += blank[k];
      row[0] = static_cast<T>(sum);
      for (int32_t k = band.token_begin; k < band.token_end; ++k) row[1 + k] = static_cast<T>(token[k]);
      std::fill(old_blank - 1, old_blank - 1 + 2 * width_, 0.0);  // both
      const double* shares_t = shares(t);
      retreat(band, shares_t, shares_t + width_, shares_t + 2 * width_, blank, token, old_blank, old_token);
      std::swap(blank, old_blank);
      std::swap(token, old_token);
    }
  }

 private:
  static constexpr double kNone = -std::numeric_limits<double>::infinity();

  double* shares(int32_t t) { return shares_.data() + static_cast<size_t>(t) * 3 * width_; }

  static void advance(const CtcBand& band, double x0, double lead, const double* __restrict x, const double* __restrict skip,
                      const double* __restrict blank, const double* __restrict token, double* __restrict new_blank,
                      double* __restrict new_token, double* __restrict from_token, double* __restrict from_blank,
                      double* __restrict skipped) {
    for (int32_t k = band.blank_begin; k < band.blank_end; ++k)
      new_blank[k] = x0 + log_add_with_share(token[k - 1], blank[k], &from_token[k]);
    for (int32_t k = band.token_begin; k < band.token_end; ++k)
      new_token[k] = x[k] + log_add3_with_shares(token[k], blank[k] + lead, token[k - 1] + (lead + skip[k]), &from_blank[k], &skipped[k]);
  }

  static void retreat(const CtcBand& band, const double* __restrict from_token, const double* __restrict from_blank,
                      const double* __restrict skipped, const double* __restrict blank, const double* __restrict token,
                      double* __restrict old_blank, double* __restrict old_token) {
    for (int32_t k = band.blank_begin; k < band.blank_end; ++k) old_token[k - 1] = blank[k] * from_token[k];
    for (int32_t k = band.blank_begin; k < band.blank_end; ++k) old_blank[k] = blank[k] - blank[k] * from_token[k];
    for (int32_t k = band.token_begin; k < band.token_end; ++k) old_blank[k] += token[k] * from_blank[k];
    for (int32_t k = band.token_begin; k < band.token_end; ++k)
      old_token[k] += token[k] * std::max(0.0, 1.0 - from_blank[k] - skipped[k]);
    for (int32_t k = band.token_begin; k < band.token_end; ++k) old_token[k - 1] += token[k] * skipped[k];
    old_token[-1] = 0.0;
  }

  const CtcTokens tokens_;
  const CtcFrames<T> frames_;
  const double delay_penalty_;
  const int64_t width_;  // of a front, with a margin at index -1
  double last_token_share_ = 0.0;
  std::vector<double> shares_;
};

// The best alignment: label[t] is blank or the token of frame t. False, and nothing written, if there is none.
template <typename T>
bool ctc_align(const CtcTokens& tokens, const CtcFrames<T>& frames, int32_t* label) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  const int32_t U = tokens.U, num_frames = frames.num_frames, num_states = 2 * U + 1;
  if (U > num_frames) return false;
  std::vector<double> score(num_states, kNone), next(num_states, kNone);
  std::vector<uint8_t> steps(static_cast<size_t>(num_frames) * num_states);  // how many states back the path came from
  score[0] = 0.0;
  for (int32_t t = 0; t < num_frames; ++t) {
    uint8_t* step = steps.data() + static_cast<size_t>(t) * num_states;
    const double x0 = frames.score(t, frames.blank);
    const CtcBand band(U, num_frames, t);
    for (int32_t k = band.blank_begin; k < band.blank_end; ++k) {
      const bool moves = k > 0 && score[2 * k - 1] > score[2 * k];
      next[2 * k] = x0 + score[2 * k - moves];
      step[2 * k] = moves;
    }
    for (int32_t k = band.token_begin; k < band.token_end; ++k) {
      const int32_t s = 2 * k + 1;
      uint8_t back = score[s - 1] > score[s] ? 1 : 0;
      if (k > 0 && tokens.skip[k] && score[s - 2] > score[s - back]) back = 2;
      next[s] = frames.score(t, tokens.y[k]) + score[s - back];
      step[s] = back;
    }
    std::swap(score, next);
  }
  int32_t s = U > 0 && score[2 * U - 1] > score[2 * U] ? 2 * U - 1 : 2 * U;
  if (score[s] == kNone) return false;
  for (int32_t t = num_frames - 1; t >= 0; --t) {
    label[t] = s % 2 ? tokens.y[s / 2] : frames.blank;
    s -= steps[static_cast<size_t>(t) * num_states + s];
  }
  return true;
}

// Whether the arcs of state s are those that it has in the CTC graph of tokens y; sets the skip of the token that it jumps to.
// `aux`, if given, must be positive exactly where a token begins.
LATTICA_BOTH inline bool ctc_state_is_good(int32_t s, int32_t final_state, const Arc* arcs, const int32_t* aux, int32_t num_arcs,
                                           const int32_t* y, int32_t* skip) {
  const bool ends = s >= final_state - 2;
  const uint32_t wanted = (s < final_state - 1 ? 3u : 1u) | (ends ? 8u : 0u);  // stays, goes on, ends
  uint32_t seen = 0;
  for (int32_t a = 0; a < num_arcs; ++a) {
    const Arc& arc = arcs[a];
    const int32_t by = arc.dest - s;
    uint32_t kind;
    if (arc.label == -1) {
      kind = 8;
    } else if (arc.dest < final_state && by >= 0 && by <= (s % 2 ? 2 : 1) && arc.label == (arc.dest % 2 ? y[arc.dest / 2] : 0)) {
      kind = 1u << by;
    } else {
      return false;
    }
    if (seen & kind) return false;
    seen |= kind;
    if (by == 2 && kind == 4) skip[arc.dest / 2] = 1;
    if (aux && (aux[a] > 0) != (kind != 8 && by > 0 && arc.dest % 2)) return false;
  }
  return (seen & ~4u) == wanted;
}

// Whether an automaton is ctc_graph(y), standard, modified or something between; if so, its tokens and skips are appended.
// `aux`, if given, must be positive exactly where a token begins.
inline bool read_ctc_graph(const FsaView& fsa, const int32_t* aux, std::vector<int32_t>* y, std::vector<int32_t>* skip) {
  if (fsa.num_states < 2 || fsa.num_states % 2) return false;
  const int32_t U = fsa.num_states / 2 - 1, final_state = fsa.final_state();
  const size_t first = y->size();
  for (int32_t k = 0; k < U; ++k) {  // the token is the label of the loop on its state
    int32_t token = 0;
    for (int32_t a = fsa.begin(2 * k + 1); a < fsa.end(2 * k + 1); ++a)
      if (fsa.arcs[a].dest == 2 * k + 1) token = fsa.arcs[a].label;
    if (token <= 0) return false;
    y->push_back(token);
    skip->push_back(0);
  }
  for (int32_t s = 0; s < final_state; ++s)
    if (!ctc_state_is_good(s, final_state, fsa.arcs + fsa.begin(s), aux ? aux + fsa.begin(s) : nullptr, fsa.end(s) - fsa.begin(s),
                           y->data() + first, skip->data() + first))
      return false;
  return true;
}

}  // namespace lattica
