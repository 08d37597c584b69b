// SPDX-License-Identifier: MIT
// Conversations against the real core and a device that is a roofline: every step is a plan of
// plan::Scheduler, in flight for as long as the device takes, and its result comes back as an
// event. Copies to and from the host tier go over a link, one after the other each way; a step
// that waits for a load ends with it at the earliest (loading layer by layer).
// The same trace and setting give the same outcome, bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/epoch_shape.h"
#include "plan/limits.h"
#include "plan/scheduler.h"
#include "simulate/device.h"
#include "simulate/histogram.h"
#include "simulate/trace.h"

namespace tokenspeed::simulate {

struct Setting {
  plan::Limits limits;
  plan::EpochShape shape;
  int32_t sessions = 16;      // conversations at once, if `rate` is 0
  double rate = 0;            // conversations that begin in a second, at random
  uint64_t seed = 0;          // of the random beginnings
  int64_t requests = 0;       // so many and no more; conversations repeat; 0: each once
  double longest_pause = 60;  // seconds; longer ones are cut
  bool names = true;          // requests carry session ids
  bool hints = true;          // tool call or person, and session end
  Device device;
};

// One request. Times from the start; negative: it did not come to that.
struct Served {
  int64_t conversation = 0;
  int32_t row = 0;
  int32_t prompt = 0;   // tokens, as all that follow
  int32_t cached = 0;   // found in the pool or the host tier
  int32_t host = 0;     // of these, loaded from the host tier
  int32_t ideal = 0;    // that a cache without bounds would have
  int32_t evicted = 0;  // computed, though they had been there before
  int32_t output = 0;
  int32_t refused = 0;  // plan::RefusalCode, 0: it was served
  TimeNs arrived = -1;
  TimeNs admitted = -1;
  TimeNs first = -1;  // token
  TimeNs last = -1;
};

struct Outcome {
  std::vector<Served> requests;
  plan::Counters counters;
  Histogram gaps;      // between tokens of a request
  TimeNs end = 0;      // the last token
  TimeNs busy = 0;     // of the device
  TimeNs loading = 0;  // of the link, to the device ...
  TimeNs storing = 0;  // ... and to the host
  int64_t rows = 0;    // of all steps
};

Outcome Simulate(const Trace& trace, const Setting& setting);

}  // namespace tokenspeed::simulate
