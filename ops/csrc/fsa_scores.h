// Total scores of paths through a top-sorted automaton, and their derivatives, one FSA a call.
//
//   forward[d] = sum over arcs s -> d of forward[s] + score,   backward[s] = sum over arcs s -> d of score + backward[d],
//
// where the sum is log-add (log semiring) or max (tropical; `best` then keeps the arc that gave the max).
// Source: Mohri, "Semiring frameworks and algorithms for shortest-distance problems", 2002.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "fsa.h"
#include "log_add.h"

namespace lattica {

constexpr double kMinusInf = -std::numeric_limits<double>::infinity();

// log(sum of exp) of numbers as they come: `top` is their max so far, `rest` the sum of exp(x - top).
struct RunningLogSum {
  double top = kMinusInf, rest = 0;
  void add(double x) {
    if (x == kMinusInf) return;
    if (x <= top) {
      rest += std::exp(x - top);
    } else {
      rest = rest * std::exp(top - x) + 1;
      top = x;
    }
  }
  double value() const { return rest > 0 ? top + std::log(rest) : top; }
};

// False if an arc does not go up, i.e. the FSA is cyclic or not top-sorted.
inline bool goes_up(const FsaView& fsa) {
  for (int32_t a = fsa.first_arc(); a < fsa.first_arc() + fsa.num_arcs(); ++a)
    if (fsa.arcs[a].dest <= fsa.arcs[a].src) return false;
  return true;
}

inline void forward_scores(const FsaView& fsa, const double* scores, bool log_semiring, double* forward,
                           int32_t* best) {
  const int32_t n = fsa.num_states;
  if (n == 0) return;
  for (int32_t s = 0; s < n; ++s) forward[s] = kMinusInf, best[s] = -1;
  forward[0] = 0;
  if (!log_semiring) {
    for (int32_t s = 0; s < n; ++s)
      for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) {
        const int32_t d = fsa.arcs[a].dest;
        const double x = forward[s] + scores[a];
        if (x > forward[d]) forward[d] = x, best[d] = a;
      }
    return;
  }
  std::vector<RunningLogSum> sums(n);
  sums[0].add(0);
  for (int32_t s = 0; s < n; ++s) {
    forward[s] = sums[s].value();
    if (forward[s] == kMinusInf) continue;
    for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) sums[fsa.arcs[a].dest].add(forward[s] + scores[a]);
  }
}

// `shares`, for the log semiring, gets what part of backward[s] each arc carries: exp(score + backward[d] - backward[s]), which is
// also the probability of leaving s by it. Arcs of states on no way to the end get 0.
inline void backward_scores(const FsaView& fsa, const double* scores, bool log_semiring, double* backward,
                            int32_t* best, double* shares) {
  const int32_t n = fsa.num_states;
  if (n == 0) return;
  backward[n - 1] = 0;
  best[n - 1] = -1;
  std::vector<double> scratch;
  for (int32_t s = n - 2; s >= 0; --s) {
    const int32_t begin = fsa.begin(s), count = fsa.end(s) - begin;
    double top = kMinusInf;
    best[s] = -1;
    for (int32_t a = begin; a < begin + count; ++a) {
      const double x = scores[a] + backward[fsa.arcs[a].dest];
      if (x > top) top = x, best[s] = a;
    }
    backward[s] = top;
    if (!log_semiring) continue;
    if (static_cast<size_t>(count) > scratch.size() && !shares) scratch.resize(2 * count);
    double* const part = shares ? shares + begin : scratch.data();
    if (top == kMinusInf) {
      for (int32_t i = 0; i < count && shares; ++i) part[i] = 0;
      continue;
    }
    for (int32_t i = 0; i < count; ++i) part[i] = scores[begin + i] + backward[fsa.arcs[begin + i].dest] - top;
    for (int32_t i = 0; i < count; ++i) part[i] = exp_nonpositive(part[i]);
    double sums[4] = {0, 0, 0, 0};  // four, because each addition waits for the one before it
    int32_t i = 0;
    for (; i + 4 <= count; i += 4)
      for (int32_t j = 0; j < 4; ++j) sums[j] += part[i + j];
    for (; i < count; ++i) sums[0] += part[i];
    const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    backward[s] = top + std::log(sum);
    for (int32_t k = 0; k < count && shares; ++k) part[k] /= sum;
  }
}

// The share of an arc in the sum that made `total`: 0 where nothing was summed.
inline double share(double part, double total) { return total == kMinusInf ? 0 : std::exp(part - total); }

