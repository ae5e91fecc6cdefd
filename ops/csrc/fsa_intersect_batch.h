// Intersection for a whole batch on a GPU, label 0 being a label like others: what fsa_intersect.h does on the CPU, a pair of FSAs
// a thread.
//
// A state is a pair of states, and a pair is a number: offsets[i] of the i-th pair of FSAs, plus sa * (states of b) + sb. First all
// numbers that can be reached are found, round after round, in a set shared by all threads. Sorted, they are the states: FSA after
// FSA, the start first, the final state last, and top-sorted if both inputs are. Then arcs are counted, and written.
#pragma once

#include "fsa_rounds.h"
#include "hash_set.h"
#include "scan.h"

namespace lattica {
namespace {  // torch's stable types are hidden symbols

// An input: FSAs, the label that counts on each arc, and each state's arcs in order of it (-1 last).
struct Side {
  DeviceFsas fsas;
  const int32_t *labels, *order;

  LATTICA_BOTH uint32_t label(int32_t i) const { return static_cast<uint32_t>(labels[order[i]]); }
  LATTICA_BOTH int32_t begin(int64_t s) const { return fsas.state_splits[s]; }
  LATTICA_BOTH int32_t end(int64_t s) const { return fsas.state_splits[s + 1]; }
  // The first place of state s whose label is not below `wanted`.
  LATTICA_BOTH int32_t lower(int64_t s, uint32_t wanted) const {
    int32_t low = begin(s), high = end(s);
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      if (label(middle) < wanted) low = middle + 1; else high = middle;
    }
    return low;
  }
};

// A place in one of the pairs of FSAs: both states, numbered over their vectors.
struct PairOfStates {
  int64_t pair, a, b;
};

struct Pairs {
  Side a, b;
  int64_t n;
  const int32_t *a_index, *b_index;
  const int64_t* offsets;

  LATTICA_BOTH int64_t first_a(int64_t i) const { return a.fsas.fsa_splits[a_index[i]]; }
  LATTICA_BOTH int64_t first_b(int64_t i) const { return b.fsas.fsa_splits[b_index[i]]; }
  LATTICA_BOTH int64_t size_a(int64_t i) const { return a.fsas.fsa_splits[a_index[i] + 1] - first_a(i); }
  LATTICA_BOTH int64_t size_b(int64_t i) const { return b.fsas.fsa_splits[b_index[i] + 1] - first_b(i); }
  LATTICA_BOTH PairOfStates at(int64_t key) const {
    int64_t low = 0, high = n;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (offsets[middle] <= key ? low : high) = middle;
    }
    const int64_t local = key - offsets[low], states_b = size_b(low);
    return {low, first_a(low) + local / states_b, first_b(low) + local % states_b};
  }
  LATTICA_BOTH int64_t key(int64_t i, int64_t sa, int64_t sb) const {
    return offsets[i] + (sa - first_a(i)) * size_b(i) + (sb - first_b(i));
  }

  // f(arc of a, arc of b) for all that leave a place with one label.
  template <typename F>
  LATTICA_BOTH void for_each_match(const PairOfStates& at, const F& f) const {
    const int32_t end_a = a.end(at.a), end_b = b.end(at.b);
    if (end_a - a.begin(at.a) <= end_b - b.begin(at.b)) {
      for (int32_t i = a.begin(at.a); i < end_a; ++i)
        for (int32_t j = b.lower(at.b, a.label(i)); j < end_b && b.label(j) == a.label(i); ++j) f(a.order[i], b.order[j]);
    } else {
      for (int32_t j = b.begin(at.b); j < end_b; ++j)
        for (int32_t i = a.lower(at.a, b.label(j)); i < end_a && a.label(i) == b.label(j); ++i) f(a.order[i], b.order[j]);
    }
  }
  LATTICA_BOTH int64_t dest(const PairOfStates& at, int32_t arc_a, int32_t arc_b) const {
    return key(at.pair, a.fsas.dest(at.a, a.fsas.arcs[arc_a]), b.fsas.dest(at.b, b.fsas.arcs[arc_b]));
  }
};

