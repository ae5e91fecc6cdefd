// Intersection of automata with frame scores as in fsa_dense.h, but a whole batch advances a frame at a time, by loops over all
// its active states and arcs: what a GPU needs. The results are the same, bit by bit.
//
// A step of the search is a frame of each utterance. Tokens (see fsa_dense.h) of all utterances and steps lie one after another, in
// no particular order within a step: nothing depends on it. A set of (utterance, state), as large as a step needs, finds the token
// of an arc's destination, so there is no table over the states of the graphs. How many tokens and arcs a step has is known on the
// device only; where memory guessed for them is too small the step and those after it are left out, `control` says so, and the host,
// which looks there every so many steps, goes on from that step with more.
#pragma once

#include <limits>

#include "atomics.h"
#include "fsa.h"
#include "hash_set.h"
#include "parallel.h"
#include "select.h"
#include "sort.h"

namespace lattica {

constexpr float kNoScore = -std::numeric_limits<float>::infinity();

struct DenseUtterance {
  int64_t scores;                   // where its first frame begins in log_probs
  int32_t first_state, num_states;  // of its graph, in state_splits
  int32_t start, duration;          // its frame t is step start + t
  int32_t first_row;                // it has a row for its start and one for each frame, rows are numbered over all utterances
};

// What an utterance's search knows of itself.
struct DenseProgress {
  uint32_t top;      // the best token of the step in the making, as ordered bits; 0: none
  int32_t above;     // how many of them are inside the search beam
  int32_t is_ranked; // the number of tokens is limited: they are kept by rank, not by beam
  uint32_t best, best_partial;  // path, complete or not
  int32_t is_partial, has_path;
  float cutoff;      // no path in the lattice is worse
};

struct DenseTokens {
  int32_t *utterance, *state;
  int32_t* first_arc;  // the place of its first arc among the arcs of all tokens of its step, which come in the order of the tokens
  float* forward;      // score of the best path to it
  uint32_t* backward;  // from it to the end, as ordered bits; 0: it is on no path that is good enough
};

enum DenseFailure : int32_t { kFits = 0, kSetFull = 1, kTokensFull = 2, kTooManyArcs = 3 };

struct DenseControl {
  uint64_t taken;      // tokens of the step in the making, and above them their arcs: see kTakeToken
  uint64_t num_found;  // of them, before pruning
  int32_t failure, failed_step;
  int32_t twice;  // a state of the history comes twice at a step
};

constexpr int kArcBits = 36;
constexpr uint64_t kTakeToken = uint64_t{1} << kArcBits, kTakenArcs = kTakeToken - 1;

// Everything on the device.
struct DenseSearch {
  const int32_t* state_splits;
  const Arc* arcs;
  const float *arc_scores, *log_probs;
  int64_t num_labels;
  const DenseUtterance* utterances;
  int32_t num_utterances;
  float search_beam, output_beam;
  int32_t min_active, max_active, allow_partial;
  int state_bits;  // a multiple of 8

  DenseTokens tokens;
  int64_t token_capacity;
  int32_t *step_begin, *step_tokens, *step_arcs;  // of step s: its first token, how many, and their arcs
  DenseProgress* progress;                        // one an utterance
  Selection ranks;
  HashSet set;
  uint32_t* values;  // by place in the set: going forward a score as ordered bits, going back which token
  int32_t* found;    // places in use
  int64_t max_found;
  DenseControl* control;

