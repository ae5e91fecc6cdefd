// Intersection of an automaton with a matrix of frame scores, by token passing with beams; one utterance a call.
//
// A token is a state that is active between two frames, with the score of the best path to it. Going forward keeps only tokens;
// going back walks the arcs again, from each token to those of the next frame that lie on a good path to the end, and keeps those
// whose best path falls at most output_beam behind the best of all. So memory is tokens and what is returned, not all arcs tried.
// States of the result are ordered by frame and state of the graph, and of equal tokens the one of the lower state is the better:
// nothing depends on the order of the search.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "atomics.h"
#include "fsa.h"

namespace lattica {

struct DenseView {
  const float* scores;  // of the segment's first frame
  int64_t stride;       // from one frame to the next
  int32_t num_frames, num_labels;
};

struct Beams {
  float search, output;
  int32_t min_active, max_active;
  bool allow_partial;  // if no path is complete, count every token after the last frame as final
};

// The tokens before the first frame and after each frame, in one list: what a search needs to go on later.
struct TokenHistory {
  std::vector<int32_t> frame_ends, states;
  std::vector<float> scores;
};

// Where one utterance's result goes: its part of the tensors of the whole vector.
struct DenseOutput {
  int32_t first_arc;      // arcs of the utterances before
  int32_t* state_splits;  // one a state
  Arc* arcs;
  int32_t *map_a, *frame;  // the arc of the graph (-1: none); if not null, the frame, num_frames for arcs into the final state
  float* scores;
};

// First search(), which says how large the result is, then write().
class DenseIntersecter {
 public:
  // Labels of the graph must be below num_labels.
  DenseIntersecter(const FsaView& graph, const float* arc_scores, const DenseView& dense, const Beams& beams)
      : graph_(graph), arc_scores_(arc_scores), dense_(dense), beams_(beams), state_score_(graph.num_states, kNone),
        state_token_(graph.num_states, -1), row_(dense.num_labels + 1, kNone), frames_(1), links_(dense.num_frames + 1) {
    frames_.reserve(dense.num_frames + 2);
  }

  // Tokens of the first frames, found in an earlier run: `ends` says where each of the num_lists lists ends.
  void resume(int32_t num_lists, const int32_t* ends, const int32_t* states, const float* scores) {
    keep_history_ = true;
    if (num_lists == 0) return;
    frames_.assign(num_lists, {});
    for (int32_t t = 0, k = 0; t < num_lists; ++t)
      for (; k < ends[t]; ++k) frames_[t].push_back({states[k], scores[k]});
    resumed_ = true;
  }

  void search() {
    if (graph_.num_states == 0) {
      history_.frame_ends.assign(dense_.num_frames + 1, 0);
      return;
    }
    if (!resumed_) frames_[0] = {{0, 0.0f}};
    for (int32_t t = static_cast<int32_t>(frames_.size()) - 1; t < dense_.num_frames; ++t) advance(t);
    if (keep_history_) save_history();
    if (finish()) {
      for (int32_t t = dense_.num_frames - 1; t >= 0; --t) retreat(t);
      number();
    } else {
      release(&frames_);
    }
    release(&state_score_);  // the result is what stays in memory, not tables over the graph's states
    release(&state_token_);
  }

  int32_t num_states() const { return num_states_; }
  int64_t num_arcs() const { return num_arcs_; }

  void write(const DenseOutput& out) {
    if (num_states_ == 0) return;
    state_token_.resize(graph_.num_states);
    int32_t k = 0;
    for (int32_t t = 0; t <= dense_.num_frames; ++t) {
      const bool last = t == dense_.num_frames;
      const float* frame = dense_.scores + t * dense_.stride;
      number_states(t + 1);
      for (size_t i = 0; i < frames_[t].size(); ++i) {
        const Token& from = frames_[t][i];
        out.state_splits[from.number] = out.first_arc + k;
        for (int32_t j = i == 0 ? 0 : frames_[t][i - 1].links_end; j < from.links_end; ++j, ++k) {
          const int32_t a = links_[t][j], label = last ? -1 : graph_.arcs[a].label;
          out.arcs[k] = {from.number, last ? num_states_ - 1 : state_token_[graph_.arcs[a].dest], label};
          out.map_a[k] = a;
          if (out.frame) out.frame[k] = t;
          out.scores[k] = (a < 0 ? 0.0f : arc_scores_[a]) + (last ? 0.0f : frame[label]);
        }
      }
    }
    out.state_splits[num_states_ - 1] = out.first_arc + k;
    release(&links_);
    release(&state_token_);
  }

  const TokenHistory& history() const { return history_; }