inline Pairs pairs_of(const Tensor& a_fsa_splits, const Tensor& a_state_splits, const Tensor& a_arcs, const Tensor& a_labels,
                      const Tensor& a_order, const Tensor& b_fsa_splits, const Tensor& b_state_splits, const Tensor& b_arcs,
                      const Tensor& b_labels, const Tensor& b_order, const Tensor& a_index, const Tensor& b_index, const Tensor& offsets) {
  const DeviceFsas a = device_fsas(a_fsa_splits, a_state_splits, a_arcs), b = device_fsas(b_fsa_splits, b_state_splits, b_arcs);
  check_numbers(a_labels, "a_labels", ScalarType::Int, a.num_arcs);
  check_numbers(a_order, "a_order", ScalarType::Int, a.num_arcs);
  check_numbers(b_labels, "b_labels", ScalarType::Int, b.num_arcs);
  check_numbers(b_order, "b_order", ScalarType::Int, b.num_arcs);
  const int64_t n = a_index.numel();
  check_numbers(a_index, "a_index", ScalarType::Int, n);
  check_numbers(b_index, "b_index", ScalarType::Int, n);
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) == n + 1 && offsets.scalar_type() == ScalarType::Long && offsets.is_contiguous(),
                  "offsets must be int64, one more than there are pairs");
  for (const Tensor* t : {&b_arcs, &a_index, &b_index, &offsets})
    STD_TORCH_CHECK(t->is_cuda() == a_arcs.is_cuda(), "both inputs, a_index, b_index and offsets must be on one device");
  return {{a, const_data_of<int32_t>(a_labels), const_data_of<int32_t>(a_order)},
          {b, const_data_of<int32_t>(b_labels), const_data_of<int32_t>(b_order)},
          n,
          const_data_of<int32_t>(a_index),
          const_data_of<int32_t>(b_index),
          const_data_of<int64_t>(offsets)};
}

// What is wrong beyond the FSAs themselves goes into fault[1 ...], one number for each kind. Orders of arcs are trusted.
inline void check_pairs(const Backend& backend, const Pairs& pairs, uint32_t* fault) {
  check_fsas(backend, pairs.a.fsas, false, fault);
  check_fsas(backend, pairs.b.fsas, false, fault);
  for (const Side& side : {pairs.a, pairs.b})
    backend.for_each(side.fsas.num_arcs, [=] LATTICA_BOTH(int64_t k) {
      if ((side.labels[k] == -1) != (side.fsas.arcs[k].label == -1)) atomic_max(fault + 1, uint32_t{1});
    });
  backend.for_each(pairs.n + 1, [=] LATTICA_BOTH(int64_t i) {
    if (i == 0 && pairs.offsets[0] != 0) atomic_max(fault + 3, uint32_t{1});
    if (i == pairs.n) return;
    const int32_t a = pairs.a_index[i], b = pairs.b_index[i];
    if (a < 0 || a >= pairs.a.fsas.num_fsas || b < 0 || b >= pairs.b.fsas.num_fsas) {
      atomic_max(fault + 2, static_cast<uint32_t>(i + 1));
      return;
    }
    const int64_t here = pairs.offsets[i], next = pairs.offsets[i + 1];
    if (here < 0 || next < here || next - here != pairs.size_a(i) * pairs.size_b(i)) atomic_max(fault + 3, uint32_t{1});
  });
}

inline void raise_pair_fault(const uint32_t* host) {
  raise_fault(host[0]);
  STD_TORCH_CHECK(host[1] == 0, "the labels of a must be -1 exactly on its arcs into the final state, and those of b on its own");
  STD_TORCH_CHECK(host[2] == 0, "a_index[", int64_t{host[2]} - 1, "] or b_index[", int64_t{host[2]} - 1, "] is no FSA");
  STD_TORCH_CHECK(host[3] == 0, "offsets must be sums of products of numbers of states, below 2^63");
}

