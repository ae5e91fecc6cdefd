// for_each_team(backend, lanes, n, f): f(i, team) for i = 0 ... n - 1, where the lanes of a team share the work on one i: some
// neighbouring threads of a CUDA warp. On the CPU, where only tests use this, the first few of many i have two threads that meet
// for each sum, as on the GPU; the others have one, since meeting is slow.
#pragma once

#include "parallel.h"

#ifndef __CUDACC__
#include <barrier>
#include <thread>
#endif

namespace lattica {

// A class of its own for each compiler, because the linker merges what has one name. All lanes must ask, and all get the same:
// combined in an order that does not change from run to run.
//   sum(x)            of all lanes
//   best(&x, &index)  the largest x of all lanes, and the lowest index of those that have it
#ifdef __CUDACC__

struct CudaTeam {
  int32_t lane, lanes;

  LATTICA_BOTH double sum(double x) const {
#ifdef __CUDA_ARCH__
    for (int32_t step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(mask(), x, step);
#endif
    return x;
  }

  LATTICA_BOTH void best([[maybe_unused]] double* x, [[maybe_unused]] int32_t* index) const {
#ifdef __CUDA_ARCH__
    for (int32_t step = lanes / 2; step > 0; step /= 2) {
      const double other = __shfl_xor_sync(mask(), *x, step);
      const int32_t other_index = __shfl_xor_sync(mask(), *index, step);
      if (other > *x || (other == *x && other_index < *index)) *x = other, *index = other_index;
    }
#endif
  }

 private:
  __device__ uint32_t mask() const {
    return lanes == 32 ? 0xffffffffu : ((1u << lanes) - 1) << (threadIdx.x % 32 / lanes * lanes);
  }
};

using Team = CudaTeam;

#else

struct CpuTeam {
  struct Meeting {
    double x[2];
    int32_t index[2];
    std::barrier<> barrier{2};
  };
  int32_t lane, lanes;
  Meeting* meeting;

  double sum(double x) const {
    if (lanes == 1) return x;
    int32_t index = 0;
    double other = x;
    exchange(&other, &index);
    return lane == 0 ? x + other : other + x;
  }

  void best(double* x, int32_t* index) const {
    if (lanes == 1) return;
    double other = *x;
    int32_t other_index = *index;
    exchange(&other, &other_index);
    if (other > *x || (other == *x && other_index < *index)) *x = other, *index = other_index;
  }

 private:
  void exchange(double* x, int32_t* index) const {
    meeting->x[lane] = *x, meeting->index[lane] = *index;
    meeting->barrier.arrive_and_wait();
    *x = meeting->x[1 - lane], *index = meeting->index[1 - lane];
    meeting->barrier.arrive_and_wait();
  }
};

using Team = CpuTeam;

#endif

#ifdef __CUDACC__

template <typename F>
__global__ void for_each_team_kernel(int32_t lanes, int64_t n, F f) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t teams = static_cast<int64_t>(gridDim.x) * blockDim.x / lanes;
  for (int64_t i = thread / lanes; i < n; i += teams) f(i, Team{static_cast<int32_t>(thread % lanes), lanes});
}

// lanes: a power of two up to 32.
template <typename F>
void for_each_team(const CudaBackend& backend, int32_t lanes, int64_t n, F f) {
  if (n == 0) return;
  constexpr int64_t kThreads = 256, kMaxBlocks = 1 << 16;
  const int64_t blocks = (n * lanes + kThreads - 1) / kThreads;
  const unsigned grid = static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  for_each_team_kernel<<<grid, kThreads, 0, backend.stream>>>(lanes, n, f);
}

#else

template <typename F>
void for_each_team(const CpuBackend& backend, int32_t, int64_t n, const F& f) {
  const int64_t shared = n >= 8 ? 4 : 0;
  if (shared > 0) {
    Team::Meeting meeting;
    const auto run = [&](int32_t lane) {
      for (int64_t i = 0; i < shared; ++i) f(i, Team{lane, 2, &meeting});
    };
    std::thread other([&] { run(1); });
    run(0);
    other.join();
  }
  backend.for_each(n - shared, [&](int64_t i) { f(shared + i, Team{0, 1, nullptr}); });
}

#endif

// Lanes for lists of so many entries on average.
inline int32_t lanes_for(int64_t entries, int64_t lists) {
  const int64_t average = lists ? entries / lists : 0;
  return average >= 24 ? 32 : average >= 6 ? 8 : 4;
}

}  // namespace lattica
