// SPDX-License-Identifier: MIT
// How long a block takes from the host tier to the device, learnt from the loads that have ended.
#pragma once

#include "base/ids.h"

namespace tokenspeed::plan {

class LinkPace {
 public:
  // `blocks` that began to load at `begun` have landed at `now`. Loads go one after the other.
  void Observe(int blocks, TimeNs begun, TimeNs now);
  // Nobody took a load since it seemed too slow: the next one seems a little faster, so that a
  // link that was slow once is tried again.
  void Forgo() { block_ns_ *= kForgone; }
  // Estimated time of a block; 0 while nothing is known.
  TimeNs BlockTime() const { return static_cast<TimeNs>(block_ns_); }

 private:
  static constexpr double kRecent = 0.2;    // weight of a new load in the mean
  static constexpr double kForgone = 0.98;  // of the estimate

  double block_ns_ = 0;
  TimeNs last_ = 0;  // when a load ended
};

}  // namespace tokenspeed::plan
