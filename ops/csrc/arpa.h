// Read the text of an ARPA language model into the flat back-off automaton of ngram.h.
//
// The lines of a section are parsed by all threads, in pieces that end at line ends; the words of the unigrams are numbered
// in the order of the file, <unk> being 0. Then each n-gram finds its context among the (n-1)-grams by a hash table, and the
// automaton is laid out level by level.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "ngram.h"
#include "text.h"

namespace lattica {

struct ArpaResult {
  TextError error;
  int32_t order = 0;
  std::vector<std::string_view> words;  // into the text (or literals)
  int32_t start_state = 0;
  std::vector<int32_t> arc_splits, arc_words, arc_next, backoff_state;
  std::vector<float> arc_log_probs, backoff_log_prob;
};

template <typename Backend>
class ArpaReader {
 public:
  ArpaReader(const Backend& backend, std::string_view text) : backend_(backend), text_(text) {}

  ArpaResult run() {
    if (read()) build();
    return std::move(out_);
  }

 private:
  static constexpr double kLn10 = 2.302585092994045684;
  static constexpr float kImplied = std::numeric_limits<float>::infinity();  // a context that the file does not list

  struct Level {  // the n-grams of one order, in the order of the file
    std::vector<int32_t> context, word;  // context: an n-gram of one level below
    std::vector<float> log_prob, backoff;
    std::vector<int32_t> state, sorted;
    std::vector<char> has_children;
    IndexTable table;

    size_t size() const { return word.size(); }
    static uint64_t hash(int32_t context, int32_t word) { return mix64(static_cast<uint64_t>(context) << 32 | static_cast<uint32_t>(word)); }
    int32_t find(int32_t c, int32_t w) const {
      return table.find(hash(c, w), [&](int32_t i) { return context[i] == c && word[i] == w; });
    }
    int32_t add(int32_t c, int32_t w) {
      const int32_t index = static_cast<int32_t>(size());
      context.push_back(c), word.push_back(w), log_prob.push_back(kImplied), backoff.push_back(0);
      table.insert(hash(c, w), index);
      return index;
    }
  };
  struct Piece {  // whole lines of a section
    std::string_view text;
    int64_t first_line, first_entry;
    TextError error;
  };

  bool fail(int64_t line, std::string message) {
    if (out_.error.message.empty()) out_.error = {line, std::move(message)};
    return false;
  }

  // ------------------------------------------------------------------------------------------------------------ reading

  bool read() {
    TextCursor cursor{text_.data(), text_.data() + text_.size()};
    if (!read_header(cursor)) return false;
    const int32_t order = static_cast<int32_t>(counts_.size());
    out_.order = order;
    levels_.resize(order);
    for (int32_t n = 1; n <= order; ++n) {
      const std::string heading = "\\" + std::to_string(n) + "-grams:";
      if (!find_heading(cursor, heading)) return false;
      const std::string_view section = take_section(cursor);
      const int64_t lines = count_lines(section);
      if (!(n == 1 ? read_unigrams(section) : read_ngrams(section, n))) return false;
      line_ += lines;
    }
    return find_heading(cursor, "\\end\\");
  }

  bool read_header(TextCursor& cursor) {
    bool found = false;
    while (!cursor.done() && !found) ++line_, found = cursor.line() == "\\data\\";
    if (!found) return fail(0, "is not an ARPA language model: it has no line \\data\\");
    while (!cursor.done()) {
      const char* start = cursor.p;
      std::string_view line = cursor.line();
      if (!line.empty() && line[0] == '\\') {
        cursor.p = start;
        break;
      }
      ++line_;
      if (line.empty()) continue;
      const size_t equals = line.find('=');
      double order = 0, count = -1;
      std::string_view left = equals == line.npos ? line : line.substr(0, equals), right = equals == line.npos ? "" : line.substr(equals + 1);
      const std::string_view word = next_field(left), number = next_field(left);
      if (word != "ngram" || !parse_number(number, &order) || !parse_number(next_field(right), &count) || count < 0 || count > INT32_MAX)
        return fail(line_, "expected `ngram N=count`");
      if (order != static_cast<double>(counts_.size() + 1)) return fail(line_, "expected the count of the " + std::to_string(counts_.size() + 1) + "-grams");
      counts_.push_back(static_cast<int64_t>(count));
    }
    if (counts_.empty() || counts_[0] == 0) return fail(line_, "the header counts no n-grams");
    if (counts_.size() > 32) return fail(line_, "n-grams of more than 32 words are not supported");
    return true;
  }

