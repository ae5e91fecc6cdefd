// One block an utterance, one thread a row s (or several rows, if S + 1 > 1024); the fronts of mutual_information.h live in
// shared memory, one __syncthreads() each, and nothing returns to the host. As on the CPU, forward leaves each cell's share
// in px_grad, the arc's own place, and the way back turns it into the arc's occupation; so there is no scratch memory.
// Free of torch, so that tests/ops/cuda_kernel_on_cpu.cpp can run it, a CPU thread for each CUDA thread.
#pragma once

#include <cmath>

#include "../mutual_information.h"

namespace lattica {
namespace {

template <typename T>
struct Problem {
  const T *px, *py;
  int64_t px_strides[3], py_strides[3];
  const Bounds* bounds;  // null: the whole lattice
  LatticeShape shape;
  T* scores;
  T *px_grad, *py_grad;  // contiguous, zero; used if want_grad
  bool want_grad;
};

// p[S, T]; the result is the same in all threads. `fronts` has 2 * width numbers.
template <typename T>
__device__ T forward(const Fronts& f, Matrix<const T> px, Matrix<const T> py, Matrix<T> share_of, bool keep_shares, T* fronts) {
  const T kMinusInf = -INFINITY;
  const int64_t width = f.width(), step = f.modified ? 1 : 0;
  T *from = fronts, *to = fronts + width;
  for (int64_t i = threadIdx.x; i < 2 * width; i += blockDim.x) fronts[i] = i == 0 ? T(0) : kMinusInf;
  __syncthreads();
  for (int64_t d = 1; d <= f.last(); ++d) {
    for (int64_t s = f.first_s(d) + threadIdx.x; s <= f.last_s(d); s += blockDim.x) {
      const int64_t t = f.modified ? d : d - s;
      const T via_x = s > 0 ? from[s - 1] + px(s - 1, t - step) : kMinusInf;
      const T via_y = t > 0 ? from[s] + py(s, t - 1) : kMinusInf;
      T share;
      to[s] = log_add_with_share(via_x, via_y, &share);
      if (keep_shares && s > 0) share_of(s - 1, t - step) = share;
    }
    __syncthreads();
    T* other = from;
    from = to;
    to = other;
  }
  return from[f.S];
}

// Turns shares into occupations. `fronts` has 4 * width numbers: what flows over x and y into the front before, twice.
template <typename T>
__device__ void backward(const Fronts& f, Matrix<T> px_grad, Matrix<T> py_grad, T* fronts) {
  const int64_t width = f.width(), step = f.modified ? 1 : 0;
  T *x = fronts, *y = x + width, *x_after = y + width, *y_after = x_after + width;
  for (int64_t d = f.last(); d >= 1; --d) {
    const int64_t first_after = f.first_s(d + 1), last_after = f.last_s(d + 1);
    for (int64_t s = f.first_s(d) + threadIdx.x; s <= f.last_s(d); s += blockDim.x) {
      const int64_t t = f.modified ? d : d - s;
      T occupation = T(0);
      if (d == f.last()) {
        occupation = s == f.S ? T(1) : T(0);
      } else {
        if (s >= first_after && s <= last_after) occupation += y_after[s];
        if (s + 1 >= first_after && s + 1 <= last_after) occupation += x_after[s + 1];
      }
      const T through_x = s > 0 ? px_grad(s - 1, t - step) * occupation : T(0);
      if (s > 0) px_grad(s - 1, t - step) = through_x;
      if (t > 0) py_grad(s, t - 1) = occupation - through_x;
      x[s] = through_x;
      y[s] = occupation - through_x;
    }
    __syncthreads();
    T *other_x = x, *other_y = y;
    x = x_after;
    y = y_after;
    x_after = other_x;
    y_after = other_y;
  }
}

template <typename T>
__global__ void mutual_information_kernel(Problem<T> p) {
  extern __shared__ double shared[];  // double: aligned for both types
  T* fronts = reinterpret_cast<T*>(shared);
  const int64_t n = blockIdx.x, S = p.shape.S, num_frames = p.shape.T;
  const Bounds b = p.bounds ? p.bounds[n] : Bounds{0, 0, S, num_frames};
  if (!b.valid(S, num_frames)) {
    if (threadIdx.x == 0) p.scores[n] = NAN;
    return;
  }
  const Fronts f{b.s_end - b.s_begin, b.t_end - b.t_begin, p.shape.modified};
  const int64_t T1 = p.shape.modified ? num_frames : num_frames + 1;
  const Matrix<const T> px{p.px + n * p.px_strides[0] + b.s_begin * p.px_strides[1] + b.t_begin * p.px_strides[2],
                           p.px_strides[1], p.px_strides[2]};
  const Matrix<const T> py{p.py + n * p.py_strides[0] + b.s_begin * p.py_strides[1] + b.t_begin * p.py_strides[2],
                           p.py_strides[1], p.py_strides[2]};
  const Matrix<T> px_grad{p.px_grad + (n * S + b.s_begin) * T1 + b.t_begin, T1, 1};
  const Matrix<T> py_grad{p.py_grad + (n * (S + 1) + b.s_begin) * num_frames + b.t_begin, num_frames, 1};

  const T score = forward(f, px, py, px_grad, p.want_grad, fronts);
  if (threadIdx.x == 0) p.scores[n] = score;
  if (!p.want_grad) return;
  __syncthreads();  // everyone has read the score from the memory that `backward` is about to use
  if (score == -INFINITY) {  // no path, no occupation: wipe the shares
    for (int64_t i = threadIdx.x; i < f.S * f.px_columns(); i += blockDim.x) px_grad(i / f.px_columns(), i % f.px_columns()) = T(0);
    return;
  }
  backward(f, px_grad, py_grad, fronts);
}

}  // namespace
}  // namespace lattica
