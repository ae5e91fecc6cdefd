// Beam search over CTC emissions, frame by frame, with or without a lexicon.
//
// A hypothesis is known by its context (the words so far, or the language model's state), the node of the lexicon's trie and
// its last token (blank after a blank). In a frame, each makes candidates: blank, its last token again, a child of its node.
// Equal candidates are merged, the best `beam_size` stay.
//
// What makes it fast is what is not looked at. No candidate can survive that lies `beam_threshold` below the best one, or,
// once `beam_size` candidates are there, below the worst of the best `beam_size`; so tokens are sorted once a frame, and each
// hypothesis visits only the children whose tokens are good enough for it. A frame in which nothing but blank can survive is
// one addition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "ctc_decoder_lexicon.h"
#include "ctc_decoder_lm.h"

namespace lattica {

struct CtcOptions {
  int32_t num_tokens, blank, sil, beam_size, beam_size_token, unk_word;
  bool lexicon, log_add, merge_lm_states;
  double beam_threshold, lm_weight, word_score, unk_score, sil_score;
  float blank_skip;  // frames whose blank scores more are read as blank; +inf: none
  // What a hypothesis can gain at most besides the token's emission: by any token, and by one that completes a word. Infinite
  // where nothing is known.
  double any_gain, word_gain;
  std::vector<char> ends_word;  // of each token, whether it does anywhere
};

// Phrases to be preferred, as an automaton over tokens whose weights are added to the score; null: none.
struct HotwordView {
  NgramView automaton;
  int32_t start_state = 0, final_token = -1;  // the token that closes an utterance; -1: none
  bool used = false;
};

struct CtcEvent {  // a token that was recognized
  int32_t token, frame, end, word;  // end: the last frame that it fills; word: the one that it completes, or -1
  float peak;                       // the highest emission among those frames
};

struct CtcResult {
  double score;
  int32_t first_event, num_events;
};

// Fill in what hypotheses can gain. most(word): the language model's highest score of a word; hot_gain: the same of hotwords.
template <typename Most>
void bound_gains(CtcOptions* o, const TrieView& trie, int32_t num_nodes, const Most& most, double hot_gain) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  o->ends_word.assign(o->num_tokens, 0);
  o->any_gain = o->word_gain = o->lm_weight >= 0 ? hot_gain : kInfinity;
  if (!o->lexicon) {
    for (int32_t n = 0; n < o->num_tokens && o->lm_weight > 0; ++n) o->any_gain = std::max(o->any_gain, hot_gain + o->lm_weight * most(n));
    return;
  }
  for (int32_t i = 0; i < num_nodes && o->any_gain < kInfinity; ++i) {
    for (int32_t c = trie.nodes[i].first_child; c < trie.nodes[i + 1].first_child; ++c) {
      const TrieNode &node = trie.nodes[i], &child = trie.nodes[c];
      if (child.max_score > node.max_score) o->any_gain = kInfinity;  // scores are not log-probabilities
      const bool any_unk = o->unk_score > -kInfinity;
      if (any_unk || child.first_word < (&child + 1)->first_word) o->ends_word[child.token] = 1;
      for (int32_t w = child.first_word; w < (&child + 1)->first_word; ++w)
        o->word_gain = std::max(o->word_gain, hot_gain + o->word_score + o->lm_weight * (most(trie.words[w]) - node.max_score));
      if (any_unk) o->word_gain = std::max(o->word_gain, hot_gain + o->unk_score + o->lm_weight * (most(o->unk_word) - node.max_score));
    }
  }
  if (!(o->word_gain < kInfinity)) o->any_gain = o->word_gain = kInfinity;
}

template <typename Lm>
class CtcSearch {
 public:
  CtcSearch(const CtcOptions& options, const TrieView& trie, const HotwordView& hot, Lm lm)
      : o_(options), trie_(trie), hot_(hot), lm_(std::move(lm)), exact_(options.num_tokens <= 64),
        limited_(options.beam_size_token < options.num_tokens), bounded_(options.any_gain < kInfinity), emissions_(options.num_tokens), rank_(options.num_tokens), allowed_(options.num_tokens, 1) {
    slots_.assign(1 << 10, Slot{0, 0});
    begin();
  }

