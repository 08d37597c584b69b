// SPDX-License-Identifier: MIT
// How long steps take, learnt from the steps themselves, and how much prefill a step can take on
// without making those who decode wait.
//
//   seconds(step) = decode(rows) + a * tokens + b * tokens * context
//
// decode(rows) is a running mean by powers of two of the rows; a and b are the recursive least
// squares estimate with forgetting (Haykin, "Adaptive Filter Theory", ch. 10).
#pragma once

#include <array>
#include <cstdint>

#include "base/ids.h"

namespace tokenspeed::plan {

// What a step computes.
struct StepWork {
  int32_t decode_rows = 0;
  int32_t prefill_tokens = 0;
  double prefill_pairs = 0;  // token-context pairs of the prefill: its attention
};

class Cadence {
 public:
  // Prefill goes on with so many tokens a step at least, whatever that does to the cadence.
  static constexpr int kLeastPrefill = 64;
  // ... and begins with so many while nothing is known of its cost.
  static constexpr int kFirstPrefill = 256;

  // A step took `duration`; 0 or less: nobody knows.
  void Observe(const StepWork& work, TimeNs duration);

  // Prefill tokens behind `context` of their request that keep a step with `decode_rows` within
  // `stretch` times its length without them. INT32_MAX: there is nobody to protect, or nothing is
  // known yet.
  int PrefillBudget(int decode_rows, int context, double stretch) const;

  // Estimated time to prefill `tokens` behind `context` alone; 0 while nothing is known.
  TimeNs PrefillTime(int tokens, int context = 0) const;

 private:
  static constexpr int kBuckets = 32;
  double DecodeTime(int rows) const;  // 0: nothing is known

  std::array<double, kBuckets> decode_{};  // ns by bit width of the rows; 0: never seen
  // Of the prefill's extra time: weights of (tokens, pairs / kPairs), and their covariance.
  static constexpr double kPairs = 65536;
  double token_ns_ = 0;
  double pair_ns_ = 0;
  std::array<double, 3> covariance_{1e6, 0, 1e6};  // symmetric: xx, xy, yy
  bool known_ = false;
};

}  // namespace tokenspeed::plan