  bool find_heading(TextCursor& cursor, const std::string& heading) {
    while (!cursor.done()) {
      ++line_;
      const std::string_view line = cursor.line();
      if (line == heading) return true;
      if (!line.empty()) return fail(line_, "expected " + heading + ", found `" + std::string(line.substr(0, 60)) + "`");
    }
    return fail(line_, "the file ends before " + heading + ": it is truncated");
  }

  // Everything up to the next line that begins with a backslash.
  std::string_view take_section(TextCursor& cursor) {
    const char* start = cursor.p;
    const char* p = start;
    while (p < cursor.end && *p != '\\') {
      const char* stop = static_cast<const char*>(memmem(p, cursor.end - p, "\n\\", 2));
      p = stop ? stop + 1 : cursor.end;
    }
    cursor.p = p;
    return {start, static_cast<size_t>(p - start)};
  }

  static int64_t count_lines(std::string_view text) { return std::count(text.begin(), text.end(), '\n') + (!text.empty() && text.back() != '\n'); }

  bool read_unigrams(std::string_view section) {
    Level& level = levels_[0];
    vocabulary_.reserve(counts_[0] + 1);
    vocabulary_.add("<unk>");
    level.log_prob = {static_cast<float>(-100 * kLn10)};  // what an unknown word costs where the file does not say
    level.backoff = {0};
    bool unk_seen = false;
    int64_t line = line_, listed = 0;
    for (TextCursor cursor{section.data(), section.data() + section.size()}; !cursor.done();) {
      ++line;
      std::string_view rest = cursor.line();
      if (rest.empty()) continue;
      float log_prob, backoff;
      std::string_view word;
      if (const char* wrong = parse_entry(rest, 1, &log_prob, &word, &backoff)) return fail(line, wrong);
      ++listed;
      const bool is_unk = word == "<unk>" || word == "<UNK>";
      if (is_unk ? unk_seen : vocabulary_.find(word) >= 0) return fail(line, "the word `" + std::string(word) + "` is listed twice");
      if (is_unk) {
        unk_seen = true, level.log_prob[0] = log_prob, level.backoff[0] = backoff;
      } else {
        vocabulary_.add(word);
        level.log_prob.push_back(log_prob), level.backoff.push_back(backoff);
      }
    }
    if (listed != counts_[0]) return wrong_count(line, 1, listed);
    const int32_t words = static_cast<int32_t>(level.log_prob.size());
    level.context.assign(words, 0);
    level.word.resize(words);
    for (int32_t w = 0; w < words; ++w) level.word[w] = w;
    for (const char* word : {"<s>", "</s>"})
      if (vocabulary_.find(word) < 0) return fail(line, std::string("the unigrams do not list ") + word);
    return true;
  }

  bool wrong_count(int64_t line, int32_t n, int64_t found) {
    return fail(line, "the header announces " + std::to_string(counts_[n - 1]) + " " + std::to_string(n) + "-grams, here " +
                          (found < counts_[n - 1] ? "the list ends after " : "are ") + std::to_string(found) +
                          (found < counts_[n - 1] ? ": the file is truncated" : ""));
  }

  // A line: log10 probability, n words, perhaps a log10 back-off weight. Returns what is wrong, or null.
  static const char* parse_entry(std::string_view line, int32_t n, float* log_prob, std::string_view* words, float* backoff) {
    double value;
    if (!parse_number(next_field(line), &value) || std::isnan(value)) return "expected a log10 probability in the first column";
    if (value > 0) return "a log10 probability above 0";
    *log_prob = static_cast<float>(value * kLn10);
    for (int32_t i = 0; i < n; ++i)
      if ((words[i] = next_field(line)).empty()) return "fewer words than the section's order";
    const std::string_view last = next_field(line);
    value = 0;
    if (!last.empty() && (!parse_number(last, &value) || !(std::abs(value) < 1e30))) return "expected a log10 back-off weight behind the words";
    if (!next_field(line).empty()) return "more columns than the section's order allows";
    *backoff = static_cast<float>(value * kLn10);
    return nullptr;
  }

