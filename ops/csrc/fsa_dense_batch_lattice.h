// From the tokens of fsa_dense_batch.h to tensors: lattices, and the histories that a search goes on from.
#pragma once

#include "fsa_dense_batch.h"
#include "scan.h"

namespace lattica {

// Tokens in the order of utterances, frames and states.
struct OrderedTokens {
  int64_t size;
  const uint64_t* keys;      // row and state
  const int32_t* tokens;
  const int32_t* row_begin;  // where each row begins; rows + 1
};

// Arcs of a token are looked at by pieces of so many, because states of one graph may have three arcs or a hundred thousand.
constexpr int32_t kPiece = 32;

struct DenseLattice {
  DenseSearch s;
  OrderedTokens kept;
  const int32_t *kept_splits, *fsa_splits;  // by utterance: its tokens, and its states, one more
  const int32_t* piece_splits;              // by kept token

  // f(arc, the destination's number in the lattice, score, source's number, utterance, frame) for each good arc of a piece.
  template <typename F>
  LATTICA_BOTH void each_link(int64_t piece, F f) const {
    const int64_t rank = last_at_most(piece_splits, kept.size, static_cast<int32_t>(piece));
    const int64_t token = kept.tokens[rank];
    const int32_t utterance = s.tokens.utterance[token];
    const DenseUtterance& u = s.utterances[utterance];
    const DenseProgress& progress = s.progress[utterance];
    const int32_t row = static_cast<int32_t>(kept.keys[rank] >> s.state_bits), frame = row - u.first_row;
    const int32_t first = kept_splits[utterance], src = static_cast<int32_t>(rank) - first;
    const int32_t final_state = kept_splits[utterance + 1] - first;
    const float forward = s.tokens.forward[token];
    if (frame == u.duration && progress.is_partial) {
      f(-1, final_state, 0.0f, src, utterance, frame);
      return;
    }
    const int32_t* splits = s.arcs_of(u, s.tokens.state[token]);
    const int32_t begin = splits[0] + kPiece * (static_cast<int32_t>(piece) - piece_splits[rank]);
    const int32_t end = splits[1] - begin > kPiece ? begin + kPiece : splits[1];
    for (int32_t a = begin; a < end; ++a) {
      const Arc& arc = s.arcs[a];
      if (frame == u.duration) {
        if (arc.label == -1 && s.arc_scores[a] > kNoScore && !(forward + s.arc_scores[a] < progress.cutoff))
          f(a, final_state, s.arc_scores[a], src, utterance, frame);
        continue;
      }
      const int64_t to = find(row + 1, arc.dest);
      float rest;
      const float score = s.score(u, u.start + frame, a);
      if (to >= 0 && s.is_good(forward, score, progress.cutoff, kept.tokens[to], &rest))
        f(a, static_cast<int32_t>(to) - first, score, src, utterance, frame);
    }
  }

