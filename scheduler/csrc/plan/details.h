// SPDX-License-Identifier: MIT
// What a worker tells the frontends of the requests of its rows; the scheduler passes it on unread.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

namespace tokenspeed::plan {

struct Details {
  std::vector<int32_t> slots;  // of the requests
  std::vector<int32_t> sizes;  // beside slots: bytes of each
  std::vector<uint8_t> bytes;  // back to back
  int64_t began_ns = 0;        // when the worker had the step's plan, by CLOCK_MONOTONIC ...
  int64_t ended_ns = 0;        // ... and its tokens; 0: not told

  bool WellFormed() const {
    if (slots.size() != sizes.size()) return false;
    for (const int32_t size : sizes) {
      if (size < 0) return false;
    }
    return std::accumulate(sizes.begin(), sizes.end(), uint64_t{0}) == bytes.size();
  }
};

}  // namespace tokenspeed::plan
