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
  // Weights are read with and without anyone who decodes.
  const double base = DecodeTime(std::max(work.decode_rows, 1));
  if (work.decode_rows > 0 && base == 0) return;  // which part was the prefill is not known
  const double extra = std::max(took - base, 0.0);
  const Terms x{static_cast<double>(work.prefill_tokens), work.prefill_pairs / kPairs, kFixed};
  Terms px{};
  double scale = kMemory;
  double error = extra;
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) px[i] += covariance_[i][j] * x[j];
    scale += x[i] * px[i];
    error -= weights_[i] * x[i];
  }
  if (!(scale >= kMemory)) {  // rounding has taken what no covariance may lose
    covariance_ = kUnknown;
    return;
  }
  for (int i = 0; i < kTerms; ++i) {
    weights_[i] += error * px[i] / scale;
    for (int j = 0; j < kTerms; ++j) {
      const double next = (covariance_[i][j] - px[i] * px[j] / scale) / kMemory;
      covariance_[i][j] = std::clamp(next, -kMostDoubt, kMostDoubt);
    }
  }
  known_ = true;
}

double Cadence::Stretch(double least, int crowd, int decode_rows) {
  if (least == 0 || decode_rows == 0) return least;
  return std::clamp(1 + (crowd - 1.0) / decode_rows, least, 2 * least - 1);
}

int Cadence::PrefillTokens(int decode_rows, int context, double stretch) const {
  constexpr int kAll = std::numeric_limits<int32_t>::max();
  if (decode_rows == 0 || stretch == 0) return kAll;
  const double decode = DecodeTime(decode_rows);
  if (decode == 0) return kAll;
  if (!known_) return kFirstPrefill;
  const double room = kMargin * (stretch - 1) * decode - fixed_ns();
  // A chunk attends to half of itself on the average: two rounds find its length well enough.
  double length = 0;
  double each = 0;
  for (int round = 0; round < 2; ++round) {
    each = token_ns() + pair_ns() * (context + length / 2);
    if (each <= 0) return kAll;
    length = std::clamp(room / each, 0.0, static_cast<double>(kAll));
  }
  const double forced = std::min(fixed_ns() / each, static_cast<double>(kMostForced));
  return std::max({kLeastPrefill, static_cast<int>(length), static_cast<int>(forced)});
}

void Cadence::Planned(const StepWork& work, double stretch) {
  if (work.decode_rows == 0 || stretch == 0 || !known_) return;
  const double share = kMargin * (stretch - 1) * DecodeTime(work.decode_rows);
  double taken = 0;
  if (work.prefill_tokens > 0) {
    taken = fixed_ns() + token_ns() * work.prefill_tokens + pair_ns() * work.prefill_pairs;
  }
  const double saved = static_cast<double>(saved_) + share - taken;
  saved_ = static_cast<TimeNs>(std::clamp(saved, 0.0, static_cast<double>(kMostSaved)));
}

std::optional<TimeNs> Cadence::TimeToEnd(int rest, int context, const PrefillBudget& budget) const {
  if (rest <= budget.tokens) return 0;
  if (budget.saved == 0 || rest > budget.room) return std::nullopt;
  const TimeNs time = PrefillTime(rest - budget.tokens, context + budget.tokens);
  if (time > budget.saved) return std::nullopt;
  return time;
}

TimeNs Cadence::PrefillTime(int tokens, int context) const {
  if (!known_) return 0;
  const double pairs = tokens * (context + 0.5 * tokens);
  return static_cast<TimeNs>(token_ns() * tokens + pair_ns() * pairs);
}

}  // namespace tokenspeed::plan
