// SPDX-License-Identifier: MIT
// A place among the requests that run: who has it, and what the workers know of it.
#pragma once

#include <limits>

#include "base/ids.h"

namespace tokenspeed::plan {

struct Request;

struct Slot {
  static constexpr StepId kNever{std::numeric_limits<int64_t>::max()};

  Request* request = nullptr;
  StepId first = kNever;     // that can have a row of `request`
  StepId chunked;            // the last with a chunk of its history
  bool announced = false;    // the workers know the slot ...
  bool stale = false;        // ... but with a context that is behind: add it again
  int announced_blocks = 0;  // of its table
};

}  // namespace tokenspeed::plan
