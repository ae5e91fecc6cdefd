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

// A deterministic automaton with the same best score for every string. A state is what a string leads to: a set of input states
// with the best path to each. What all these paths share is paid on the way; so a state is told by the one input state where
// they part, and the labels after it. All labels count as real ones, 0 as well. It may not end for cyclic input.
class Determinizer {
 public:
  Determinizer(const FsaView& fsa, const double* scores, int64_t max_states)
      : fsa_(fsa), scores_(scores), max_states_(max_states) {}

  FsaResult run() {
    if (fsa_.num_states == 0) return std::move(out_);
    nodes_.push_back({-1, -1});
    states_.push_back({{0, 0.0, 0}});
    numbers_[{0}] = 0;
    for (size_t s = 0; s < states_.size(); ++s) {
      const std::vector<Element> elements = std::move(states_[s]);
      expand(static_cast<int32_t>(s), elements);
      if (static_cast<int64_t>(states_.size()) > max_states_) {
        out_.error = "determinize: more states than max_states";
        return std::move(out_);
      }
    }
    out_.num_states = static_cast<int32_t>(states_.size()) + (fsa_.num_states > 1 ? 1 : 0);
    for (Arc& arc : out_.arcs)
      if (arc.label == -1) arc.dest = out_.num_states - 1;
    return std::move(out_);
  }

 private:
  struct Element {
    int32_t state;
    double score;
    int32_t node;  // the path that led here
  };
  struct Node {
    int32_t parent, arc;
  };
  struct Move {
    int32_t label, dest;
    double score;
    int32_t from, arc;
  };

  void expand(int32_t s, const std::vector<Element>& elements) {
    std::vector<Move> moves;
    for (const Element& e : elements)
      for (int32_t a = fsa_.begin(e.state); a < fsa_.end(e.state); ++a)
        moves.push_back({fsa_.arcs[a].label, fsa_.arcs[a].dest, e.score + scores_[a], e.node, a});
    std::sort(moves.begin(), moves.end(), [](const Move& x, const Move& y) {
      if (x.label != y.label) return label_less(x.label, y.label);
      if (x.dest != y.dest) return x.dest < y.dest;
      return x.score != y.score ? x.score > y.score : x.arc < y.arc;
    });
    std::vector<Element> next;
    for (size_t i = 0; i < moves.size();) {
      next.clear();
      const int32_t label = moves[i].label;
      for (; i < moves.size() && moves[i].label == label; ++i) {
        if (!next.empty() && next.back().state == moves[i].dest) continue;  // a worse path to the same state
        nodes_.push_back({moves[i].from, moves[i].arc});
        next.push_back({moves[i].dest, moves[i].score, static_cast<int32_t>(nodes_.size()) - 1});
      }
      connect_to(s, label, next);
    }
  }

  void connect_to(int32_t s, int32_t label, std::vector<Element>& next) {
    // Walk back to where all paths meet; they have equal lengths since every arc takes one label.
    std::vector<int32_t> at(next.size());
    for (size_t i = 0; i < next.size(); ++i) at[i] = next[i].node;
    key_.clear();
    while (std::any_of(at.begin(), at.end(), [&](int32_t x) { return x != at[0]; })) {
      key_.push_back(fsa_.arcs[nodes_[at[0]].arc].label);
      for (int32_t& x : at) x = nodes_[x].parent;
    }
    const int32_t meet = at[0];
    const size_t begin = out_.map_a.size();
    for (int32_t x = meet; nodes_[x].parent >= 0; x = nodes_[x].parent) out_.map_a.push_back(nodes_[x].arc);
    std::reverse(out_.map_a.begin() + begin, out_.map_a.end());
    out_.map_ends.push_back(static_cast<int32_t>(out_.map_a.size()));
    if (label == -1) {
      out_.arcs.push_back({s, -1, label});
      return;
    }
    key_.push_back(nodes_[meet].parent >= 0 ? fsa_.arcs[nodes_[meet].arc].dest : base_of(meet));
    const auto [it, is_new] = numbers_.emplace(key_, static_cast<int32_t>(states_.size()));
    out_.arcs.push_back({s, it->second, label});
    if (!is_new) return;
    // The new state's paths begin where the old ones meet: copy what is left of them below a root of their own.
    const int32_t root = static_cast<int32_t>(nodes_.size());
    roots_[root] = key_.back();
    nodes_.push_back({-1, -1});
    std::vector<int32_t> tail;
    for (Element& e : next) {
      tail.clear();
      for (int32_t x = e.node; x != meet; x = nodes_[x].parent) tail.push_back(nodes_[x].arc);
      int32_t parent = root;
      e.score = 0;
      for (auto arc = tail.rbegin(); arc != tail.rend(); ++arc) {
        nodes_.push_back({parent, *arc});
        parent = static_cast<int32_t>(nodes_.size()) - 1;
        e.score += scores_[*arc];
      }
      e.node = parent;
    }
    states_.push_back(next);
  }

  int32_t base_of(int32_t root) const {
    const auto it = roots_.find(root);
    return it == roots_.end() ? 0 : it->second;
  }

  const FsaView& fsa_;
  const double* scores_;
  int64_t max_states_;
  std::vector<Node> nodes_;
  std::unordered_map<int32_t, int32_t> roots_;  // the input state where the paths below a root begin; 0 for node 0
  std::vector<std::vector<Element>> states_;
  std::unordered_map<std::vector<int32_t>, int32_t, IntsHash> numbers_;
  std::vector<int32_t> key_;
  FsaResult out_;
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
