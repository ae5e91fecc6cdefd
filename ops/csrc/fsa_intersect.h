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
    const size_t mask = slots_.size() - 1;
    for (size_t i = h & mask;; i = (i + 1) & mask) {
      const uint64_t slot = slots_[i];
      if (slot == 0) {
        slots_[i] = make_slot(h, keys_.size());
        const int32_t fresh = append(key);
        if (3 * ++used_ > 2 * slots_.size()) grow();
        return fresh;
      }
      if ((slot ^ h) >> 32 == 0 && keys_[number(slot)] == key) return number(slot);
    }
  }
  int32_t append(uint64_t key) {  // for a key that is not there and that nobody will ask for
    keys_.push_back(key);
    return static_cast<int32_t>(keys_.size()) - 1;
  }
  void will_get(uint64_t key) const { __builtin_prefetch(&slots_[hash(key) & (slots_.size() - 1)]); }
  const std::vector<uint64_t>& keys() const { return keys_; }

 private:
  static uint64_t hash(uint64_t key) {
    const uint64_t h = key * 0x9E3779B97F4A7C15ULL;
    return h ^ (h >> 32);
  }
  static uint64_t make_slot(uint64_t h, size_t number) { return (h & 0xFFFFFFFF00000000ULL) | (number + 1); }
  static int32_t number(uint64_t slot) { return static_cast<int32_t>(slot & 0xFFFFFFFFu) - 1; }
  void grow() {
    std::vector<uint64_t> old(slots_.size() * 2, 0);
    old.swap(slots_);
    const size_t mask = slots_.size() - 1;
    for (const uint64_t slot : old) {
      if (slot == 0) continue;
      size_t i = hash(keys_[number(slot)]) & mask;
      while (slots_[i] != 0) i = (i + 1) & mask;
      slots_[i] = slot;
    }
  }
  std::vector<uint64_t> slots_;
  std::vector<uint64_t> keys_;
  size_t used_ = 0;  // slots
};

// The arcs of each state ordered by a label that may differ from Arc::label (the aux label in composition). Places count from the
// FSA's first arc.
class LabelOrder {
 public:
  LabelOrder(const FsaView& fsa, const int32_t* labels) : first_(fsa.first_arc()), labels_(labels + first_) {
    mark_entered(fsa);
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
  bool has_epsilons() const { return !entered_.empty(); }
  // Whether, of all arcs into `state`, just one (by which a walk comes) need be thought of, and whether one with label 0 is among them.
  bool entered_once(int32_t state) const { return entered_[state] & 1; }
  bool entered_by_epsilon(int32_t state) const { return has_epsilons() && entered_[state] & 4; }
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
  // Bits: entered by one arc, by several, by an epsilon. Nothing if there are no epsilons. A walk comes to the start without an arc.
  void mark_entered(const FsaView& fsa) {
    const int32_t* const end = labels_ + fsa.num_arcs();
    if (std::find(labels_, end, 0) == end) return;
    entered_.assign(fsa.num_states, 0);
    entered_[0] = 1;
    for (int32_t i = 0; i < fsa.num_arcs(); ++i) {
      char& bits = entered_[fsa.arcs[first_ + i].dest];
      bits = static_cast<char>((bits & 3 ? 2 : 1) | (bits & 4) | (labels_[i] == 0 ? 4 : 0));
    }
    entered_[0] &= 4;
  }

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
  std::vector<char> entered_;
  std::vector<int32_t> table_of_, tables_;
  int32_t first_;
  const int32_t* labels_;
  std::vector<int32_t> order_, sorted_;
};

// Intersection of two automata. States are looked at in the order of their numbers, a batch at a time: first the batch's arcs are
// listed with the pairs they lead to, then the pairs are numbered, so that the table's lines are fetched while others are used.
//
// With `epsilons`, label 0 of one side moves that side alone (map -1 for the other). Where both sides have epsilons at once, the
// moves of `a` go before those of `b`, so that each pair of paths is counted once (the epsilon-sequencing filter of Mohri,
// Pereira & Riley, 1996); `moved_b` is the filter's state.
class Intersector {
 public:
  Intersector(const FsaView& a, const LabelOrder& a_order, const FsaView& b, const LabelOrder& b_order, bool epsilons)
      : a_(a), b_(b), a_order_(a_order), b_order_(b_order), epsilons_(epsilons),
        pairs_(static_cast<size_t>(std::min(a.num_states, b.num_states))) {}

