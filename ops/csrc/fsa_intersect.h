// Intersection (and, on inner labels, composition) of two automata: states are pairs, arcs are pairs with one label.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "fsa.h"

namespace lattica {

// 64-bit keys to 0, 1, 2, ... in order of first sight; open addressing, grows as it fills. A slot holds a part of the key's hash
// beside its number (plus one; 0: free), so that it is small and other keys are rarely looked at.
class Numbering {
 public:
  explicit Numbering(size_t expected = 64) {
    size_t size = 64;
    while (size < 2 * expected) size *= 2;
    slots_.assign(size, 0);
  }
  int32_t get(uint64_t key) {  // its number; new if keys().size() grew
    const uint64_t h = hash(key);
    size_t i = find(key, h);
    if (slots_[i] != 0) return number(slots_[i]);
    if (3 * (keys_.size() + 1) > 2 * slots_.size()) {
      slots_.assign(slots_.size() * 2, 0);
      for (size_t k = 0; k < keys_.size(); ++k) {
        const uint64_t g = hash(keys_[k]);
        size_t j = g & (slots_.size() - 1);
        while (slots_[j] != 0) j = (j + 1) & (slots_.size() - 1);
        slots_[j] = slot(g, k);
      }
      i = find(key, h);
    }
    slots_[i] = slot(h, keys_.size());
    keys_.push_back(key);
    return static_cast<int32_t>(keys_.size()) - 1;
  }
  const std::vector<uint64_t>& keys() const { return keys_; }

 private:
  static uint64_t hash(uint64_t key) {
    const uint64_t h = key * 0x9E3779B97F4A7C15ULL;
    return h ^ (h >> 32);
  }
  static uint64_t slot(uint64_t h, size_t number) { return (h & 0xFFFFFFFF00000000ULL) | (number + 1); }
  static int32_t number(uint64_t slot) { return static_cast<int32_t>(slot & 0xFFFFFFFFu) - 1; }
  size_t find(uint64_t key, uint64_t h) const {
    size_t i = h & (slots_.size() - 1);
    while (slots_[i] != 0 && ((slots_[i] ^ h) >> 32 || keys_[number(slots_[i])] != key)) i = (i + 1) & (slots_.size() - 1);
    return i;
  }
  std::vector<uint64_t> slots_;
  std::vector<uint64_t> keys_;
};

// The arcs of each state ordered by a label that may differ from Arc::label (the aux label in composition). Places count from the
// FSA's first arc.
class LabelOrder {
 public:
  LabelOrder(const FsaView& fsa, const int32_t* labels) : first_(fsa.first_arc()), labels_(labels + first_) {
    const auto key = [&](int32_t i) {
      return static_cast<uint64_t>(static_cast<uint32_t>(labels_[i])) << 32 | static_cast<uint32_t>(i);
    };
    const auto begin = [&](int32_t s) { return fsa.begin(s) - first_; };
    int32_t s = 0;  // the first state whose arcs are out of order
    for (; s < fsa.num_states; ++s) {
      bool sorted = true;
      for (int32_t i = begin(s) + 1; i < begin(s + 1); ++i) sorted &= !label_less(labels_[i], labels_[i - 1]);
      if (!sorted) break;
    }
    if (s < fsa.num_states) {
      std::vector<uint64_t> keys(fsa.num_arcs());  // by label, then by place
      for (int32_t i = 0; i < fsa.num_arcs(); ++i) keys[i] = key(i);
      for (; s < fsa.num_states; ++s)
        if (begin(s + 1) - begin(s) > 1) std::sort(keys.begin() + begin(s), keys.begin() + begin(s + 1));
      order_.resize(keys.size());
      sorted_.resize(keys.size());
      for (size_t i = 0; i < keys.size(); ++i) {
        order_[i] = static_cast<int32_t>(keys[i] & 0xFFFFFFFFu);
        sorted_[i] = static_cast<int32_t>(keys[i] >> 32);
      }
      labels_ = sorted_.data();
    }
    for (s = 0; s < fsa.num_states; ++s) add_table(s, begin(s), begin(s + 1), fsa.num_states);
  }
  LabelOrder(const LabelOrder&) = delete;
  int32_t first() const { return first_; }
  int32_t arc(int32_t i) const { return first_ + (order_.empty() ? i : order_[i]); }
  int32_t label(int32_t i) const { return labels_[i]; }

  // The first of the arcs of `state` in [begin, end) whose label is not below `label`; without a table it is looked for near `begin`.
  int32_t lower(int32_t state, int32_t begin, int32_t end, int32_t label) const {
    if (!table_of_.empty() && table_of_[state] >= 0) {
      const int32_t* table = tables_.data() + table_of_[state];
      return std::max(begin, table[1 + std::min<uint32_t>(static_cast<uint32_t>(label), table[0])]);
    }
    int32_t step = 1;
    while (step <= end - begin && label_less(labels_[begin + step - 1], label)) begin += step, step += std::min(step, end - begin);
    end = begin + std::min(step, end - begin);
    while (begin < end) {
      const int32_t middle = begin + (end - begin) / 2;
      if (label_less(labels_[middle], label)) begin = middle + 1; else end = middle;
    }
    return begin;
  }

