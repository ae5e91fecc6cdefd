// What a tile of the fused transducer loss does between its matrix products; see ops/rnnt_loss_fused.py.
//
// A row is one (utterance, frame, symbol position): a is its row of the encoder's output, l its row of the decoder's,
// both already projected. Eager PyTorch makes a pass over memory for every +, exp and sum; here each is one pass.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "log_add.h"
#include "row_reductions.h"

namespace lattica {

// hidden[d] = activation(a[d] + l[d]).
template <typename Activation, typename T>
inline void joiner_hidden_row(const T* __restrict a, const T* __restrict l, T* __restrict hidden, int64_t D) {
  for (int64_t d = 0; d < D; ++d) hidden[d] = Activation::value(a[d] + l[d]);
}

// Adds hidden_grad[d] * activation'(a[d] + l[d]) to a_grad and l_grad.
template <typename Activation, typename T>
inline void joiner_hidden_grad_row(const T* __restrict a, const T* __restrict l, const T* __restrict hidden,
                                   const T* __restrict hidden_grad, T* __restrict a_grad, T* __restrict l_grad,
                                   int64_t D) {
  for (int64_t d = 0; d < D; ++d) {
    const T grad = hidden_grad[d] * Activation::derivative(a[d] + l[d], hidden[d]);
    a_grad[d] += grad;
    l_grad[d] += grad;
  }
}

// log Σ exp over x[0, V) or, for HAT, over all but the blank.
template <typename T>
inline T normalizer_of(const T* x, int64_t V, int64_t blank, bool hat) {
  const int64_t first = hat ? blank : V, rest = hat ? blank + 1 : V;
  T max = max_of(x, first, -std::numeric_limits<T>::infinity());
  max = max_of(x + rest, V - rest, max);
  if (std::isinf(max)) return max;
  return max + std::log(sum_of_exp(x, first, max) + sum_of_exp(x + rest, V - rest, max));
}

template <typename T>
inline T log_sigmoid(T x) {
  return (x < T(0) ? x : T(0)) - std::log1p(std::exp(x < T(0) ? x : -x));
}

template <typename T>
inline T sigmoid(T x) {
  return std::exp(log_sigmoid(x));
}

// Gradient with respect to a row of logits x, where symbol_grad and blank_grad are those of the two log-probabilities.
// `grad` may be x itself.
template <typename T>
inline void logits_grad_row(const T* x, T normalizer, int64_t symbol, int64_t blank, T symbol_grad, T blank_grad,
                            bool hat, T* grad, int64_t V) {
  const T scale = hat ? -symbol_grad : -(symbol_grad + blank_grad);
  const T blank_value = hat ? blank_grad * sigmoid(-x[blank]) - symbol_grad * sigmoid(x[blank]) : T(0);
  for (int64_t v = 0; v < V; ++v) grad[v] = scale * exp_nonpositive(x[v] - normalizer);
  if (hat) grad[blank] = blank_value;
  else grad[blank] += blank_grad;
  grad[symbol] += symbol_grad;
}

}  // namespace lattica
