// SPDX-License-Identifier: MIT
// How much the cached blocks of one owner are worth keeping, and the names of owners.
#pragma once

#include <compare>
#include <cstdint>

namespace tokenspeed::kv {

// Whoever is expected to use a cached block again: a conversation. The default is nobody.
struct OwnerId {
  int32_t slot = 0;
  uint32_t generation = 0;
  friend bool operator==(const OwnerId&, const OwnerId&) = default;
};

// The lower, the earlier evicted.
struct Rank {
  enum Tier : uint8_t {
    kOver,      // it has ended, or was demoted
    kIdle,      // by worth
    kRetained,  // asked to be kept
    kPresent,   // one of its requests waits or runs
  };
  Tier tier = kOver;
  float worth = 0.0f;
  uint64_t stamp = 0;  // ties: least recently used first
  friend auto operator<=>(const Rank&, const Rank&) = default;
};

}  // namespace tokenspeed::kv
