// Runs the kernel of ops/csrc/cuda/mutual_information.cuh without a GPU: a block is 4 CPU threads that meet at a barrier.
#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__
struct Index {
  int64_t x;
};
constexpr int kThreads = 4;
static thread_local Index threadIdx, blockIdx;
static const Index blockDim{kThreads};
static std::barrier block_barrier(kThreads);
static void __syncthreads() { block_barrier.arrive_and_wait(); }

namespace lattica {
namespace {
double shared[1024];
}
}  // namespace lattica

#include "cuda/mutual_information.cuh"

extern "C" void run(const double* px, const double* py, const int64_t* strides, const int64_t* bounds, const int64_t* sizes,
                    double* scores, double* px_grad, double* py_grad) {
  const lattica::Problem<double> problem{px,
                                         py,
                                         {strides[0], strides[1], strides[2]},
                                         {strides[3], strides[4], strides[5]},
                                         reinterpret_cast<const lattica::Bounds*>(bounds),
                                         {sizes[0], sizes[1], sizes[2], sizes[3] != 0},
                                         scores,
                                         px_grad,
                                         py_grad,
                                         true};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int64_t n = 0; n < sizes[0]; ++n) {
        threadIdx.x = i;
        blockIdx.x = n;
        lattica::mutual_information_kernel(problem);
        __syncthreads();  // blocks here run one after another in the same "shared memory"
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}