 private:
  // States with many arcs (a lexicon's start, a grammar's unigram) are asked often: a table of where each label begins. It holds
  // the largest label plus one (-1 counts as larger), then a place for each label up to that.
  void add_table(int32_t state, int32_t begin, int32_t end, int32_t num_states) {
    if (end - begin < kMany) return;
    int32_t last = end - 1;
    while (last > begin && labels_[last] == -1) --last;
    const int64_t size = static_cast<int64_t>(labels_[last]) + 1;
    if (size <= 0 || size > 4 * static_cast<int64_t>(end - begin) || tables_.size() > (1u << 30)) return;
    if (table_of_.empty()) table_of_.assign(num_states, -1);
    table_of_[state] = static_cast<int32_t>(tables_.size());
    tables_.push_back(static_cast<int32_t>(size));
    int32_t place = begin;
    for (int32_t label = 0; label <= size; ++label) {
      while (place < end && label_less(labels_[place], label)) ++place;
      tables_.push_back(place);
    }
  }
  static constexpr int32_t kMany = 32;
  std::vector<int32_t> table_of_, tables_;
  int32_t first_;
  const int32_t* labels_;
  std::vector<int32_t> order_, sorted_;
};

// With `epsilons`, label 0 of one side moves that side alone (map -1 for the other). Where both sides have epsilons at once, the
// moves of `a` go before those of `b`, so that each pair of paths is counted once (the epsilon-sequencing filter of Mohri,
// Pereira & Riley, 1996); `moved_b` is the filter's state.
inline FsaResult intersect(const FsaView& a, const LabelOrder& a_order, const FsaView& b, const LabelOrder& b_order,
                           bool epsilons) {
  FsaResult out;
  if (a.num_states == 0 || b.num_states == 0) return out;
  Numbering pairs(static_cast<size_t>(std::min(a.num_states, b.num_states)));
  const auto number = [&](int32_t sa, int32_t sb, bool moved_b) {
    return pairs.get(static_cast<uint64_t>(sa) << 32 | static_cast<uint64_t>(sb) << 1 | moved_b);
  };
  constexpr int32_t kFinal = -1;  // numbered last, when the number of states is known
  bool reached_final = false;
  const auto add = [&](int32_t from, int32_t to, int32_t label, int32_t arc_a, int32_t arc_b) {
    out.arcs.push_back({from, to, label});
    out.map_a.push_back(arc_a);
    out.map_b.push_back(arc_b);
  };
  number(0, 0, false);
  for (int32_t from = 0; from < static_cast<int32_t>(pairs.keys().size()); ++from) {
    const uint64_t key = pairs.keys()[from];
    const bool moved_b = key & 1;
    const int32_t sa = static_cast<int32_t>(key >> 32), sb = static_cast<int32_t>((key & 0xFFFFFFFFu) >> 1);
    const int32_t ba = a.begin(sa) - a_order.first(), bb = b.begin(sb) - b_order.first();
    int32_t ia = ba, ib = bb;
    const int32_t ea = a.end(sa) - a_order.first(), eb = b.end(sb) - b_order.first();
    if (epsilons) {
      for (; ia < ea && a_order.label(ia) == 0; ++ia)
        if (!moved_b) {
          const int32_t x = a_order.arc(ia);
          add(from, number(a.arcs[x].dest, sb, false), a.arcs[x].label, x, -1);
        }
      // After a move of b alone a must not move alone; if a has no epsilons here there is nothing to remember.
      const bool remember = ia > ba;
      for (; ib < eb && b_order.label(ib) == 0; ++ib) {
        const int32_t y = b_order.arc(ib);
        add(from, number(sa, b.arcs[y].dest, remember), 0, -1, y);
      }
    }
    const auto match = [&](int32_t i, int32_t j) {
      const int32_t x = a_order.arc(i), y = b_order.arc(j);
      const bool last = a_order.label(i) == -1;
      reached_final |= last;
      add(from, last ? kFinal : number(a.arcs[x].dest, b.arcs[y].dest, false), a.arcs[x].label, x, y);
    };
    if (ea - ia <= eb - ib) {
      for (int32_t j = ib; ia < ea && j < eb; ++ia) {
        j = b_order.lower(sb, j, eb, a_order.label(ia));
        for (int32_t k = j; k < eb && b_order.label(k) == a_order.label(ia); ++k) match(ia, k);
      }
    } else {
      for (int32_t i = ia; ib < eb && i < ea; ++ib) {
        i = a_order.lower(sa, i, ea, b_order.label(ib));
        for (int32_t k = i; k < ea && a_order.label(k) == b_order.label(ib); ++k) match(k, ib);
      }
    }
    if (pairs.keys().size() > 2000000000 || out.arcs.size() > 2000000000) {
      out.error = "intersect: the result has more than 2 * 10^9 states or arcs";
      return out;
    }
  }
  if (!reached_final) return FsaResult();
  out.num_states = static_cast<int32_t>(pairs.keys().size()) + 1;
  for (Arc& arc : out.arcs)
    if (arc.dest == kFinal) arc.dest = out.num_states - 1;
  return out;
}

}  // namespace lattica
