// Which s_range neighbouring symbol positions the pruned transducer loss keeps at each frame; runs on CPU and CUDA.
//
// 1. For each frame, the window of s_range positions with the largest share of the occupation: the blanks' occupation in
//    the window, less that of the symbol arc which enters the window from below at this frame (paths that it starts are
//    counted by the window anyway).
// 2. Frames from the last real one on take the window that ends with the last symbol.
// 3. Starts of windows must not decrease, must start at 0, and must not jump so far that no path stays inside: at most
//    s_range - 1 a frame, or 1 where a frame has only one symbol (modified, constrained). Two sweeps from the end, each a
//    running minimum, see to that.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace lattica {

template <typename T, typename Backend>
void rnnt_prune_ranges(const Backend& backend, const T* px_grad, const T* py_grad, const int64_t* boundary, int64_t N,
                       int64_t S, int64_t num_frames, int64_t px_columns, int64_t s_range, int64_t* ranges) {
  const int64_t num_windows = S + 2 - s_range;
  backend.for_each(N * num_frames, [=] LATTICA_BOTH(int64_t i) {
    const int64_t n = i / num_frames, t = i % num_frames, s_end = boundary[4 * n + 2], t_end = boundary[4 * n + 3];
    int64_t best = 0;
    if (t < t_end - 1) {
      T best_value = T(0);
      for (int64_t s = 0; s < num_windows; ++s) {
        T value = T(0);
        for (int64_t k = s; k < s + s_range; ++k) value += py_grad[(n * (S + 1) + k) * num_frames + t];
        if (s > 0) value -= px_grad[(n * S + s - 1) * px_columns + t];
        if (s == 0 || value > best_value) {
          best = s;
          best_value = value;
        }
      }
    } else if (s_end + 1 > s_range) {
      best = s_end + 1 - s_range;
    }
    ranges[i * s_range] = best;
  });

  const int64_t max_step = px_columns == num_frames ? 1 : s_range - 1;
  backend.for_each(N, [=] LATTICA_BOTH(int64_t n) {
    int64_t* start = ranges + n * num_frames * s_range;  // of frame t: start[t * s_range]
    if (num_frames == 0) return;
    // Not decreasing: no start may exceed a later one.
    int64_t lowest = start[(num_frames - 1) * s_range];
    // No jump of more than max_step: max_step * t - start must not decrease either, nor be negative.
    int64_t lowest_slack = max_step * (num_frames - 1) - lowest;
    for (int64_t t = num_frames - 1; t >= 0; --t) {
      if (start[t * s_range] < lowest) lowest = start[t * s_range];
      const int64_t slack = max_step * t - lowest;
      if (slack < lowest_slack) lowest_slack = slack;
      start[t * s_range] = max_step * t - (lowest_slack > 0 ? lowest_slack : 0);
    }
  });

  backend.for_each(N * num_frames, [=] LATTICA_BOTH(int64_t i) {
    for (int64_t k = 1; k < s_range; ++k) ranges[i * s_range + k] = ranges[i * s_range] + k;
  });
}

}  // namespace lattica
