// The CTC topology of a token sequence: state 2k is the blank before token k, state 2k + 1 token k itself. See ops/topologies.py.
#pragma once

#include "fsa.h"

namespace lattica {

// Whether token k may follow token k - 1 without a blank between them.
inline bool ctc_may_skip(const int32_t* tokens, int32_t k, bool modified) { return modified || tokens[k] != tokens[k - 1]; }

inline int32_t ctc_num_arcs(const int32_t* tokens, int32_t n, bool modified) {
  int32_t count = 2 + 4 * n + (n > 0);
  for (int32_t k = 1; k < n; ++k) count += ctc_may_skip(tokens, k, modified);
  return count;
}

// Writes arcs and aux labels, and splits[0 ... 2n + 1]: where the arcs of each state begin, counted from `first`.
inline void ctc_graph(const int32_t* tokens, int32_t n, bool modified, int32_t first, int32_t* splits, Arc* arcs, int32_t* aux) {
  int32_t count = 0;
  const auto add = [&](int32_t src, int32_t dest, int32_t label, int32_t out) {
    arcs[count] = {src, dest, label};
    aux[count++] = out;
  };
  const int32_t final_state = 2 * n + 1;
  for (int32_t k = 0; k <= n; ++k) {
    const int32_t blank = 2 * k, token = blank + 1;
    splits[blank] = first + count;
    if (k == 0) add(0, 0, 0, 0);
    if (k < n) add(blank, token, tokens[k], tokens[k]);
    if (k > 0) add(blank, blank, 0, 0);
    if (k == n) {
      add(blank, final_state, -1, -1);
      break;
    }
    splits[token] = first + count;
    add(token, token + 1, 0, 0);
    add(token, token, tokens[k], 0);
    if (k + 1 == n) add(token, final_state, -1, -1);
    else if (ctc_may_skip(tokens, k + 1, modified)) add(token, token + 2, tokens[k + 1], tokens[k + 1]);
  }
  splits[final_state] = first + count;
}

}  // namespace lattica
