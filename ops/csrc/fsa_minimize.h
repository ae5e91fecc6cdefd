// Merge states with equal futures: the same labels, aux labels and scores (up to `delta`) into merged states. For a deterministic
// automaton with pushed weights that gives the least one. One FSA a call.
//
// Top-sorted input takes one pass from the end (Revuz, 1992). Else groups of states are split until nothing splits; of a group's
// parts the largest keeps its name, and only states with an arc into a renamed one are looked at again, so that a state is renamed
// at most log2(n) times (after Hopcroft, 1971, and Paige & Tarjan, 1987).
#pragma once

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <vector>

#include "fsa.h"
#include "fsa_scores.h"

namespace lattica {

class Minimizer {
 public:
  Minimizer(const FsaView& fsa, const double* scores, const int32_t* aux, double delta)
      : fsa_(fsa), aux_(aux), group_(fsa.num_states, 0), rounded_(fsa.num_arcs()) {
    for (int32_t i = 0; i < fsa.num_arcs(); ++i) {
      const double q = std::round(scores[fsa.first_arc() + i] / delta);  // +-inf and nan have numbers of their own
      rounded_[i] = std::isnan(q) ? INT64_MIN : static_cast<int64_t>(std::max(-9e18, std::min(9e18, q)));
    }
  }

  void run(Renumbering* out) {
    const int32_t n = fsa_.num_states;
    if (n == 0) return;
    if (goes_up(fsa_)) {
      std::unordered_map<Signature, int32_t, SignatureHash> groups;
      groups.reserve(n);
      for (int32_t s = n - 1; s >= 0; --s)
        group_[s] = groups.emplace(signature(s), static_cast<int32_t>(groups.size())).first->second;
      num_groups_ = static_cast<int32_t>(groups.size());
    } else {
      refine();
    }
    // The last state of a group stands for it, except that the start stands for its own: arcs then still go up.
    std::vector<int32_t> stands(num_groups_, -1);
    for (int32_t s = 0; s < n; ++s) stands[group_[s]] = s;
    stands[group_[0]] = 0;
    for (int32_t s = 0; s < n; ++s)
      if (stands[group_[s]] == s) out->append(s);
    for (int32_t s = 0; s < n; ++s) out->order[s] = out->order[stands[group_[s]]];
  }

 private:
  // What leaves a state, as 128 hashed bits: two states with equal bits count as equal.
  struct Signature {
    uint64_t a, b;
    bool operator==(const Signature& o) const { return a == o.a && b == o.b; }
    bool operator<(const Signature& o) const { return a != o.a ? a < o.a : b < o.b; }
  };
  struct SignatureHash {
    size_t operator()(const Signature& s) const { return s.a; }
  };
  static uint64_t mix(uint64_t x) {  // the finalizer of splitmix64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
  }
  // The sum of the arcs' hashes: the arcs' order does not matter, their number does.
  Signature signature(int32_t s) const {
    Signature sum{s == fsa_.final_state() ? 1ULL : 0ULL, static_cast<uint64_t>(fsa_.end(s) - fsa_.begin(s))};
    for (int32_t a = fsa_.begin(s); a < fsa_.end(s); ++a) {
      const Arc& arc = fsa_.arcs[a];
      const uint64_t labels = static_cast<uint64_t>(static_cast<uint32_t>(arc.label)) << 32 | static_cast<uint32_t>(aux_[a]);
      const uint64_t h = mix(labels + 0x9E3779B97F4A7C15ULL) ^ mix(static_cast<uint64_t>(rounded_[a - fsa_.first_arc()]));
      const uint64_t g = mix(h + 0xD1342543DE82EF95ULL * (static_cast<uint64_t>(group_[arc.dest]) + 1));
      sum.a += g;
      sum.b += mix(g ^ 0xA0761D6478BD642FULL);
    }
    return sum;
  }

  struct Item {
    int32_t group;
    Signature signature;
    int32_t state;
  };