// `grad` holds the derivatives by forward[s] and is used as scratch; writes those by the scores of the arcs.
inline void forward_scores_grad(const FsaView& fsa, const double* scores, bool log_semiring, const double* forward,
                                const int32_t* best, double* grad, double* arc_grad) {
  for (int32_t s = fsa.num_states - 1; s >= 0; --s)
    for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) {
      const int32_t d = fsa.arcs[a].dest;
      double g = 0;
      if (grad[d] != 0) g = grad[d] * (log_semiring ? share(forward[s] + scores[a], forward[d]) : double(best[d] == a));
      arc_grad[a] = g;
      grad[s] += g;
    }
}

// With the shares that backward_scores gave there is nothing to compute but products (log semiring).
inline void backward_scores_grad(const FsaView& fsa, const int32_t* best, const double* shares, bool log_semiring, double* grad,
                                 double* arc_grad) {
  for (int32_t s = 0; s < fsa.num_states; ++s)
    for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) {
      const double g = grad[s] == 0 ? 0 : grad[s] * (log_semiring ? shares[a] : double(best[s] == a));
      arc_grad[a] = g;
      grad[fsa.arcs[a].dest] += g;
    }
}

// Of each arc the total score of the paths through it less that of all; -inf if the latter is not finite.
inline void arc_post(const FsaView& fsa, const double* scores, const double* forward, const double* backward, double* post) {
  if (fsa.num_states == 0) return;
  const double total = forward[fsa.final_state()];
  const bool some = std::isfinite(total);
  for (int32_t s = 0; s < fsa.num_states; ++s)
    for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a)
      post[a] = some ? forward[s] + scores[a] + backward[fsa.arcs[a].dest] - total : kMinusInf;
}

// From the derivatives by the arcs' posteriors those by scores, forward and backward scores; the latter begin as zeros.
inline void arc_post_grad(const FsaView& fsa, const double* forward, const double* post_grad, double* arc_grad, double* forward_grad,
                          double* backward_grad) {
  if (fsa.num_states == 0) return;
  const bool some = std::isfinite(forward[fsa.final_state()]);
  double all = 0;
  for (int32_t s = 0; s < fsa.num_states; ++s)
    for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) {
      const double g = arc_grad[a] = some ? post_grad[a] : 0;
      forward_grad[s] += g;
      backward_grad[fsa.arcs[a].dest] += g;
      all += g;
    }
  forward_grad[fsa.final_state()] -= all;
}

// The best path backwards along the best entering arcs, as a linear FSA.
inline FsaResult best_path(const FsaView& fsa, const int32_t* best) {
  FsaResult out;
  if (fsa.num_states == 0) return out;
  int32_t s = fsa.final_state();
  while (s != 0 && best[s] >= 0) {
    out.map_a.push_back(best[s]);
    s = fsa.arcs[best[s]].src;
  }
  if (s != 0 || out.map_a.empty()) {
    out.map_a.clear();
    return out;
  }
  const int32_t n = static_cast<int32_t>(out.map_a.size());
  out.map_a = std::vector<int32_t>(out.map_a.rbegin(), out.map_a.rend());
  for (int32_t i = 0; i < n; ++i) out.arcs.push_back({i, i + 1, fsa.arcs[out.map_a[i]].label});
  out.num_states = n + 1;
  return out;
}

// A counter-based random number in [0, 1): the same whatever thread asks (splitmix64).
LATTICA_BOTH inline double random_unit(uint64_t seed, uint64_t counter) {
  uint64_t x = seed + 0x9E3779B97F4A7C15ULL * (counter + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1.0p-53;
}

// Draw a path with probability proportional to exp(its score): leave each state by an arc with the probability that is its share
// (see backward_scores). Appends arc numbers; nothing if there is no path.
inline void random_path(const FsaView& fsa, const double* shares, uint64_t seed, std::vector<int32_t>* path) {
  if (fsa.num_states == 0) return;
  uint64_t step = 0;
  for (int32_t s = 0; s != fsa.final_state(); ++step) {
    double left = random_unit(seed, step);
    int32_t chosen = -1;
    for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) {
      if (!(shares[a] > 0)) continue;
      chosen = a;  // the last one possible, should rounding leave a rest
      if ((left -= shares[a]) < 0) break;
    }
    if (chosen < 0) {  // no path, or none can be drawn: scores of nan or inf
      path->clear();
      return;
    }
    path->push_back(chosen);
    s = fsa.arcs[chosen].dest;
  }
}

}  // namespace lattica
