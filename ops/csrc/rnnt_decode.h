// Beam search of transducers with one symbol a frame on a decoding graph, one utterance a call: a frame forward, and the
// lattice of all frames.
//
// A state is a pair (context, graph state): the last symbols, which the prediction network sees, as a number in base V, and
// where in the graph they led. Blank stays in both; an arc of the graph appends its label to the context; one with label 0
// moves on in the graph while a blank is read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "fsa.h"

namespace lattica {

struct RnntGraph {
  int32_t num_states;
  int64_t num_arcs;
  const int32_t* splits;
  const Arc* arcs;
  const float* scores;
};

struct RnntSearch {
  int64_t vocab_size, num_contexts;  // num_contexts = vocab_size ^ (symbols that the prediction network sees)
  double beam;
  int64_t max_states, max_contexts;
  bool k2_order;  // arcs into the final state read a frame, as a blank does; max_states is applied before max_contexts
};

// Active states of one utterance between two frames, grouped by context: those of context c are splits[c] ... splits[c + 1] - 1.
struct RnntStates {
  int64_t num_contexts;
  const int64_t* contexts;
  const int32_t* splits;
  const int32_t* graph_states;  // indexed by what splits holds, and so are the scores
  const double* scores;
};

struct RnntArc {
  int32_t src, dest;  // active states before and after the frame, counted within the utterance
  int32_t graph_arc;  // -1: blank
  int32_t row;        // of the frame's log-probabilities
};

struct RnntFrame {
  std::vector<int64_t> contexts;
  std::vector<int32_t> context_ends, graph_states;
  std::vector<double> scores;
  std::vector<RnntArc> arcs;  // ordered by src
  std::vector<float> arc_scores;
  const char* error = nullptr;
  int64_t error_value = 0;
};

// Reads one frame. Lives on for many frames, so that its memory is allocated once.
class RnntAdvancer {
 public:
  RnntFrame run(const RnntGraph& graph, const RnntSearch& search, const RnntStates& states, const float* log_probs,
                int32_t first_row) {
    out_ = {};
    candidates_.clear();
    dests_.clear();
    clear_table();
    find_symbols(graph, search, states, log_probs);
    if (!out_.error) expand(graph, search, states, log_probs, first_row);
    if (out_.error) return std::move(out_);
    prune(search);
    emit();
    return std::move(out_);
  }

 private:
  static constexpr double kNone = -std::numeric_limits<double>::infinity();
  struct Dest {
    int64_t context;
    int32_t graph_state, number;  // number: of the survivors, -1 if pruned
    double score;
  };
  struct Group {  // the states of a context in kept_
    int32_t begin, end;
    double best;
  };
  struct Candidate {
    RnntArc arc;
    float score;
  };

  void add(double total, int32_t src, int32_t graph_arc, int32_t row, float score, int64_t context, int32_t graph_state) {
    if (!(total > kNone)) return;  // so written that nan is dropped, too
    const int32_t dest = find(context, graph_state);
    dests_[dest].score = std::max(dests_[dest].score, total);
    candidates_.push_back({{src, dest, graph_arc, row}, score});
  }

  // Which symbols can stand last in one of the max_contexts best contexts? Contexts with different last symbols are different,
  // so if each of max_contexts symbols ends one that is better, a context can be forgotten before anything is looked up.
  void find_symbols(const RnntGraph& graph, const RnntSearch& search, const RnntStates& states, const float* log_probs) {
    best_.assign(search.vocab_size, kNone);
    cutoff_ = kNone;
    for (int32_t s = states.splits[0]; s < states.splits[states.num_contexts]; ++s)
      cutoff_ = std::max(cutoff_, states.scores[s] - search.beam);
    for (int64_t c = 0; c < states.num_contexts; ++c) {
      const float* row = log_probs + c * search.vocab_size;
      double before_blank = kNone;
      for (int32_t s = states.splits[c]; s < states.splits[c + 1]; ++s) {
        const double before = states.scores[s];
        const int32_t state = states.graph_states[s];
        if (state < 0 || state >= graph.num_states) return fail("an active state is not one of the graph: ", state);
        const int64_t begin = graph.splits[state], end = graph.splits[state + 1];
        if (begin < 0 || begin > end || end > graph.num_arcs) return fail("the splits of the graph are broken at state ", state);
        before_blank = std::max(before_blank, before);
        for (int64_t a = begin; a < end; ++a) {
          const int32_t label = graph.arcs[a].label;
          if (label < -1 || label >= search.vocab_size) return fail("a label of the graph is not below vocab_size: ", label);
          const double score = graph.scores[a] + before;
          if (label <= 0) before_blank = std::max(before_blank, score);
          else best_[label] = std::max(best_[label], score + row[label]);
        }
      }
      double& best = best_[states.contexts[c] % search.vocab_size];
      best = std::max(best, before_blank + row[0]);
    }
    double least = kNone;
    if (!search.k2_order && search.max_contexts < search.vocab_size) {
      ranks_ = best_;
      std::nth_element(ranks_.begin(), ranks_.begin() + (search.max_contexts - 1), ranks_.end(), std::greater<double>());
      least = ranks_[search.max_contexts - 1];
    }
    possible_.resize(search.vocab_size);
    for (int64_t v = 0; v < search.vocab_size; ++v) possible_[v] = best_[v] >= least;
  }

