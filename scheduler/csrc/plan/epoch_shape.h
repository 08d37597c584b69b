// SPDX-License-Identifier: MIT
// What the workers of an epoch bring; fixed while it runs.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace tokenspeed::plan {

struct EpochShape {
  int32_t num_blocks = 0;   // of the device's pool; block 0 belongs to nobody
  int32_t block_size = 0;   // tokens
  int32_t host_blocks = 0;  // 0: no host tier; nor is there one without prefix caching
  int32_t max_drafts = 0;   // tokens of a row that can be the workers' own guesses; 0: none

  static constexpr int32_t kMostDrafts = 64;
  Status Validate() const;
};

}  // namespace tokenspeed::plan
