// SPDX-License-Identifier: MIT
#include "plan/epoch_shape.h"

#include <algorithm>
#include <numeric>
#include <string>

namespace tokenspeed::plan {
namespace {

constexpr int32_t kMostGroupTokens = 1 << 24;
constexpr int64_t kMostShare = 1 << 16;
constexpr int64_t kMostCells = int64_t{1} << 29;  // tokens of all blocks of a group

}  // namespace

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
  if (groups.size() > kv::kMaxGroups) {
    return bad("the number of groups", static_cast<int64_t>(groups.size()),
               "at most 8: put layers that keep the same into one");
  }
  int64_t stride = block_size;
  for (size_t group = 0; group < groups.size(); ++group) {
    if (Status valid = ValidateGroup(group); !valid.ok()) return valid;
    stride = std::lcm(stride, int64_t{groups[group].tokens});
    if (stride > kMostGroupTokens) {
      return bad("the least common multiple of the groups' tokens", stride,
                 "give tokens that divide each other");
    }
  }
  return Ok{};
}

Status EpochShape::ValidateGroup(size_t group) const {
  const kv::GroupSpec& spec = groups[group];
  const auto bad = [&](const char* name, int64_t value, const std::string& fix) -> Status {
    return Error{std::string(name) + " of group " + std::to_string(group) + " is " +
                 std::to_string(value) + "; " + fix};
  };
  const std::string size = std::to_string(block_size);
  const auto kind = static_cast<int64_t>(spec.kind);
  if (kind < 0 || kind > 2) return bad("kind", kind, "0 is full, 1 window, 2 state");
  if (group == 0 && spec.kind != kv::GroupKind::kFull) {
    return bad("kind", kind, "the first group is a full one: declare a window as full if need be");
  }
  if (spec.tokens < 1 || spec.tokens > kMostGroupTokens || spec.tokens % block_size != 0) {
    return bad("tokens", spec.tokens, "give a multiple of block_size, " + size);
  }
  const bool whole = group > 0 && spec.kind != kv::GroupKind::kState;
  if (!whole && spec.tokens != block_size) {
    return bad("tokens", spec.tokens, "the first group and states have block_size, " + size);
  }
  if (spec.share < 1 || spec.share > kMostShare ||
      int64_t{spec.share} * std::max(num_blocks, host_blocks) > kMostCells / spec.tokens) {
    return bad("share", spec.share,
               "a parent holds 1 to 65536 blocks, and all of a tier 2^29 tokens at most");
  }
  if (spec.kind == kv::GroupKind::kFull && spec.span != 0) {
    return bad("span", spec.span, "a full group has none, give 0");
  }
  if (spec.kind != kv::GroupKind::kFull &&
      (spec.span < 1 || spec.span > kMostGroupTokens || spec.span % spec.tokens != 0)) {
    return bad("span", spec.span,
               "give a positive multiple of its tokens, " + std::to_string(spec.tokens));
  }
  if (spec.kind == kv::GroupKind::kState && max_drafts > 0) {
    return Error{"max_drafts is " + std::to_string(max_drafts) + " beside group " +
                 std::to_string(group) +
                 ", a state: it is written in place, and what it was before a draft that is not "
                 "accepted would be lost; offer 0 drafts"};
  }
  return Ok{};
}

}  // namespace tokenspeed::plan
