// SPDX-License-Identifier: MIT
// What a model's caches keep of the tokens before a position, by group of layers that keep the
// same. Wire values and meaning: see GroupKind and Hello in ipc/messages.py.
#pragma once

#include <cstdint>

namespace tokenspeed::kv {

enum class GroupKind : int32_t {
  kFull = 0,    // every token
  kWindow = 1,  // the last `span` tokens
  kState = 2,   // one state after all tokens, copied every `span` tokens
};

struct GroupSpec {
  GroupKind kind = GroupKind::kFull;
  int32_t tokens = 0;  // in a block; for kState those between the places where it can be resumed
  int32_t span = 0;    // tokens; 0 for kFull
  int32_t share = 1;   // blocks in a parent
  friend bool operator==(const GroupSpec&, const GroupSpec&) = default;
};

inline constexpr int kMaxGroups = 8;

}  // namespace tokenspeed::kv