  void expand(const RnntGraph& graph, const RnntSearch& search, const RnntStates& states, const float* log_probs,
              int32_t first_row) {
    for (int64_t c = 0; c < states.num_contexts; ++c) {
      const float* row = log_probs + c * search.vocab_size;
      const int64_t context = states.contexts[c], shifted = context * search.vocab_size % search.num_contexts;
      const bool stays = possible_[context % search.vocab_size];
      const int32_t r = first_row + static_cast<int32_t>(c);
      for (int32_t s = states.splits[c]; s < states.splits[c + 1]; ++s) {
        const double before = states.scores[s];
        const int32_t state = states.graph_states[s], src = s - states.splits[0];
        // Blanks are taken whatever their score, so that not all states can be lost.
        if (stays) add(before + row[0], src, -1, r, row[0], context, state);
        for (int32_t a = graph.splits[state]; a < graph.splits[state + 1]; ++a) {
          const Arc& arc = graph.arcs[a];
          if (arc.label > 0 ? !possible_[arc.label] : !stays) continue;
          if (arc.dest < 0 || arc.dest >= graph.num_states) return fail("an arc of the graph leads to state ", arc.dest);
          if (arc.label > 0) {
            const float score = row[arc.label] + graph.scores[a];
            if (before + score >= cutoff_) add(before + score, src, a, r, score, shifted + arc.label, arc.dest);
          } else if (arc.label == 0 || (search.k2_order && before + graph.scores[a] >= cutoff_)) {
            const float score = row[0] + graph.scores[a];
            add(before + score, src, a, r, score, context, arc.dest);
          }
        }
      }
    }
  }

  // The max_contexts best contexts stay (a context is as good as its best state), of their states the max_states best, and
  // of those the ones within the beam; or the states are chosen first, then the contexts. They are numbered in the order of
  // contexts and graph states.
  void prune(const RnntSearch& search) {
    kept_.resize(dests_.size());
    std::iota(kept_.begin(), kept_.end(), 0);
    if (search.k2_order) limit_states(search);
    limit_contexts(search);
    if (!search.k2_order) limit_states(search);
    sort_kept();
    for (int32_t i : kept_) {
      Dest& dest = dests_[i];
      if (out_.contexts.empty() || out_.contexts.back() != dest.context) {
        out_.contexts.push_back(dest.context);
        out_.context_ends.push_back(0);
      }
      dest.number = static_cast<int32_t>(out_.scores.size());
      out_.graph_states.push_back(dest.graph_state);
      out_.scores.push_back(dest.score);
      out_.context_ends.back() = static_cast<int32_t>(out_.scores.size());
    }
  }

  void limit_states(const RnntSearch& search) {
    double best = kNone;
    for (int32_t i : kept_) best = std::max(best, dests_[i].score);
    const auto worse = [&](int32_t i) { return dests_[i].score < best - search.beam; };
    kept_.erase(std::remove_if(kept_.begin(), kept_.end(), worse), kept_.end());
    if (static_cast<int64_t>(kept_.size()) <= search.max_states) return;
    std::nth_element(kept_.begin(), kept_.begin() + search.max_states, kept_.end(), [&](int32_t i, int32_t j) {
      return dests_[i].score > dests_[j].score || (dests_[i].score == dests_[j].score && before(i, j));
    });
    kept_.resize(search.max_states);
  }