  void refine() {
    const int32_t n = fsa_.num_states;
    std::vector<int32_t> splits, entering, dirty(n), parts;
    std::vector<char> is_dirty(n, 0);
    std::vector<Item> items;
    entering_arcs(fsa_, &splits, &entering);
    place_.resize(n);
    for (int32_t s = 0; s < n; ++s) dirty[s] = s;
    group_.assign(n, -1);
    make_group(0, dirty);
    while (!dirty.empty()) {
      items.clear();
      for (int32_t s : dirty) items.push_back({group_[s], signature(s), s});
      std::sort(items.begin(), items.end(), [](const Item& x, const Item& y) {
        if (x.group != y.group) return x.group < y.group;
        return x.signature == y.signature ? x.state < y.state : x.signature < y.signature;
      });
      renamed_.clear();
      for (size_t i = 0; i < items.size();) {
        const int32_t g = items[i].group;
        parts.assign(1, static_cast<int32_t>(i));  // where each part of the group's dirty states begins
        size_t largest = 0;
        while (i < items.size() && items[i].group == g) {
          const Signature& first = items[i].signature;
          while (i < items.size() && items[i].group == g && items[i].signature == first) ++i;
          parts.push_back(static_cast<int32_t>(i));
          const size_t p = parts.size() - 2;
          if (parts[p + 1] - parts[p] > parts[largest + 1] - parts[largest]) largest = p;
        }
        split(g, items, parts, largest);
      }
      dirty.clear();
      for (int32_t s : renamed_)
        for (int32_t k = splits[s]; k < splits[s + 1]; ++k) {
          const int32_t p = fsa_.arcs[entering[k]].src;
          if (!is_dirty[p]) is_dirty[p] = 1, dirty.push_back(p);
        }
      for (int32_t s : dirty) is_dirty[s] = 0;
    }
  }

  // Split group g by the parts of its dirty states; its other states are a part, too: their arcs lead where they led.
  void split(int32_t g, const std::vector<Item>& items, const std::vector<int32_t>& parts, size_t largest) {
    const size_t looked_at = parts.back() - parts.front(), rest = members_[g].size() - looked_at;
    if (rest == 0 && parts.size() == 2) return;  // all alike
    for (int32_t k = parts.front(); k < parts.back(); ++k) {
      std::vector<int32_t>& list = members_[g];
      const int32_t s = items[k].state, last = list.back();
      list[place_[s]] = last;
      place_[last] = place_[s];
      list.pop_back();
    }
    const bool rest_keeps = rest >= static_cast<size_t>(parts[largest + 1] - parts[largest]);
    std::vector<int32_t> others;
    if (!rest_keeps) others.swap(members_[g]);
    for (size_t p = 0; p + 1 < parts.size(); ++p) {
      std::vector<int32_t> states;
      for (int32_t k = parts[p]; k < parts[p + 1]; ++k) states.push_back(items[k].state);
      const bool keeps = !rest_keeps && p == largest;
      make_group(keeps ? g : num_groups_, std::move(states));
    }
    if (!others.empty()) make_group(num_groups_, std::move(others));
  }

  void make_group(int32_t g, std::vector<int32_t> states) {
    for (size_t i = 0; i < states.size(); ++i) {
      if (group_[states[i]] != g) renamed_.push_back(states[i]);
      group_[states[i]] = g;
      place_[states[i]] = static_cast<int32_t>(i);
    }
    if (g == num_groups_) {
      ++num_groups_;
      members_.push_back(std::move(states));
    } else {
      members_[g] = std::move(states);
    }
  }

  const FsaView& fsa_;
  const int32_t* aux_;
  std::vector<int32_t> group_;
  std::vector<int64_t> rounded_;  // score / delta
  int32_t num_groups_ = 0;
  std::vector<std::vector<int32_t>> members_;  // of each group
  std::vector<int32_t> place_;                 // of each state among its group's members
  std::vector<int32_t> renamed_;
};

}  // namespace lattica