// The numbers of all places that can be reached, in any order, int64.
inline Tensor fsa_intersect_states(const Backend& backend, const Tensor& a_fsa_splits, const Tensor& a_state_splits,
                                   const Tensor& a_arcs, const Tensor& a_labels, const Tensor& a_order, const Tensor& b_fsa_splits,
                                   const Tensor& b_state_splits, const Tensor& b_arcs, const Tensor& b_labels, const Tensor& b_order,
                                   const Tensor& a_index, const Tensor& b_index, const Tensor& offsets) {
  const Pairs pairs = pairs_of(a_fsa_splits, a_state_splits, a_arcs, a_labels, a_order, b_fsa_splits, b_state_splits, b_arcs, b_labels,
                               b_order, a_index, b_index, offsets);
  const Tensor numbers = zeros_like_shape(a_arcs, {5}, ScalarType::Int);  // faults; whether the set is too full
  uint32_t* const fault = data_of<uint32_t>(numbers);
  check_pairs(backend, pairs, fault);
  uint32_t host[5];
  read_back(backend, host, fault, sizeof(host));
  raise_pair_fault(host);
  int64_t capacity = 1024;
  while (capacity < 4 * (pairs.n + pairs.a.fsas.num_states + pairs.b.fsas.num_states)) capacity *= 2;
  for (;; capacity *= 8) {
    STD_TORCH_CHECK(capacity <= int64_t{1} << 31, "intersect: the result has more than 2^30 states");
    const Tensor table = empty_like_shape(a_arcs, {capacity}, ScalarType::Long);
    const Tensor order = empty_like_shape(a_arcs, {capacity}, ScalarType::Int);
    const HashSet set{data_of<uint64_t>(table), capacity};
    const Tensor crowd = zeros_like_shape(a_arcs, {1}, ScalarType::Int);  // how many numbers are in the set
    int32_t* const count = data_of<int32_t>(crowd);
    uint32_t* const too_full = fault + 4;
    backend.for_each(capacity, [=] LATTICA_BOTH(int64_t i) { set.keys[i] = HashSet::kEmpty; });
    backend.for_each(1, [=] LATTICA_BOTH(int64_t) { *too_full = 0; });
    const Rounds rounds(a_arcs, capacity, data_of<int32_t>(order));
    const RoundList first = rounds.first();
    backend.for_each(pairs.n, [=] LATTICA_BOTH(int64_t i) {
      if (pairs.size_a(i) == 0 || pairs.size_b(i) == 0) return;
      bool is_new = false;
      const int64_t place = set.insert(static_cast<uint64_t>(pairs.offsets[i]), &is_new);
      atomic_add(count, 1);
      first.add(place);
    });
    const auto visit = [=] LATTICA_BOTH(int32_t from, RoundList list) {
      const PairOfStates at = pairs.at(static_cast<int64_t>(set.keys[from]));
      pairs.for_each_match(at, [=](int32_t arc_a, int32_t arc_b) {
        if (atomic_max(too_full, uint32_t{0}) != 0) return;
        bool is_new = false;
        const int64_t place = set.insert(static_cast<uint64_t>(pairs.dest(at, arc_a, arc_b)), &is_new);
        if (place < 0 || (is_new && atomic_add(count, 1) >= set.capacity / 2)) atomic_max(too_full, uint32_t{1});
        if (place >= 0 && is_new) list.add(place);
      });
    };
    const std::vector<int32_t> splits = rounds.run(backend, fault, visit);
    read_back(backend, host, too_full, sizeof(uint32_t));
    if (host[0] != 0) continue;
    const Tensor found = empty_like_shape(a_arcs, {splits.back()}, ScalarType::Long);
    int64_t* const out = data_of<int64_t>(found);
    const int32_t* const places = data_of<int32_t>(order);
    backend.for_each(splits.back(), [=] LATTICA_BOTH(int64_t i) { out[i] = static_cast<int64_t>(set.keys[places[i]]); });
    return found;
  }
}