  void limit_contexts(const RnntSearch& search) {
    sort_kept();
    groups_.clear();
    for (int32_t i = 0; i < static_cast<int32_t>(kept_.size()); ++i) {
      const Dest& dest = dests_[kept_[i]];
      if (i == 0 || dest.context != dests_[kept_[i - 1]].context) groups_.push_back({i, i, kNone});
      groups_.back().end = i + 1;
      groups_.back().best = std::max(groups_.back().best, dest.score);
    }
    if (static_cast<int64_t>(groups_.size()) <= search.max_contexts) return;
    std::nth_element(groups_.begin(), groups_.begin() + search.max_contexts, groups_.end(), [](const Group& x, const Group& y) {
      return x.best > y.best || (x.best == y.best && x.begin < y.begin);
    });
    groups_.resize(search.max_contexts);
    ranked_.clear();
    for (const Group& group : groups_) ranked_.insert(ranked_.end(), kept_.begin() + group.begin, kept_.begin() + group.end);
    kept_.swap(ranked_);
  }

  void sort_kept() {
    std::sort(kept_.begin(), kept_.end(), [&](int32_t i, int32_t j) { return before(i, j); });
  }

  bool before(int32_t i, int32_t j) const {
    const Dest &x = dests_[i], &y = dests_[j];
    return x.context < y.context || (x.context == y.context && x.graph_state < y.graph_state);
  }

  void emit() {
    for (const Candidate& candidate : candidates_) {
      const int32_t dest = dests_[candidate.arc.dest].number;
      if (dest < 0) continue;
      out_.arcs.push_back(candidate.arc);
      out_.arcs.back().dest = dest;
      out_.arc_scores.push_back(candidate.score);
    }
  }

  // A table with open addressing from (context, graph state) to dests_. Entries of earlier frames are known by their stamp.
  struct Entry { uint32_t stamp; int32_t dest; };

  void clear_table() {
    if (++stamp_ == 0) table_.assign(table_.size(), {0, 0}), stamp_ = 1;
    if (table_.empty()) table_.assign(1024, {0, 0});
  }

  static uint64_t hash(int64_t context, int32_t graph_state) {
    uint64_t x = static_cast<uint64_t>(context) * 0x9e3779b97f4a7c15u + static_cast<uint32_t>(graph_state);
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
    return x ^ (x >> 32);
  }

  int32_t find(int64_t context, int32_t graph_state) {
    if (2 * dests_.size() >= table_.size()) grow();
    const size_t mask = table_.size() - 1;
    for (size_t i = hash(context, graph_state) & mask;; i = (i + 1) & mask) {
      Entry& entry = table_[i];
      if (entry.stamp != stamp_) {
        entry = {stamp_, static_cast<int32_t>(dests_.size())};
        dests_.push_back({context, graph_state, -1, kNone});
        return entry.dest;
      }
      const Dest& dest = dests_[entry.dest];
      if (dest.context == context && dest.graph_state == graph_state) return entry.dest;
    }
  }

  void grow() {
    table_.assign(2 * table_.size(), {0, 0});
    stamp_ = 1;
    const size_t mask = table_.size() - 1;
    for (size_t d = 0; d < dests_.size(); ++d) {
      size_t i = hash(dests_[d].context, dests_[d].graph_state) & mask;
      while (table_[i].stamp == stamp_) i = (i + 1) & mask;
      table_[i] = {stamp_, static_cast<int32_t>(d)};
    }
  }

  void fail(const char* error, int64_t value) { out_.error = error, out_.error_value = value; }

  std::vector<Entry> table_;
  uint32_t stamp_ = 0;
  std::vector<Dest> dests_;
  std::vector<Candidate> candidates_;
  std::vector<int32_t> kept_, ranked_;
  std::vector<Group> groups_;
  std::vector<double> best_, ranks_;  // best_[v]: of the states whose last symbol is v
  std::vector<char> possible_;
  double cutoff_ = kNone;  // for arcs with symbols
  RnntFrame out_;
};

// What is kept of a frame of one utterance.
struct RnntFrameView {
  int64_t num_states;           // after the frame
  const int32_t* graph_states;  // of those
  int64_t num_arcs;
  const RnntArc* arcs;
  const float* arc_scores;
  int64_t rows_before;  // rows of log-probabilities of earlier frames
};

struct RnntLattice {
  FsaResult fsa;              // map_a: the arc of the graph; map_b: the row of log-probabilities; -1: none
  std::vector<float> scores;
};

// All arcs between active states from which the end can be reached. States are in the order of time.
//
// The end is reached after the last frame, through the final arcs of the states that are active then; or, if final_frame,
// from the states before the last frame whose final arcs read it, at no cost: k2's way, which leaves out its scores. With
// allow_partial all these states end if none does properly (in k2's way once for each arc of the last frame).
class RnntLatticeMaker {
 public:
  RnntLatticeMaker(const RnntGraph& graph, const std::vector<RnntFrameView>& frames, bool allow_partial, bool final_frame)
      : graph_(graph), frames_(frames), length_(frames.size()) {
    if (final_frame && length_ > 0) {
      --length_;
      find_ends_in(frames[length_], allow_partial);
    } else {
      find_ends_after(allow_partial);
    }
  }