  bool read_ngrams(std::string_view section, int32_t n) {
    std::vector<Piece> pieces = cut(section);
    const int64_t count = counts_[n - 1];
    int64_t listed = pieces.empty() ? 0 : pieces.back().first_entry + count_entries(pieces.back().text);
    if (listed != count) return wrong_count(line_ + count_lines(section), n, listed);
    Level& level = levels_[n - 1];
    level.context.resize(count), level.word.resize(count), level.log_prob.resize(count), level.backoff.resize(count);
    std::vector<int32_t> histories((n - 1) * count);  // the words before the last
    backend_.for_each(static_cast<int64_t>(pieces.size()), [&](int64_t i) { parse_piece(pieces[i], n, level, histories.data()); });
    for (Piece& piece : pieces)
      if (!piece.error.message.empty()) return fail(piece.error.line, piece.error.message);
    for (int64_t i = 0; i < count; ++i)
      if (level.context[i] < 0) level.context[i] = add_context(&histories[i * (n - 1)], n - 1);
    level.table.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
      if (i + 16 < count) level.table.prefetch(Level::hash(level.context[i + 16], level.word[i + 16]));
      if (level.find(level.context[i], level.word[i]) >= 0) return fail(line_of_entry(section, i), "this n-gram is listed twice");
      level.table.insert(Level::hash(level.context[i], level.word[i]), static_cast<int32_t>(i));
    }
    return true;
  }

  static int64_t count_entries(std::string_view text) {
    int64_t entries = 0;
    for (TextCursor cursor{text.data(), text.data() + text.size()}; !cursor.done();) entries += !cursor.line().empty();
    return entries;
  }

  int64_t line_of_entry(std::string_view section, int64_t entry) const {
    int64_t line = line_;
    for (TextCursor cursor{section.data(), section.data() + section.size()}; !cursor.done() && entry >= 0;) ++line, entry -= !cursor.line().empty();
    return line;
  }

  std::vector<Piece> cut(std::string_view section) const {
    constexpr size_t kBytes = 1 << 18;
    std::vector<Piece> pieces;
    int64_t line = line_;
    for (size_t begin = 0; begin < section.size();) {
      size_t end = std::min(section.size(), begin + kBytes);
      if (end < section.size()) {
        end = section.find('\n', end);
        end = end == section.npos ? section.size() : end + 1;
      }
      pieces.push_back({section.substr(begin, end - begin), line, 0, {}});
      line += count_lines(pieces.back().text);
      begin = end;
    }
    backend_.for_each(static_cast<int64_t>(pieces.size()), [&](int64_t i) { pieces[i].first_entry = count_entries(pieces[i].text); });
    int64_t entries = 0;
    for (Piece& piece : pieces) {
      const int64_t own = piece.first_entry;
      piece.first_entry = entries, entries += own;
    }
    return pieces;
  }

  void parse_piece(Piece& piece, int32_t n, Level& level, int32_t* histories) const {
    std::string_view words[32];
    int32_t ids[32];
    int64_t line = piece.first_line, i = piece.first_entry;
    for (TextCursor cursor{piece.text.data(), piece.text.data() + piece.text.size()}; !cursor.done();) {
      ++line;
      const std::string_view rest = cursor.line();
      if (rest.empty()) continue;
      if (const char* wrong = parse_entry(rest, n, &level.log_prob[i], words, &level.backoff[i])) {
        piece.error = {line, wrong};
        return;
      }
      for (int32_t k = 0; k < n; ++k)
        if ((ids[k] = word_id(words[k])) < 0) {
          piece.error = {line, "the word `" + std::string(words[k]) + "` is not among the unigrams"};
          return;
        }
      int32_t context = ids[0];
      for (int32_t k = 1; k < n - 1 && context >= 0; ++k) context = levels_[k].find(context, ids[k]);
      std::copy(ids, ids + n - 1, histories + i * (n - 1));
      level.context[i] = context;
      level.word[i] = ids[n - 1];
      ++i;
    }
  }

  int32_t word_id(std::string_view word) const {
    const int32_t id = vocabulary_.find(word);
    return id < 0 && word == "<UNK>" ? 0 : id;
  }

  // Some tools leave out n-grams that longer ones begin with.
  int32_t add_context(const int32_t* words, int32_t n) {
    int32_t context = words[0];
    for (int32_t k = 1; k < n; ++k) {
      const int32_t found = levels_[k].find(context, words[k]);
      context = found >= 0 ? found : levels_[k].add(context, words[k]);
    }
    return context;
  }

  // ----------------------------------------------------------------------------------------------------------- building