  Lm& lm() { return lm_; }
  float* frame_buffer() { return emissions_.data(); }
  int32_t frames() const { return frame_; }

  void begin() {
    traces_.clear();
    traces_.push_back({-1, o_.sil, -1, 0, 0, 0});
    const int32_t state = lm_.start();
    hyps_.assign(1, Hyp{0.0, o_.merge_lm_states ? mix64(state) : 0x51ED270B, 0, state, 0, o_.sil, 0, hot_.start_state, 0.0f});
    frame_ = 0, offset_ = 0, live_traces_ = 0, ended_ = all_blank_ = false;
  }

  // Read the frame in frame_buffer(). False: the language model has to answer questions first; then call again.
  bool step() {
    const float* e = emissions_.data();
    if (hyps_.empty()) return ++frame_, true;
    reset_candidates();
    const bool skip = e[o_.blank] > o_.blank_skip;
    const double most = skip ? 0 : rank_tokens();
    if (skip || hyps_[0].score + most <= hyps_[0].score + e[o_.blank] - o_.beam_threshold) {
      if (all_blank_) {  // all hypotheses read the same blank
        offset_ += e[o_.blank];
        return ++frame_, true;
      }
      for (int32_t i = 0; i < size(); ++i) propose_blank(i);
    } else {
      for (int32_t i = 0; i < size(); ++i) propose_blank(i), propose_repeat(i);
      raise_floor();
      live_ = num_ranked_;
      for (int32_t i = 0; i < size(); ++i) o_.lexicon ? extend_in_trie(i) : extend_freely(i);
      if (waits(lm_)) return false;
    }
    select();
    return ++frame_, true;
  }

  // All frames are read. False as above.
  bool end() {
    if (ended_) return true;
    reset_candidates();
    bool between_words = false;
    for (const Hyp& h : hyps_) between_words |= h.node == 0;
    for (int32_t i = 0; i < size(); ++i) {
      const Hyp& h = hyps_[i];
      if (o_.lexicon && between_words && h.node != 0) continue;
      add(h.score + o_.lm_weight * lm_.finish(h.lm) + hot_end(h), h.context, h.node, o_.sil, -1, h.lm, i);
    }
    if (waits(lm_)) return false;
    std::fill(emissions_.begin(), emissions_.end(), 0.0f);  // the closing silence has none
    select();
    std::sort(hyps_.begin(), hyps_.end(), [](const Hyp& a, const Hyp& b) { return a.score > b.score; });
    return ended_ = true;
  }

