// A set of numbers with open addressing that many threads fill at once, on the CPU or on the GPU. The place of a number
// indexes whatever else is known of it.
#pragma once

#include <cstdint>

#include "atomics.h"

namespace lattica {

struct HashSet {
  static constexpr uint64_t kEmpty = ~uint64_t{0};

  uint64_t* keys;    // all kEmpty at first
  int64_t capacity;  // a power of two

  // The place of `key`, which is put there if it was not in the set (then *is_new); -1 if the set is full.
  LATTICA_BOTH int64_t insert(uint64_t key, bool* is_new) const {
    int64_t place = start(key);
    for (int64_t tries = 0; tries < capacity; ++tries, place = (place + 1) & (capacity - 1)) {
      uint64_t old = atomic_load(keys + place);  // cheaper than the exchange, and mostly the key is there
      if (old == kEmpty) old = atomic_cas(keys + place, kEmpty, key);
      if (old == kEmpty || old == key) {
        *is_new = old == kEmpty;
        return place;
      }
    }
    return -1;
  }

  // The place of `key`, -1 if it is not in the set. Not while others insert.
  LATTICA_BOTH int64_t find(uint64_t key) const {
    int64_t place = start(key);
    for (int64_t tries = 0; tries < capacity; ++tries, place = (place + 1) & (capacity - 1)) {
      if (keys[place] == key) return place;
      if (keys[place] == kEmpty) return -1;
    }
    return -1;
  }

 private:
  LATTICA_BOTH int64_t start(uint64_t key) const {
    uint64_t x = (key ^ (key >> 31)) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 29)) * 0xd6e8feb86659fd93u;
    return static_cast<int64_t>((x ^ (x >> 32)) & static_cast<uint64_t>(capacity - 1));
  }
};

}  // namespace lattica
