// A deterministic automaton with the same best score for every string. One FSA a call.
//
// A state of the result is what a string leads to: a set of input states with the best path to each. What all these paths share is
// paid on the way; so a state is told by the one input state where they part (its base) and the labels after it. All labels count
// as real ones, 0 as well. It may not end for cyclic input.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "fsa.h"

namespace lattica {

// Lists of integers to the number that was given with them first; open addressing, the lists one after another in one array.
class ListNumbering {
 public:
  // The number of `key`: `fresh` if it was not there before.
  int32_t get(const std::vector<int32_t>& key, int32_t fresh) {
    if (2 * (entries_.size() + 1) > slots_.size()) grow();
    uint64_t h = key.size();
    for (int32_t x : key) h = (h ^ static_cast<uint32_t>(x)) * 0x9E3779B97F4A7C15ULL, h ^= h >> 29;
    size_t i = h & (slots_.size() - 1);
    for (; slots_[i] >= 0; i = (i + 1) & (slots_.size() - 1)) {
      const Entry& e = entries_[slots_[i]];
      if (e.hash == h && e.size == key.size() && std::equal(key.begin(), key.end(), pool_.begin() + e.begin)) return e.number;
    }
    slots_[i] = static_cast<int32_t>(entries_.size());
    entries_.push_back({h, pool_.size(), key.size(), fresh});
    pool_.insert(pool_.end(), key.begin(), key.end());
    return fresh;
  }

 private:
  struct Entry {
    uint64_t hash;
    size_t begin, size;
    int32_t number;
  };
  void grow() {
    slots_.assign(std::max<size_t>(64, slots_.size() * 2), -1);
    for (size_t k = 0; k < entries_.size(); ++k) {
      size_t i = entries_[k].hash & (slots_.size() - 1);
      while (slots_[i] >= 0) i = (i + 1) & (slots_.size() - 1);
      slots_[i] = static_cast<int32_t>(k);
    }
  }
  std::vector<int32_t> slots_, pool_;
  std::vector<Entry> entries_;
};

class Determinizer {
 public:
  Determinizer(const FsaView& fsa, const double* scores, int64_t max_states)
      : fsa_(fsa), scores_(scores), max_states_(max_states), alone_(fsa.num_states, -1) {}

  FsaResult run() {
    if (fsa_.num_states == 0) return std::move(out_);
    const size_t likely = static_cast<size_t>(fsa_.num_arcs());
    out_.arcs.reserve(likely), out_.map_a.reserve(likely), out_.map_ends.reserve(likely), states_.reserve(fsa_.num_states);
    state_alone(0);
    for (size_t s = 0; s < states_.size(); ++s) {
      const State state = states_[s];
      base_ = state.base;
      take_trie(state);
      expand(static_cast<int32_t>(s));
      if (static_cast<int64_t>(states_.size()) > max_states_ || out_.map_a.size() > 2000000000) {
        out_.error = "determinize: more states than max_states, or more than 2 * 10^9 arcs";
        return std::move(out_);
      }
    }
    out_.num_states = static_cast<int32_t>(states_.size()) + (fsa_.num_states > 1 ? 1 : 0);
    for (Arc& arc : out_.arcs)
      if (arc.label == -1) arc.dest = out_.num_states - 1;
    return std::move(out_);
  }

 private:
  // The best paths from a base to the input states of a set, level by level: all have the same labels. A node is an arc and, above
  // it, the node before (-1: the base). The last level ends in the set's states.
  struct Node {
    int32_t above, arc;
  };
  struct Trie {
    std::vector<Node> nodes;
    int32_t last_level = 0;  // where it begins
  };
  struct State {
    int32_t base;
    int32_t num_nodes;  // of its trie; 0: the set is the base itself
    int32_t last_level;
  };
  struct Move {
    int32_t label, dest;
    double score;
    int32_t above, arc;
  };

