// The frame forward of rnnt_decode.h (see there for what a state is and what is kept) as a GPU wants it: a block of threads a
// stream, everything in arrays of fixed size, nothing for the host to wait for. The result is that of RnntAdvancer, up to the order
// of a frame's arcs.
//
// What bounds the arrays is known beforehand: S states with D arcs each make S * (1 + D) candidates at most (a blank is an arc, too),
// and at most S * (1 + E + C * M) of them lead into the C contexts kept, where a state has at most E arcs without a symbol and M with
// the same one. So nothing can overflow, and nothing is ever done again.
#pragma once

#include <cmath>
#include <cstdint>

#include "hash_set.h"
#include "rnnt_decode.h"
#include "block.h"

namespace lattica {

// All graphs, one after another; destinations are counted within a graph. Labels and destinations are in range:
// ops/rnnt_decode_batch.py looks.
struct RnntGraphs {
  const int32_t* fsa_splits;
  const int32_t* state_splits;
  const Arc* arcs;
  const float* scores;
  const int32_t* of_stream;
  int64_t most_states;
};

// Active states of streams between two frames, each with room for C contexts and S states. Ordered by context, then graph state.
struct RnntPaddedStates {
  int32_t *num_contexts, *num_states;  // (N)
  int64_t* contexts;                   // (N, C)
  int32_t *slots, *graph_states;       // (N, S); slots: which of the contexts
  double* scores;                      // (N, S)
};

struct RnntPaddedArcs {
  int32_t* num;     // (N)
  RnntArc* arcs;    // (N, A)
  float* scores;    // (N, A)
  int64_t capacity;  // A
};

// Scratch memory of a stream, in 64-bit words. Between frames the keys of the table are `HashSet::kEmpty`, and what is added to or
// maximised over is 0.
struct RnntScratch {
  int64_t vocab_size, max_contexts, max_states, candidates;  // C, S: the widths of the padded states

  LATTICA_BOTH int64_t table_size() const {
    int64_t size = 16;
    while (size < 2 * candidates) size *= 2;
    return size;
  }
  LATTICA_BOTH int64_t num_ids() const { return max_contexts * vocab_size + max_contexts; }
  // keys | scores | numbers | dests, dropped | best of each id | ids | best of each symbol | offsets | classes, stays | kept | counters
  LATTICA_BOTH int64_t words() const {
    return 3 * table_size() + 2 * candidates + 2 * num_ids() + vocab_size + (max_states + 1) + 2 * max_contexts + max_states + 16;
  }
};

class RnntBlockAdvancer {
 public:
  // `row`: the stream's first row of log_probs; `memory`: RnntScratch::words().
  LATTICA_DEVICE RnntBlockAdvancer(const Block& block, const RnntGraphs& graphs, const RnntSearch& search, const RnntScratch& scratch,
                                const RnntPaddedStates& in, const RnntPaddedStates& out, const RnntPaddedArcs& arcs,
                                const float* log_probs, int32_t row, int64_t* memory, int64_t i)
      : block_(block), search_(search), C_(scratch.max_contexts), S_(scratch.max_states), V_(scratch.vocab_size), out_(out), arcs_(arcs),
        log_probs_(log_probs + row * scratch.vocab_size), row_(row), i_(i), most_states_(graphs.most_states),
        num_contexts_(in.num_contexts[i]), num_states_(in.num_states[i]), contexts_(in.contexts + i * C_), slots_(in.slots + i * S_),
        graph_states_(in.graph_states + i * S_), scores_(in.scores + i * S_) {
    const int32_t first = graphs.fsa_splits[graphs.of_stream[i]];
    splits_ = graphs.state_splits + first;
    graph_arcs_ = graphs.arcs + splits_[0];
    graph_scores_ = graphs.scores + splits_[0];
    const int64_t size = scratch.table_size();
    const auto take = [&](int64_t words) { return memory += words, memory - words; };
    table_ = {reinterpret_cast<uint64_t*>(take(size)), size};
    totals_ = reinterpret_cast<uint64_t*>(take(size));
    numbers_ = take(size);
    dests_ = take(scratch.candidates);
    dropped_ = take(scratch.candidates);
    best_of_id_ = reinterpret_cast<uint64_t*>(take(scratch.num_ids()));
    ids_ = take(scratch.num_ids());
    best_of_symbol_ = reinterpret_cast<uint64_t*>(take(V_));
    offsets_ = take(S_ + 1);
    classes_ = take(C_);
    stays_ = take(C_);
    kept_ = take(S_);
    cutoff_ = reinterpret_cast<uint64_t*>(take(1));
    bins_ = reinterpret_cast<int32_t*>(take(8));
    num_dests_ = reinterpret_cast<int32_t*>(take(1));
    num_ids_ = reinterpret_cast<int32_t*>(take(1));
    num_kept_ = reinterpret_cast<int32_t*>(take(1));
    num_within_ = reinterpret_cast<int32_t*>(take(1));
    best_ = reinterpret_cast<uint64_t*>(take(1));
  }

