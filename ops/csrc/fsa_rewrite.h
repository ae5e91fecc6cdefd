// remove_epsilon, whose arcs stand for lists of input arcs with scores that add up to theirs, and the potentials that push needs.
// One FSA a call.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fsa.h"
#include "fsa_scores.h"

namespace lattica {

// The automaton without epsilons (label 0). Every state reached by a real label is linked, past the epsilon paths that begin
// there, to what follows them. Tropical: of several epsilon paths between two states the best one counts. `all_paths`: each
// of them, which is exact in the log semiring too; then epsilon cycles are an error.
class EpsilonRemover {
 public:
  EpsilonRemover(const FsaView& fsa, const double* scores, bool all_paths)
      : fsa_(fsa), scores_(scores), all_paths_(all_paths), score_(fsa.num_states, kMinusInf),
        via_(fsa.num_states, -1), visits_(fsa.num_states, 0), on_path_(fsa.num_states, 0), leads_on_(fsa.num_states, 0) {}

  FsaResult run() {
    const int32_t n = fsa_.num_states;
    if (n == 0) return std::move(out_);
    // Kept are the start and the states that a real label leads to, in their old order: what was top-sorted stays so.
    std::vector<char> seen(n);
    mark_accessible(fsa_, seen.data());
    std::vector<int32_t> number(n, -1), states{0};
    number[0] = 0;
    for (int32_t s = 0; s < n; ++s)
      for (int32_t a = fsa_.begin(s); seen[s] && a < fsa_.end(s); ++a)
        if (fsa_.arcs[a].label != 0) number[fsa_.arcs[a].dest] = 0;
    number[fsa_.final_state()] = -1;
    for (int32_t s = 1; s < n; ++s)
      if (number[s] == 0) number[s] = static_cast<int32_t>(states.size()), states.push_back(s);
    mark_leading_on();
    if (n > 1) number[fsa_.final_state()] = static_cast<int32_t>(states.size());
    out_.num_states = static_cast<int32_t>(states.size()) + (n > 1 ? 1 : 0);
    for (size_t i = 0; i < states.size() && !out_.error; ++i) {
      const size_t first = out_.arcs.size();
      if (all_paths_) {
        path_.clear();
        follow_all(states[i]);
      } else {
        follow_best(states[i]);
      }
      for (size_t k = first; k < out_.arcs.size(); ++k) {
        out_.arcs[k].src = static_cast<int32_t>(i);
        out_.arcs[k].dest = number[out_.arcs[k].dest];
      }
      if (out_.map_a.size() > 2000000000) out_.error = "remove_epsilon: more than 2 * 10^9 arcs on epsilon paths";
    }
    return std::move(out_);
  }

 private:
  // Which states have an arc with a real label, or come to one by epsilons: no others are worth a visit.
  void mark_leading_on() {
    std::vector<int32_t> splits, entering, stack;
    for (int32_t s = 0; s < fsa_.num_states; ++s)
      if (has_real_arc(s)) leads_on_[s] = 1, stack.push_back(s);
    if (static_cast<int32_t>(stack.size()) + 1 >= fsa_.num_states) return;  // all but the final state
    entering_arcs(fsa_, &splits, &entering);
    while (!stack.empty()) {
      const int32_t s = stack.back();
      stack.pop_back();
      for (int32_t i = splits[s]; i < splits[s + 1]; ++i) {
        const Arc& arc = fsa_.arcs[entering[i]];
        if (arc.label == 0 && !leads_on_[arc.src]) leads_on_[arc.src] = 1, stack.push_back(arc.src);
      }
    }
  }

  bool has_real_arc(int32_t s) const {
    for (int32_t a = fsa_.begin(s); a < fsa_.end(s); ++a)
      if (fsa_.arcs[a].label != 0) return true;
    return false;
  }

  void emit(int32_t a) {  // path_ then arc a
    out_.map_a.insert(out_.map_a.end(), path_.begin(), path_.end());
    out_.map_a.push_back(a);
    out_.map_ends.push_back(static_cast<int32_t>(out_.map_a.size()));
    out_.arcs.push_back({0, fsa_.arcs[a].dest, fsa_.arcs[a].label});
  }

