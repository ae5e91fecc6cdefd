// Algorithms on automata for a whole batch on a GPU: best paths, random paths, connect. What fsa_scores.h and fsa_structure.h do
// on the CPU, an FSA a thread. The host waits where the size of a result is read, and for faults in the input with it.
#pragma once

#include "fsa_rounds.h"
#include "fsa_scores.h"
#include "scan.h"

namespace lattica {
namespace {  // torch's stable types are hidden symbols

using FsasAndMap = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline Tensor ints_like(const Tensor& like, std::initializer_list<int64_t> sizes) { return empty_like_shape(like, sizes, ScalarType::Int); }

// As fsa_shortest_path: a thread follows an FSA's best arcs back from the end, first to count, then to write.
inline FsasAndMap fsa_shortest_path_batch(const Backend& backend, const Tensor& fsa_splits, const Tensor& state_splits,
                                          const Tensor& arcs, const Tensor& best) {
  const DeviceFsas fsas = device_fsas(fsa_splits, state_splits, arcs);
  check_numbers(best, "best", ScalarType::Int, fsas.num_states);
  const int32_t* const best_arc = const_data_of<int32_t>(best);
  const int64_t F = fsas.num_fsas;
  const Tensor numbers = zeros_like_shape(arcs, {4}, ScalarType::Int);  // fault; bad entry of best + 1; states; arcs
  const Tensor lengths = ints_like(arcs, {2 * F}), splits = ints_like(arcs, {F + 1}), arc_splits = ints_like(arcs, {F + 1});
  uint32_t* const fault = data_of<uint32_t>(numbers);
  int32_t* const totals = data_of<int32_t>(numbers) + 2;
  int32_t *const length = data_of<int32_t>(lengths), *const size = length + F;
  int32_t *const first_state = data_of<int32_t>(splits), *const first_arc = data_of<int32_t>(arc_splits);
  check_fsas(backend, fsas, false, fault);
  backend.for_each(fsas.num_states, [=] LATTICA_BOTH(int64_t s) {
    const int32_t a = best_arc[s];
    if (*fault != kNoFault || a == -1) return;
    const int64_t i = fsas.fsa_of(s), first = fsas.fsa_splits[i];
    if (a < fsas.state_splits[first] || a >= fsas.state_splits[fsas.fsa_splits[i + 1]] || fsas.arcs[a].dest != s - first ||
        fsas.arcs[a].src >= fsas.arcs[a].dest)
      atomic_max(fault + 1, static_cast<uint32_t>(s + 1));
  });
  backend.for_each(F, [=] LATTICA_BOTH(int64_t i) {
    int32_t n = 0;
    if (fault[0] == kNoFault && fault[1] == 0 && fsas.fsa_splits[i] < fsas.fsa_splits[i + 1]) {
      int32_t s = fsas.fsa_splits[i + 1] - 1;
      for (; s != fsas.fsa_splits[i] && best_arc[s] >= 0; ++n) s -= fsas.arcs[best_arc[s]].dest - fsas.arcs[best_arc[s]].src;
      if (s != fsas.fsa_splits[i]) n = 0;
    }
    length[i] = n;
    size[i] = n > 0 ? n + 1 : 0;
  });
  exclusive_scan(backend, arcs, size, first_state, F);
  exclusive_scan(backend, arcs, length, first_arc, F);
  backend.for_each(1, [=] LATTICA_BOTH(int64_t) {
    totals[0] = first_state[F];
    totals[1] = first_arc[F];
  });
  uint32_t host[4];
  read_back(backend, host, fault, sizeof(host));
  raise_fault(host[0]);
  STD_TORCH_CHECK(host[1] == 0, "best[", int64_t{host[1]} - 1, "] is no arc into that state from a lower one");
  const Tensor out_splits = ints_like(arcs, {int64_t{host[2]} + 1}), out_arcs = ints_like(arcs, {int64_t{host[3]}, 3});
  const Tensor arc_map = ints_like(arcs, {int64_t{host[3]}});
  int32_t *const split = data_of<int32_t>(out_splits), *const from = data_of<int32_t>(arc_map);
  Arc* const to = data_of<Arc>(out_arcs);
  backend.for_each(F + 1, [=] LATTICA_BOTH(int64_t i) {
    if (i == F) {
      split[first_state[F]] = first_arc[F];
      return;
    }
    int32_t s = fsas.fsa_splits[i + 1] - 1;
    if (length[i] > 0) split[first_state[i] + length[i]] = first_arc[i] + length[i];
    for (int32_t j = length[i] - 1; j >= 0; --j) {
      const int32_t a = best_arc[s], at = first_arc[i] + j;
      split[first_state[i] + j] = at;
      from[at] = a;
      to[at] = {j, j + 1, fsas.arcs[a].label};
      s -= fsas.arcs[a].dest - fsas.arcs[a].src;
    }
  });
  return {splits, out_splits, out_arcs, arc_map};
}

// Draws a path of FSA i as random_path of fsa_scores.h does, into `path` if that is not null; returns its length.
LATTICA_BOTH inline int32_t draw_path(const DeviceFsas& fsas, int64_t i, const double* shares, uint64_t seed, int32_t* path) {
  const int32_t last = fsas.fsa_splits[i + 1] - 1;
  int32_t n = 0;
  for (int64_t s = fsas.fsa_splits[i]; s < last; ++n) {
    double left = random_unit(seed, static_cast<uint64_t>(n));
    int32_t chosen = -1;
    for (int32_t a = fsas.state_splits[s]; a < fsas.state_splits[s + 1]; ++a) {
      if (!(shares[a] > 0)) continue;
      chosen = a;
      if ((left -= shares[a]) < 0) break;
    }
    if (chosen < 0) return 0;
    if (path) path[n] = chosen;
    s = fsas.dest(s, fsas.arcs[chosen]);
  }
  return n;
}

// As fsa_random_paths: a thread draws a path, first to count its arcs, then, by the same random numbers, to write them.
inline std::tuple<Tensor, Tensor> fsa_random_paths_batch(const Backend& backend, const Tensor& fsa_splits, const Tensor& state_splits,
                                                         const Tensor& arcs, const Tensor& shares, const Tensor& path_splits,
                                                         int64_t seed) {
  const DeviceFsas fsas = device_fsas(fsa_splits, state_splits, arcs);
  check_numbers(shares, "shares", ScalarType::Double, fsas.num_arcs);
  check_numbers(path_splits, "path_splits", ScalarType::Int, fsas.num_fsas + 1);
  const double* const share = const_data_of<double>(shares);
  const int32_t* const first_path = const_data_of<int32_t>(path_splits);
  const int64_t F = fsas.num_fsas;
  const Tensor numbers = zeros_like_shape(arcs, {3}, ScalarType::Int);  // fault; fault of path_splits; number of paths
  uint32_t* const fault = data_of<uint32_t>(numbers);
  check_fsas(backend, fsas, true, fault);
  backend.for_each(F + 1, [=] LATTICA_BOTH(int64_t i) {
    if (i == 0 ? first_path[0] != 0 : first_path[i] < first_path[i - 1]) atomic_max(fault + 1, uint32_t{1});
    if (i == F) fault[2] = static_cast<uint32_t>(first_path[F]);
  });
  uint32_t host[3];
  read_back(backend, host, fault, sizeof(host));
  raise_fault(host[0]);
  STD_TORCH_CHECK(host[1] == 0, "path_splits must begin with 0 and not decrease");
  const int64_t num_paths = host[2];
  const Tensor lengths = ints_like(arcs, {num_paths}), ends = ints_like(arcs, {num_paths + 1});
  int32_t *const length = data_of<int32_t>(lengths), *const end = data_of<int32_t>(ends);
  const auto draw = [=] LATTICA_BOTH(int64_t k, int32_t* path) {
    int64_t low = 0, high = F;  // the FSA of path k: the last one whose paths begin at or before it
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_path[middle] <= k ? low : high) = middle;
    }
    const uint64_t path_seed = static_cast<uint64_t>(seed) ^ (static_cast<uint64_t>(k + 1) * 0xD1342543DE82EF95ULL);
    return draw_path(fsas, low, share, path_seed, path);
  };
  backend.for_each(num_paths, [=] LATTICA_BOTH(int64_t k) { length[k] = draw(k, nullptr); });
  exclusive_scan(backend, arcs, length, end, num_paths);
  int32_t total = 0;
  read_back(backend, &total, end + num_paths, sizeof(total));
  STD_TORCH_CHECK(total >= 0, "the paths have more than 2^31 - 1 arcs");
  const Tensor all = ints_like(arcs, {total});
  int32_t* const out = data_of<int32_t>(all);
  backend.for_each(num_paths, [=] LATTICA_BOTH(int64_t k) {
    if (length[k] > 0) draw(k, out + end[k]);
  });
  return {ends, all};
}