  LATTICA_DEVICE void run() {
    prepare();
    find_symbols();
    expand();
    if (search_.k2_order) limit_states();
    limit_contexts();
    if (!search_.k2_order) limit_states();
    emit_states();
    emit_arcs();
    clean();
  }

 private:
  struct Candidate {
    int64_t id;
    int32_t src, graph_state, graph_arc;
    float score;
    double total;
  };

  LATTICA_DEVICE bool first() const { return block_.rank() == 0; }
  LATTICA_DEVICE static bool above_none(double x) { return x > -INFINITY; }  // so written that nan is not

  LATTICA_DEVICE int64_t shifted(int64_t context) const { return context * V_ % search_.num_contexts; }

  // Contexts after the frame have small numbers, equal ones the same: class * V + symbol, where contexts that agree in all but their
  // oldest symbol are a class, known by its first one; and C * V + slot for those that stay and that no other can become.
  LATTICA_DEVICE int64_t context_of(int64_t id) const {
    return id < C_ * V_ ? shifted(contexts_[id / V_]) + id % V_ : contexts_[id - C_ * V_];
  }
  LATTICA_DEVICE int64_t id_of(int64_t place) const { return static_cast<int64_t>(table_.keys[place]) / most_states_; }
  LATTICA_DEVICE int32_t state_of(int64_t place) const { return static_cast<int32_t>(static_cast<int64_t>(table_.keys[place]) % most_states_); }

  LATTICA_DEVICE int64_t class_of(int64_t shift) const {
    for (int64_t c = 0; c < num_contexts_; ++c)
      if (shifted(contexts_[c]) == shift) return c;
    return -1;
  }

  LATTICA_DEVICE void prepare() {
    for (int64_t c = block_.rank(); c < num_contexts_; c += block_.size()) {
      const int64_t context = contexts_[c], last = context % V_, same = class_of(context - last);
      classes_[c] = class_of(shifted(context));
      stays_[c] = same < 0 ? C_ * V_ + c : same * V_ + last;
    }
    for (int64_t s = block_.rank(); s < num_states_; s += block_.size()) {
      const int32_t state = graph_states_[s];
      offsets_[s + 1] = 1 + splits_[state + 1] - splits_[state];
      atomic_max(cutoff_, ordered(scores_[s]));
    }
    block_.sync();
    if (first()) {
      offsets_[0] = 0;
      for (int64_t s = 0; s < num_states_; ++s) offsets_[s + 1] += offsets_[s];
    }
    block_.sync();
    lowest_ = num_states_ > 0 ? from_ordered(*cutoff_) - search_.beam : 0.0;
  }

  // Work item k: the blank of a state, then its arcs.
  LATTICA_DEVICE int64_t num_items() const { return offsets_[num_states_]; }
  LATTICA_DEVICE int32_t source(int64_t item) const {
    int64_t low = 0, high = num_states_;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (offsets_[middle] <= item ? low : high) = middle;
    }
    return static_cast<int32_t>(low);
  }
  LATTICA_DEVICE int32_t arc_of(int32_t src, int64_t item) const {
    const int64_t k = item - offsets_[src];
    return k == 0 ? -1 : static_cast<int32_t>(splits_[graph_states_[src]] - splits_[0] + k - 1);
  }

