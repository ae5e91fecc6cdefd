// Scores of states by levels, all FSAs of a batch at once: what a GPU runs in place of fsa_scores.h, which takes an FSA a thread.
//
// A state's level is the length in arcs of the longest path into it, so that arcs lead to higher levels. One loop handles a level;
// each state gathers from its arcs, so nothing is added up in an order that changes from run to run. The host waits while it
// counts levels, once for 64 of them, never while scores are computed. Where the levels lie is trusted by what uses them.
#pragma once

#include <cmath>
#include <vector>

#include "fsa_rounds.h"
#include "log_add.h"
#include "team.h"

namespace lattica {
namespace {  // torch's stable types are hidden symbols

// (order, level_splits): all states, level after level (in any order within a level); where each level begins, on the host.
inline std::tuple<Tensor, Tensor> fsa_levels(const Backend& backend, const Tensor& fsa_splits, const Tensor& state_splits,
                                             const Tensor& arcs) {
  const DeviceFsas fsas = device_fsas(fsa_splits, state_splits, arcs);
  const Tensor numbers = zeros_like_shape(arcs, {1 + fsas.num_states}, ScalarType::Int);
  const Tensor order = empty_like_shape(arcs, {fsas.num_states}, ScalarType::Int);
  uint32_t* const fault = data_of<uint32_t>(numbers);
  int32_t* const waiting = data_of<int32_t>(numbers) + 1;  // how many arcs into a state come from states without a level so far
  check_fsas(backend, fsas, true, fault);
  backend.for_each(fsas.num_states, [=] LATTICA_BOTH(int64_t s) {
    if (*fault != kNoFault) return;
    for (int32_t a = fsas.state_splits[s]; a < fsas.state_splits[s + 1]; ++a) atomic_add(waiting + fsas.dest(s, fsas.arcs[a]), 1);
  });
  const Rounds rounds(arcs, fsas.num_states, data_of<int32_t>(order));
  const RoundList first = rounds.first();
  backend.for_each(fsas.num_states, [=] LATTICA_BOTH(int64_t s) {
    if (*fault == kNoFault && waiting[s] == 0) first.add(s);
  });
  const auto visit = [=] LATTICA_BOTH(int32_t s, RoundList list) {
    for (int32_t a = fsas.state_splits[s]; a < fsas.state_splits[s + 1]; ++a) {
      const int64_t d = fsas.dest(s, fsas.arcs[a]);
      if (atomic_add(waiting + d, -1) == 1) list.add(d);
    }
  };
  const std::vector<int32_t> splits = rounds.run(backend, fault, visit);
  return {order, on_host(arcs, splits.data(), static_cast<int64_t>(splits.size()))};
}

struct Levels {
  DeviceFsas fsas;
  const int32_t* order;
  const int32_t* splits;  // on the host
  int64_t num_levels;
  Neighbours leaving, entering;
  int32_t lanes;