// The result, given the numbers sorted: (fsa_splits, state_splits, arcs, arc map of a, arc map of b). FSAs whose last number is
// not among them have no path: they have no states. What fsa_intersect_states checked is trusted.
inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fsa_intersect_arcs(
    const Backend& backend, const Tensor& a_fsa_splits, const Tensor& a_state_splits, const Tensor& a_arcs, const Tensor& a_labels,
    const Tensor& a_order, const Tensor& b_fsa_splits, const Tensor& b_state_splits, const Tensor& b_arcs, const Tensor& b_labels,
    const Tensor& b_order, const Tensor& a_index, const Tensor& b_index, const Tensor& offsets, const Tensor& keys) {
  const Pairs pairs = pairs_of(a_fsa_splits, a_state_splits, a_arcs, a_labels, a_order, b_fsa_splits, b_state_splits, b_arcs, b_labels,
                               b_order, a_index, b_index, offsets);
  STD_TORCH_CHECK(keys.dim() == 1 && keys.scalar_type() == ScalarType::Long && keys.is_contiguous(), "keys must be int64, one dimension");
  const int64_t n = pairs.n, num_keys = keys.size(0);
  const int64_t* const key = const_data_of<int64_t>(keys);
  const auto rank = [=] LATTICA_BOTH(int64_t wanted) {  // how many keys lie below
    int64_t low = 0, high = num_keys;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (key[middle] < wanted) low = middle + 1; else high = middle;
    }
    return static_cast<int32_t>(low);
  };
  const Tensor sizes = empty_like_shape(a_arcs, {2 * n}, ScalarType::Int), fsa_splits = empty_like_shape(a_arcs, {n + 1}, ScalarType::Int);
  const Tensor counts = empty_like_shape(a_arcs, {num_keys}, ScalarType::Int);
  const Tensor arc_splits = empty_like_shape(a_arcs, {num_keys + 1}, ScalarType::Int);
  int32_t *const size = data_of<int32_t>(sizes), *const first_key = size + n, *const fsa_split = data_of<int32_t>(fsa_splits);
  int32_t *const arc_count = data_of<int32_t>(counts), *const arc_split = data_of<int32_t>(arc_splits);
  backend.for_each(n, [=] LATTICA_BOTH(int64_t i) {
    const int64_t begin = pairs.offsets[i], end = pairs.offsets[i + 1];
    first_key[i] = rank(begin);
    const int32_t end_key = rank(end);
    size[i] = end - begin > 1 && end_key > first_key[i] && key[end_key - 1] == end - 1 ? end_key - first_key[i] : 0;
  });
  backend.for_each(num_keys, [=] LATTICA_BOTH(int64_t p) {
    const PairOfStates at = pairs.at(key[p]);
    int32_t matches = 0;
    if (size[at.pair] > 0) pairs.for_each_match(at, [&](int32_t, int32_t) { ++matches; });
    arc_count[p] = matches;
  });
  exclusive_scan(backend, a_arcs, size, fsa_split, n);
  exclusive_scan(backend, a_arcs, arc_count, arc_split, num_keys);
  int32_t num_states = 0, num_arcs = 0;
  read_back(backend, &num_states, fsa_split + n, sizeof(int32_t));
  read_back(backend, &num_arcs, arc_split + num_keys, sizeof(int32_t));
  STD_TORCH_CHECK(num_arcs >= 0, "intersect: the result has more than 2^31 - 1 arcs");
  const Tensor state_splits = empty_like_shape(a_arcs, {int64_t{num_states} + 1}, ScalarType::Int);
  const Tensor arcs = empty_like_shape(a_arcs, {int64_t{num_arcs}, 3}), map_a = empty_like_shape(a_arcs, {int64_t{num_arcs}});
  const Tensor map_b = empty_like_shape(a_arcs, {int64_t{num_arcs}});
  int32_t *const state_split = data_of<int32_t>(state_splits), *const to_a = data_of<int32_t>(map_a), *const to_b = data_of<int32_t>(map_b);
  Arc* const out = data_of<Arc>(arcs);
  backend.for_each(num_keys + 1, [=] LATTICA_BOTH(int64_t p) {
    if (p == num_keys) {
      state_split[num_states] = num_arcs;
      return;
    }
    const PairOfStates at = pairs.at(key[p]);
    if (size[at.pair] == 0) return;
    const int32_t first = first_key[at.pair], local = static_cast<int32_t>(p) - first;
    state_split[fsa_split[at.pair] + local] = arc_split[p];
    int32_t next = arc_split[p];
    pairs.for_each_match(at, [&](int32_t arc_a, int32_t arc_b) {
      out[next] = {local, rank(pairs.dest(at, arc_a, arc_b)) - first, pairs.a.fsas.arcs[arc_a].label};
      to_a[next] = arc_a;
      to_b[next++] = arc_b;
    });
  });
  return {fsa_splits, state_splits, arcs, map_a, map_b};
}

}  // namespace
}  // namespace lattica