  LATTICA_BOTH uint64_t key(int32_t utterance, int32_t state) const {
    return static_cast<uint64_t>(utterance) << 32 | static_cast<uint32_t>(state);
  }
  // Tokens by score; of equal ones the lower state comes first.
  LATTICA_BOTH uint64_t rank_key(uint32_t score, int32_t state) const {
    return uint64_t{score} << state_bits | (((uint64_t{1} << state_bits) - 1) - static_cast<uint32_t>(state));
  }
  LATTICA_BOTH const int32_t* arcs_of(const DenseUtterance& u, int32_t state) const { return state_splits + u.first_state + state; }
  LATTICA_BOTH int32_t num_arcs_of(const DenseUtterance& u, int32_t state) const { return arcs_of(u, state)[1] - arcs_of(u, state)[0]; }
  // Arcs that a token takes to the next step.
  LATTICA_BOTH int32_t degree(const DenseUtterance& u, int32_t state, int32_t step) const {
    return step - u.start < u.duration ? num_arcs_of(u, state) : 0;
  }
  // Arc and frame together; -inf for arcs that take no frame, and for nan.
  LATTICA_BOTH float score(const DenseUtterance& u, int32_t step, int32_t arc) const {
    const int32_t label = arcs[arc].label;
    if (label < 0) return kNoScore;
    const float frame = log_probs[u.scores + (step - u.start) * num_labels + label];
    return arc_scores[arc] + (frame > kNoScore ? frame : kNoScore);
  }
  // The i-th token of a step, and whether its utterance has no more frames.
  LATTICA_BOTH bool ends_here(int32_t step, int64_t i, int64_t* token, int32_t* utterance) const {
    *token = step_begin[step] + i;
    *utterance = tokens.utterance[*token];
    return utterances[*utterance].start + utterances[*utterance].duration == step;
  }
  // The token that the i-th arc of a step leaves.
  LATTICA_BOTH int64_t token_of(int32_t step, int64_t i) const {
    const int32_t begin = step_begin[step];
    return begin + last_at_most(tokens.first_arc + begin, step_tokens[step], static_cast<int32_t>(i));
  }
  LATTICA_BOTH int32_t arc_of(const DenseUtterance& u, int64_t token, int64_t i) const {
    return arcs_of(u, tokens.state[token])[0] + (static_cast<int32_t>(i) - tokens.first_arc[token]);
  }
  // Whether a path through the arc is good enough, or the arc is how `to`, which is on such a path, was reached at its best: then it
  // stays even if rounding puts it below, so that the lattice is connected. `arc_and_frame` is score() of it.
  LATTICA_BOTH bool is_good(float forward, float arc_and_frame, float cutoff, int64_t to, float* rest) const {
    const uint32_t after = tokens.backward[to];
    if (after == 0) return false;
    *rest = arc_and_frame + from_ordered(after);
    return *rest != kNoScore && (forward + *rest >= cutoff || forward + arc_and_frame == tokens.forward[to]);
  }
};

// Going forward -----------------------------------------------------------------------------------------------------------------

// All arcs of the tokens of `step` into the set, where each state's best score stays.
template <typename Backend>
void find_states(const Backend& backend, DenseSearch s, int32_t step) {
  const bool may_drop = s.min_active == 0;  // else what falls below the beam may be among the kept ones
  backend.for_each_upto(s.step_arcs + step, [=] LATTICA_BOTH(int64_t i) {
    if (atomic_load(&s.control->failure) != kFits) return;
    const int64_t token = s.token_of(step, i);
    const int32_t utterance = s.tokens.utterance[token];
    const DenseUtterance& u = s.utterances[utterance];
    DenseProgress& progress = s.progress[utterance];
    const int32_t arc = s.arc_of(u, token, i);
    const float forward = s.tokens.forward[token] + s.score(u, step, arc);
    if (!(forward > kNoScore)) return;
    const uint32_t bits = ordered(forward), top = atomic_load(&progress.top);
    if (may_drop && top != 0 && forward < from_ordered(top) - s.search_beam) return;
    if (bits > top) atomic_max(&progress.top, bits);
    bool is_new = false;
    const int64_t place = s.set.insert(s.key(utterance, s.arcs[arc].dest), &is_new);
    if (is_new) {
      const uint64_t k = atomic_take(&s.control->num_found, 1);
      if (k < static_cast<uint64_t>(s.max_found)) s.found[k] = static_cast<int32_t>(place);
      else atomic_store(&s.control->failure, int32_t{kSetFull});
    }
    if (place < 0) atomic_store(&s.control->failure, int32_t{kSetFull});
    else if (atomic_load(s.values + place) < bits) atomic_max(s.values + place, bits);
  });
}

// The i-th state found, for select_kth.
struct FoundState {
  DenseSearch s;
  LATTICA_BOTH void operator()(int64_t i, int32_t* group, uint64_t* key) const {
    const int32_t place = s.found[i];
    *group = static_cast<int32_t>(s.set.keys[place] >> 32);
    *key = s.rank_key(s.values[place], static_cast<int32_t>(s.set.keys[place] & 0xffffffffu));
  }
};

// Which utterances have too many or too few states inside the beam, and the rank key that those keep.
template <typename Backend>
void rank_states(const Backend& backend, DenseSearch s) {
  backend.for_each_upto(&s.control->num_found, [=] LATTICA_BOTH(int64_t i) {
    if (s.control->failure != kFits) return;
    const int32_t place = s.found[i];
    DenseProgress& progress = s.progress[s.set.keys[place] >> 32];
    if (from_ordered(s.values[place]) >= from_ordered(progress.top) - s.search_beam) atomic_count(&progress.above);
  });
  backend.for_each(s.num_utterances, [=] LATTICA_BOTH(int64_t utterance) {
    DenseProgress& progress = s.progress[utterance];
    const int32_t above = progress.above;
    s.ranks.rank[utterance] = above > s.max_active ? s.max_active : above < s.min_active ? s.min_active : 0;
    if (s.control->failure != kFits) {  // what was found is of no use then, and may be more than there is room for
      s.ranks.rank[utterance] = 0;
      if (utterance == 0) s.control->num_found = 0;
    }
    progress.is_ranked = s.ranks.rank[utterance] != 0;
    progress.above = 0;
  });
  select_kth(backend, s.ranks, s.num_utterances, &s.control->num_found, FoundState{s}, 32 + s.state_bits);
}

// States found become tokens of step + 1, if they are good enough; the set is empty afterwards.
template <typename Backend>
void keep_states(const Backend& backend, DenseSearch s, int32_t step) {
  backend.for_each_upto(&s.control->num_found, [=] LATTICA_BOTH(int64_t i) {
    if (atomic_load(&s.control->failure) == kSetFull) return;
    const int32_t place = s.found[i];
    const uint64_t key = s.set.keys[place];
    const uint32_t bits = s.values[place];
    s.set.keys[place] = HashSet::kEmpty;
    s.values[place] = 0;
    const int32_t utterance = static_cast<int32_t>(key >> 32), state = static_cast<int32_t>(key & 0xffffffffu);
    const DenseProgress& progress = s.progress[utterance];
    if (progress.is_ranked ? s.rank_key(bits, state) < s.ranks.answer[utterance]
                           : !(from_ordered(bits) >= from_ordered(progress.top) - s.search_beam))
      return;
    const uint64_t degree = static_cast<uint64_t>(s.degree(s.utterances[utterance], state, step + 1));
    const uint64_t taken = atomic_take(&s.control->taken, kTakeToken + degree);
    const int64_t token = s.step_begin[step + 1] + static_cast<int64_t>(taken >> kArcBits);
    if (token >= s.token_capacity) {
      atomic_store(&s.control->failure, int32_t{kTokensFull});
      return;
    }
    s.tokens.utterance[token] = utterance;
    s.tokens.state[token] = state;
    s.tokens.first_arc[token] = static_cast<int32_t>(taken & kTakenArcs);
    s.tokens.forward[token] = from_ordered(bits);
    s.tokens.backward[token] = 0;
  });
}

// After keep_states: how many tokens there are now.
template <typename Backend>
void end_step(const Backend& backend, DenseSearch s, int32_t step) {
  backend.for_each(s.num_utterances, [=] LATTICA_BOTH(int64_t utterance) {
    s.progress[utterance].top = 0;
    s.progress[utterance].is_ranked = 0;
    if (utterance != 0) return;
    DenseControl& control = *s.control;
    const int64_t num_arcs = static_cast<int64_t>(control.taken & kTakenArcs);
    if (control.failure == kFits && num_arcs > std::numeric_limits<int32_t>::max()) control.failure = kTooManyArcs;
    if (control.failure != kFits && control.failed_step < 0) control.failed_step = step;
    const bool fits = control.failure == kFits;
    s.step_tokens[step + 1] = fits ? static_cast<int32_t>(control.taken >> kArcBits) : 0;
    s.step_arcs[step + 1] = fits ? static_cast<int32_t>(num_arcs) : 0;
    s.step_begin[step + 2] = s.step_begin[step + 1] + s.step_tokens[step + 1];
    control.taken = 0;
    control.num_found = 0;
  });
}

// may_rank: whether max_active or min_active can matter.
template <typename Backend>
void advance(const Backend& backend, const DenseSearch& s, int32_t step, bool may_rank) {
  find_states(backend, s, step);
  if (may_rank) rank_states(backend, s);
  keep_states(backend, s, step);
  end_step(backend, s, step);
}

// Going back --------------------------------------------------------------------------------------------------------------------

// The utterances whose last frame ends with `step`: arcs into the final state take no frame.
template <typename Backend>
void end_utterances(const Backend& backend, DenseSearch s, int32_t step) {
  backend.for_each_upto(s.step_tokens + step, [=] LATTICA_BOTH(int64_t i) {
    int64_t token;
    int32_t utterance;
    if (!s.ends_here(step, i, &token, &utterance)) return;
    const int32_t* splits = s.arcs_of(s.utterances[utterance], s.tokens.state[token]);
    const float forward = s.tokens.forward[token];
    atomic_max(&s.progress[utterance].best_partial, ordered(forward));
    for (int32_t a = splits[0]; a < splits[1]; ++a)
      if (s.arcs[a].label == -1 && s.arc_scores[a] > kNoScore)
        atomic_max(&s.progress[utterance].best, ordered(forward + s.arc_scores[a]));
  });
  backend.for_each(s.num_utterances, [=] LATTICA_BOTH(int64_t utterance) {
    const DenseUtterance& u = s.utterances[utterance];
    DenseProgress& progress = s.progress[utterance];
    if (u.start + u.duration != step) return;
    float best = progress.best ? from_ordered(progress.best) : kNoScore;
    progress.is_partial = !(best > kNoScore) && s.allow_partial;
    if (progress.is_partial && progress.best_partial) best = from_ordered(progress.best_partial);
    progress.has_path = best > kNoScore;
    progress.cutoff = best - s.output_beam;
  });
  backend.for_each_upto(s.step_tokens + step, [=] LATTICA_BOTH(int64_t i) {
    int64_t token;
    int32_t utterance;
    if (!s.ends_here(step, i, &token, &utterance)) return;
    const DenseProgress& progress = s.progress[utterance];
    if (!progress.has_path) return;
    const int32_t* splits = s.arcs_of(s.utterances[utterance], s.tokens.state[token]);
    const float forward = s.tokens.forward[token];
    uint32_t backward = progress.is_partial && !(forward < progress.cutoff) ? ordered(0.0f) : 0;
    for (int32_t a = splits[0]; a < splits[1] && !progress.is_partial; ++a) {
      const bool is_final = s.arcs[a].label == -1 && s.arc_scores[a] > kNoScore;
      if (!is_final || forward + s.arc_scores[a] < progress.cutoff) continue;
      const uint32_t bits = ordered(s.arc_scores[a]);
      if (backward < bits) backward = bits;
    }
    s.tokens.backward[token] = backward;
  });
}

// Scores to the end of the tokens of `step` from those of the next step.
template <typename Backend>
void retreat(const Backend& backend, DenseSearch s, int32_t step) {
  backend.for_each_upto(s.step_tokens + step + 1, [=] LATTICA_BOTH(int64_t i) {
    const int64_t token = s.step_begin[step + 1] + i;
    if (s.tokens.backward[token] == 0) return;
    bool is_new = false;
    const int64_t place = s.set.insert(s.key(s.tokens.utterance[token], s.tokens.state[token]), &is_new);
    s.found[i] = is_new ? static_cast<int32_t>(place) : -1;
    if (is_new) s.values[place] = static_cast<uint32_t>(token);
    else atomic_store(&s.control->twice, 1);
  });
  backend.for_each_upto(s.step_arcs + step, [=] LATTICA_BOTH(int64_t i) {
    const int64_t token = s.token_of(step, i);
    const int32_t utterance = s.tokens.utterance[token];
    const DenseProgress& progress = s.progress[utterance];
    if (!progress.has_path) return;
    const DenseUtterance& u = s.utterances[utterance];
    const int32_t arc = s.arc_of(u, token, i);
    const int64_t place = s.set.find(s.key(utterance, s.arcs[arc].dest));
    float rest;
    if (place < 0 || !s.is_good(s.tokens.forward[token], s.score(u, step, arc), progress.cutoff, s.values[place], &rest)) return;
    const uint32_t bits = ordered(rest);
    if (atomic_load(s.tokens.backward + token) < bits) atomic_max(s.tokens.backward + token, bits);
  });
  backend.for_each_upto(s.step_tokens + step + 1, [=] LATTICA_BOTH(int64_t i) {
    if (s.tokens.backward[s.step_begin[step + 1] + i] == 0 || s.found[i] < 0) return;
    s.set.keys[s.found[i]] = HashSet::kEmpty;
    s.values[s.found[i]] = 0;
  });
}

}  // namespace lattica