  FsaResult run() {
    if (a_.num_states == 0 || b_.num_states == 0) return FsaResult();
    const size_t likely = static_cast<size_t>(std::min(a_.num_arcs(), b_.num_arcs()));
    out_.arcs.reserve(likely), out_.map_a.reserve(likely), out_.map_b.reserve(likely);
    pairs_.get(pair(0, 0, false));
    for (size_t from = 0; from < pairs_.keys().size();) {
      const size_t first = out_.arcs.size(), known = pairs_.keys().size();
      wanted_.clear();
      while (from < known && wanted_.size() < kBatch) {
        const uint64_t key = pairs_.keys()[from];
        leave(static_cast<int32_t>(from++), static_cast<int32_t>(key >> 32), static_cast<int32_t>((key & 0xFFFFFFFFu) >> 1), key & 1);
      }
      for (size_t i = 0; i < wanted_.size(); ++i) {
        const uint64_t key = wanted_[i];
        if (key == kFinal) continue;
        out_.arcs[first + i].dest = key & kFresh ? pairs_.append(key & ~kFresh) : pairs_.get(key);
      }
      if (pairs_.keys().size() > 2000000000 || out_.arcs.size() > 2000000000) {
        out_.error = "intersect: the result has more than 2 * 10^9 states or arcs";
        return std::move(out_);
      }
    }
    if (!reached_final_) return FsaResult();
    out_.num_states = static_cast<int32_t>(pairs_.keys().size()) + 1;
    for (Arc& arc : out_.arcs)
      if (arc.dest < 0) arc.dest = out_.num_states - 1;
    return std::move(out_);
  }

 private:
  static constexpr size_t kBatch = 256;
  static constexpr uint64_t kFinal = ~uint64_t{0};         // numbered last, when the number of states is known
  static constexpr uint64_t kFresh = uint64_t{1} << 63;    // added to the key of a pair that only one arc leads to
  static uint64_t pair(int32_t sa, int32_t sb, bool moved_b) {
    return static_cast<uint64_t>(sa) << 32 | static_cast<uint64_t>(sb) << 1 | moved_b;
  }

  void add(int32_t from, uint64_t to, int32_t label, int32_t arc_a, int32_t arc_b) {
    if (!(to & kFresh)) pairs_.will_get(to);
    wanted_.push_back(to);
    out_.arcs.push_back({from, -1, label});
    out_.map_a.push_back(arc_a);
    out_.map_b.push_back(arc_b);
  }

  // The arcs that leave the pair of sa and sb, which is state `from`.
  void leave(int32_t from, int32_t sa, int32_t sb, bool moved_b) {
    const int32_t ba = a_.begin(sa) - a_order_.first(), bb = b_.begin(sb) - b_order_.first();
    int32_t ia = ba, ib = bb;
    const int32_t ea = a_.end(sa) - a_order_.first(), eb = b_.end(sb) - b_order_.first();
    if (epsilons_) {
      for (; ia < ea && a_order_.label(ia) == 0; ++ia)
        if (!moved_b) {
          const int32_t x = a_order_.arc(ia), d = a_.arcs[x].dest;
          // If nothing else enters d, and b alone does not come to sb, then there is no other way to this pair.
          const bool fresh = a_order_.entered_once(d) && !b_order_.entered_by_epsilon(sb);
          add(from, pair(d, sb, false) | (fresh ? kFresh : 0), a_.arcs[x].label, x, -1);
        }
      // After a move of b alone a must not move alone; if a has no epsilons here there is nothing to remember.
      const bool remember = ia > ba;
      for (; ib < eb && b_order_.label(ib) == 0; ++ib) {
        const int32_t y = b_order_.arc(ib);
        add(from, pair(sa, b_.arcs[y].dest, remember), 0, -1, y);
      }
    }
    if (ea - ia <= eb - ib) {
      for (int32_t j = ib; ia < ea && j < eb; ++ia) {
        j = b_order_.lower(sb, j, eb, a_order_.label(ia));
        for (int32_t k = j; k < eb && b_order_.label(k) == a_order_.label(ia); ++k) match(from, ia, k);
      }
    } else {
      for (int32_t i = ia; ib < eb && i < ea; ++ib) {
        i = a_order_.lower(sa, i, ea, b_order_.label(ib));
        for (int32_t k = i; k < ea && a_order_.label(k) == b_order_.label(ib); ++k) match(from, k, ib);
      }
    }
  }

  void match(int32_t from, int32_t i, int32_t j) {
    const int32_t x = a_order_.arc(i), y = b_order_.arc(j);
    const bool last = a_order_.label(i) == -1;
    reached_final_ |= last;
    add(from, last ? kFinal : pair(a_.arcs[x].dest, b_.arcs[y].dest, false), a_.arcs[x].label, x, y);
  }

  const FsaView a_, b_;
  const LabelOrder &a_order_, &b_order_;
  const bool epsilons_;
  Numbering pairs_;
  std::vector<uint64_t> wanted_;  // the pairs that the batch's arcs lead to
  bool reached_final_ = false;
  FsaResult out_;
};

}  // namespace lattica