// seen[s] > 0 for the states that a walk over `arcs` reaches from the first states of all FSAs (or the last ones).
inline void mark_reached(const Backend& backend, const Tensor& like, const DeviceFsas& fsas, const Neighbours& arcs, bool from_last,
                         const uint32_t* fault, int32_t* order, int32_t* seen) {
  const Rounds rounds(like, fsas.num_states, order);
  const RoundList first = rounds.first();
  backend.for_each(fsas.num_fsas, [=] LATTICA_BOTH(int64_t i) {
    if (*fault != kNoFault || fsas.fsa_splits[i] == fsas.fsa_splits[i + 1]) return;
    const int32_t s = from_last ? fsas.fsa_splits[i + 1] - 1 : fsas.fsa_splits[i];
    seen[s] = 1;
    first.add(s);
  });
  const auto visit = [=] LATTICA_BOTH(int32_t s, RoundList list) {
    for (int32_t k = arcs.splits[s]; k < arcs.splits[s + 1]; ++k) {
      const int64_t d = arcs.other(s, arcs.arc(k));
      if (atomic_add(seen + d, 1) == 0) list.add(d);
    }
  };
  rounds.run(backend, fault, visit);
}

// As fsa_connect.
inline FsasAndMap fsa_connect_batch(const Backend& backend, const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs) {
  const DeviceFsas fsas = device_fsas(fsa_splits, state_splits, arcs);
  const int64_t F = fsas.num_fsas, S = fsas.num_states, A = fsas.num_arcs;
  // fault; for each state: whether it is reached from the start, whether it reaches the end, how many arcs enter it
  const Tensor numbers = zeros_like_shape(arcs, {1 + 3 * S}, ScalarType::Int);
  uint32_t* const fault = data_of<uint32_t>(numbers);
  int32_t *const from_start = data_of<int32_t>(numbers) + 1, *const to_end = from_start + S, *const entered = to_end + S;
  const Tensor order = ints_like(arcs, {S}), entering = ints_like(arcs, {A}), entering_splits = ints_like(arcs, {S + 1});
  int32_t *const list = data_of<int32_t>(entering), *const list_splits = data_of<int32_t>(entering_splits);
  check_fsas(backend, fsas, false, fault);
  mark_reached(backend, arcs, fsas, {fsas.state_splits, nullptr, fsas.arcs}, false, fault, data_of<int32_t>(order), from_start);
  // Lists of entering arcs in any order will do here.
  backend.for_each(S, [=] LATTICA_BOTH(int64_t s) {
    for (int32_t a = fsas.state_splits[s]; a < fsas.state_splits[s + 1]; ++a) atomic_add(entered + fsas.dest(s, fsas.arcs[a]), 1);
  });
  exclusive_scan(backend, arcs, entered, list_splits, S);
  backend.for_each(S, [=] LATTICA_BOTH(int64_t s) {
    for (int32_t a = fsas.state_splits[s]; a < fsas.state_splits[s + 1]; ++a) {
      const int64_t d = fsas.dest(s, fsas.arcs[a]);
      list[list_splits[d] + atomic_add(entered + d, -1) - 1] = a;
    }
  });
  mark_reached(backend, arcs, fsas, {list_splits, list, fsas.arcs}, true, fault, data_of<int32_t>(order), to_end);

  const Tensor kept = ints_like(arcs, {S + A}), new_states = ints_like(arcs, {S + 1}), new_arcs = ints_like(arcs, {A + 1});
  int32_t *const keep = data_of<int32_t>(kept), *const keep_arc = keep + S;
  int32_t *const new_state = data_of<int32_t>(new_states), *const new_arc = data_of<int32_t>(new_arcs);
  backend.for_each(S, [=] LATTICA_BOTH(int64_t s) {
    keep[s] = from_start[s] > 0 && to_end[s] > 0;
    for (int32_t a = fsas.state_splits[s]; a < fsas.state_splits[s + 1]; ++a)
      keep_arc[a] = keep[s] && to_end[fsas.dest(s, fsas.arcs[a])] > 0;
  });
  exclusive_scan(backend, arcs, keep, new_state, S);
  exclusive_scan(backend, arcs, keep_arc, new_arc, A);
  int32_t total_states = 0, total_arcs = 0;
  read_back(backend, &total_states, new_state + S, sizeof(int32_t));
  read_back(backend, &total_arcs, new_arc + A, sizeof(int32_t));
  const Tensor out_fsas = ints_like(arcs, {F + 1}), out_states = ints_like(arcs, {int64_t{total_states} + 1});
  const Tensor out_arcs = ints_like(arcs, {int64_t{total_arcs}, 3}), arc_map = ints_like(arcs, {int64_t{total_arcs}});
  int32_t *const fsa_split = data_of<int32_t>(out_fsas), *const state_split = data_of<int32_t>(out_states);
  int32_t* const from = data_of<int32_t>(arc_map);
  Arc* const to = data_of<Arc>(out_arcs);
  backend.for_each(F + 1, [=] LATTICA_BOTH(int64_t i) { fsa_split[i] = new_state[fsas.fsa_splits[i]]; });
  backend.for_each(S + 1, [=] LATTICA_BOTH(int64_t s) {
    if (s == S) state_split[new_state[S]] = new_arc[A];
    if (s == S || !keep[s]) return;
    state_split[new_state[s]] = new_arc[fsas.state_splits[s]];
    const int32_t first = new_state[fsas.fsa_splits[fsas.fsa_of(s)]];
    for (int32_t a = fsas.state_splits[s]; a < fsas.state_splits[s + 1]; ++a) {
      if (!keep_arc[a]) continue;
      to[new_arc[a]] = {new_state[s] - first, new_state[fsas.dest(s, fsas.arcs[a])] - first, fsas.arcs[a].label};
      from[new_arc[a]] = a;
    }
  });
  return {out_fsas, out_states, out_arcs, arc_map};
}

}  // namespace
}  // namespace lattica
