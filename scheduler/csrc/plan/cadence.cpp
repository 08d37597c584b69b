// SPDX-License-Identifier: MIT
#include "plan/cadence.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace tokenspeed::plan {
namespace {

constexpr double kRecent = 0.1;   // weight of a new step in the mean
constexpr double kMemory = 0.98;  // forgetting factor of the least squares
constexpr double kMostDoubt =
    1e9;                         // of the covariance: forgetting without news must not blow it up
constexpr double kMargin = 0.9;  // steps vary: aim below the bound

}  // namespace

double Cadence::DecodeTime(int rows) const {
  const int bucket = std::bit_width(static_cast<uint32_t>(rows));
  // The nearest that was seen, smaller ones first: they promise less room.
  for (int i = bucket; i > 0; --i) {
    if (decode_[static_cast<size_t>(i)] > 0) return decode_[static_cast<size_t>(i)];
  }
  for (int i = bucket + 1; i < kBuckets; ++i) {
    if (decode_[static_cast<size_t>(i)] > 0) return decode_[static_cast<size_t>(i)];
  }
  return 0;
}

void Cadence::Observe(const StepWork& work, TimeNs duration) {
  if (duration <= 0) return;
  const double took = static_cast<double>(duration);
  if (work.prefill_tokens == 0) {
    double& mean =
        decode_[static_cast<size_t>(std::bit_width(static_cast<uint32_t>(work.decode_rows)))];
    // One slow step must not count as the cadence.
    mean = mean == 0 ? took : mean + kRecent * (std::min(took, 4 * mean) - mean);
    return;
  }
  const double base = work.decode_rows > 0 ? DecodeTime(work.decode_rows) : 0;
  if (work.decode_rows > 0 && base == 0) return;  // which part was the prefill is not known
  const double extra = std::max(took - base, 0.0);
  const double x = work.prefill_tokens;
  const double y = work.prefill_pairs / kPairs;
  auto& [xx, xy, yy] = covariance_;
  const double px = xx * x + xy * y;
  const double py = xy * x + yy * y;
  const double scale = 1 / (kMemory + x * px + y * py);
  const double error = extra - (token_ns_ * x + pair_ns_ * y);
  token_ns_ += error * px * scale;
  pair_ns_ += error * py * scale;
  xx = std::min((xx - px * px * scale) / kMemory, kMostDoubt);
  xy = (xy - px * py * scale) / kMemory;
  yy = std::min((yy - py * py * scale) / kMemory, kMostDoubt);
  xy = std::clamp(xy, -kMostDoubt, kMostDoubt);
  known_ = true;
}

int Cadence::PrefillBudget(int decode_rows, int context, double stretch) const {
  constexpr int kAll = std::numeric_limits<int32_t>::max();
  if (decode_rows == 0 || stretch == 0) return kAll;
  const double decode = DecodeTime(decode_rows);
  if (decode == 0) return kAll;
  if (!known_) return kFirstPrefill;
  const double room = kMargin * (stretch - 1) * decode;
  const double pair = std::max(pair_ns_, 0.0) / kPairs;
  const double token = std::max(token_ns_, 0.0);
  // A chunk attends to half of itself on the average: two rounds find its length well enough.
  double length = 0;
  for (int round = 0; round < 2; ++round) {
    const double each = token + pair * (context + length / 2);
    if (each <= 0) return kAll;
    length = std::min(room / each, static_cast<double>(kAll));
  }
  return std::max(kLeastPrefill, static_cast<int>(length));
}

TimeNs Cadence::PrefillTime(int tokens, int context) const {
  if (!known_) return 0;
  const double pairs = tokens * (context + 0.5 * tokens) / kPairs;
  return static_cast<TimeNs>(std::max(token_ns_ * tokens + pair_ns_ * pairs, 0.0));
}

}  // namespace tokenspeed::plan
