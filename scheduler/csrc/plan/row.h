// SPDX-License-Identifier: MIT
// A row of the plan that is being made: tokens of the known history.
#pragma once

#include <cstdint>

#include "base/ids.h"

namespace tokenspeed::plan {

struct Request;

struct Row {
  Request* request;
  SlotId slot;
  int32_t begin;  // of its tokens in the request's history
  int32_t length;
  uint8_t flags;
};

}  // namespace tokenspeed::plan
