// SPDX-License-Identifier: MIT
#include "plan/epoch_shape.h"

#include <string>

namespace tokenspeed::plan {

Status EpochShape::Validate() const {
  const auto bad = [](const char* name, int64_t value, const char* fix) -> Status {
    return Error{std::string(name) + " is " + std::to_string(value) + "; " + fix};
  };
  if (num_blocks < 2) return bad("num_blocks", num_blocks, "give 2 at least: block 0 is not used");
  if (block_size < 1) return bad("block_size", block_size, "give 1 token at least");
  if (host_blocks < 0) return bad("host_blocks", host_blocks, "0 is no host tier");
  if (max_drafts < 0 || max_drafts > kMostDrafts) {
    return bad("max_drafts", max_drafts, "give 0 (none) to 64 tokens of a row");
  }
  return Ok{};
}

}  // namespace tokenspeed::plan
