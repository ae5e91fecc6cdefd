// Reading text: lines, fields, numbers, words as numbers.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace lattica {

// What is wrong with a text, and in which line (counted from 1; 0: no line in particular).
struct TextError {
  int64_t line = 0;
  std::string message;
};

inline bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

// A piece of text read field by field, line by line.
struct TextCursor {
  const char* p;
  const char* end;

  bool done() const { return p >= end; }
  // The next line without its end; moves behind it.
  std::string_view line() {
    const char* stop = static_cast<const char*>(std::memchr(p, '\n', end - p));
    const char* last = stop ? stop : end;
    std::string_view out(p, last - p);
    p = stop ? stop + 1 : end;
    while (!out.empty() && is_blank(out.back())) out.remove_suffix(1);
    return out;
  }
};

// The next field of a line, empty at its end. Fields are separated by spaces or tabs.
inline std::string_view next_field(std::string_view& line) {
  size_t i = 0;
  while (i < line.size() && is_blank(line[i])) ++i;
  size_t j = i;
  while (j < line.size() && !is_blank(line[j])) ++j;
  const std::string_view field = line.substr(i, j - i);
  line.remove_prefix(j);
  return field;
}

// Plain decimals, which is what these files hold, without the generality (and the price) of the library's function.
inline bool parse_number(std::string_view field, double* value) {
  static constexpr double kPowers[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18};
  const char *p = field.data(), *end = p + field.size();
  const bool negative = p < end && *p == '-';
  if (negative || (p < end && *p == '+')) ++p;
  uint64_t digits = 0;
  int count = 0, decimals = 0;
  const char* start = p;
  for (; p < end && static_cast<unsigned>(*p - '0') < 10; ++p, ++count) digits = digits * 10 + (*p - '0');
  if (p < end && *p == '.')
    for (++p; p < end && static_cast<unsigned>(*p - '0') < 10; ++p, ++count, ++decimals) digits = digits * 10 + (*p - '0');
  if (p == end && count > 0 && count <= 18) {
    *value = (negative ? -1.0 : 1.0) * static_cast<double>(digits) / kPowers[decimals];
    return true;
  }
  const auto [last, error] = std::from_chars(start, end, *value);  // exponents, "inf", very many digits
  if (negative) *value = -*value;
  return error == std::errc() && last == end && start < end && *start != '-' && *start != '+';
}

inline uint64_t mix64(uint64_t x) {
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15ull;
  x ^= x >> 29;
  x *= 0xBF58476D1CE4E5B9ull;
  return x ^ (x >> 32);
}

inline uint64_t hash_bytes(std::string_view s) {
  uint64_t h = 0x243F6A8885A308D3ull ^ s.size();
  size_t i = 0;
  for (; i + 8 <= s.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, s.data() + i, 8);
    h = mix64(h ^ word);
  }
  uint64_t rest = 0;
  std::memcpy(&rest, s.data() + i, s.size() - i);
  return mix64(h ^ rest);
}

// Numbers 0 .. n-1 by key; the keys themselves lie with whoever asks. -1: not there.
class IndexTable {
 public:
  void reserve(size_t n) {
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    slots_.assign(size, {0, -1});
    mask_ = size - 1;
  }
  void prefetch(uint64_t hash) const { __builtin_prefetch(&slots_[hash & mask_]); }
  template <typename Equal>
  int32_t find(uint64_t hash, const Equal& equal) const {
    const uint32_t tag = static_cast<uint32_t>(hash >> 32);
    for (size_t i = hash & mask_;; i = (i + 1) & mask_) {
      if (slots_[i].index < 0) return -1;
      if (slots_[i].tag == tag && equal(slots_[i].index)) return slots_[i].index;
    }
  }
  // The caller has reserved room and has looked that the key is not there.
  void insert(uint64_t hash, int32_t index) {
    if (2 * ++count_ > slots_.size()) grow();
    size_t i = hash & mask_;
    while (slots_[i].index >= 0) i = (i + 1) & mask_;
    slots_[i] = {static_cast<uint32_t>(hash >> 32), index, static_cast<uint32_t>(hash)};
  }

 private:
  struct Slot {
    uint32_t tag;
    int32_t index;
    uint32_t low = 0;
  };
  void grow() {
    std::vector<Slot> old(2 * slots_.size(), {0, -1});
    old.swap(slots_);
    mask_ = slots_.size() - 1;
    for (const Slot& s : old) {
      if (s.index < 0) continue;
      size_t i = s.low & mask_;
      while (slots_[i].index >= 0) i = (i + 1) & mask_;
      slots_[i] = s;
    }
  }
  std::vector<Slot> slots_;
  size_t mask_ = 0, count_ = 0;
};

// Words in the order in which they came; their bytes stay where they are.
class Vocabulary {
 public:
  void reserve(size_t n) {
    table_.reserve(n);
    words_.reserve(n);
  }
  int32_t find(std::string_view word) const {
    return table_.find(hash_bytes(word), [&](int32_t i) { return words_[i] == word; });
  }
  int32_t add(std::string_view word) {
    table_.insert(hash_bytes(word), static_cast<int32_t>(words_.size()));
    words_.push_back(word);
    return static_cast<int32_t>(words_.size()) - 1;
  }
  const std::vector<std::string_view>& words() const { return words_; }

 private:
  IndexTable table_;
  std::vector<std::string_view> words_;
};

}  // namespace lattica
