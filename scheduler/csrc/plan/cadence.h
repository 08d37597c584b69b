// SPDX-License-Identifier: MIT
// How long steps take, learnt from the steps themselves, and how much prefill a step can take on
// without making those who decode wait: its share, and for prefills that end by it what earlier
// steps left of theirs. So a short prompt is read at once, and a long one never stops the others.
//
//   seconds(step) = decode(rows) + c + a * tokens + b * tokens * context
//
// decode(rows) is a running mean by powers of two of the rows; a, b, and c of steps with prefill,
// are the recursive least squares estimate with forgetting (Haykin, "Adaptive Filter Theory",
// ch. 10).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "base/ids.h"

namespace tokenspeed::plan {

// What a step computes.
struct StepWork {
  int32_t decode_rows = 0;
  int32_t prefill_tokens = 0;
  double prefill_pairs = 0;  // token-context pairs of the prefill: its attention
};

// What the prefills of a step may still take.
struct PrefillBudget {
  int tokens = 0;    // any of them
  int room = 0;      // tokens of the step, whatever for: at least `tokens`
  TimeNs saved = 0;  // more time, for those that end by it

  void Take(int length, TimeNs beyond) {
    tokens = std::max(tokens - length, 0);
    room -= length;
    saved -= beyond;
  }
};

class Cadence {
 public:
  // Prefill goes on with so many tokens a step at least, whatever that does to the cadence, ...
  static constexpr int kLeastPrefill = 64;
  // ... and with so many that they cost what a step with prefill costs anyhow, but not with more.
  static constexpr int kMostForced = 1024;
  // ... and begins with so many while nothing is known of its cost.
  static constexpr int kFirstPrefill = 256;
  // So much of what steps leave of their share is kept; one step takes so much of it.
  static constexpr TimeNs kMostSaved = 500'000'000;
  static constexpr TimeNs kMostPause = 100'000'000;

  // A step took `duration`; 0 or less: nobody knows.
  void Observe(const StepWork& work, TimeNs duration);

  // How long a step with prefill may be, in steps without, where a long prefill may stretch it to
  // `least` and `crowd` requests wait for their first token: beside a crowd each of them counts as
  // much as one that decodes, until the prefill's share is twice that of a long one.
  static double Stretch(double least, int crowd, int decode_rows);

  // ... and the mean of steps where prefills end that take what was kept.
  static double KeptStretch(double least) { return least == 0 ? 0 : 1 + 1.5 * (least - 1); }

  // Prefill tokens behind `context` of their request that keep a step with `decode_rows` within
  // `stretch` times its length without them. INT32_MAX: there is nobody to protect, or nothing is
  // known yet.
  int PrefillTokens(int decode_rows, int context, double stretch) const;

  // What a prefill that ends by it may take beyond.
  TimeNs saved() const { return std::min(saved_, kMostPause); }

  // Time beyond its tokens in which a budget reads all of a request that has `rest` tokens left
  // behind `context`; none: it is too long.
  std::optional<TimeNs> TimeToEnd(int rest, int context, const PrefillBudget& budget) const;

  // A step is planned: keeps what it leaves of its share, or takes what it needs beyond.
  void Planned(const StepWork& work, double stretch);

  // Estimated time that `tokens` behind `context` add to a prefill; 0 while nothing is known.
  TimeNs PrefillTime(int tokens, int context = 0) const;

 private:
  static constexpr int kBuckets = 32;
  double DecodeTime(int rows) const;  // 0: nothing is known

  std::array<double, kBuckets> decode_{};  // ns by bit width of the rows; 0: never seen
  // Of the prefill's extra time: weights of (tokens, pairs / kPairs, kFixed), and their covariance.
  static constexpr int kTerms = 3;
  static constexpr double kPairs = 65536;
  static constexpr double kFixed = 256;  // tokens: what is not known yet is as likely theirs
  using Terms = std::array<double, kTerms>;
  static constexpr std::array<Terms, kTerms> kUnknown{{{1e6, 0, 0}, {0, 1e6, 0}, {0, 0, 1e6}}};
  Terms weights_{};
  std::array<Terms, kTerms> covariance_ = kUnknown;
  bool known_ = false;
  TimeNs saved_ = 0;

  double token_ns() const { return std::max(weights_[0], 0.0); }
  double pair_ns() const { return std::max(weights_[1], 0.0) / kPairs; }
  double fixed_ns() const { return std::max(weights_[2], 0.0) * kFixed; }
};

}  // namespace tokenspeed::plan