 private:
  static constexpr float kNone = -std::numeric_limits<float>::infinity();
  struct Token {
    int32_t state;
    float forward;
    float backward = kNone;  // -inf: on no path that is good enough
    int32_t number = -1;     // in the result
    int32_t links_end = 0;   // of the links that leave it, which follow those of the token before
  };

  template <typename T>
  static void release(std::vector<T>* v) { std::vector<T>().swap(*v); }

  // The frame's scores by label + 1, so that label -1, which takes no frame, needs no test. nan counts as -inf.
  const float* row(int32_t t) {
    const float* frame = dense_.scores + t * dense_.stride;
    for (int32_t c = 0; c < dense_.num_labels; ++c) row_[c + 1] = frame[c] > kNone ? frame[c] : kNone;
    return row_.data() + 1;
  }

  // By state, the number in the result of the tokens before frame t.
  void number_states(int32_t t) {
    for (const Token& token : frames_[t]) state_token_[token.state] = token.number;
  }

  void advance(int32_t t) {
    const float* frame = row(t);
    frames_.emplace_back();
    const std::vector<Token>& now = frames_[t];
    std::vector<Token>& next = frames_[t + 1];
    touched_.clear();
    const bool may_drop = beams_.min_active == 0;  // else what falls below the beam may be among the kept ones
    float best = kNone, floor = kNone;
    for (const Token& token : now) {
      const float before = token.forward;
      const int32_t end = graph_.end(token.state);
      for (int32_t a = graph_.begin(token.state); a < end; ++a) {
        const Arc& arc = graph_.arcs[a];
        const float forward = before + (arc_scores_[a] + frame[arc.label]);
        float& known = state_score_[arc.dest];
        if (!(forward > known) || forward < floor) continue;
        if (known == kNone) touched_.push_back(arc.dest);
        known = forward;
        if (forward > best) {
          best = forward;
          if (may_drop) floor = best - beams_.search;
        }
      }
    }
    next.reserve(touched_.size());
    for (const int32_t state : touched_) {
      next.push_back({state, state_score_[state]});
      state_score_[state] = kNone;
    }
    prune(best, &next);
  }

  // Greater for better scores, and of equal ones for lower states.
  static uint64_t rank(const Token& token) {
    return static_cast<uint64_t>(ordered(token.forward)) << 32 | ~static_cast<uint32_t>(token.state);
  }

  void prune(float best, std::vector<Token>* tokens) {
    const size_t n = tokens->size(), most = beams_.max_active, least = std::min<size_t>(n, beams_.min_active);
    const float cutoff = best - beams_.search;
    size_t above = 0;
    for (const Token& token : *tokens) above += token.forward >= cutoff;
    if (above >= least && above <= most) {
      if (above < n) std::erase_if(*tokens, [&](const Token& token) { return !(token.forward >= cutoff); });
      return;
    }
    const size_t k = above > most ? most : least;
    if (k == n) return;
    ranks_.clear();
    for (const Token& token : *tokens) ranks_.push_back(rank(token));
    std::nth_element(ranks_.begin(), ranks_.begin() + (k - 1), ranks_.end(), std::greater<uint64_t>());
    std::erase_if(*tokens, [&](const Token& token) { return rank(token) < ranks_[k - 1]; });
  }

  void save_history() {
    for (std::vector<Token>& tokens : frames_) {
      const auto by_state = [](const Token& x, const Token& y) { return x.state < y.state; };
      if (!std::is_sorted(tokens.begin(), tokens.end(), by_state)) std::sort(tokens.begin(), tokens.end(), by_state);
      for (const Token& token : tokens) history_.states.push_back(token.state), history_.scores.push_back(token.forward);
      history_.frame_ends.push_back(static_cast<int32_t>(history_.states.size()));
    }
  }

  // Arcs into the final state take no frame. False if there is no path.
  bool finish() {
    std::vector<Token>& last = frames_[dense_.num_frames];
    float best = kNone;
    const auto each_end = [&](const Token& token, const auto& f) {  // f(arc, score)
      for (int32_t a = graph_.begin(token.state); a < graph_.end(token.state); ++a)
        if (graph_.arcs[a].label == -1 && arc_scores_[a] > kNone) f(a, arc_scores_[a]);
    };
    for (const Token& token : last)
      each_end(token, [&](int32_t, float score) { best = std::max(best, token.forward + score); });
    const bool partial = !(best > kNone) && beams_.allow_partial;
    if (partial)
      for (const Token& token : last) best = std::max(best, token.forward);
    if (!(best > kNone)) return false;
    cutoff_ = best - beams_.output;
    found_.clear();
    for (Token& token : last) {
      const auto add = [&](int32_t arc, float score) {
        if (token.forward + score < cutoff_) return;
        token.backward = std::max(token.backward, score);
        found_.push_back(arc);
      };
      if (partial) add(-1, 0.0f); else each_end(token, add);
      token.links_end = static_cast<int32_t>(found_.size());
    }
    keep_good(dense_.num_frames);
    return true;
  }

