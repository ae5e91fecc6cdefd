// Atomic operations on plain memory, on CPU threads and CUDA threads alike; all relaxed: they order nothing but themselves.
#pragma once

#include <cstdint>
#include <cstring>

#include "portable.h"

#ifdef __CUDACC__
#include <cooperative_groups.h>
#include <cooperative_groups/scan.h>
#endif
#include <atomic>

namespace lattica {

// The old value is returned by each of them.
LATTICA_BOTH inline int32_t atomic_add(int32_t* p, int32_t x) {
#ifdef __CUDA_ARCH__
  return atomicAdd(p, x);
#else
  return std::atomic_ref<int32_t>(*p).fetch_add(x, std::memory_order_relaxed);
#endif
}

LATTICA_BOTH inline uint64_t atomic_add(uint64_t* p, uint64_t x) {
#ifdef __CUDA_ARCH__
  return atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
#else
  return std::atomic_ref<uint64_t>(*p).fetch_add(x, std::memory_order_relaxed);
#endif
}

// For many threads that count in few places: on a GPU those of a warp that add to one place do so once.
LATTICA_BOTH inline void atomic_count(int32_t* p) {
#ifdef __CUDA_ARCH__
  const unsigned same = __match_any_sync(__activemask(), reinterpret_cast<unsigned long long>(p));
  unsigned lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  if (lane == __ffs(same) - 1u) atomicAdd(p, __popc(same));
#else
  std::atomic_ref<int32_t>(*p).fetch_add(1, std::memory_order_relaxed);
#endif
}

// An atomic_add to a place that all threads use, once a warp on a GPU: shares out what lies behind *p among them.
LATTICA_BOTH inline uint64_t atomic_take(uint64_t* p, uint64_t amount) {
#ifdef __CUDA_ARCH__
  const auto group = cooperative_groups::coalesced_threads();
  const unsigned long long before = cooperative_groups::exclusive_scan(group, static_cast<unsigned long long>(amount));
  unsigned long long begin = 0;
  const unsigned last = group.size() - 1;
  if (group.thread_rank() == last) begin = atomicAdd(reinterpret_cast<unsigned long long*>(p), before + amount);
  return group.shfl(begin, last) + before;
#else
  return std::atomic_ref<uint64_t>(*p).fetch_add(amount, std::memory_order_relaxed);
#endif
}

// What is there now, while others write.
template <typename T>
LATTICA_BOTH T atomic_load(const T* p) {
#ifdef __CUDA_ARCH__
  return *static_cast<const volatile T*>(p);
#else
  return std::atomic_ref<T>(*const_cast<T*>(p)).load(std::memory_order_relaxed);
#endif
}

template <typename T>
LATTICA_BOTH void atomic_store(T* p, T x) {
#ifdef __CUDA_ARCH__
  *static_cast<volatile T*>(p) = x;
#else
  std::atomic_ref<T>(*p).store(x, std::memory_order_relaxed);
#endif
}

LATTICA_BOTH inline uint64_t atomic_max(uint64_t* p, uint64_t x) {
#ifdef __CUDA_ARCH__
  return atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
#else
  std::atomic_ref<uint64_t> ref(*p);
  uint64_t old = ref.load(std::memory_order_relaxed);
  while (old < x && !ref.compare_exchange_weak(old, x, std::memory_order_relaxed)) {
  }
  return old;
#endif
}

LATTICA_BOTH inline uint32_t atomic_max(uint32_t* p, uint32_t x) {
#ifdef __CUDA_ARCH__
  return atomicMax(p, x);
#else
  std::atomic_ref<uint32_t> ref(*p);
  uint32_t old = ref.load(std::memory_order_relaxed);
  while (old < x && !ref.compare_exchange_weak(old, x, std::memory_order_relaxed)) {
  }
  return old;
#endif
}

// Writes `desired` if *p is `expected`.
LATTICA_BOTH inline uint64_t atomic_cas(uint64_t* p, uint64_t expected, uint64_t desired) {
#ifdef __CUDA_ARCH__
  return atomicCAS(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(expected),
                   static_cast<unsigned long long>(desired));
#else
  std::atomic_ref<uint64_t>(*p).compare_exchange_strong(expected, desired, std::memory_order_relaxed);
  return expected;
#endif
}

// Floats as unsigned numbers in the same order, so that atomic_max can compare them. 0 is below every float; nan has no place.
LATTICA_BOTH inline uint32_t ordered(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

LATTICA_BOTH inline float from_ordered(uint32_t u) {
  const uint32_t bits = u & 0x80000000u ? u ^ 0x80000000u : ~u;
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

LATTICA_BOTH inline uint64_t ordered(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}

LATTICA_BOTH inline double from_ordered(uint64_t u) {
  const uint64_t bits = u >> 63 ? u ^ uint64_t{1} << 63 : ~u;
  double x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

}  // namespace lattica