  LATTICA_DEVICE void find_symbols() {
    least_ = 0;
    if (search_.k2_order || search_.max_contexts >= V_) return;
    for (int64_t k = block_.rank(); k < num_items(); k += block_.size()) {
      const int32_t src = source(k), a = arc_of(src, k), label = a < 0 ? 0 : graph_arcs_[a].label;
      const float* row = log_probs_ + slots_[src] * V_;
      const double before = a < 0 ? scores_[src] : graph_scores_[a] + scores_[src], total = before + row[label > 0 ? label : 0];
      const int64_t symbol = label > 0 ? label : contexts_[slots_[src]] % V_;
      if (total == total) atomic_max(best_of_symbol_ + symbol, ordered(total));
    }
    block_.sync();
    const uint64_t* best = best_of_symbol_;
    least_ = cut_largest(block_, V_, search_.max_contexts, bins_, [=](int64_t v) { return best[v]; }).least;
  }

  LATTICA_DEVICE bool possible(int64_t symbol) const { return best_of_symbol_[symbol] >= least_; }

  // What item k makes, false if that is nothing. As in RnntAdvancer::expand.
  LATTICA_DEVICE bool candidate(int64_t k, Candidate* made) const {
    const int32_t src = source(k), a = arc_of(src, k), slot = slots_[src];
    const float* row = log_probs_ + slot * V_;
    const double before = scores_[src];
    made->src = src;
    made->graph_arc = a;
    made->id = stays_[slot];
    if (a < 0) {
      made->graph_state = graph_states_[src];
      made->score = row[0];
      if (!possible(contexts_[slot] % V_)) return false;
    } else {
      const Arc& arc = graph_arcs_[a];
      made->graph_state = arc.dest;
      made->score = row[arc.label > 0 ? arc.label : 0] + graph_scores_[a];
      if (arc.label > 0) {
        made->id = classes_[slot] * V_ + arc.label;
        if (!possible(arc.label) || !(before + made->score >= lowest_)) return false;
      } else if (!possible(contexts_[slot] % V_)) {
        return false;
      } else if (arc.label < 0 && !(search_.k2_order && before + graph_scores_[a] >= lowest_)) {
        return false;
      }
    }
    made->total = before + made->score;
    return above_none(made->total);
  }

  LATTICA_DEVICE uint64_t key(const Candidate& c) const { return static_cast<uint64_t>(c.id * most_states_ + c.graph_state); }

  LATTICA_DEVICE void expand() {
    Candidate c;
    for (int64_t k = block_.rank(); k < num_items(); k += block_.size()) {
      if (!candidate(k, &c)) continue;
      bool is_new = false;
      const int64_t place = table_.insert(key(c), &is_new);
      if (is_new) dests_[atomic_add(num_dests_, 1)] = place;
      atomic_max(totals_ + place, ordered(c.total));
    }
    block_.sync();
    for (int64_t d = block_.rank(); d < *num_dests_; d += block_.size()) numbers_[dests_[d]] = 0;  // -1: dropped
    block_.sync();
  }

  LATTICA_DEVICE bool stays(int64_t place) const { return numbers_[place] >= 0; }

  // Of equal scores the first ones in this order stay.
  LATTICA_DEVICE bool before(int64_t x, int64_t y) const {
    const int64_t a = context_of(id_of(x)), b = context_of(id_of(y));
    return a < b || (a == b && state_of(x) < state_of(y));
  }

