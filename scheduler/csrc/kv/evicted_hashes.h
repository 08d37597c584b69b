// SPDX-License-Identifier: MIT
// Which chain hashes were evicted: a bounded table of fingerprints, later ones displace earlier
// ones. It may forget, and it errs to the side of "evicted" once in 2^32 lookups.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/siphash.h"

namespace tokenspeed::kv {

class EvictedHashes {
 public:
  // Remembers about `count` of them; 0: none.
  explicit EvictedHashes(int count)
      : prints_(count > 0 ? std::bit_ceil(static_cast<size_t>(count)) : 0) {}

  void Insert(const Hash128& hash) {
    if (!prints_.empty()) prints_[Place(hash)] = Print(hash);
  }
  void Prefetch(const Hash128& hash) const { __builtin_prefetch(&prints_[Place(hash)], 1); }
  bool Holds(const Hash128& hash) const {
    return !prints_.empty() && prints_[Place(hash)] == Print(hash);
  }

 private:
  size_t Place(const Hash128& hash) const { return hash.low() & (prints_.size() - 1); }
  // From the other half of the hash; 0 is an empty place.
  static uint32_t Print(const Hash128& hash) {
    uint32_t print;
    std::memcpy(&print, hash.bytes.data() + 8, sizeof(print));
    return print | 1;
  }

  std::vector<uint32_t> prints_;
};

}  // namespace tokenspeed::kv
