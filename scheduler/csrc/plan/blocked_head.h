// SPDX-License-Identifier: MIT
// The head of the queue that did not fit. Its admission is tried again only when something that
// could help it has changed.
#pragma once

#include <cstdint>

#include "base/ids.h"

namespace tokenspeed::plan {

struct BlockedHead {
  Arrival head;
  uint64_t openings = 0;  // when it did not fit
  int hits = 0;           // blocks that it found in the pool then
  int short_by = 0;       // blocks
  bool passed = false;    // everybody who may pass it has been tried
};

}  // namespace tokenspeed::plan