  LATTICA_DEVICE void limit_states() {
    for (int64_t d = block_.rank(); d < *num_dests_; d += block_.size())
      if (stays(dests_[d])) atomic_max(best_, totals_[dests_[d]]);
    block_.sync();
    if (*best_ == 0) return;  // nothing is left
    const double least = from_ordered(*best_) - search_.beam;
    for (int64_t d = block_.rank(); d < *num_dests_; d += block_.size()) {
      const int64_t place = dests_[d];
      if (stays(place) && from_ordered(totals_[place]) < least) numbers_[place] = -1;
      if (stays(place)) atomic_add(num_within_, 1);
    }
    block_.sync();
    if (*num_within_ <= search_.max_states) return;
    const int64_t *numbers = numbers_, *dests = dests_;
    const uint64_t* totals = totals_;
    const LargestCut cut = cut_largest(block_, *num_dests_, search_.max_states, bins_, [=](int64_t d) {
      return numbers[dests[d]] >= 0 ? totals[dests[d]] : uint64_t{0};
    });
    // Decided first, so that no thread drops what another still compares with.
    for (int64_t d = block_.rank(); d < *num_dests_; d += block_.size()) dropped_[d] = stays(dests_[d]) && drops(cut, dests_[d]);
    block_.sync();
    for (int64_t d = block_.rank(); d < *num_dests_; d += block_.size())
      if (dropped_[d]) numbers_[dests_[d]] = -1;
    block_.sync();
  }

  LATTICA_DEVICE bool drops(const LargestCut& cut, int64_t place) const {
    if (totals_[place] != cut.least) return totals_[place] < cut.least;
    if (cut.ties < 0) return false;
    int64_t earlier = 0;
    for (int64_t d = 0; d < *num_dests_; ++d) {
      const int64_t other = dests_[d];
      earlier += stays(other) && totals_[other] == cut.least && before(other, place);
    }
    return earlier >= cut.ties;
  }

  LATTICA_DEVICE void limit_contexts() {
    for (int64_t d = block_.rank(); d < *num_dests_; d += block_.size()) {
      const int64_t place = dests_[d], id = id_of(place);
      if (stays(place) && atomic_max(best_of_id_ + id, totals_[place]) == 0) ids_[atomic_add(num_ids_, 1)] = id;
    }
    block_.sync();
    const int64_t n = *num_ids_;
    if (n > search_.max_contexts) {
      const int64_t* ids = ids_;
      const uint64_t* best = best_of_id_;
      const LargestCut cut =
          cut_largest(block_, n, search_.max_contexts, bins_, [=](int64_t k) { return best[ids[k]]; });
      for (int64_t d = block_.rank(); d < *num_dests_; d += block_.size())
        if (drops_context(cut, id_of(dests_[d]))) numbers_[dests_[d]] = -1;
    }
    block_.sync();
    for (int64_t k = block_.rank(); k < n; k += block_.size()) best_of_id_[ids_[k]] = 0;
    block_.sync();
    if (first()) *num_ids_ = 0;
    block_.sync();
  }

  LATTICA_DEVICE bool drops_context(const LargestCut& cut, int64_t id) const {
    if (best_of_id_[id] != cut.least) return best_of_id_[id] < cut.least;
    if (cut.ties < 0) return false;
    int64_t earlier = 0;
    for (int64_t k = 0; k < *num_ids_; ++k)
      earlier += best_of_id_[ids_[k]] == cut.least && context_of(ids_[k]) < context_of(id);
    return earlier >= cut.ties;
  }

  // Numbers what is left by context and graph state, and writes it down.
  LATTICA_DEVICE void emit_states() {
    for (int64_t d = block_.rank(); d < *num_dests_; d += block_.size()) {
      const int64_t place = dests_[d], id = id_of(place);
      if (!stays(place)) continue;
      kept_[atomic_add(num_kept_, 1)] = place;
      if (atomic_max(best_of_id_ + id, 1) == 0) ids_[atomic_add(num_ids_, 1)] = id;
    }
    block_.sync();
    const int64_t n = *num_kept_, m = *num_ids_;
    for (int64_t k = block_.rank(); k < m; k += block_.size()) {
      const int64_t context = context_of(ids_[k]);
      int64_t slot = 0;
      for (int64_t other = 0; other < m; ++other) slot += context_of(ids_[other]) < context;
      out_.contexts[i_ * C_ + slot] = context;
      best_of_id_[ids_[k]] = static_cast<uint64_t>(slot);
    }
    block_.sync();
    for (int64_t k = block_.rank(); k < n; k += block_.size()) {
      const int64_t place = kept_[k];
      int64_t number = 0;
      for (int64_t other = 0; other < n; ++other) number += before(kept_[other], place);
      numbers_[place] = number;
      out_.slots[i_ * S_ + number] = static_cast<int32_t>(best_of_id_[id_of(place)]);
      out_.graph_states[i_ * S_ + number] = state_of(place);
      out_.scores[i_ * S_ + number] = from_ordered(totals_[place]);
    }
    if (first()) out_.num_contexts[i_] = static_cast<int32_t>(m), out_.num_states[i_] = static_cast<int32_t>(n);
    block_.sync();
  }

