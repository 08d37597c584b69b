// SPDX-License-Identifier: MIT
// Durations by powers of two cut into 64: quantiles within 1.6%, in fixed memory.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/ids.h"

namespace tokenspeed::simulate {

class Histogram {
 public:
  void Add(TimeNs duration) {
    const auto value = static_cast<uint64_t>(duration > 0 ? duration : 0);
    ++counts_[value < kSteps ? value : Bucket(value)];
    ++total_;
  }
  int64_t total() const { return total_; }

  // The duration that a share `q` of all does not exceed; 0 of nothing.
  TimeNs Quantile(double q) const {
    auto left = static_cast<int64_t>(q * static_cast<double>(total_));
    for (size_t bucket = 0; bucket < counts_.size(); ++bucket) {
      left -= counts_[bucket];
      if (left < 0 || (left == 0 && q >= 1)) return Middle(bucket);
    }
    return 0;
  }

 private:
  static constexpr int kBits = 6;
  static constexpr uint64_t kSteps = uint64_t{1} << kBits;

  static size_t Bucket(uint64_t value) {
    const int octave = std::bit_width(value) - 1 - kBits;  // at least 0
    return static_cast<size_t>(octave + 1) * kSteps + ((value >> octave) & (kSteps - 1));
  }
  static TimeNs Middle(size_t bucket) {
    if (bucket < kSteps) return static_cast<TimeNs>(bucket);
    const int octave = static_cast<int>(bucket / kSteps) - 1;
    const uint64_t low = (kSteps + bucket % kSteps) << octave;
    return static_cast<TimeNs>(low + ((uint64_t{1} << octave) >> 1));
  }

  std::vector<int64_t> counts_ = std::vector<int64_t>(kSteps * (64 - kBits + 1));
  int64_t total_ = 0;
};

}  // namespace tokenspeed::simulate
