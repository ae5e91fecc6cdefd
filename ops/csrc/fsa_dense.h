// Intersection of an automaton with a matrix of frame scores, by token passing with beams; one utterance a call.
//
// A token is a state that is active between two frames, with the score of the best path to it. All arcs between surviving
// tokens are kept, then those whose best path falls more than output_beam behind the best of all are dropped.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

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

// map_a: the arc of the graph, map_b: the frame (num_frames for arcs into the final state).
class DenseIntersecter {
 public:
  DenseIntersecter(const FsaView& graph, const float* arc_scores, const DenseView& dense, const Beams& beams)
      : graph_(graph), arc_scores_(arc_scores), dense_(dense), beams_(beams), token_of_(graph.num_states, -1),
        frames_(dense.num_frames + 1), links_(dense.num_frames + 1) {}

  FsaResult run() {
    if (graph_.num_states == 0) return std::move(out_);
    frames_[0] = {{0, 0.0f, kNone}};
    for (int32_t t = 0; t < dense_.num_frames && !out_.error; ++t) advance(t);
    if (out_.error) return std::move(out_);
    finish();
    const float best = backward();
    if (best != kNone) emit();
    return std::move(out_);
  }

 private:
  static constexpr float kNone = -std::numeric_limits<float>::infinity();
  struct Token {
    int32_t state;
    float forward, backward;
    int32_t number = -1;  // in the result; -2: on a way to the end
  };
  struct Link {  // ordered by the token it leaves
    int32_t src, dest, arc;
    float score;
  };

  void advance(int32_t t) {
    const std::vector<Token>& now = frames_[t];
    std::vector<Token>& next = frames_[t + 1];
    std::vector<Link>& links = links_[t];
    const float* frame = dense_.scores + t * dense_.stride;
    float best = kNone;
    for (size_t i = 0; i < now.size(); ++i) {
      const float before = now[i].forward;
      for (int32_t a = graph_.begin(now[i].state); a < graph_.end(now[i].state); ++a) {
        const Arc& arc = graph_.arcs[a];
        if (arc.label < 0) continue;
        if (arc.label >= dense_.num_labels) {
          out_.error = "intersect_dense: a label of the graph is beyond the columns of the scores";
          return;
        }
        const float score = arc_scores_[a] + frame[arc.label];
        const float forward = before + score;
        if (!(forward > kNone)) continue;
        if (beams_.min_active == 0 && forward < best - beams_.search) continue;  // else it may be among the kept ones
        if (forward > best) best = forward;
        int32_t& token = token_of_[arc.dest];
        if (token < 0) {
          token = static_cast<int32_t>(next.size());
          next.push_back({arc.dest, forward, kNone});
        } else if (forward > next[token].forward) {
          next[token].forward = forward;
        }
        links.push_back({static_cast<int32_t>(i), token, a, score});
      }
    }
    for (const Token& token : next) token_of_[token.state] = -1;
    prune(best, &next, &links);
  }

  // Drop tokens below the beam, and the links into them.
  void prune(float best, std::vector<Token>* tokens, std::vector<Link>* links) {
    const size_t n = tokens->size();
    float cutoff = best - beams_.search;
    const auto nth_best = [&](size_t k) {  // the score of which k tokens are at least as good
      ranks_.clear();
      for (const Token& token : *tokens) ranks_.push_back(token.forward);
      std::nth_element(ranks_.begin(), ranks_.begin() + (k - 1), ranks_.end(), [](float x, float y) { return x > y; });
      return ranks_[k - 1];
    };
    size_t above = 0;
    for (const Token& token : *tokens) above += token.forward >= cutoff;
    if (above > static_cast<size_t>(beams_.max_active)) {
      cutoff = nth_best(beams_.max_active);
    } else if (above < static_cast<size_t>(beams_.min_active) && above < n) {
      cutoff = nth_best(std::min<size_t>(n, beams_.min_active));
    }
    if (n == above && above <= static_cast<size_t>(beams_.max_active)) return;
    kept_.assign(n, -1);
    int32_t count = 0;
    for (size_t i = 0; i < n; ++i)
      if ((*tokens)[i].forward >= cutoff && count < beams_.max_active) {
        kept_[i] = count;
        (*tokens)[count++] = (*tokens)[i];
      }
    tokens->resize(count);
    size_t used = 0;
    for (const Link& link : *links)
      if (kept_[link.dest] >= 0) {
        (*links)[used] = link;
        (*links)[used++].dest = kept_[link.dest];
      }
    links->resize(used);
  }

  // Arcs into the final state take no frame.
  void finish() {
    const std::vector<Token>& last = frames_.back();
    for (size_t i = 0; i < last.size(); ++i)
      for (int32_t a = graph_.begin(last[i].state); a < graph_.end(last[i].state); ++a)
        if (graph_.arcs[a].label == -1 && arc_scores_[a] > kNone)
          links_.back().push_back({static_cast<int32_t>(i), 0, a, arc_scores_[a]});
    if (links_.back().empty() && beams_.allow_partial)
      for (size_t i = 0; i < last.size(); ++i) links_.back().push_back({static_cast<int32_t>(i), 0, -1, 0.0f});
    frames_.push_back({{graph_.final_state(), kNone, 0.0f, -2}});
  }

  // Scores to the end; tokens on a way to it that is good enough get number -2. Returns the score of the best path.
  float backward() {
    float best = kNone;
    for (const Link& link : links_.back()) best = std::max(best, frames_[dense_.num_frames][link.src].forward + link.score);
    if (best == kNone) return best;
    cutoff_ = best - beams_.output;
    for (int32_t t = dense_.num_frames; t >= 0; --t)
      for (const Link& link : links_[t]) {
        Token& from = frames_[t][link.src];
        const Token& to = frames_[t + 1][link.dest];
        if (to.number == -1) continue;
        const float rest = link.score + to.backward;
        from.backward = std::max(from.backward, rest);
        if (from.forward + rest >= cutoff_) from.number = -2;
      }
    return best;
  }

  void emit() {
    frames_[0][0].number = 0;
    int32_t count = 1;
    for (int32_t t = 0; t <= dense_.num_frames; ++t) {
      const size_t first = out_.arcs.size();
      for (const Link& link : links_[t]) {
        const Token& from = frames_[t][link.src];
        Token& to = frames_[t + 1][link.dest];
        if (from.number < 0 || to.number == -1 || from.forward + link.score + to.backward < cutoff_) continue;
        if (to.number == -2) to.number = -3;  // reached; numbered below, in the order of the tokens
        out_.arcs.push_back({from.number, link.dest, t == dense_.num_frames ? -1 : graph_.arcs[link.arc].label});
        out_.map_a.push_back(link.arc);
        out_.map_b.push_back(t);
      }
      for (Token& token : frames_[t + 1]) token.number = token.number == -3 ? count++ : -1;
      for (size_t k = first; k < out_.arcs.size(); ++k) out_.arcs[k].dest = frames_[t + 1][out_.arcs[k].dest].number;
    }
    out_.num_states = count;
  }

  const FsaView& graph_;
  const float* arc_scores_;
  const DenseView dense_;
  const Beams beams_;
  std::vector<int32_t> token_of_, kept_;
  std::vector<float> ranks_;
  std::vector<std::vector<Token>> frames_;
  std::vector<std::vector<Link>> links_;
  float cutoff_ = kNone;
  FsaResult out_;
};

}  // namespace lattica
