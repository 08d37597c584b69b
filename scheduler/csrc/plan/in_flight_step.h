// SPDX-License-Identifier: MIT
// A step that the workers have and that is not done.
#pragma once

#include <vector>

#include "base/ids.h"
#include "plan/cadence.h"

namespace tokenspeed::plan {

struct InFlightStep {
  StepId step;
  TimeNs planned = 0;
  bool wants_logprobs = false;
  bool waits = false;  // for loads: its time tells nothing about its work
  StepWork work;
  std::vector<int32_t> slots;   // of the rows that sample, in their order
  std::vector<int32_t> widths;  // tokens that they bring at most; empty: one each
};

}  // namespace tokenspeed::plan