  void follow_all(int32_t start) {  // no recursion: a chain of epsilons may be longer than a thread's stack is deep
    next_arc_.assign(1, fsa_.begin(start));  // of each state on the path
    path_states_.assign(1, start);
    on_path_[start] = 1;
    while (!path_states_.empty()) {
      const int32_t s = path_states_.back();
      if (next_arc_.back() == fsa_.end(s)) {
        on_path_[s] = 0;
        next_arc_.pop_back();
        path_states_.pop_back();
        if (!path_.empty()) path_.pop_back();
        continue;
      }
      const int32_t a = next_arc_.back()++, d = fsa_.arcs[a].dest;
      if (fsa_.arcs[a].label != 0) {
        emit(a);
        if (out_.map_a.size() > 2000000000) {
          out_.error = "remove_epsilon: more than 2 * 10^9 epsilon paths";
          return;
        }
        continue;
      }
      if (!leads_on_[d]) continue;
      if (on_path_[d]) {
        out_.error = "remove_epsilon: an epsilon cycle has no finite set of paths; use the tropical semiring";
        return;
      }
      on_path_[d] = 1;
      path_.push_back(a);
      path_states_.push_back(d);
      next_arc_.push_back(fsa_.begin(d));
    }
  }

  void follow_best(int32_t s) {
    closure_.assign(1, s);
    queue_.assign(1, s);
    score_[s] = 0;
    for (size_t i = 0; i < queue_.size(); ++i) {
      const int32_t t = queue_[i];
      if (++visits_[t] > fsa_.num_states) {
        out_.error = "remove_epsilon: an epsilon cycle has a positive score, so that there is no best path";
        return;
      }
      for (int32_t a = fsa_.begin(t); a < fsa_.end(t); ++a) {
        if (fsa_.arcs[a].label != 0) continue;
        const int32_t d = fsa_.arcs[a].dest;
        const double x = score_[t] + scores_[a];
        if (!leads_on_[d] || !(x > score_[d])) continue;
        if (score_[d] == kMinusInf) closure_.push_back(d);
        score_[d] = x, via_[d] = a;
        queue_.push_back(d);
      }
    }
    for (int32_t t : closure_) {
      if (!has_real_arc(t)) continue;  // the way there may be long
      path_.clear();
      for (int32_t u = t; u != s; u = fsa_.arcs[via_[u]].src) {
        path_.push_back(via_[u]);
        if (static_cast<int32_t>(path_.size()) > fsa_.num_states) {  // its gain is infinite, or lost in rounding
          out_.error = "remove_epsilon: an epsilon cycle has a positive score, so that there is no best path";
          return;
        }
      }
      std::reverse(path_.begin(), path_.end());
      for (int32_t a = fsa_.begin(t); a < fsa_.end(t); ++a)
        if (fsa_.arcs[a].label != 0) emit(a);
    }
    for (int32_t t : closure_) score_[t] = kMinusInf, visits_[t] = 0;
  }

  const FsaView& fsa_;
  const double* scores_;
  bool all_paths_;
  std::vector<double> score_;
  std::vector<int32_t> via_, visits_;
  std::vector<char> on_path_, leads_on_;
  std::vector<int32_t> path_, path_states_, next_arc_, closure_, queue_;
  FsaResult out_;
};

// backward[s] = total score of all ways from s to the final state, cycles allowed: sweeps until nothing changes by more than
// `tolerance`. Returns false if that does not happen in `max_sweeps`.
inline bool potentials(const FsaView& fsa, const double* scores, bool log_semiring, double tolerance, int64_t max_sweeps,
                       double* backward) {
  const int32_t n = fsa.num_states;
  if (n == 0) return true;
  for (int32_t s = 0; s < n; ++s) backward[s] = kMinusInf;
  backward[n - 1] = 0;
  for (int64_t sweep = 0; sweep < max_sweeps; ++sweep) {
    bool changed = false;
    for (int32_t s = n - 2; s >= 0; --s) {
      RunningLogSum sum;
      double top = kMinusInf;
      for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) {
        const double x = scores[a] + backward[fsa.arcs[a].dest];
        if (log_semiring) sum.add(x);
        top = std::max(top, x);
      }
      const double value = log_semiring ? sum.value() : top;
      if (std::isnan(value)) return false;
      if (value != backward[s] && !(std::abs(value - backward[s]) <= tolerance)) changed = true;
      backward[s] = value;
    }
    if (!changed) return true;
  }
  return false;
}

}  // namespace lattica
