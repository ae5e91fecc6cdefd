// The lexicon of a CTC decoder: its text as numbers, and the trie of its spellings, flat.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "text.h"

namespace lattica {

// Nodes are in breadth-first order, so the children of node i are the nodes [first_child of i, first_child of i + 1), sorted
// by token. Node 0 is the root; one node behind the last closes the ranges. A row of the tensor `nodes`.
struct TrieNode {
  uint64_t children;  // bit n % 64: there may be a child for token n (for certain, where there are at most 64 tokens)
  uint64_t words;     // the same for children that end a word
  int32_t first_child;
  int32_t first_word;  // words that end here: words[first_word of i] to words[first_word of i + 1]
  int32_t token;
  float max_score;  // the best (or the log-sum) of all words at or below the node
};
static_assert(sizeof(TrieNode) == 32, "a row of `nodes` is 8 int32");

struct TrieView {
  const TrieNode* nodes;
  const int32_t* words;

  // The child of `node` for `token`, or -1.
  int32_t child(int32_t node, int32_t token, bool exact) const {
    const TrieNode& n = nodes[node];
    const uint64_t bit = uint64_t{1} << (token & 63);
    if (!(n.children & bit)) return -1;
    if (exact) return n.first_child + __builtin_popcountll(n.children & (bit - 1));
    int32_t begin = n.first_child, end = nodes[node + 1].first_child;
    while (begin < end) {
      const int32_t middle = (begin + end) / 2;
      if (nodes[middle].token < token) begin = middle + 1;
      else end = middle;
    }
    return begin < nodes[node + 1].first_child && nodes[begin].token == token ? begin : -1;
  }
};

enum class Smearing { kNone, kMax, kLogAdd };

class TrieBuilder {
 public:
  // Spelling i is tokens[splits[i]] to tokens[splits[i + 1]], of the word `words[i]` with the score `scores[i]`.
  TrieBuilder(const int32_t* tokens, const int32_t* splits, const int32_t* words, const float* scores, int32_t n)
      : tokens_(tokens), splits_(splits), words_(words), scores_(scores), n_(n) {}

  // Sort the spellings. Returns how many nodes there will be, the closing one included.
  int64_t sort() {
    order_.resize(n_);
    std::iota(order_.begin(), order_.end(), 0);
    const auto less = [&](int32_t a, int32_t b) {
      return std::lexicographical_compare(tokens_ + splits_[a], tokens_ + splits_[a + 1], tokens_ + splits_[b], tokens_ + splits_[b + 1]);
    };
    if (!std::is_sorted(order_.begin(), order_.end(), less)) std::stable_sort(order_.begin(), order_.end(), less);
    int64_t count = 2;
    for (int32_t i = 0; i < n_; ++i) {
      int32_t common = 0;
      if (i > 0)
        while (common < std::min(length(order_[i]), length(order_[i - 1])) && token_at(order_[i], common) == token_at(order_[i - 1], common)) ++common;
      count += length(order_[i]) - common;
    }
    return count;
  }

  // Write the nodes that sort() counted.
  void run(Smearing smearing, TrieNode* nodes, int64_t count) {
    struct Range { int32_t begin, end; };  // the spellings below a node
    std::vector<Range> ranges;
    std::vector<int32_t> parents;
    ranges.reserve(count), parents.reserve(count), words.reserve(n_), word_scores_.reserve(n_);
    ranges.push_back({0, n_}), parents.push_back(-1);
    nodes[0] = {0, 0, 0, 0, -1, 0};
    int32_t depth = 0, level_end = 1, size = 1;
    for (int32_t i = 0; i < size; ++i) {
      if (i == level_end) ++depth, level_end = size;
      Range r = ranges[i];
      nodes[i].first_child = size;
      nodes[i].first_word = static_cast<int32_t>(words.size());
      for (; r.begin < r.end && length(order_[r.begin]) == depth; ++r.begin) add_word(nodes[i].first_word, order_[r.begin]);
      while (r.begin < r.end) {
        const int32_t token = token_at(order_[r.begin], depth);
        int32_t end = r.begin + 1;
        while (end < r.end && token_at(order_[end], depth) == token) ++end;
        const uint64_t bit = uint64_t{1} << (token & 63);
        nodes[i].children |= bit;
        if (length(order_[r.begin]) == depth + 1) nodes[i].words |= bit;
        nodes[size++] = {0, 0, 0, 0, token, 0};
        parents.push_back(i);
        ranges.push_back({r.begin, end});
        r.begin = end;
      }
    }
    nodes[size] = {0, 0, size, static_cast<int32_t>(words.size()), -1, 0};
    smear(nodes, parents, smearing);
  }

