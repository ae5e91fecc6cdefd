// Intersection (and, on inner labels, composition) of two automata: states are pairs, arcs are pairs with one label.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "fsa.h"

namespace lattica {

// 64-bit keys (not all ones) to 0, 1, 2, ... in order of first sight; open addressing, grows as it fills. Key and number lie side
// by side, so that a look-up costs one line of the cache.
class Numbering {
 public:
  explicit Numbering(size_t expected = 64) {
    size_t size = 64;
    while (size < 2 * expected) size *= 2;
    slots_.assign(size, Slot{kNone, 0});
    keys_.reserve(expected);
  }
  int32_t get(uint64_t key) {  // its number; new if keys().size() grew
    Slot* slot = find(key);
    if (slot->key == key) return slot->number;
    if (2 * (keys_.size() + 1) > slots_.size()) {
      slots_.assign(slots_.size() * (slots_.size() < kLarge ? 4 : 2), Slot{kNone, 0});
      for (size_t k = 0; k < keys_.size(); ++k) *find(keys_[k]) = Slot{keys_[k], static_cast<int32_t>(k)};
      slot = find(key);
    }
    *slot = Slot{key, static_cast<int32_t>(keys_.size())};
    keys_.push_back(key);
    return slot->number;
  }
  const std::vector<uint64_t>& keys() const { return keys_; }

 private:
  static constexpr uint64_t kNone = ~0ULL;
  static constexpr size_t kLarge = 1 << 20;
  struct Slot {
    uint64_t key;
    int32_t number;
  };
  Slot* find(uint64_t key) {
    const uint64_t h = key * 0x9E3779B97F4A7C15ULL;
    size_t i = (h ^ (h >> 32)) & (slots_.size() - 1);
    while (slots_[i].key != kNone && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
    return &slots_[i];
  }
  std::vector<Slot> slots_;
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
    if (s == fsa.num_states) return;
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
  LabelOrder(const LabelOrder&) = delete;
  int32_t first() const { return first_; }
  int32_t arc(int32_t i) const { return first_ + (order_.empty() ? i : order_[i]); }
  int32_t label(int32_t i) const { return labels_[i]; }
  // The first of [begin, end) whose label is not below `label`; it is looked for near `begin` first.
  int32_t lower(int32_t begin, int32_t end, int32_t label) const {
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
        j = b_order.lower(j, eb, a_order.label(ia));
        for (int32_t k = j; k < eb && b_order.label(k) == a_order.label(ia); ++k) match(ia, k);
      }
    } else {
      for (int32_t i = ia; ib < eb && i < ea; ++ib) {
        i = a_order.lower(i, ea, b_order.label(ib));
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