  // Hypotheses, best first (before end(): as they are), their events appended to `events`.
  std::vector<CtcResult> results(int32_t nbest, std::vector<CtcEvent>* events) const {
    std::vector<int32_t> order(hyps_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return hyps_[a].score > hyps_[b].score; });
    order.resize(std::min<size_t>(order.size(), nbest));
    std::vector<CtcResult> out;
    for (int32_t i : order) {
      const int32_t first = static_cast<int32_t>(events->size());
      float peak = hyps_[i].peak;
      int32_t last = hyps_[i].last;
      for (int32_t t = hyps_[i].trace; t >= 0; t = traces_[t].parent) {
        const Trace& trace = traces_[t];
        if (trace.token != o_.blank) events->push_back({trace.token, trace.frame, last, trace.word, peak});
        peak = trace.before_peak, last = trace.before_last;
      }
      std::reverse(events->begin() + first, events->end());
      out.push_back({hyps_[i].score + offset_, first, static_cast<int32_t>(events->size()) - first});
    }
    return out;
  }

 private:
  struct Hyp {
    double score;  // without offset_
    uint64_t context;
    int32_t node, lm, trace, token, last, hot;  // last: the last frame that the last token (not blank) fills
    float peak;
  };
  struct Candidate {
    uint64_t context;
    int32_t node, token, word, lm, parent;
  };
  struct Trace {  // a token, and how its predecessor ended
    int32_t parent, token, word, frame, before_last;
    float before_peak;
  };
  struct Slot {
    uint32_t epoch;
    int32_t candidate;
  };
  struct Ranked {
    float score;
    int32_t token;
    uint64_t up_to;  // of the tokens up to this one, the bits
  };
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  int32_t size() const { return static_cast<int32_t>(hyps_.size()); }

  // ---------------------------------------------------------------------------------------------------------- candidates

  void reset_candidates() {
    if (++epoch_ == 0) {
      std::fill(slots_.begin(), slots_.end(), Slot{0, 0});
      epoch_ = 1;
    }
    candidates_.clear();
    scores_.clear();
    best_ = floor_ = -kInfinity;
    worst_kept_ = -kInfinity;
  }

  bool hopeless(double score) const { return !(score > floor_); }

  void note_best(double score) {
    if (score > best_) {
      best_ = score;
      floor_ = std::max(best_ - o_.beam_threshold, worst_kept_);
    }
  }

  void push(double score, uint64_t context, int32_t node, int32_t token, int32_t word, int32_t lm, int32_t parent) {
    candidates_.push_back({context, node, token, word, lm, parent});
    scores_.push_back(score);
  }

  // A candidate, merged with its equal if there is one. Sums wait until it is known which candidates count.
  void add(double score, uint64_t context, int32_t node, int32_t token, int32_t word, int32_t lm, int32_t parent) {
    if (hopeless(score)) return;
    note_best(score);
    if (!o_.log_add) {
      const int32_t same = find_or_claim(context, node, token, static_cast<int32_t>(candidates_.size()));
      if (same >= 0) {
        if (score > scores_[same]) scores_[same] = score, candidates_[same] = {context, node, token, word, lm, parent};
        return;
      }
    }
    push(score, context, node, token, word, lm, parent);
    if (2 * candidates_.size() > slots_.size()) grow_slots();
  }

  // The equal of a candidate, or -1, and then the place in the table is `index`'s.
  int32_t find_or_claim(uint64_t context, int32_t node, int32_t token, int32_t index) {
    const uint64_t hash = (context ^ (static_cast<uint64_t>(node) << 20) ^ static_cast<uint64_t>(token)) * 0x9E3779B97F4A7C15ull;
    size_t i = (hash ^ hash >> 32) & (slots_.size() - 1);
    for (; slots_[i].epoch == epoch_; i = (i + 1) & (slots_.size() - 1)) {
      const Candidate& c = candidates_[slots_[i].candidate];
      if (c.context == context && c.node == node && c.token == token) return slots_[i].candidate;
    }
    slots_[i] = {epoch_, index};
    return -1;
  }

  // log_add: those within the threshold are summed; the way back is that of the heaviest.
  void sum_equals() {
    int32_t n = 0;
    heaviest_.clear();
    for (size_t k = 0; k < candidates_.size(); ++k) {
      const Candidate c = candidates_[k];
      const double score = scores_[k];
      if (!(score > best_ - o_.beam_threshold)) continue;
      const int32_t same = find_or_claim(c.context, c.node, c.token, n);
      if (same < 0) {
        candidates_[n] = c, scores_[n++] = score;
        heaviest_.push_back(score);
        continue;
      }
      const double larger = std::max(scores_[same], score);
      scores_[same] = larger + std::log1p(std::exp(std::min(scores_[same], score) - larger));
      if (score > heaviest_[same]) heaviest_[same] = score, candidates_[same] = c;
    }
    candidates_.resize(n), scores_.resize(n);
  }

  void grow_slots() {
    slots_.assign(2 * slots_.size(), Slot{0, 0});
    epoch_ = 1;
    for (size_t k = 0; k < candidates_.size() && !o_.log_add; ++k)
      find_or_claim(candidates_[k].context, candidates_[k].node, candidates_[k].token, static_cast<int32_t>(k));
  }

  // Candidates below the worst of `beam_size` others cannot stay. (With sums, small ones may yet grow together.)
  void raise_floor() {
    if (o_.log_add || static_cast<int32_t>(scores_.size()) < o_.beam_size) return;
    scratch_ = scores_;
    std::nth_element(scratch_.begin(), scratch_.begin() + (o_.beam_size - 1), scratch_.end(), std::greater<double>());
    worst_kept_ = std::nextafter(scratch_[o_.beam_size - 1], -kInfinity);
    floor_ = std::max(floor_, worst_kept_);
  }

  // ------------------------------------------------------------------------------------------------------------- tokens

  float cost(int32_t token) const { return emissions_[token] + (token == o_.sil ? static_cast<float>(o_.sil_score) : 0.0f); }

  // Sort the tokens that any hypothesis may take. Returns what a hypothesis can gain at most by one that is not blank.
  double rank_tokens() {
    const float* e = emissions_.data();
    if (limited_) limit_tokens();
    const double least = e[o_.blank] - o_.beam_threshold;
    num_ranked_ = 0;
    double most = -kInfinity;
    for (int32_t n = 0; n < o_.num_tokens; ++n) {
      if (n == o_.blank) continue;
      const float s = cost(n);
      const double reach = s + (o_.ends_word[n] ? o_.word_gain : o_.any_gain);
      most = std::max(most, reach);
      if (reach > least && allowed_[n]) rank_[num_ranked_++] = {s, n, 0};
    }
    std::sort(rank_.begin(), rank_.begin() + num_ranked_, [](const Ranked& a, const Ranked& b) { return a.score != b.score ? a.score > b.score : a.token < b.token; });
    uint64_t bits = 0;
    for (int32_t k = 0; k < num_ranked_; ++k) rank_[k].up_to = bits |= uint64_t{1} << (rank_[k].token & 63);
    return most;
  }

  // Only the `beam_size_token` best tokens of a frame are extensions.
  void limit_tokens() {
    order_.resize(o_.num_tokens);
    for (int32_t n = 0; n < o_.num_tokens; ++n) order_[n] = n, allowed_[n] = 0;
    const auto better = [&](int32_t a, int32_t b) { return emissions_[a] != emissions_[b] ? emissions_[a] > emissions_[b] : a < b; };
    std::nth_element(order_.begin(), order_.begin() + (o_.beam_size_token - 1), order_.end(), better);
    for (int32_t k = 0; k < o_.beam_size_token; ++k) allowed_[order_[k]] = 1;
  }

  // How many of the ranked tokens are good enough for a hypothesis that gains at most `gain` besides.
  int32_t good_enough(double score, double gain) {
    const double least = floor_ - score - gain;
    int32_t k = std::min(live_, num_ranked_);
    while (k > 0 && rank_[k - 1].score <= least) --k;
    while (k < num_ranked_ && rank_[k].score > least) ++k;
    return live_ = k;
  }

  // ---------------------------------------------------------------------------------------------------------- proposals

  void propose_blank(int32_t i) {
    const Hyp& h = hyps_[i];
    if (!o_.lexicon && !allowed_[o_.blank]) return;
    const double score = h.score + emissions_[o_.blank];
    if (!all_blank_) return add(score, h.context, h.node, o_.blank, -1, h.lm, i);
    if (hopeless(score)) return;  // ends in blank like all others: has no equal
    note_best(score);
    push(score, h.context, h.node, o_.blank, -1, h.lm, i);
  }

  void propose_repeat(int32_t i) {
    const Hyp& h = hyps_[i];
    const bool between_words = o_.lexicon && h.node == 0;  // then silence may begin, too
    if (between_words && o_.sil != o_.blank) add(h.score + cost(o_.sil), h.context, h.node, o_.sil, -1, h.lm, i);
    if (h.token == o_.blank || (between_words && h.token == o_.sil) || (!o_.lexicon && !allowed_[h.token])) return;
    add(h.score + cost(h.token), h.context, h.node, h.token, -1, h.lm, i);
  }

  double hot_step(int32_t state, int32_t token) const {
    int32_t next;
    return hot_.used ? hot_.automaton.score(state, token, &next) : 0.0;
  }
  double hot_end(const Hyp& h) const {
    if (!hot_.used) return 0.0;
    int32_t state = h.hot, next;
    double score = 0.0;
    if (hot_.final_token >= 0 && h.token != hot_.final_token) score = hot_.automaton.score(state, hot_.final_token, &next), state = next;
    for (; state > 0; state = hot_.automaton.backoff_state[state]) score += hot_.automaton.backoff_log_prob[state];
    return score;  // a phrase broken off counts for nothing
  }

  uint64_t follow(uint64_t context, int32_t word, int32_t lm) const {
    return o_.merge_lm_states ? mix64(static_cast<uint32_t>(lm)) : mix64(context + 0x9E3779B97F4A7C15ull * (static_cast<uint32_t>(word) + 1));
  }

  void extend_in_trie(int32_t i) {
    const Hyp& h = hyps_[i];
    const TrieNode& node = trie_.nodes[h.node];
    // A completed word costs at least nothing by the language model, instead of what its beginning had promised.
    const double word_gain = bounded_ ? o_.any_gain + std::max({0.0, o_.word_score - o_.lm_weight * node.max_score, unk_gain(node)}) : kInfinity;
    const int32_t word_tokens = good_enough(h.score, word_gain);
    if (word_tokens == 0) return;
    const int32_t tokens = good_enough(h.score, o_.any_gain);
    if (exact_) {
      uint64_t bits = (node.words | (o_.unk_score > -kInfinity ? node.children : 0)) & rank_[word_tokens - 1].up_to;
      if (tokens > 0) bits |= node.children & rank_[tokens - 1].up_to;
      for (; bits; bits &= bits - 1) {
        const int32_t token = __builtin_ctzll(bits);
        visit(i, node, node.first_child + __builtin_popcountll(node.children & ((uint64_t{1} << token) - 1)), token);
      }
      return;
    }
    const int32_t begin = node.first_child, end = (&node + 1)->first_child;
    if (end - begin <= 2 * word_tokens) {
      const float least = rank_[word_tokens - 1].score;
      for (int32_t c = begin; c < end; ++c) {
        const int32_t token = trie_.nodes[c].token;
        if (allowed_[token] && cost(token) >= least) visit(i, node, c, token);
      }
    } else {
      for (int32_t k = 0; k < word_tokens; ++k) {
        const int32_t c = trie_.child(h.node, rank_[k].token, false);
        if (c >= 0) visit(i, node, c, rank_[k].token);
      }
    }
  }

  double unk_gain(const TrieNode& node) const {
    return o_.unk_score > -kInfinity ? o_.unk_score - o_.lm_weight * node.max_score : 0.0;
  }

  // Hypothesis i goes on to a child of its node.
  void visit(int32_t i, const TrieNode& node, int32_t c, int32_t token) {
    const Hyp& h = hyps_[i];
    if (token == h.token) return;  // needs a blank in between (after one, h.token is blank)
    const TrieNode& child = trie_.nodes[c];
    const double score = h.score + cost(token) + hot_step(h.hot, token);
    if ((&child + 1)->first_child > child.first_child)
      add(score + o_.lm_weight * (child.max_score - node.max_score), h.context, c, token, -1, h.lm, i);
    int32_t next = 0;
    const int32_t first = child.first_word, last = (&child + 1)->first_word;
    for (int32_t w = first; w < last; ++w) {
      const int32_t word = trie_.words[w];
      const double rest = score + o_.word_score - o_.lm_weight * node.max_score;
      if (o_.lm_weight >= 0 && hopeless(rest + o_.lm_weight * lm_.most(word))) continue;
      const float lm_score = lm_.score(h.lm, word, &next);
      add(rest + o_.lm_weight * lm_score, follow(h.context, word, next), 0, token, word, next, i);
    }
    if (first == last && o_.unk_score > -kInfinity) {
      const float lm_score = lm_.score(h.lm, o_.unk_word, &next);
      add(score + o_.unk_score + o_.lm_weight * (lm_score - node.max_score), follow(h.context, o_.unk_word, next), 0, token, o_.unk_word, next, i);
    }
  }

  void extend_freely(int32_t i) {
    const Hyp& h = hyps_[i];
    const int32_t tokens = good_enough(h.score, o_.any_gain);
    for (int32_t k = 0; k < tokens; ++k) {
      const int32_t token = rank_[k].token;
      if (token == h.token) continue;
      const double score = h.score + rank_[k].score + hot_step(h.hot, token);
      if (o_.lm_weight >= 0 && hopeless(score + o_.lm_weight * lm_.most(token))) continue;
      int32_t next;
      const float lm_score = lm_.score(h.lm, token, &next);
      add(score + o_.lm_weight * lm_score, follow(h.context, token, next), 0, token, -1, next, i);
    }
  }

  // ----------------------------------------------------------------------------------------------------------- selection

  // Make the best candidates the hypotheses of the next frame, the best one first.
  void select() {
    if (o_.log_add) sum_equals();
    chosen_.clear();
    const double least = best_ - o_.beam_threshold;
    for (int32_t k = 0; k < static_cast<int32_t>(scores_.size()); ++k)
      if (scores_[k] > least) chosen_.push_back(k);
    const auto better = [&](int32_t a, int32_t b) { return scores_[a] != scores_[b] ? scores_[a] > scores_[b] : a < b; };
    if (static_cast<int32_t>(chosen_.size()) > o_.beam_size) {
      std::nth_element(chosen_.begin(), chosen_.begin() + (o_.beam_size - 1), chosen_.end(), better);
      chosen_.resize(o_.beam_size);
    }
    if (!chosen_.empty()) std::iter_swap(chosen_.begin(), std::min_element(chosen_.begin(), chosen_.end(), better));
    next_.clear();
    all_blank_ = true;
    for (int32_t k : chosen_) next_.push_back(become(candidates_[k], scores_[k]));
    hyps_.swap(next_);
    if (traces_.size() > 2 * live_traces_ + (1 << 16)) compact();
  }

  Hyp become(const Candidate& c, double score) {
    const Hyp& from = hyps_[c.parent];
    Hyp h{score, c.context, c.node, c.lm, from.trace, c.token, from.last, from.hot, from.peak};
    all_blank_ &= c.token == o_.blank;
    if (c.token == o_.blank) return h;
    // Position 0 is the silence before the first frame, so frame t is position t + 1.
    const float emission = emissions_[c.token];
    if (c.token == from.token) {
      h.last = frame_ + 1;
      h.peak = std::max(h.peak, emission);
    } else {
      traces_.push_back({from.trace, c.token, c.word, frame_ + 1, from.last, from.peak});
      h.trace = static_cast<int32_t>(traces_.size()) - 1;
      h.last = frame_ + 1;
      h.peak = emission;
      const bool between_words = o_.lexicon && c.node == 0 && c.word < 0;
      if (hot_.used && !between_words) hot_.automaton.score(from.hot, c.token, &h.hot);
    }
    return h;
  }

  // Forget tokens that no hypothesis has any more.
  void compact() {
    std::vector<int32_t> place(traces_.size(), -1);
    for (const Hyp& h : hyps_)
      for (int32_t t = h.trace; t >= 0 && place[t] < 0; t = traces_[t].parent) place[t] = 0;
    int32_t n = 0;
    for (size_t t = 0; t < traces_.size(); ++t) {
      if (place[t] < 0) continue;
      place[t] = n;
      Trace trace = traces_[t];
      if (trace.parent >= 0) trace.parent = place[trace.parent];  // parents lie before their children
      traces_[n++] = trace;
    }
    traces_.resize(n);
    live_traces_ = n;
    for (Hyp& h : hyps_) h.trace = place[h.trace];
  }

  const CtcOptions& o_;
  const TrieView trie_;
  const HotwordView& hot_;
  Lm lm_;
  bool exact_, limited_, bounded_, all_blank_ = false, ended_ = false;
  double best_ = 0, floor_ = 0, worst_kept_ = 0, offset_ = 0;
  int32_t frame_ = 0, num_ranked_ = 0, live_ = 0;
  uint32_t epoch_ = 0;
  size_t live_traces_ = 0;
  std::vector<float> emissions_;
  std::vector<Ranked> rank_;
  std::vector<char> allowed_;
  std::vector<Hyp> hyps_, next_;
  std::vector<Candidate> candidates_;
  std::vector<double> scores_, scratch_, heaviest_;
  std::vector<Slot> slots_;
  std::vector<int32_t> chosen_, order_;
  std::vector<Trace> traces_;
};

}  // namespace lattica