  RnntLattice run() {
    // number_[t][i]: of state i before frame t in the lattice; first marked backwards in time, then counted forwards.
    number_.resize(length_ + 1);
    for (size_t t = 0; t <= length_; ++t) number_[t].assign(num_states(t), -1);
    for (const End& end : ends_) number_[length_][end.state] = 0;
    for (size_t t = length_; t-- > 0;)
      for (int64_t a = 0; a < frames_[t].num_arcs; ++a) {
        const RnntArc& arc = frames_[t].arcs[a];
        if (number_[t + 1][arc.dest] == 0) number_[t][arc.src] = 0;
      }
    int32_t count = 0;
    for (std::vector<int32_t>& at : number_)
      for (int32_t& n : at)
        if (n == 0) n = count++;
    if (count > 0) emit(count);
    return std::move(out_);
  }

 private:
  struct End { int32_t state, graph_arc; float score; };

  int64_t num_states(size_t t) const { return t == 0 ? 1 : frames_[t - 1].num_states; }
  int32_t graph_state(size_t t, int32_t i) const { return t == 0 ? 0 : frames_[t - 1].graph_states[i]; }
  int32_t label(int32_t graph_arc) const { return graph_arc < 0 ? 0 : graph_.arcs[graph_arc].label; }

  void find_ends_after(bool allow_partial) {
    const int32_t n = static_cast<int32_t>(num_states(length_));
    for (int32_t i = 0; i < n; ++i) {
      const int32_t s = graph_state(length_, i);
      for (int32_t a = graph_.splits[s]; a < graph_.splits[s + 1]; ++a)
        if (graph_.arcs[a].label == -1) ends_.push_back({i, a, graph_.scores[a]});
    }
    if (ends_.empty() && allow_partial)
      for (int32_t i = 0; i < n; ++i) ends_.push_back({i, -1, 0.0f});
  }

  void find_ends_in(const RnntFrameView& frame, bool allow_partial) {
    for (int64_t a = 0; a < frame.num_arcs; ++a)
      if (label(frame.arcs[a].graph_arc) == -1) ends_.push_back({frame.arcs[a].src, frame.arcs[a].graph_arc, 0.0f});
    if (ends_.empty() && allow_partial)
      for (int64_t a = 0; a < frame.num_arcs; ++a) ends_.push_back({frame.arcs[a].src, -1, 0.0f});
  }

  void emit(int32_t count) {
    for (size_t t = 0; t < length_; ++t)
      for (int64_t a = 0; a < frames_[t].num_arcs; ++a) {
        const RnntArc& arc = frames_[t].arcs[a];
        const int32_t dest = number_[t + 1][arc.dest], symbol = label(arc.graph_arc);
        // Only if final_frame, a final arc may have been taken on the way: what follows it are blanks, and so is it.
        if (dest >= 0)
          push({number_[t][arc.src], dest, std::max(symbol, 0)}, symbol < 0 ? -1 : arc.graph_arc,
               static_cast<int32_t>(frames_[t].rows_before + arc.row), frames_[t].arc_scores[a]);
      }
    for (const End& end : ends_) push({number_[length_][end.state], count, -1}, end.graph_arc, -1, end.score);
    out_.fsa.num_states = count + 1;
  }

  void push(const Arc& arc, int32_t graph_arc, int32_t row, float score) {
    out_.fsa.arcs.push_back(arc);
    out_.fsa.map_a.push_back(graph_arc);
    out_.fsa.map_b.push_back(row);
    out_.scores.push_back(score);
  }

  const RnntGraph& graph_;
  const std::vector<RnntFrameView>& frames_;
  size_t length_;  // frames whose arcs are in the lattice
  std::vector<End> ends_;  // ordered by state
  std::vector<std::vector<int32_t>> number_;
  RnntLattice out_;
};

}  // namespace lattica
