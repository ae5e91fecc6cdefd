// The language models of a CTC decoder, all with one face:
//   int32_t start();  float score(int32_t state, int32_t word, int32_t* next);  float finish(int32_t state);
//   float most(int32_t word): no state gives the word more than this.
// Words are the decoder's; scores are what its lm_weight is multiplied with. One object serves one utterance.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "kenlm.h"
#include "ngram.h"
#include "text.h"

namespace lattica {

constexpr float kLog10E = 0.4342944819f;

struct NoLm {
  int32_t start() const { return 0; }
  float score(int32_t, int32_t, int32_t* next) { return *next = 0, 0.0f; }
  float finish(int32_t) { return 0.0f; }
  float most(int32_t) const { return 0.0f; }
};

// What was asked before is mostly asked again in the next frame.
class QueryCache {
 public:
  struct Entry {
    int32_t state = -1, word = -1, next = 0;
    float score = 0;
  };
  QueryCache() : entries_(kSize) {}
  Entry& at(int32_t state, int32_t word) {
    return entries_[(static_cast<uint64_t>(state) << 32 | static_cast<uint32_t>(word)) * 0x9E3779B97F4A7C15ull >> (64 - kBits)];
  }

 private:
  static constexpr int kBits = 12, kSize = 1 << kBits;
  std::vector<Entry> entries_;
};

// An n-gram model as an automaton. Scores are log10, as KenLM's are.
struct NgramShared {
  NgramView lm;
  const int32_t* ids;  // the decoder's words in the model's vocabulary
  int32_t start_state, end_word;
  const float* most;  // null: unknown
};

class NgramLm {
 public:
  explicit NgramLm(const NgramShared& shared) : shared_(shared) {}
  int32_t start() const { return shared_.start_state; }
  float score(int32_t state, int32_t word, int32_t* next) {
    QueryCache::Entry& e = cache_.at(state, word);
    if (e.state != state || e.word != word) {
      e.state = state, e.word = word;
      e.score = shared_.lm.score(state, shared_.ids[word], &e.next) * kLog10E;
    }
    *next = e.next;
    return e.score;
  }
  float finish(int32_t state) {
    int32_t next;
    return shared_.lm.score(state, shared_.end_word, &next) * kLog10E;
  }
  float most(int32_t word) const { return shared_.most == nullptr ? 0.0f : shared_.most[word]; }

 private:
  const NgramShared& shared_;
  QueryCache cache_;
};

// A KenLM binary. States are numbered anew for each utterance, so that threads share nothing that changes.
struct KenLmShared {
  std::shared_ptr<const KenLm> lm;
  const int32_t* ids;
};

class KenLmLm {
 public:
  explicit KenLmLm(const KenLmShared& shared) : ids_(shared.ids), states_(shared.lm) {}
  int32_t start() const { return states_.start_state(); }
  float score(int32_t state, int32_t word, int32_t* next) {
    QueryCache::Entry& e = cache_.at(state, word);
    if (e.state != state || e.word != word) {
      e.state = state, e.word = word;
      e.score = states_.score(state, ids_[word], &e.next) * kLog10E;
    }
    *next = e.next;
    return e.score;
  }
  float finish(int32_t state) { return states_.final(state) * kLog10E; }
  float most(int32_t) const { return 0.0f; }

 private:
  const int32_t* ids_;
  KenLmStates states_;
  QueryCache cache_;
};

// A model that lives elsewhere (in Python): what it has said so far. A question without an answer is written down, and the
// decoder repeats the frame when the answers are there.
class TableLm {
 public:
  static constexpr int32_t kFinish = -1;
  explicit TableLm(int32_t start_state) : start_(start_state) { table_.reserve(1024); }
  int32_t start() const { return start_; }
  float score(int32_t state, int32_t word, int32_t* next) {
    const uint64_t hash = mix64(static_cast<uint64_t>(state) << 32 | static_cast<uint32_t>(word));
    int32_t i = table_.find(hash, [&](int32_t k) { return states_[k] == state && words_[k] == word; });
    if (i < 0) {
      i = static_cast<int32_t>(states_.size());
      states_.push_back(state), words_.push_back(word), nexts_.push_back(0), scores_.push_back(-std::numeric_limits<float>::infinity());
      table_.insert(hash, i);
    }
    *next = nexts_[i];
    return scores_[i];
  }
  float finish(int32_t state) {
    int32_t next;
    return score(state, kFinish, &next);
  }
  float most(int32_t) const { return std::numeric_limits<float>::infinity(); }

  // Questions [answered, size) wait.
  int32_t size() const { return static_cast<int32_t>(states_.size()); }
  int32_t answered() const { return answered_; }
  int32_t state(int32_t i) const { return states_[i]; }
  int32_t word(int32_t i) const { return words_[i]; }
  void answer(float score, int32_t next) { scores_[answered_] = score, nexts_[answered_++] = next; }

 private:
  int32_t start_, answered_ = 0;
  std::vector<int32_t> states_, words_, nexts_;
  std::vector<float> scores_;
  IndexTable table_;
};

template <typename Lm>
bool waits(const Lm&) { return false; }
inline bool waits(const TableLm& lm) { return lm.answered() < lm.size(); }

}  // namespace lattica