  void build() {
    const int32_t order = out_.order;
    int64_t arcs = 0;
    for (Level& level : levels_) arcs += static_cast<int64_t>(level.size());
    if (arcs >= INT32_MAX) {
      fail(0, "more than 2^31 - 1 n-grams");
      return;
    }
    mark_and_sort();
    const int32_t states = number_states();
    out_.arc_words.resize(arcs), out_.arc_log_probs.resize(arcs), out_.arc_next.resize(arcs);
    out_.backoff_state.assign(states, -1), out_.backoff_log_prob.assign(states, 0.0f);
    out_.arc_splits.assign(states + 1, 0);
    for (int32_t n = 0; n < order; ++n)
      for (int32_t context : levels_[n].context) ++out_.arc_splits[source(n, context) + 1];
    for (int32_t s = 0; s < states; ++s) out_.arc_splits[s + 1] += out_.arc_splits[s];
    int32_t arc = 0;
    for (int32_t n = 0; n < order; ++n) {
      lay_out(n, arc);
      arc += static_cast<int32_t>(levels_[n].size());
    }
    const int32_t start = vocabulary_.find("<s>");
    out_.start_state = order > 1 && levels_[0].state[start] > 0 ? levels_[0].state[start] : 0;
    out_.words = vocabulary_.words();
  }

  // The order of arcs: by context in the order of the level below, then by word.
  void mark_and_sort() {
    levels_[0].sorted = levels_[0].word;
    for (int32_t n = 1; n < out_.order; ++n) {
      Level &below = levels_[n - 1], &level = levels_[n];
      below.has_children.assign(below.size(), 0);
      std::vector<int32_t> begins(below.size() + 1, 0), rank(below.size());
      for (size_t r = 0; r < below.size(); ++r) rank[below.sorted[r]] = static_cast<int32_t>(r);
      for (int32_t c : level.context) below.has_children[c] = 1, ++begins[rank[c] + 1];
      for (size_t r = 0; r < below.size(); ++r) begins[r + 1] += begins[r];
      level.sorted.resize(level.size());
      std::vector<int32_t> at(begins.begin(), begins.end() - 1);
      for (size_t i = 0; i < level.size(); ++i) level.sorted[at[rank[level.context[i]]]++] = static_cast<int32_t>(i);
      backend_.for_each(static_cast<int64_t>(below.size()), [&](int64_t r) {
        std::sort(level.sorted.begin() + begins[r], level.sorted.begin() + begins[r + 1], [&](int32_t i, int32_t j) { return level.word[i] < level.word[j]; });
      });
    }
  }

  // A context is a state if something follows it or if leaving it costs something; others act like their suffixes.
  int32_t number_states() {
    int32_t states = 1;
    for (int32_t n = 0; n + 1 < out_.order; ++n) {
      Level& level = levels_[n];
      level.state.assign(level.size(), -1);
      for (int32_t i : level.sorted)
        if (level.has_children[i] || level.backoff[i] != 0) level.state[i] = states++;
    }
    return states;
  }

  // The state that the arcs of level n (0: unigrams) leave.
  int32_t source(int32_t n, int32_t context) const { return n == 0 ? 0 : levels_[n - 1].state[context]; }

  // Write the arcs of level n, in the order of the states that they leave. All arcs of shorter contexts are in place: they
  // say where the suffix of an n-gram leads and what it costs.
  void lay_out(int32_t n, int32_t first) {
    Level& level = levels_[n];
    const bool last = n + 1 == out_.order;
    const NgramView lm = view();
    backend_.for_each(static_cast<int64_t>(level.size()), [&](int64_t k) {
      const int32_t i = level.sorted[k], from = source(n, level.context[i]);
      int32_t suffix = 0;
      float log_prob = level.log_prob[i];
      if (from > 0) {
        const float shorter = lm.score(lm.backoff_state[from], level.word[i], &suffix);
        if (log_prob == kImplied) log_prob = lm.backoff_log_prob[from] + shorter;
      }
      const int32_t own = last ? -1 : level.state[i];
      out_.arc_words[first + k] = level.word[i];
      out_.arc_log_probs[first + k] = log_prob;
      out_.arc_next[first + k] = own >= 0 ? own : suffix;
      if (own >= 0) out_.backoff_state[own] = suffix, out_.backoff_log_prob[own] = level.backoff[i];
    });
  }

  NgramView view() const {
    return {out_.arc_splits.data(), out_.arc_words.data(), out_.arc_next.data(), out_.backoff_state.data(), out_.arc_log_probs.data(), out_.backoff_log_prob.data()};
  }

  const Backend& backend_;
  std::string_view text_;
  int64_t line_ = 0;
  std::vector<int64_t> counts_;
  std::vector<Level> levels_;
  Vocabulary vocabulary_;
  ArpaResult out_;
};

}  // namespace lattica
