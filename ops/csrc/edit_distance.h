// The least number of insertions, deletions and substitutions between two sequences, by one row of the table at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace lattica {

inline int32_t edit_distance(const int32_t* ref, int32_t ref_len, const int32_t* hyp, int32_t hyp_len) {
  std::vector<int32_t> row(ref_len + 1);  // row[i]: between the first i of ref and what is read of hyp
  std::iota(row.begin(), row.end(), 0);
  for (int32_t j = 0; j < hyp_len; ++j) {
    int32_t diagonal = row[0];
    ++row[0];
    for (int32_t i = 0; i < ref_len; ++i) {
      const int32_t replaced = diagonal + (ref[i] != hyp[j]);
      diagonal = row[i + 1];
      row[i + 1] = std::min(replaced, std::min(diagonal, row[i]) + 1);
    }
  }
  return row[ref_len];
}

}  // namespace lattica
