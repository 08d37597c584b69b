// SPDX-License-Identifier: MIT
// Where all block groups of an epoch can resume a request, and the blocks that they need there.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kv/block.h"
#include "kv/group_table.h"

namespace tokenspeed::plan {

struct Boundary {
  int end = 0;         // tokens behind which all groups can resume
  int promotable = 0;  // ... all but the states
  int loaded = 0;      // of `end`: tokens that the host tier adds to what the device has
};

struct NeededBlock {
  int group;
  int64_t end;  // of its tokens
  std::optional<kv::SealedBlock> block;
};

// Device blocks that loads are to write, by group; the next one stands last.
using LoadRoom = std::vector<std::vector<kv::OpenBlock>>;

// Of a running request.
struct Tables {
  const kv::BlockTable& table;
  const kv::GroupTables& groups;
};

}  // namespace tokenspeed::plan
