// Between tensors and the views and results of fsa.h. Everything is checked here, so that no algorithm reads outside its input.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstring>
#include <tuple>
#include <vector>

#include "check.h"
#include "fsa.h"
#include "parallel.h"

namespace lattica {
namespace {  // torch's stable types are hidden symbols, so what holds them must not be seen from outside either

template <typename T>
T* data(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }
template <typename T>
const T* const_data(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }

inline void check_ints(const Tensor& t, const char* name, int64_t dim = 1) {
  STD_TORCH_CHECK(t.dim() == dim && t.scalar_type() == ScalarType::Int && t.is_contiguous(), name,
                  " must be a contiguous int32 tensor with ", dim, " dimensions");
}

inline void check_scores(const Tensor& t, const char* name, int64_t size) {
  STD_TORCH_CHECK(t.dim() == 1 && t.scalar_type() == ScalarType::Double && t.is_contiguous() && t.size(0) == size, name,
                  " must be a contiguous float64 tensor of ", size, " numbers");
}

inline void check_splits(const Tensor& splits, const char* name, int64_t total) {
  check_ints(splits, name);
  const int64_t n = splits.size(0);
  const int32_t* p = const_data<int32_t>(splits);
  STD_TORCH_CHECK(n >= 1 && p[0] == 0 && p[n - 1] == total, name, " must begin with 0 and end with ", total);
  bool rising = true;
  for (int64_t i = 1; i < n; ++i) rising &= p[i] >= p[i - 1];
  STD_TORCH_CHECK(rising, name, " must not decrease");
}

// What every algorithm relies on, so that none reads outside its input.
inline bool arc_is_good(const FsaView& fsa, int32_t s, const Arc& arc) {
  return (arc.src == s) & (static_cast<uint32_t>(arc.dest) < static_cast<uint32_t>(fsa.num_states)) &
         ((arc.label != -1) | (arc.dest == fsa.final_state()));
}

inline FsaVecView fsa_view(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs) {
  static_assert(sizeof(Arc) == 3 * sizeof(int32_t), "a row of `arcs` is read as one Arc");
  check_ints(arcs, "arcs", 2);
  STD_TORCH_CHECK(arcs.size(1) == 3, "arcs must have 3 columns");
  check_splits(state_splits, "state_splits", arcs.size(0));
  check_splits(fsa_splits, "fsa_splits", state_splits.size(0) - 1);
  const FsaVecView view{fsa_splits.size(0) - 1, const_data<int32_t>(fsa_splits), const_data<int32_t>(state_splits),
                        const_data<Arc>(arcs)};
  std::atomic<bool> all_good{true};
  constexpr int64_t kBlock = 1 << 16;  // states a task
  const int64_t num_states = state_splits.size(0) - 1;
  CpuBackend{}.for_each((num_states + kBlock - 1) / kBlock, [&](int64_t block) {
    const int32_t begin = static_cast<int32_t>(block * kBlock);
    const int32_t end = static_cast<int32_t>(std::min(num_states, (block + 1) * kBlock));
    int64_t i = std::upper_bound(view.fsa_splits, view.fsa_splits + view.num_fsas + 1, begin) - view.fsa_splits - 1;
    bool good = true;
    for (int32_t state = begin; state < end; ++i) {
      const FsaView fsa = view[i];
      const int32_t first = view.fsa_splits[i], stop = std::min(end, view.fsa_splits[i + 1]);
      for (; state < stop; ++state)
        for (int32_t a = fsa.begin(state - first); a < fsa.end(state - first); ++a) good &= arc_is_good(fsa, state - first, fsa.arcs[a]);
    }
    if (!good) all_good = false;
  });
  for (int64_t i = 0; i < view.num_fsas && !all_good; ++i) {
    const FsaView fsa = view[i];
    for (int32_t s = 0; s < fsa.num_states; ++s)
      for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) {
        const Arc& arc = fsa.arcs[a];
        STD_TORCH_CHECK(arc_is_good(fsa, s, arc), "FSA ", i, ", arc ", arc.src, " -> ", arc.dest, " with label ", arc.label,
                        ": the source must be state ", s, ", the destination one of ", fsa.num_states,
                        " states, the last one if the label is -1");
      }
  }
  return view;
}

// Ask for large pages behind a large new tensor: its first writing then takes a fault for 2 MiB instead of one for 4 KiB, which
// is where most of the time of filling it would go.
template <typename T>
const Tensor& with_large_pages(const Tensor& t) {
#ifdef __linux__
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(t.const_data_ptr()) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(t.const_data_ptr()) + t.numel() * sizeof(T)) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // in vain is no harm
#endif
  return t;
}