  void expand(int32_t s) {
    moves_.clear();
    if (trie_.nodes.empty()) {
      if (expand_deterministic(s)) return;
      add_moves(base_, 0, -1);
    } else {
      path_scores_.resize(trie_.nodes.size());
      for (size_t i = 0; i < trie_.nodes.size(); ++i) {
        const Node& node = trie_.nodes[i];
        path_scores_[i] = (node.above < 0 ? 0 : path_scores_[node.above]) + scores_[node.arc];
      }
      for (size_t i = trie_.last_level; i < trie_.nodes.size(); ++i)
        add_moves(fsa_.arcs[trie_.nodes[i].arc].dest, path_scores_[i], static_cast<int32_t>(i));
    }
    by_label_.resize(moves_.size());  // then by place
    for (size_t i = 0; i < moves_.size(); ++i) by_label_[i] = static_cast<uint64_t>(static_cast<uint32_t>(moves_[i].label)) << 32 | i;
    if (!std::is_sorted(by_label_.begin(), by_label_.end())) std::sort(by_label_.begin(), by_label_.end());
    for (size_t i = 0, end; i < by_label_.size(); i = end) {
      for (end = i + 1; end < by_label_.size() && by_label_[end] >> 32 == by_label_[i] >> 32;) ++end;
      const Move& first = moves_[by_label_[i] & 0xFFFFFFFFu];
      if (end == i + 1 || !several_ends(i, end)) {
        const Move& best = end == i + 1 ? first : same_label_[0];
        emit(s, best.label, best.above, best.arc, best.label == -1 ? -1 : state_alone(best.dest));
      } else {
        connect_to(s, first.label);
      }
    }
  }

  // Into next_: the best way to each state that moves i ... end - 1 of by_label_ lead to; whether these are more than one.
  bool several_ends(size_t i, size_t end) {
    same_label_.clear();
    for (; i < end; ++i) same_label_.push_back(moves_[by_label_[i] & 0xFFFFFFFFu]);
    const auto less = [](const Move& x, const Move& y) {
      if (x.dest != y.dest) return x.dest < y.dest;
      return x.score != y.score ? x.score > y.score : x.arc < y.arc;
    };
    if (!std::is_sorted(same_label_.begin(), same_label_.end(), less)) std::sort(same_label_.begin(), same_label_.end(), less);
    next_.clear();
    for (size_t k = 0; k < same_label_.size(); ++k)
      if (k == 0 || same_label_[k].dest != same_label_[k - 1].dest) next_.push_back({same_label_[k].above, same_label_[k].arc});
    return next_.size() > 1;
  }

  // For a state without a trie whose arcs have rising labels; false if they do not.
  bool expand_deterministic(int32_t s) {
    for (int32_t a = fsa_.begin(base_) + 1; a < fsa_.end(base_); ++a)
      if (!label_less(fsa_.arcs[a - 1].label, fsa_.arcs[a].label)) return false;
    for (int32_t a = fsa_.begin(base_); a < fsa_.end(base_); ++a) {
      const Arc& arc = fsa_.arcs[a];
      emit(s, arc.label, -1, a, arc.label == -1 ? -1 : state_alone(arc.dest));
    }
    return true;
  }

  void add_moves(int32_t state, double score, int32_t above) {
    for (int32_t a = fsa_.begin(state); a < fsa_.end(state); ++a) {
      const double x = score + scores_[a];  // nan, which has no place in an order, counts as -inf
      moves_.push_back({fsa_.arcs[a].label, fsa_.arcs[a].dest, x == x ? x : -std::numeric_limits<double>::infinity(), above, a});
    }
  }

  // The arc of the result that stands for the path down to node `above` and, if it is not -1, for `arc` after it.
  void emit(int32_t s, int32_t label, int32_t above, int32_t arc, int32_t dest) {
    const size_t begin = out_.map_a.size();
    if (arc >= 0) out_.map_a.push_back(arc);
    for (int32_t x = above; x >= 0; x = trie_.nodes[x].above) out_.map_a.push_back(trie_.nodes[x].arc);
    std::reverse(out_.map_a.begin() + begin, out_.map_a.end());
    out_.map_ends.push_back(static_cast<int32_t>(out_.map_a.size()));
    out_.arcs.push_back({s, dest, label});
  }