  // f(s, team) for all states, one loop a level.
  template <typename Backend, typename F>
  void for_each_level(const Backend& backend, bool up, F f) const {
    for (int64_t k = 0; k < num_levels; ++k) {
      const int64_t level = up ? k : num_levels - 1 - k;
      const int32_t* const states = order + splits[level];
      for_each_team(backend, lanes, splits[level + 1] - splits[level], [=] LATTICA_BOTH(int64_t i, Team team) { f(states[i], team); });
    }
  }
};

// What fsa_levels made of these FSAs, and the arcs into each state in their order. Looks at sizes only.
inline Levels levels_of(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& order,
                        const Tensor& level_splits, const Tensor& entering_splits, const Tensor& entering) {
  const DeviceFsas fsas = device_fsas(fsa_splits, state_splits, arcs);
  check_numbers(order, "order", ScalarType::Int, fsas.num_states);
  check_numbers(entering_splits, "entering_splits", ScalarType::Int, fsas.num_states + 1);
  check_numbers(entering, "entering", ScalarType::Int, fsas.num_arcs);
  check_numbers(level_splits, "level_splits", ScalarType::Int, level_splits.numel());
  STD_TORCH_CHECK(!level_splits.is_cuda() && level_splits.numel() >= 1, "level_splits must be on the CPU and have an entry");
  const int32_t* const splits = const_data_of<int32_t>(level_splits);
  const int64_t num_levels = level_splits.numel() - 1;
  bool rises = splits[0] == 0 && splits[num_levels] == fsas.num_states;
  for (int64_t k = 0; k < num_levels; ++k) rises &= splits[k] <= splits[k + 1];
  STD_TORCH_CHECK(rises, "level_splits must rise from 0 to ", fsas.num_states);
  return {fsas,
          const_data_of<int32_t>(order),
          splits,
          num_levels,
          {fsas.state_splits, nullptr, fsas.arcs},
          {const_data_of<int32_t>(entering_splits), const_data_of<int32_t>(entering), fsas.arcs},
          lanes_for(fsas.num_arcs, fsas.num_states)};
}

// As fsa_state_scores; `best` is kept in the tropical semiring only.
inline std::tuple<Tensor, Tensor, Tensor> fsa_state_scores_by_level(const Backend& backend, const Tensor& fsa_splits,
                                                                    const Tensor& state_splits, const Tensor& arcs,
                                                                    const Tensor& order, const Tensor& level_splits,
                                                                    const Tensor& entering_splits, const Tensor& entering,
                                                                    const Tensor& scores, bool forward, bool log_semiring,
                                                                    bool want_shares) {
  const Levels levels = levels_of(fsa_splits, state_splits, arcs, order, level_splits, entering_splits, entering);
  const DeviceFsas fsas = levels.fsas;
  check_numbers(scores, "scores", ScalarType::Double, fsas.num_arcs);
  const Tensor out = empty_like_shape(scores, {fsas.num_states}), best = empty_like_shape(arcs, {fsas.num_states});
  const Tensor shares = empty_like_shape(scores, {want_shares && log_semiring && !forward ? fsas.num_arcs : 0});
  const double* const w = const_data_of<double>(scores);
  double *const x = data_of<double>(out), *const share = shares.numel() ? data_of<double>(shares) : nullptr;
  int32_t* const best_arc = data_of<int32_t>(best);
  backend.for_each(fsas.num_states, [=] LATTICA_BOTH(int64_t s) {
    x[s] = -INFINITY;
    best_arc[s] = -1;
  });
  backend.for_each(fsas.num_fsas, [=] LATTICA_BOTH(int64_t i) {
    if (fsas.fsa_splits[i + 1] > fsas.fsa_splits[i]) x[forward ? fsas.fsa_splits[i] : fsas.fsa_splits[i + 1] - 1] = 0;
  });
  const Neighbours from = forward ? levels.entering : levels.leaving;
  levels.for_each_level(backend, forward, [=] LATTICA_BOTH(int64_t s, Team team) {
    const int32_t begin = from.splits[s], end = from.splits[s + 1];
    if (begin == end) return;  // what it has from the beginning stays
    double top = -INFINITY, sum = 0;
    int32_t arc = INT32_MAX;
    for (int32_t i = begin + team.lane; i < end; i += team.lanes) {
      const int32_t a = from.arc(i);
      const double y = w[a] + x[from.other(s, a)];
      if (y > top) top = y, arc = a;
    }
    team.best(&top, &arc);
    if (!log_semiring) {
      if (team.lane == 0) x[s] = top, best_arc[s] = arc == INT32_MAX ? -1 : arc;
      return;
    }
    for (int32_t i = begin + team.lane; i < end; i += team.lanes) {
      const int32_t a = from.arc(i);
      const double part = top == -INFINITY ? 0.0 : exp_nonpositive(w[a] + x[from.other(s, a)] - top);
      sum += part;
      if (share) share[a] = part;
    }
    sum = team.sum(sum);
    for (int32_t i = begin + team.lane; i < end && share && top != -INFINITY; i += team.lanes) share[i] /= sum;
    if (team.lane == 0) x[s] = top == -INFINITY ? top : top + log(sum);
  });
  return {out, best, shares};
}

// As fsa_state_scores_grad.
inline Tensor fsa_state_scores_by_level_grad(const Backend& backend, const Tensor& fsa_splits, const Tensor& state_splits,
                                             const Tensor& arcs, const Tensor& order, const Tensor& level_splits,
                                             const Tensor& entering_splits, const Tensor& entering, const Tensor& scores,
                                             bool forward, bool log_semiring, const Tensor& state_scores, const Tensor& best,
                                             const Tensor& shares, const Tensor& state_grad) {
  const Levels levels = levels_of(fsa_splits, state_splits, arcs, order, level_splits, entering_splits, entering);
  const DeviceFsas fsas = levels.fsas;
  check_numbers(scores, "scores", ScalarType::Double, fsas.num_arcs);
  check_numbers(state_scores, "state_scores", ScalarType::Double, fsas.num_states);
  check_numbers(best, "best", ScalarType::Int, fsas.num_states);
  check_numbers(shares, "shares", ScalarType::Double, log_semiring && !forward ? fsas.num_arcs : 0);
  check_numbers(state_grad, "state_grad", ScalarType::Double, fsas.num_states);
  const Tensor arc_grad = empty_like_shape(scores, {fsas.num_arcs}), all_grad = empty_like_shape(scores, {fsas.num_states});
  const double *const w = const_data_of<double>(scores), *const x = const_data_of<double>(state_scores);
  const double *const share = const_data_of<double>(shares), *const given = const_data_of<double>(state_grad);
  const int32_t* const best_arc = const_data_of<int32_t>(best);
  double *const by_arc = data_of<double>(arc_grad), *const by_state = data_of<double>(all_grad);
  // A state's score went along these arcs into others, whose derivatives are complete.
  const Neighbours to = forward ? levels.leaving : levels.entering;
  levels.for_each_level(backend, !forward, [=] LATTICA_BOTH(int64_t s, Team team) {
    double sum = 0;
    for (int32_t i = to.splits[s] + team.lane; i < to.splits[s + 1]; i += team.lanes) {
      const int32_t a = to.arc(i);
      const int64_t d = to.other(s, a);
      double g = by_state[d];
      if (g != 0) {
        if (!log_semiring) g = best_arc[d] == a ? g : 0.0;
        else if (!forward) g *= share[a];
        else g *= x[d] == -INFINITY ? 0.0 : exp(x[s] + w[a] - x[d]);
      }
      by_arc[a] = g;
      sum += g;
    }
    sum = team.sum(sum);
    if (team.lane == 0) by_state[s] = given[s] + sum;
  });
  return arc_grad;
}

}  // namespace
}  // namespace lattica
