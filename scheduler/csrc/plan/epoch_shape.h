// SPDX-License-Identifier: MIT
// What the workers of an epoch bring; fixed while it runs.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "kv/group.h"

namespace tokenspeed::plan {

struct EpochShape {
  int32_t num_blocks = 0;   // of the device's pool; block 0 belongs to nobody
  int32_t block_size = 0;   // tokens
  int32_t host_blocks = 0;  // 0: no host tier; nor is there one without prefix caching
  int32_t max_drafts = 0;   // tokens of a row that can be the workers' own guesses; 0: none
  std::vector<kv::GroupSpec> groups = {};  // empty: one full group; else parents are counted

  static constexpr int32_t kMostDrafts = 64;

  // Whether blocks are children of parents.
  bool grouped() const {
    return groups.size() > 1 || (!groups.empty() && groups.front().share > 1);
  }
  // The error names the group, the value and the fix.
  Status Validate() const;

 private:
  Status ValidateGroup(size_t group) const;
};

}  // namespace tokenspeed::plan
