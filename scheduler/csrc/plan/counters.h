// SPDX-License-Identifier: MIT
// What a scheduler has done since its process started.
#pragma once

#include <cstdint>

namespace tokenspeed::plan {

struct Counters {
  int64_t steps = 0;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t preemptions = 0;
  int64_t recomputed_tokens = 0;  // of preempted requests
  int64_t finished = 0;
  int64_t rejected = 0;
  int64_t overrun_tokens = 0;
  int64_t stored_blocks = 0;     // to the host tier
  int64_t loaded_blocks = 0;     // and back
  int64_t failed_transfers = 0;  // tickets that failed or took too long
  int64_t drafted_tokens = 0;
  int64_t accepted_tokens = 0;  // of them
  int64_t missed_new = 0;       // prompt tokens by MissReport's reasons
  int64_t missed_evicted = 0;
  int64_t missed_salted = 0;
  int64_t missed_diverged = 0;
};

}  // namespace tokenspeed::plan
