// An n-gram model with back-off as a flat automaton, and what a word costs in it.
//
// A state is a context; state 0 is the empty one, which has an arc for every word, arc w for word w. The arcs of the others
// are sorted by word. A word without an arc costs the state's back-off weight and what it costs in the back-off state.
#pragma once

#include <cstdint>

namespace lattica {

struct NgramView {
  const int32_t *arc_splits, *arc_words, *arc_next, *backoff_state;
  const float *arc_log_probs, *backoff_log_prob;

  // The arc for `word`, or -1.
  int32_t find(int32_t state, int32_t word) const {
    if (state == 0) return word;
    int32_t begin = arc_splits[state], size = arc_splits[state + 1] - begin;
    while (size > 1) {  // without a branch: the compiler makes a conditional move of it
      const int32_t half = size / 2;
      begin += arc_words[begin + half - 1] < word ? half : 0;
      size -= half;
    }
    return size == 1 && arc_words[begin] == word ? begin : -1;
  }

  // log p(word | state), and the state after it.
  float score(int32_t state, int32_t word, int32_t* next) const {
    float sum = 0;
    for (;;) {
      const int32_t arc = find(state, word);
      if (arc >= 0) {
        *next = arc_next[arc];
        return sum + arc_log_probs[arc];
      }
      sum += backoff_log_prob[state];
      state = backoff_state[state];
    }
  }
};

}  // namespace lattica
