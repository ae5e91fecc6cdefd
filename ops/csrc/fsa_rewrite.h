// Changes that keep the language: remove_epsilon, determinize, minimize, and the potentials that push needs. One FSA a call.
// Arcs of remove_epsilon and determinize stand for lists of input arcs, whose scores add up to theirs.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <unordered_map>
#include <utility>
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
        via_(fsa.num_states, -1), visits_(fsa.num_states, 0), on_path_(fsa.num_states, 0) {}

  FsaResult run() {
    const int32_t n = fsa_.num_states;
    if (n == 0) return std::move(out_);
    std::vector<int32_t> order(n, -1), states{0};
    order[0] = 0;
    for (size_t i = 0; i < states.size() && !out_.error; ++i) {
      const int32_t s = states[i];
      const size_t first = out_.arcs.size();
      if (all_paths_) {
        path_.clear();
        follow_all(s);
      } else {
        follow_best(s);
      }
      for (size_t k = first; k < out_.arcs.size(); ++k) {
        out_.arcs[k].src = static_cast<int32_t>(i);
        int32_t& d = out_.arcs[k].dest;
        if (d != fsa_.final_state() && order[d] < 0) order[d] = static_cast<int32_t>(states.size()), states.push_back(d);
      }
    }
    if (out_.error) return std::move(out_);
    // Number the states as they were ordered before, so that a top-sorted automaton stays so; then order the arcs.
    std::vector<int32_t> rank(states.size());
    std::vector<int32_t> sorted(states);
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0; i < sorted.size(); ++i) rank[order[sorted[i]]] = static_cast<int32_t>(i);
    out_.num_states = static_cast<int32_t>(states.size()) + (n > 1 ? 1 : 0);
    std::vector<int32_t> splits(states.size() + 1, 0);  // arcs of each state, as made
    for (const Arc& arc : out_.arcs) ++splits[arc.src + 1];
    for (size_t i = 0; i < states.size(); ++i) splits[i + 1] += splits[i];
    FsaResult result;
    result.num_states = out_.num_states;
    for (int32_t s : sorted) {
      const int32_t i = order[s];
      for (int32_t k = splits[i]; k < splits[i + 1]; ++k) {
        const Arc& arc = out_.arcs[k];
        const int32_t d = arc.dest == fsa_.final_state() ? result.num_states - 1 : rank[order[arc.dest]];
        result.arcs.push_back({rank[i], d, arc.label});
        for (int32_t m = k ? out_.map_ends[k - 1] : 0; m < out_.map_ends[k]; ++m) result.map_a.push_back(out_.map_a[m]);
        result.map_ends.push_back(static_cast<int32_t>(result.map_a.size()));
      }
    }
    return result;
  }

 private:
  void emit(int32_t a) {  // path_ then arc a
    out_.map_a.insert(out_.map_a.end(), path_.begin(), path_.end());
    out_.map_a.push_back(a);
    out_.map_ends.push_back(static_cast<int32_t>(out_.map_a.size()));
    out_.arcs.push_back({0, fsa_.arcs[a].dest, fsa_.arcs[a].label});
  }

  void follow_all(int32_t s) {
    if (on_path_[s]) {
      out_.error = "remove_epsilon: an epsilon cycle has no finite set of paths; use the tropical semiring";
      return;
    }
    if (out_.map_a.size() > 2000000000) {
      out_.error = "remove_epsilon: more than 2 * 10^9 epsilon paths";
      return;
    }
    on_path_[s] = 1;
    for (int32_t a = fsa_.begin(s); a < fsa_.end(s) && !out_.error; ++a) {
      if (fsa_.arcs[a].label != 0) {
        emit(a);
      } else {
        path_.push_back(a);
        follow_all(fsa_.arcs[a].dest);
        path_.pop_back();
      }
    }
    on_path_[s] = 0;
  }

  void follow_best(int32_t s) {
    closure_.assign(1, s);
    std::deque<int32_t> queue{s};
    score_[s] = 0;
    while (!queue.empty()) {
      const int32_t t = queue.front();
      queue.pop_front();
      if (++visits_[t] > fsa_.num_states) {
        out_.error = "remove_epsilon: an epsilon cycle has a positive score, so that there is no best path";
        return;
      }
      for (int32_t a = fsa_.begin(t); a < fsa_.end(t); ++a) {
        if (fsa_.arcs[a].label != 0) continue;
        const int32_t d = fsa_.arcs[a].dest;
        const double x = score_[t] + scores_[a];
        if (!(x > score_[d])) continue;
        if (score_[d] == kMinusInf) closure_.push_back(d);
        score_[d] = x, via_[d] = a;
        queue.push_back(d);
      }
    }
    for (int32_t t : closure_) {
      path_.clear();
      for (int32_t u = t; u != s; u = fsa_.arcs[via_[u]].src) path_.push_back(via_[u]);
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
  std::vector<char> on_path_;
  std::vector<int32_t> path_, closure_;
  FsaResult out_;
};

struct IntsHash {
  size_t operator()(const std::vector<int32_t>& key) const {
    uint64_t h = key.size();
    for (int32_t x : key) h = (h ^ static_cast<uint32_t>(x)) * 0x9E3779B97F4A7C15ULL, h ^= h >> 29;
    return h;
  }
};

// Merge states with equal futures: the same labels, aux labels and scores (up to `delta`) into merged states. For a deterministic
// automaton with pushed weights that is the least one. Top-sorted input takes one pass from the end (Revuz, 1992), other input
// passes until nothing splits (Moore, 1956).
inline FsaResult minimize(const FsaView& fsa, const double* scores, const int32_t* aux, double delta) {
  FsaResult out;
  const int32_t n = fsa.num_states;
  if (n == 0) return out;
  std::vector<int32_t> group(n, 0), next(n, 0);
  using Item = std::array<int64_t, 4>;
  std::vector<Item> items;
  std::vector<int32_t> key;
  const auto signature = [&](int32_t s) {
    items.clear();
    for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) {
      const double q = std::isfinite(scores[a]) ? std::round(scores[a] / delta) : (scores[a] > 0 ? 9e17 : -9e17);
      items.push_back({fsa.arcs[a].label, aux[a], group[fsa.arcs[a].dest],
                       static_cast<int64_t>(std::max(-9e17, std::min(9e17, q)))});
    }
    std::sort(items.begin(), items.end());
    key.assign(1, s == fsa.final_state());
    for (const Item& item : items)
      for (int64_t x : item) key.push_back(static_cast<int32_t>(x)), key.push_back(static_cast<int32_t>(x >> 32));
  };
  std::unordered_map<std::vector<int32_t>, int32_t, IntsHash> groups;
  if (goes_up(fsa)) {
    for (int32_t s = n - 1; s >= 0; --s) {
      signature(s);
      group[s] = groups.emplace(key, static_cast<int32_t>(groups.size())).first->second;
    }
  } else {
    group[n - 1] = 1;
    for (size_t count = n > 1 ? 2 : 1;;) {
      groups.clear();
      for (int32_t s = 0; s < n; ++s) {
        signature(s);
        key.push_back(group[s]);
        next[s] = groups.emplace(key, static_cast<int32_t>(groups.size())).first->second;
      }
      group.swap(next);
      if (groups.size() == count) break;
      count = groups.size();
    }
  }
  // The last state of a group stands for it, except that the start stands for its own: arcs then still go up.
  std::vector<int32_t> stands(groups.size()), order(n, -1), number(groups.size(), -1);
  for (int32_t s = 0; s < n; ++s) stands[group[s]] = s;
  stands[group[0]] = 0;
  std::vector<int32_t> old_states;
  for (int32_t s = 0; s < n; ++s)
    if (stands[group[s]] == s) number[group[s]] = static_cast<int32_t>(old_states.size()), old_states.push_back(s);
  for (int32_t s = 0; s < n; ++s) order[s] = number[group[s]];
  return renumber(fsa, order, old_states);
}

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
