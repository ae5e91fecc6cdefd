// What every FSA algorithm takes and returns: views of the tensors of ops/fsa.py, and one automaton being built.
//
// Arcs are ordered by source state; state 0 starts; the last state is final and entered by arcs with label -1. States are
// numbered within their FSA, arcs over the whole vector.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace lattica {

struct Arc {
  int32_t src, dest, label;
};

struct FsaView {
  int32_t num_states;
  const int32_t* splits;  // arcs of state s: splits[s] ... splits[s + 1] - 1, as numbers in the whole vector
  const Arc* arcs;        // of the whole vector

  int32_t begin(int32_t s) const { return splits[s]; }
  int32_t end(int32_t s) const { return splits[s + 1]; }
  int32_t final_state() const { return num_states - 1; }
  int32_t first_arc() const { return splits[0]; }
  int32_t num_arcs() const { return splits[num_states] - splits[0]; }
};

struct FsaVecView {
  int64_t num_fsas;
  const int32_t* fsa_splits;
  const int32_t* state_splits;
  const Arc* arcs;

  FsaView operator[](int64_t i) const {
    return {fsa_splits[i + 1] - fsa_splits[i], state_splits + fsa_splits[i], arcs};
  }
};

// One output automaton. Arcs must be ordered by src when it is handed back.
struct FsaResult {
  int32_t num_states = 0;
  std::vector<Arc> arcs;
  std::vector<int32_t> map_a;       // the input arc of each arc; or, if map_ends is used, lists of input arcs
  std::vector<int32_t> map_b;       // the same for a second input
  std::vector<int32_t> map_ends;    // where the list of each arc ends in map_a
  const char* error = nullptr;      // a fixed text, if the algorithm cannot go on
  int64_t error_value = 0;
};

// f(begin, end) over [0, n) in blocks on all threads. f must not throw.
template <typename Backend, typename F>
void for_each_block(const Backend& backend, int64_t n, int64_t block, const F& f) {
  backend.for_each((n + block - 1) / block, [&](int64_t i) { f(i * block, std::min(n, (i + 1) * block)); });
}

// Which states are reached from the start, into seen[0 ... num_states - 1]. One sweep up the states, which is all that a top-sorted
// automaton needs; states found below where the sweep is are followed afterwards.
inline void mark_accessible(const FsaView& fsa, char* seen) {
  std::fill(seen, seen + fsa.num_states, char{0});
  if (fsa.num_states == 0) return;
  std::vector<int32_t> stack;
  const auto visit = [&](int32_t s, int32_t above) {
    for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) {
      const int32_t d = fsa.arcs[a].dest;
      if (seen[d]) continue;
      seen[d] = 1;
      if (d <= above) stack.push_back(d);
    }
  };
  seen[0] = 1;
  for (int32_t s = 0; s < fsa.num_states; ++s)
    if (seen[s]) visit(s, s);
  while (!stack.empty()) {
    const int32_t s = stack.back();
    stack.pop_back();
    visit(s, fsa.num_states);
  }
}

// The arcs that enter each state, grouped by state: entering[splits[s]] ... (counting sort).
inline void entering_arcs(const FsaView& fsa, std::vector<int32_t>* splits, std::vector<int32_t>* entering) {
  splits->assign(fsa.num_states + 1, 0);
  entering->resize(fsa.num_arcs());
  const int32_t first = fsa.first_arc();
  for (int32_t a = first; a < first + fsa.num_arcs(); ++a) ++(*splits)[fsa.arcs[a].dest + 1];
  for (int32_t s = 0; s < fsa.num_states; ++s) (*splits)[s + 1] += (*splits)[s];
  std::vector<int32_t> next(splits->begin(), splits->end() - 1);
  for (int32_t a = first; a < first + fsa.num_arcs(); ++a) (*entering)[next[fsa.arcs[a].dest]++] = a;
}

// Which states reach the final state. Sweeps down the states; if a few do not settle it, arcs are followed backwards.
inline void mark_coaccessible(const FsaView& fsa, char* seen) {
  std::fill(seen, seen + fsa.num_states, char{0});
  if (fsa.num_states == 0) return;
  seen[fsa.final_state()] = 1;
  constexpr int kSweeps = 4;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    int32_t found = 0, left = 0;
    for (int32_t s = fsa.num_states - 2; s >= 0; --s) {
      if (seen[s]) continue;
      for (int32_t a = fsa.begin(s); a < fsa.end(s) && !seen[s]; ++a) seen[s] = seen[fsa.arcs[a].dest];
      (seen[s] ? found : left) += 1;
    }
    if (found == 0 || left == 0) return;
  }
  std::vector<int32_t> splits, entering, stack;
  entering_arcs(fsa, &splits, &entering);
  for (int32_t s = 0; s < fsa.num_states; ++s)
    if (seen[s]) stack.push_back(s);
  while (!stack.empty()) {
    const int32_t s = stack.back();
    stack.pop_back();
    for (int32_t i = splits[s]; i < splits[s + 1]; ++i) {
      const int32_t p = fsa.arcs[entering[i]].src;
      if (!seen[p]) seen[p] = 1, stack.push_back(p);
    }
  }
}

// An automaton made of states of another: order[s] is the new number of state s (-1: it goes; several may become one), and
// states[0 ... count - 1] are the old states whose arcs are taken, in their new order. Both have room for all states.
struct Renumbering {
  int32_t* order;
  int32_t* states;
  int32_t count = 0;
  const char* error = nullptr;  // a fixed text, if the algorithm cannot go on

  void append(int32_t s) {
    order[s] = count;
    states[count++] = s;
  }
};

// Labels compare as unsigned numbers: -1, the way into the final state, comes last.
inline bool label_less(int32_t a, int32_t b) { return static_cast<uint32_t>(a) < static_cast<uint32_t>(b); }

}  // namespace lattica
