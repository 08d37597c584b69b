// SPDX-License-Identifier: MIT
// Plays a trace against the real block pool, sessions and ranks, without steps: every request holds
// its blocks for the time that it took when it was recorded, so all policies meet the same requests
// at the same times, and the next use of everything is known.
#pragma once

#include "simulate/trace.h"

namespace tokenspeed::simulate {

struct CacheSetting {
  enum class Policy { kReuse, kLru, kOracle };

  int sessions = 16;          // conversations at once; one that ends makes room for the next
  int64_t pool_blocks = 0;    // of the trace's block size
  double longest_pause = 60;  // seconds; longer ones are cut
  Policy policy = Policy::kReuse;
  bool names = true;  // requests carry session ids
  bool hints = true;  // tool call or person, and session end
};

struct CacheScore {
  int64_t requests = 0;
  int64_t prompt_tokens = 0;
  int64_t hit_tokens = 0;
  int64_t ideal_tokens = 0;  // hits of a pool without bounds
  int64_t output_tokens = 0;
  int64_t long_recomputes = 0;  // requests that compute 4096 prompt tokens or more beyond the new
};

CacheScore ReplayCache(const Trace& trace, const CacheSetting& setting);

}  // namespace tokenspeed::simulate