inline Tensor new_ints(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return empty_like_shape(like, sizes, ScalarType::Int);
}

inline Tensor to_tensor(const std::vector<int32_t>& values, const Tensor& like) {
  Tensor out = new_ints(like, {static_cast<int64_t>(values.size())});
  if (!values.empty()) std::memcpy(data<int32_t>(out), values.data(), values.size() * sizeof(int32_t));
  return out;
}

inline Tensor floats_to_tensor(const std::vector<float>& values, const Tensor& like) {
  Tensor out = empty_like_shape(like, {static_cast<int64_t>(values.size())}, ScalarType::Float);
  if (!values.empty()) std::memcpy(data<float>(out), values.data(), values.size() * sizeof(float));
  return out;
}

// All words, each followed by a line end.
template <typename Words>
Tensor words_to_tensor(const Words& words, const Tensor& like) {
  size_t bytes = 0;
  for (const auto& word : words) bytes += word.size() + 1;
  Tensor out = empty_like_shape(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  char* p = data<char>(out);
  for (const auto& word : words) {
    p = std::copy(word.begin(), word.end(), p);
    *p++ = '\n';
  }
  return out;
}

// One result for each FSA, made on all threads. f(i) must not throw.
template <typename F>
std::vector<FsaResult> for_each_fsa(int64_t num_fsas, const F& f) {
  std::vector<FsaResult> results(num_fsas);
  CpuBackend{}.for_each(num_fsas, [&](int64_t i) { results[i] = f(i); });
  for (int64_t i = 0; i < num_fsas; ++i)
    STD_TORCH_CHECK(results[i].error == nullptr, results[i].error, " (FSA ", i, ")");
  return results;
}

struct Joined {
  Tensor fsa_splits, state_splits, arcs, map_a, map_b, map_splits;
};

// Put the results one after another. map_b and map_splits are empty tensors where the algorithm makes none.
inline Joined join(const std::vector<FsaResult>& results, const Tensor& like) {
  const int64_t n = static_cast<int64_t>(results.size());
  int64_t states = 0, arcs = 0, map_a = 0, map_b = 0, lists = 0;
  for (const FsaResult& r : results)
    states += r.num_states, arcs += r.arcs.size(), map_a += r.map_a.size(), map_b += r.map_b.size(), lists += r.map_ends.size();
  STD_TORCH_CHECK(states < INT32_MAX && arcs < INT32_MAX && map_a < INT32_MAX, "the result has more than 2^31 - 1 states or arcs");
  Joined out{new_ints(like, {n + 1}),  new_ints(like, {states + 1}), new_ints(like, {arcs, 3}),
             new_ints(like, {map_a}), new_ints(like, {map_b}),      new_ints(like, {lists + 1})};
  int32_t* fsa_splits = data<int32_t>(out.fsa_splits);
  int32_t* state_splits = data<int32_t>(out.state_splits);
  int32_t* map_splits = data<int32_t>(out.map_splits);
  struct Start { int32_t states, arcs, map_a, map_b, lists; };
  std::vector<Start> starts(n + 1, Start{0, 0, 0, 0, 0});
  for (int64_t i = 0; i < n; ++i) {
    const FsaResult& r = results[i];
    const Start& s = starts[i];
    starts[i + 1] = {s.states + r.num_states, s.arcs + static_cast<int32_t>(r.arcs.size()),
                     s.map_a + static_cast<int32_t>(r.map_a.size()), s.map_b + static_cast<int32_t>(r.map_b.size()),
                     s.lists + static_cast<int32_t>(r.map_ends.size())};
  }
  state_splits[states] = static_cast<int32_t>(arcs);
  map_splits[0] = 0;
  for (int64_t i = 0; i <= n; ++i) fsa_splits[i] = starts[i].states;
  Arc* all_arcs = data<Arc>(out.arcs);
  int32_t *all_a = data<int32_t>(out.map_a), *all_b = data<int32_t>(out.map_b);
  CpuBackend{}.for_each(n, [&](int64_t i) {
    const FsaResult& r = results[i];
    const Start& s = starts[i];
    std::copy(r.arcs.begin(), r.arcs.end(), all_arcs + s.arcs);
    std::copy(r.map_a.begin(), r.map_a.end(), all_a + s.map_a);
    std::copy(r.map_b.begin(), r.map_b.end(), all_b + s.map_b);
    for (size_t k = 0; k < r.map_ends.size(); ++k) map_splits[s.lists + k + 1] = s.map_a + r.map_ends[k];
    int32_t a = 0;
    for (int32_t state = 0; state < r.num_states; ++state) {
      state_splits[s.states + state] = s.arcs + a;
      while (a < static_cast<int32_t>(r.arcs.size()) && r.arcs[a].src == state) ++a;
    }
  });
  return out;
}

// Renumberings of all FSAs, each in its part of two arrays over all states.
struct Renumberings {
  std::vector<int32_t> order, states;
  std::vector<Renumbering> fsas;

  explicit Renumberings(const FsaVecView& view)
      : order(view.fsa_splits[view.num_fsas]), states(order.size()), fsas(view.num_fsas) {
    for (int64_t i = 0; i < view.num_fsas; ++i) fsas[i] = {order.data() + view.fsa_splits[i], states.data() + view.fsa_splits[i]};
  }
};

// The automata that renumberings make, with the arc map: arcs between kept states (of those that `arc_mask` has, if it is given) in
// their old order. Threads share states, not FSAs.
inline Joined renumber(const FsaVecView& fsas, const Renumberings& renumberings, const Tensor& like, const bool* arc_mask = nullptr) {
  const int64_t n = fsas.num_fsas;
  Tensor fsa_splits = new_ints(like, {n + 1});
  int32_t* const first = data<int32_t>(fsa_splits);
  first[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Renumbering& r = renumberings.fsas[i];
    STD_TORCH_CHECK(r.error == nullptr, r.error, " (FSA ", i, ")");
    first[i + 1] = first[i] + r.count;
  }
  const int64_t num_states = first[n];
  // f(FSA, its renumbering, begin, end, splits of its new states) for ranges of the new states of each FSA.
  Tensor state_splits = new_ints(like, {num_states + 1});
  int32_t* const splits = data<int32_t>(state_splits);
  const auto for_each_range = [&](const auto& f) {
    for_each_block(CpuBackend{}, num_states, 1 << 15, [&](int64_t begin, int64_t end) {
      int64_t i = std::upper_bound(first, first + n + 1, static_cast<int32_t>(begin)) - first - 1;
      for (; begin < end; ++i) {
        const int64_t stop = std::min<int64_t>(end, first[i + 1]);
        if (begin < stop) f(fsas[i], renumberings.fsas[i], begin - first[i], stop - first[i], splits + first[i]);
        begin = std::max(begin, stop);
      }
    });
  };
  const Arc* const old_arcs = fsas.arcs;
  const auto stays = [=](const int32_t* order, int32_t a) {
    return (order[old_arcs[a].dest] >= 0) & (arc_mask == nullptr || arc_mask[a]);
  };
  for_each_range([&](const FsaView& fsa, const Renumbering& r, int64_t begin, int64_t end, int32_t* counts) {
    const bool all = !arc_mask && r.count == fsa.num_states;
    for (int64_t s = begin; s < end; ++s) {
      const int32_t from = fsa.begin(r.states[s]), to = fsa.end(r.states[s]);
      int32_t count = all ? to - from : 0;
      for (int32_t a = from; a < to && !all; ++a) count += stays(r.order, a);
      counts[s + 1] = count;
    }
  });
  splits[0] = 0;
  for (int64_t s = 0; s < num_states; ++s) splits[s + 1] += splits[s];
  Tensor arcs = new_ints(like, {splits[num_states], 3}), map = new_ints(like, {splits[num_states]});
  Arc* const arcs_out = data<Arc>(arcs);
  int32_t* const map_out = data<int32_t>(map);
  for_each_range([=](const FsaView& fsa, const Renumbering& r, int64_t begin, int64_t end, const int32_t* starts) {
    const int32_t *const order = r.order, *const states = r.states;
    for (int64_t s = begin; s < end; ++s) {
      const int32_t old = states[s], src = order[old], to = fsa.end(old);
      int32_t k = starts[s];
      for (int32_t a = fsa.begin(old); a < to; ++a) {
        if (!stays(order, a)) continue;
        arcs_out[k] = {src, order[old_arcs[a].dest], old_arcs[a].label};
        map_out[k++] = a;
      }
    }
  });
  return {fsa_splits, state_splits, arcs, map, Tensor(), Tensor()};
}

using Tensors4 = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Tensors5 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

}  // namespace
}  // namespace lattica
