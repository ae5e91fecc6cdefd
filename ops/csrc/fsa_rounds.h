// Walks over automata in rounds: all states of a round at once, each naming states of the next one. The host learns only after
// every 64 rounds how many states they had.
#pragma once

#include <vector>

#include "fsa_device.h"

namespace lattica {
namespace {  // torch's stable types are hidden symbols

// Puts states on the list of a round.
struct RoundList {
  int32_t *states, *count;
  LATTICA_BOTH void add(int64_t s) const { states[atomic_add(count, 1)] = static_cast<int32_t>(s); }
};

struct Rounds {
  static constexpr int64_t kChunk = 64;
  int64_t most;  // rounds, rounded up
  Tensor numbers;
  int32_t* order;

  // `order` gets the states, round after round; it has room for num_states.
  Rounds(const Tensor& like, int64_t num_states, int32_t* states)
      : most((num_states / kChunk + 2) * kChunk), numbers(zeros_like_shape(like, {2 * most + 2}, ScalarType::Int)), order(states) {}

  // The list of the first round, to be filled before `run`.
  RoundList first() const { return {order, data_of<int32_t>(numbers)}; }

  // visit(s, list), for each state of a round, puts states on the list of the next one; no state may be listed twice. Raises what
  // *fault says; then the first list must be empty. Returns where each round begins in `order`.
  template <typename Backend, typename Visit>
  std::vector<int32_t> run(const Backend& backend, const uint32_t* fault, Visit visit) const {
    int32_t *const counts = data_of<int32_t>(numbers), *const starts = counts + most, *const states = order;
    std::vector<int32_t> splits{0}, seen(kChunk);
    uint32_t worst = kNoFault;
    for (int64_t chunk = 0;; chunk += kChunk) {
      for (int64_t round = chunk; round < chunk + kChunk; ++round) {
        int32_t *const count = counts + round, *const start = starts + round;
        backend.for_each_upto(count, [=] LATTICA_BOTH(int64_t i) {
          const int32_t end = *start + *count;
          if (i == 0) start[1] = end;
          visit(states[*start + i], RoundList{states + end, count + 1});
        });
      }
      read_back(backend, seen.data(), counts + chunk, kChunk * sizeof(int32_t));
      if (chunk == 0) read_back(backend, &worst, fault, sizeof(worst));
      raise_fault(worst);
      for (const int32_t count : seen) {
        if (count == 0) return splits;
        splits.push_back(splits.back() + count);
      }
    }
  }
};

// The arcs on one side of each state, and the states at their other ends.
struct Neighbours {
  const int32_t* splits;
  const int32_t* list;  // null: arcs lie in their order, i.e. the leaving ones
  const Arc* arcs;

  LATTICA_BOTH int32_t arc(int32_t i) const { return list ? list[i] : i; }
  LATTICA_BOTH int64_t other(int64_t s, int32_t a) const {
    const int32_t by = arcs[a].dest - arcs[a].src;
    return list ? s - by : s + by;
  }
};

}  // namespace
}  // namespace lattica
