// Automata whose tensors may lie on a GPU, where only kernels can look at the numbers: what fsa_torch.h is for the CPU.
//
// States and arcs are numbered over the whole vector here, because all FSAs are worked on at once.
#pragma once

#include "atomics.h"
#include "fsa.h"
#include "instance.h"

namespace lattica {
namespace {  // torch's stable types are hidden symbols

struct DeviceFsas {
  int64_t num_fsas, num_states, num_arcs;
  const int32_t* fsa_splits;
  const int32_t* state_splits;
  const Arc* arcs;

  LATTICA_BOTH int64_t fsa_of(int64_t state) const {
    int64_t low = 0, high = num_fsas;  // the last one that begins at or before the state
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (fsa_splits[middle] <= state ? low : high) = middle;
    }
    return low;
  }
  // The destination of an arc that leaves `state`.
  LATTICA_BOTH int64_t dest(int64_t state, const Arc& arc) const { return state + (arc.dest - arc.src); }
};

template <typename T>
T* data_of(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }
template <typename T>
const T* const_data_of(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }

inline void check_numbers(const Tensor& t, const char* name, ScalarType dtype, int64_t size) {
  STD_TORCH_CHECK(t.dim() == 1 && t.scalar_type() == dtype && t.is_contiguous() && t.size(0) == size, name,
                  " must be a contiguous tensor of ", size, dtype == ScalarType::Int ? " int32" : " float64", " numbers");
}

// Looks at sizes only: the numbers are the business of check_fsas.
inline DeviceFsas device_fsas(const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs) {
  static_assert(sizeof(Arc) == 3 * sizeof(int32_t), "a row of `arcs` is read as one Arc");
  STD_TORCH_CHECK(arcs.dim() == 2 && arcs.size(1) == 3 && arcs.scalar_type() == ScalarType::Int && arcs.is_contiguous(),
                  "arcs must be a contiguous int32 tensor with 3 columns");
  STD_TORCH_CHECK(fsa_splits.dim() == 1 && state_splits.dim() == 1 && fsa_splits.size(0) >= 1 && state_splits.size(0) >= 1,
                  "fsa_splits and state_splits must have one dimension and an entry");
  check_numbers(fsa_splits, "fsa_splits", ScalarType::Int, fsa_splits.size(0));
  check_numbers(state_splits, "state_splits", ScalarType::Int, state_splits.size(0));
  STD_TORCH_CHECK(fsa_splits.size(0) > 1 || state_splits.size(0) == 1, "without FSAs there must be no states");
  STD_TORCH_CHECK(fsa_splits.is_cuda() == arcs.is_cuda() && state_splits.is_cuda() == arcs.is_cuda(),
                  "fsa_splits, state_splits and arcs must be on one device");
  return {fsa_splits.size(0) - 1, state_splits.size(0) - 1, arcs.size(0), const_data_of<int32_t>(fsa_splits),
          const_data_of<int32_t>(state_splits), const_data_of<Arc>(arcs)};
}

enum Fault : uint32_t { kNoFault = 0, kArcGoesDown = 1, kBadArc = 2, kBadSplits = 3 };

// Puts into *fault, 0 at first, the worst that is wrong with the FSAs; kernels that come after must look there before they trust
// them. must_go_up: arcs into lower states are a fault, too.
template <typename Backend>
void check_fsas(const Backend& backend, const DeviceFsas& fsas, bool must_go_up, uint32_t* fault) {
  backend.for_each(fsas.num_fsas + 1, [=] LATTICA_BOTH(int64_t i) {
    const int32_t here = fsas.fsa_splits[i];
    const bool good = i == 0 ? here == 0 : here >= fsas.fsa_splits[i - 1];
    if (!good || here > fsas.num_states || (i == fsas.num_fsas && here != fsas.num_states)) atomic_max(fault, uint32_t{kBadSplits});
  });
  backend.for_each(fsas.num_states + 1, [=] LATTICA_BOTH(int64_t s) {
    const int32_t begin = fsas.state_splits[s];
    const int32_t end = s < fsas.num_states ? fsas.state_splits[s + 1] : static_cast<int32_t>(fsas.num_arcs);
    if (begin < 0 || end < begin || end > fsas.num_arcs || (s == 0 && begin != 0) || (s == fsas.num_states && begin != end)) {
      atomic_max(fault, uint32_t{kBadSplits});
      return;
    }
    if (begin == end) return;
    const int64_t fsa = fsas.fsa_of(s);
    const int64_t first = fsas.fsa_splits[fsa], size = fsas.fsa_splits[fsa + 1] - first;
    for (int32_t a = begin; a < end; ++a) {
      const Arc& arc = fsas.arcs[a];
      if (arc.src != s - first || arc.dest < 0 || arc.dest >= size || (arc.label == -1 && arc.dest != size - 1))
        atomic_max(fault, uint32_t{kBadArc});
      else if (must_go_up && arc.dest <= arc.src)
        atomic_max(fault, uint32_t{kArcGoesDown});
    }
  });
}

inline void raise_fault(uint32_t fault) {
  STD_TORCH_CHECK(fault != kBadSplits, "fsa_splits and state_splits must rise from 0 to the numbers of states and of arcs");
  STD_TORCH_CHECK(fault != kBadArc, "an arc leads out of its FSA, does not begin in the state that it is listed under, or has "
                                    "label -1, but does not lead into the last state");
  STD_TORCH_CHECK(fault != kArcGoesDown, "an FSA is cyclic or not top-sorted: call top_sort first");
}

}  // namespace
}  // namespace lattica
