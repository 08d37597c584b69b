// SPDX-License-Identifier: MIT
// Who comes first. A rank never changes while a request waits or runs: ageing is part of it, since
// who waits for a level's time is as good as who came then with one level more.
#pragma once

#include <compare>
#include <limits>

#include "base/ids.h"

namespace tokenspeed::plan {

inline constexpr int32_t kMostPriority = 100;
inline constexpr TimeNs kNoDeadline = std::numeric_limits<TimeNs>::max();

// Smaller comes first.
struct Rank {
  int64_t band = 0;               // arrival in units of ageing, less the priority
  bool fresh = true;              // never ran; who was preempted comes back before those
  TimeNs deadline = kNoDeadline;  // while it can be met: it orders within a band, so that nobody
                                  // waits for deadlines that came an ageing time later
  Arrival arrival;

  friend auto operator<=>(const Rank&, const Rank&) = default;
};

// REQUIRES: time >= 0, ageing > 0.
constexpr Rank RankOf(TimeNs time, int32_t priority, TimeNs ageing, TimeNs deadline,
                      Arrival arrival) {
  return {.band = time / ageing - priority, .deadline = deadline, .arrival = arrival};
}

}  // namespace tokenspeed::plan