 private:
  // The kept token of a row and a state, or -1.
  LATTICA_BOTH int64_t find(int32_t row, int32_t state) const {
    const int64_t begin = kept.row_begin[row], n = kept.row_begin[row + 1] - begin;
    const uint64_t key = static_cast<uint64_t>(row) << s.state_bits | static_cast<uint32_t>(state);
    if (n == 0 || kept.keys[begin] > key) return -1;
    const int64_t at = begin + last_at_most(kept.keys + begin, n, key);
    return kept.keys[at] == key ? at : -1;
  }
};

// How many tokens are on good paths and how many pieces their arcs make, packed into *taken as in keep_states; the tokens by
// utterance, and the states that its lattice has: one more, or none.
template <typename Backend>
void count_kept(const Backend& backend, DenseSearch s, int32_t num_steps, int64_t num_tokens, uint64_t* taken, int32_t* kept,
                int32_t* states) {
  backend.for_each(num_tokens, [=] LATTICA_BOTH(int64_t token) {
    if (s.tokens.backward[token] == 0) return;
    const int32_t utterance = s.tokens.utterance[token];
    const DenseUtterance& u = s.utterances[utterance];
    const int64_t step = last_at_most(s.step_begin, num_steps + 1, static_cast<int32_t>(token));
    const bool one = s.progress[utterance].is_partial && step - u.start == u.duration;
    const int32_t pieces = one ? 1 : (s.num_arcs_of(u, s.tokens.state[token]) - 1) / kPiece + 1;
    atomic_take(taken, kTakeToken + static_cast<uint64_t>(pieces));
    atomic_count(kept + utterance);
  });
  backend.for_each(s.num_utterances, [=] LATTICA_BOTH(int64_t i) { states[i] = kept[i] ? kept[i] + 1 : 0; });
}

// All tokens, or only those on good paths, with their keys, in any order; *taken is 0 before.
template <typename Backend>
void list_tokens(const Backend& backend, DenseSearch s, int32_t num_steps, int64_t num_tokens, bool all, uint64_t* taken,
                 uint64_t* keys, int32_t* tokens) {
  backend.for_each(num_tokens, [=] LATTICA_BOTH(int64_t token) {
    if (!all && s.tokens.backward[token] == 0) return;
    const DenseUtterance& u = s.utterances[s.tokens.utterance[token]];
    const int64_t step = last_at_most(s.step_begin, num_steps + 1, static_cast<int32_t>(token));
    const uint64_t place = atomic_take(taken, 1), row = static_cast<uint64_t>(u.first_row + step - u.start);
    keys[place] = row << s.state_bits | static_cast<uint32_t>(s.tokens.state[token]);
    tokens[place] = static_cast<int32_t>(token);
  });
}

// row_begin, rows + 1 numbers, from sorted keys.
template <typename Backend>
void find_rows(const Backend& backend, int state_bits, const uint64_t* keys, int64_t size, int64_t num_rows, int32_t* row_begin) {
  backend.for_each(size + 1, [=] LATTICA_BOTH(int64_t i) {
    const int64_t row = i < size ? static_cast<int64_t>(keys[i] >> state_bits) : num_rows;
    for (int64_t r = i > 0 ? static_cast<int64_t>(keys[i - 1] >> state_bits) + 1 : 0; r <= row; ++r)
      row_begin[r] = static_cast<int32_t>(i);
  });
}

template <typename Backend>
void count_pieces(const Backend& backend, DenseLattice lattice, int32_t* pieces) {
  backend.for_each(lattice.kept.size, [=] LATTICA_BOTH(int64_t rank) {
    const DenseSearch& s = lattice.s;
    const int64_t token = lattice.kept.tokens[rank];
    const int32_t utterance = s.tokens.utterance[token];
    const DenseUtterance& u = s.utterances[utterance];
    const bool is_last = static_cast<int32_t>(lattice.kept.keys[rank] >> s.state_bits) - u.first_row == u.duration;
    const bool one = s.progress[utterance].is_partial && is_last;
    pieces[rank] = one ? 1 : (s.num_arcs_of(u, s.tokens.state[token]) - 1) / kPiece + 1;
  });
}

template <typename Backend>
void count_links(const Backend& backend, DenseLattice lattice, int64_t num_pieces, int32_t* links, uint64_t* total) {
  backend.for_each(num_pieces, [=] LATTICA_BOTH(int64_t piece) {
    int32_t count = 0;
    lattice.each_link(piece, [&count](int32_t, int32_t, float, int32_t, int32_t, int32_t) { ++count; });
    links[piece] = count;
    atomic_take(total, static_cast<uint64_t>(count));
  });
}

// The tensors of the result; frame may be null.
struct DenseResult {
  int32_t* state_splits;
  Arc* arcs;
  int32_t *map, *frame;
  float* scores;
};

template <typename Backend>
void write_lattice(const Backend& backend, DenseLattice lattice, int64_t num_pieces, const int32_t* link_splits, DenseResult out) {
  backend.for_each(num_pieces, [=] LATTICA_BOTH(int64_t piece) {
    int32_t k = link_splits[piece];
    lattice.each_link(piece, [&](int32_t arc, int32_t dest, float score, int32_t src, int32_t, int32_t frame) {
      out.arcs[k] = {src, dest, arc < 0 ? -1 : lattice.s.arcs[arc].label};
      out.map[k] = arc;
      if (out.frame != nullptr) out.frame[k] = frame;
      out.scores[k++] = score;
    });
  });
  backend.for_each(lattice.kept.size, [=] LATTICA_BOTH(int64_t rank) {
    const int32_t utterance = lattice.s.tokens.utterance[lattice.kept.tokens[rank]];
    out.state_splits[rank + lattice.fsa_splits[utterance] - lattice.kept_splits[utterance]] = link_splits[lattice.piece_splits[rank]];
  });
  backend.for_each(lattice.s.num_utterances + 1, [=] LATTICA_BOTH(int64_t i) {  // final states, and the end of all
    const int32_t end = link_splits[lattice.piece_splits[lattice.kept_splits[i]]], state = lattice.fsa_splits[i];
    if (i == lattice.s.num_utterances) out.state_splits[state] = end;
    if (i > 0 && state > lattice.fsa_splits[i - 1]) out.state_splits[state - 1] = end;
  });
}

// Histories ---------------------------------------------------------------------------------------------------------------------

// Lists [utterance][frame][token], each utterance's possibly without frames: then its search begins.
struct DenseHistory {
  const int32_t *frame_splits, *token_splits, *states;
  const float* scores;
  int64_t num_lists, num_tokens;
};

// *fault becomes 1 + the number of an utterance whose history is not one of its graph.
template <typename Backend>
void check_history(const Backend& backend, DenseSearch s, DenseHistory history, uint32_t* fault) {
  backend.for_each(history.num_lists + 1, [=] LATTICA_BOTH(int64_t i) {
    const int64_t begin = history.token_splits[i], end = i < history.num_lists ? history.token_splits[i + 1] : history.num_tokens;
    const bool good = begin >= 0 && end >= begin && end <= history.num_tokens && (i > 0 || begin == 0) &&
                      (i < history.num_lists || begin == end);
    const int64_t utterance = last_at_most(history.frame_splits, s.num_utterances, static_cast<int32_t>(i));
    const uint32_t bad = static_cast<uint32_t>(utterance) + 1;
    if (!good || (i < history.num_lists && i == history.frame_splits[utterance] && end != begin + (s.utterances[utterance].num_states > 0))) {
      atomic_max(fault, bad);
      return;
    }
    for (int64_t k = begin; k < end; ++k)
      if (history.states[k] < 0 || history.states[k] >= s.utterances[utterance].num_states) atomic_max(fault, bad);
  });
}

// The tokens of all steps up to the one that the search goes on from. `taken`: zeros, one a step; `places`: one a token and one an
// utterance; step_begin is not there yet after the first of the two, whose counts it comes from.
template <typename Backend>
void count_history(const Backend& backend, DenseSearch s, DenseHistory history, int32_t num_steps, uint64_t* taken, uint64_t* places) {
  const auto take = [=] LATTICA_BOTH(int64_t place, int64_t utterance, int32_t state, int64_t step) {
    const int32_t degree = s.degree(s.utterances[utterance], state, static_cast<int32_t>(step));
    places[place] = atomic_add(taken + step, kTakeToken + static_cast<uint64_t>(degree));
  };
  backend.for_each(history.num_tokens, [=] LATTICA_BOTH(int64_t k) {
    const int64_t list = last_at_most(history.token_splits, history.num_lists, static_cast<int32_t>(k));
    const int64_t utterance = last_at_most(history.frame_splits, s.num_utterances, static_cast<int32_t>(list));
    take(k, utterance, history.states[k], s.utterances[utterance].start + list - history.frame_splits[utterance]);
  });
  backend.for_each(s.num_utterances, [=] LATTICA_BOTH(int64_t i) {
    if (history.frame_splits[i] == history.frame_splits[i + 1] && s.utterances[i].num_states > 0)
      take(history.num_tokens + i, i, 0, s.utterances[i].start);
  });
  backend.for_each(num_steps, [=] LATTICA_BOTH(int64_t step) {
    s.step_tokens[step] = static_cast<int32_t>(taken[step] >> kArcBits);
    const uint64_t num_arcs = taken[step] & kTakenArcs;
    if (num_arcs > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) atomic_store(&s.control->failure, int32_t{kTooManyArcs});
    s.step_arcs[step] = static_cast<int32_t>(num_arcs);
  });
}

// What histories hold, from all tokens in order.
template <typename Backend>
void write_history(const Backend& backend, DenseSearch s, OrderedTokens all, int32_t* states, float* scores) {
  backend.for_each(all.size, [=] LATTICA_BOTH(int64_t i) {
    states[i] = s.tokens.state[all.tokens[i]];
    scores[i] = s.tokens.forward[all.tokens[i]];
  });
}

template <typename Backend>
void load_history(const Backend& backend, DenseSearch s, DenseHistory history, const uint64_t* places) {
  const auto put = [=] LATTICA_BOTH(int64_t place, int64_t utterance, int32_t state, float score, int64_t step) {
    const int64_t token = s.step_begin[step] + static_cast<int64_t>(places[place] >> kArcBits);
    s.tokens.utterance[token] = static_cast<int32_t>(utterance);
    s.tokens.state[token] = state;
    s.tokens.first_arc[token] = static_cast<int32_t>(places[place] & kTakenArcs);
    s.tokens.forward[token] = score;
    s.tokens.backward[token] = 0;
  };
  backend.for_each(history.num_tokens, [=] LATTICA_BOTH(int64_t k) {
    const int64_t list = last_at_most(history.token_splits, history.num_lists, static_cast<int32_t>(k));
    const int64_t utterance = last_at_most(history.frame_splits, s.num_utterances, static_cast<int32_t>(list));
    put(k, utterance, history.states[k], history.scores[k], s.utterances[utterance].start + list - history.frame_splits[utterance]);
  });
  backend.for_each(s.num_utterances, [=] LATTICA_BOTH(int64_t i) {
    if (history.frame_splits[i] == history.frame_splits[i + 1] && s.utterances[i].num_states > 0)
      put(history.num_tokens + i, i, 0, 0.0f, s.utterances[i].start);
  });
}

}  // namespace lattica
