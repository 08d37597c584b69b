// SPDX-License-Identifier: MIT
#include "plan/link_pace.h"

#include <algorithm>
#include <utility>

namespace tokenspeed::plan {

void LinkPace::Observe(int blocks, TimeNs begun, TimeNs now) {
  const TimeNs start = std::max(begun, std::exchange(last_, std::max(last_, now)));
  if (blocks < 1 || now <= start) return;
  const double each = static_cast<double>(now - start) / blocks;
  block_ns_ = block_ns_ == 0 ? each : block_ns_ + kRecent * (each - block_ns_);
}

}  // namespace tokenspeed::plan
