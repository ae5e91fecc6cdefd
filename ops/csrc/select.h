// The k-th greatest number of each group, for items in any order: eight bits at a time from the top, each time counting the items
// that agree with what is known of the answer. On CUDA the numbers of items and the k lie in the device's memory; nothing waits.
#pragma once

#include <cstdint>

#include "atomics.h"
#include "parallel.h"

namespace lattica {

constexpr int kSelectBins = 256;

// For each group; all on the device.
struct Selection {
  int32_t* rank;     // in: k, from 1; 0: leave `answer` alone. Afterwards of no meaning.
  uint64_t* answer;  // out: the k-th greatest; 0 if there are fewer than k
  int32_t* bins;     // kSelectBins a group, zeros before and after
};

// item(i, &group, &key): keys below 2^bits, bits a multiple of 8.
template <typename Backend, typename Count, typename Item>
void select_kth(const Backend& backend, Selection s, int64_t num_groups, const Count* num_items, Item item, int bits) {
  for (int shift = bits - 8; shift >= 0; shift -= 8) {
    const bool first = shift == bits - 8;
    backend.for_each_upto(num_items, [=] LATTICA_BOTH(int64_t i) {
      int32_t group;
      uint64_t key;
      item(i, &group, &key);
      if (s.rank[group] == 0 || (!first && key >> (shift + 8) != s.answer[group])) return;
      atomic_count(s.bins + int64_t{group} * kSelectBins + (key >> shift & (kSelectBins - 1)));
    });
    backend.for_each(num_groups, [=] LATTICA_BOTH(int64_t group) {
      int32_t left = s.rank[group];
      if (left == 0) return;
      int32_t* const bins = s.bins + group * kSelectBins;
      int32_t digit = kSelectBins - 1;
      for (; digit > 0 && bins[digit] < left; --digit) left -= bins[digit];
      for (int32_t i = 0; i < kSelectBins; ++i) bins[i] = 0;
      s.answer[group] = (first ? 0 : s.answer[group] << 8) | static_cast<uint64_t>(digit);
      s.rank[group] = left;
    });
  }
}

}  // namespace lattica