  int32_t state_alone(int32_t base) {
    if (alone_[base] < 0) {
      alone_[base] = static_cast<int32_t>(states_.size());
      states_.push_back({base, 0, 0});
    }
    return alone_[base];
  }

  // An arc to a state with several input states, next_: go up to where their paths part.
  void connect_to(int32_t s, int32_t label) {
    level_.assign(next_.begin(), next_.end());
    levels_.clear();       // from the last one up, each node's `above` a place in the next of them
    level_begins_.clear();
    key_.clear();
    place_.resize(trie_.nodes.size());
    int32_t meet = -1;
    for (;;) {
      key_.push_back(fsa_.arcs[level_[0].arc].label);
      level_begins_.push_back(static_cast<int32_t>(levels_.size()));
      above_.clear();
      for (const Node& node : level_) {
        int32_t place = -1;
        if (node.above >= 0) {
          // place_ may hold an old entry: it counts only if that place really holds this node.
          place = place_[node.above];
          if (place < 0 || place >= static_cast<int32_t>(above_.size()) || above_[place] != node.above) {
            place = place_[node.above] = static_cast<int32_t>(above_.size());
            above_.push_back(node.above);
          }
        }
        levels_.push_back({place, node.arc});
      }
      if (above_.size() <= 1) {
        meet = above_.empty() ? -1 : above_[0];
        break;
      }
      level_.clear();
      for (int32_t x : above_) level_.push_back(trie_.nodes[x]);
    }
    key_.push_back(meet < 0 ? base_ : fsa_.arcs[trie_.nodes[meet].arc].dest);
    const int32_t fresh = static_cast<int32_t>(states_.size());
    const int32_t dest = numbers_.get(key_, fresh);
    emit(s, label, meet, -1, dest);
    if (dest != fresh) return;
    add_trie(key_.back());
  }

  // A state whose trie is the levels below the meeting place, turned over so that the first comes first.
  void add_trie(int32_t base) {
    const size_t first = waiting_.size();
    int32_t begin_above = -1;
    level_begins_.push_back(static_cast<int32_t>(levels_.size()));
    for (size_t k = level_begins_.size() - 1; k-- > 0;) {
      const int32_t begin = static_cast<int32_t>(waiting_.size() - first);
      for (int32_t i = level_begins_[k]; i < level_begins_[k + 1]; ++i)
        waiting_.push_back({begin_above < 0 ? -1 : begin_above + levels_[i].above, levels_[i].arc});
      begin_above = begin;
    }
    states_.push_back({base, static_cast<int32_t>(waiting_.size() - first), begin_above});
  }

  // States are expanded in the order in which their tries were put behind each other.
  void take_trie(const State& state) {
    trie_.nodes.assign(waiting_.begin() + taken_, waiting_.begin() + taken_ + state.num_nodes);
    trie_.last_level = state.last_level;
    taken_ += state.num_nodes;
    if (taken_ < kForget || 2 * taken_ < waiting_.size()) return;
    waiting_.erase(waiting_.begin(), waiting_.begin() + taken_);
    taken_ = 0;
  }

  static constexpr size_t kForget = 1 << 16;  // nodes
  const FsaView& fsa_;
  const double* scores_;
  int64_t max_states_;
  std::vector<State> states_;
  std::vector<Node> waiting_;   // the tries of the states not yet expanded, from taken_ on
  size_t taken_ = 0;
  std::vector<int32_t> alone_;  // the number of the state that is this input state alone
  ListNumbering numbers_;       // of the others
  int32_t base_ = 0;            // of the state being expanded
  Trie trie_;
  std::vector<Move> moves_, same_label_;
  std::vector<uint64_t> by_label_;
  std::vector<Node> next_, level_, levels_;
  std::vector<int32_t> above_, level_begins_, place_, key_;
  std::vector<double> path_scores_;
  FsaResult out_;
};

}  // namespace lattica