  // The good links from the tokens before frame t to those after it, and with them the former's scores to the end.
  void retreat(int32_t t) {
    const float* frame = row(t);
    const std::vector<Token>& next = frames_[t + 1];
    for (const Token& token : next) state_score_[token.state] = token.backward;
    find_links(t, frame, [&](const Token& token, float, float rest, int32_t) {
      return token.forward + rest >= cutoff_ && rest != kNone;
    });
    // Rounding may put the best way to a good token below the beam. It stays, so that the lattice is connected.
    if (std::any_of(next.begin(), next.end(), [&](const Token& token) { return state_token_[token.state] != t; })) {
      std::vector<float> forward(graph_.num_states, kNone);
      for (const Token& token : next) forward[token.state] = token.forward;
      find_links(t, frame, [&](const Token& token, float score, float rest, int32_t dest) {
        return rest != kNone && (token.forward + rest >= cutoff_ || token.forward + score == forward[dest]);
      });
    }
    for (const Token& token : next) state_score_[token.state] = kNone;
    keep_good(t);
  }

  // Into found_; states that are reached get t in state_token_.
  template <typename F>
  void find_links(int32_t t, const float* frame, const F& is_good) {
    found_.clear();
    for (Token& token : frames_[t]) {
      const int32_t end = graph_.end(token.state);
      float top = kNone;
      for (int32_t a = graph_.begin(token.state); a < end; ++a) {
        const Arc& arc = graph_.arcs[a];
        const float after = state_score_[arc.dest];
        if (after == kNone) continue;
        const float score = arc_scores_[a] + frame[arc.label], rest = score + after;
        if (!is_good(token, score, rest, arc.dest)) continue;
        state_token_[arc.dest] = t;
        found_.push_back(a);
        top = std::max(top, rest);
      }
      token.backward = top;
      token.links_end = static_cast<int32_t>(found_.size());
    }
  }

  // Only tokens with good links stay, in the order of their states; the links, found_ so far, go with them.
  void keep_good(int32_t t) {
    std::vector<Token> good;
    good.reserve(std::count_if(frames_[t].begin(), frames_[t].end(), [](const Token& token) { return token.backward != kNone; }));
    int32_t begin = 0;
    for (const Token& token : frames_[t]) {
      if (token.links_end == begin) continue;
      good.push_back(token);
      good.back().number = std::exchange(begin, token.links_end);  // where its links begin, until it has a number
    }
    const auto by_state = [](const Token& x, const Token& y) { return x.state < y.state; };
    if (std::is_sorted(good.begin(), good.end(), by_state)) {
      links_[t].assign(found_.begin(), found_.end());
    } else {
      std::sort(good.begin(), good.end(), by_state);
      links_[t].reserve(found_.size());
      for (Token& token : good) {
        links_[t].insert(links_[t].end(), found_.begin() + token.number, found_.begin() + token.links_end);
        token.links_end = static_cast<int32_t>(links_[t].size());
      }
    }
    frames_[t].swap(good);
  }

  void number() {
    frames_.push_back({{graph_.final_state(), 0.0f, 0.0f}});
    for (std::vector<Token>& tokens : frames_)
      for (Token& token : tokens) token.number = num_states_++;
    for (const std::vector<int32_t>& links : links_) num_arcs_ += static_cast<int64_t>(links.size());
  }

  const FsaView graph_;
  const float* arc_scores_;
  const DenseView dense_;
  const Beams beams_;
  // By state, within a frame: its score as a token, forward or backward (-inf: none), and which token it is.
  std::vector<float> state_score_;
  std::vector<int32_t> state_token_;
  std::vector<float> row_;
  std::vector<uint64_t> ranks_;
  std::vector<int32_t> touched_;
  std::vector<std::vector<Token>> frames_;
  // For each frame the good arcs out of its tokens, -1 for the end of a partial path; with the graph's arcs large as it is, a
  // lattice may have most of them, so nothing more is kept of each.
  std::vector<int32_t> found_;
  std::vector<std::vector<int32_t>> links_;
  bool resumed_ = false, keep_history_ = false;
  TokenHistory history_;
  float cutoff_ = kNone;
  int32_t num_states_ = 0;
  int64_t num_arcs_ = 0;
};

}  // namespace lattica
