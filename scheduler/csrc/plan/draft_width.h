// SPDX-License-Identifier: MIT
// How many tokens to draft for a request, learnt from what it accepted: one more when all were
// accepted, else half the way to what was; never fewer than one, or it could not learn.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tokenspeed::plan {

class DraftWidth {
 public:
  // REQUIRES: most >= 1, what the workers can draft.
  int Next(int most) const { return width_ < 0 ? most : std::min<int>(width_, most); }
  void Learn(int drafted, int accepted) {
    if (width_ < 0) width_ = drafted;
    width_ = accepted == drafted ? std::max(width_, drafted + 1)
                                 : std::max(1, (std::min(width_, drafted) + accepted) / 2);
  }

 private:
  int32_t width_ = -1;
};

}  // namespace tokenspeed::plan
