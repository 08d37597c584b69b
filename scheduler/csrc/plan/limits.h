// SPDX-License-Identifier: MIT
// What the operator allows; fixed for the life of the scheduler.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/ids.h"
#include "base/result.h"
#include "base/siphash.h"

namespace tokenspeed::plan {

struct Limits {
  Hash128 hash_key;             // of the prefix index
  int32_t max_slots = 0;        // requests running at once
  int32_t max_step_tokens = 0;  // token budget of a step, at least max_slots
  int32_t max_model_len = 0;    // prompt and generated tokens of a request
  int32_t max_waiting = 0;      // queue bound
  int32_t vocab_size = 0;
  int32_t depth = 2;               // plans in flight
  int32_t max_prefill_tokens = 0;  // longest chunk of one row; 0: max_step_tokens
  bool prefix_caching = true;
  bool evict_by_reuse = true;      // rank cached blocks by expected reuse; else least recently used
  int64_t transfer_ms = 10'000;    // a copy between tiers that takes longer has failed; 0: never
  double decode_stretch = 1.5;     // longest step with a long prefill, in steps without; 0: any
  TimeNs ageing = 10'000'000'000;  // a waiting request gains a level of priority each

  Status Validate() const;
};

// What `eviction` says of evict_by_reuse: "reuse" or "lru".
inline Result<bool, Error> EvictsByReuse(const std::string& eviction) {
  if (eviction == "reuse" || eviction == "lru") return eviction == "reuse";
  return Error{"eviction is " + eviction + "; give reuse or lru"};
}

// Whether all tokens are `least` to `last`; if that is 2^31 ids or more, maybe not though they are.
// The sign bits tell; the loop has no branches.
inline bool AllBetween(std::span<const Token> tokens, Token least, Token last) {
  const auto most = static_cast<uint32_t>(last) - static_cast<uint32_t>(least);
  uint32_t signs = 0;
  for (const Token token : tokens) {
    const uint32_t above = static_cast<uint32_t>(token) - static_cast<uint32_t>(least);
    signs |= above | (most - above);
  }
  return signs >> 31 == 0;
}

}  // namespace tokenspeed::plan