  std::vector<int32_t> words;

 private:
  int32_t length(int32_t i) const { return splits_[i + 1] - splits_[i]; }
  int32_t token_at(int32_t i, int32_t depth) const { return tokens_[splits_[i] + depth]; }

  void add_word(int32_t first_word, int32_t spelling) {
    const auto begin = words.begin() + first_word;
    if (std::find(begin, words.end(), words_[spelling]) != words.end()) return;
    words.push_back(words_[spelling]);
    word_scores_.push_back(scores_[spelling]);
  }

  static float log_add(float a, float b) {
    const float larger = std::max(a, b);
    return std::isinf(larger) ? larger : larger + std::log1p(std::exp(std::min(a, b) - larger));
  }

  void smear(TrieNode* nodes, const std::vector<int32_t>& parents, Smearing smearing) {
    if (smearing == Smearing::kNone) return;
    const int32_t size = static_cast<int32_t>(parents.size());
    const auto join = [&](float a, float b) { return smearing == Smearing::kMax ? std::max(a, b) : log_add(a, b); };
    for (int32_t i = 0; i < size; ++i) nodes[i].max_score = -std::numeric_limits<float>::infinity();
    for (int32_t i = size - 1; i >= 0; --i) {  // children lie behind their parents
      // Words of one spelling are summed whatever the mode, which is Flashlight's way.
      const float below = nodes[i].max_score;
      nodes[i].max_score = -std::numeric_limits<float>::infinity();
      for (int32_t w = nodes[i].first_word; w < nodes[i + 1].first_word; ++w) nodes[i].max_score = log_add(nodes[i].max_score, word_scores_[w]);
      nodes[i].max_score = join(nodes[i].max_score, below);
      if (i > 0) nodes[parents[i]].max_score = join(nodes[parents[i]].max_score, nodes[i].max_score);
    }
    nodes[0].max_score = 0;  // a hypothesis between words has not been promised anything
  }

  const int32_t *tokens_, *splits_, *words_;
  const float* scores_;
  int32_t n_;
  std::vector<int32_t> order_;
  std::vector<float> word_scores_;
};

// A lexicon's text: in each line a word and the tokens of one spelling.
struct LexiconText {
  TextError error;
  std::vector<std::string_view> words;          // each once, in the order of the text
  std::vector<int32_t> tokens, splits, word_of;  // spelling i: its tokens and its word
  std::vector<int32_t> lines;                   // where each word stands first
};

inline LexiconText read_lexicon(std::string_view text, const std::vector<std::string_view>& tokens) {
  LexiconText out;
  Vocabulary token_ids, words;
  token_ids.reserve(tokens.size());
  for (std::string_view token : tokens) token_ids.add(token);
  words.reserve(1 << 10);
  int32_t single[256];  // most tokens are one byte long
  std::fill(single, single + 256, -1);
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i].size() == 1) single[static_cast<unsigned char>(tokens[i][0])] = static_cast<int32_t>(i);
  out.tokens.reserve(text.size() / 2);  // a token and a blank
  out.splits.push_back(0);
  int32_t line = 0;
  for (TextCursor cursor{text.data(), text.data() + text.size()}; !cursor.done();) {
    ++line;
    std::string_view rest = cursor.line();
    const std::string_view word = next_field(rest);
    if (word.empty()) continue;
    const size_t before = out.tokens.size();
    for (std::string_view token; !(token = next_field(rest)).empty();) {
      const int32_t id = token.size() == 1 ? single[static_cast<unsigned char>(token[0])] : token_ids.find(token);
      if (id < 0) {
        out.error = {line, "the spelling of `" + std::string(word) + "` has the token `" + std::string(token) + "`, which is not in the list of tokens"};
        return out;
      }
      out.tokens.push_back(id);
    }
    if (out.tokens.size() == before) {
      out.error = {line, "the word `" + std::string(word) + "` has no spelling: expected a word and its tokens"};
      return out;
    }
    int32_t id = !out.words.empty() && words.words().back() == word ? static_cast<int32_t>(out.words.size()) - 1 : words.find(word);
    if (id < 0) {
      id = words.add(word);
      out.words.push_back(word);
      out.lines.push_back(line);
    }
    out.word_of.push_back(id);
    out.splits.push_back(static_cast<int32_t>(out.tokens.size()));
  }
  return out;
}

}  // namespace lattica