  LATTICA_DEVICE void emit_arcs() {
    Candidate c;
    for (int64_t k = block_.rank(); k < num_items(); k += block_.size()) {
      if (!candidate(k, &c)) continue;
      const int64_t number = numbers_[table_.find(key(c))];
      if (number < 0) continue;
      const int64_t place = i_ * arcs_.capacity + atomic_add(arcs_.num + i_, 1);
      arcs_.arcs[place] = {c.src, static_cast<int32_t>(number), c.graph_arc, row_ + slots_[c.src]};
      arcs_.scores[place] = c.score;
    }
    block_.sync();
  }

  LATTICA_DEVICE void clean() {
    for (int64_t d = block_.rank(); d < *num_dests_; d += block_.size()) {
      table_.keys[dests_[d]] = HashSet::kEmpty;
      totals_[dests_[d]] = 0;
    }
    for (int64_t k = block_.rank(); k < *num_ids_; k += block_.size()) best_of_id_[ids_[k]] = 0;
    for (int64_t v = block_.rank(); v < V_; v += block_.size()) best_of_symbol_[v] = 0;
    block_.sync();
    if (first()) *cutoff_ = *best_ = 0, *num_dests_ = *num_ids_ = *num_kept_ = *num_within_ = 0;
  }

  Block block_;
  RnntSearch search_;
  int64_t C_, S_, V_;
  RnntPaddedStates out_;
  RnntPaddedArcs arcs_;
  const float* log_probs_;
  int32_t row_;
  int64_t i_, most_states_;
  int32_t num_contexts_, num_states_;
  const int64_t* contexts_;
  const int32_t *slots_, *graph_states_;
  const double* scores_;
  const int32_t* splits_;
  const Arc* graph_arcs_;
  const float* graph_scores_;
  double lowest_ = 0.0;   // for arcs with symbols
  uint64_t least_ = 0;    // for the best of a symbol
  HashSet table_;         // of (id of the context, graph state) after the frame
  uint64_t* totals_;      // by place in the table
  int64_t* numbers_;      // by place: -1 if dropped; in the end the number after the frame
  int64_t *dests_, *dropped_;  // the places in use; whether each is to be dropped
  uint64_t* best_of_id_;
  int64_t* ids_;          // those in use
  uint64_t* best_of_symbol_;
  int64_t *offsets_, *classes_, *stays_, *kept_;
  uint64_t *cutoff_, *best_;
  int32_t *bins_, *num_dests_, *num_ids_, *num_kept_, *num_within_;
};

// A frame of stream first + k, with the k-th share of the memory. (A functor: nvcc takes no generic lambdas to the GPU.)
struct RnntBatchStep {
  RnntGraphs graphs;
  RnntSearch search;
  RnntScratch scratch;
  RnntPaddedStates in, out;
  RnntPaddedArcs arcs;
  const float* log_probs;
  const int32_t* rows;
  int64_t* memory;
  int64_t first;

  LATTICA_DEVICE void operator()(int64_t k, const Block& block, double*) const {
    RnntBlockAdvancer(block, graphs, search, scratch, in, out, arcs, log_probs, rows[first + k], memory + k * scratch.words(),
                           first + k).run();
  }
};

// Where graphs have states with very many arcs, there is memory for some of the streams only, and they take turns.
template <typename Backend>
void rnnt_batch_advance(const Backend& backend, RnntBatchStep step, int64_t n, int64_t memory_rows, int64_t block_size) {
  for (step.first = 0; step.first < n; step.first += memory_rows)
    for_each_block(backend, block_size, 0, step.first + memory_rows < n ? memory_rows : n - step.first, step);
}

}  // namespace lattica
