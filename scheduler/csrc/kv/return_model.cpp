// SPDX-License-Identifier: MIT
#include "kv/return_model.h"

#include <algorithm>
#include <cmath>

namespace tokenspeed::kv {
namespace {

constexpr double kFirstEdge = 0.5;      // s
constexpr double kShortestHorizon = 4;  // s: the noise of one short bin is no reason to hold
constexpr double kPace = 0.1;
constexpr float kForgetting = 0.999f;

struct Edges {
  std::array<double, kIdleBins + 1> start{};
  Edges() {
    for (int bin = 1; bin <= kIdleBins; ++bin) {
      start[static_cast<size_t>(bin)] = kFirstEdge * std::pow(2.0, (bin - 1) / 2.0);
    }
  }
};
const Edges kEdges;

double Width(int bin) { return IdleBinStart(bin + 1) - IdleBinStart(bin); }
int Row(int sign, uint8_t level) { return 1 + sign * kSignLevels + level; }

}  // namespace

double IdleBinStart(int bin) { return kEdges.start[static_cast<size_t>(bin)]; }

int IdleBinOf(double seconds) {
  const auto after = std::ranges::upper_bound(kEdges.start, seconds);
  return std::clamp(static_cast<int>(after - kEdges.start.begin()) - 1, 0, kIdleBins - 1);
}

uint8_t SignLevel(double value, int steps) {
  const double level = steps * std::log2(1 + std::max(value, 0.0));
  return static_cast<uint8_t>(std::min(level, double{kSignLevels - 2}));
}

ReturnModel::ReturnModel() : weights_(static_cast<size_t>(1 + kSigns * kSignLevels) * kIdleBins) {
  for (int bin = 0; bin < kIdleBins; ++bin) {
    const double start = IdleBinStart(bin);
    // Before anything is learnt: the longer away, the longer still to come; a tool call is back
    // within seconds, a person within minutes.
    weights_[At(0, bin)].value = static_cast<float>(-std::log(2 * start + 10));
    const float soon = start < 30 ? 1.0f : -0.5f;
    weights_[At(Row(kOutlookSign, static_cast<uint8_t>(Outlook::kToolCall)), bin)].value = soon;
    weights_[At(Row(kOutlookSign, static_cast<uint8_t>(Outlook::kHuman)), bin)].value =
        start < 30 ? -2.0f : 0.0f;
  }
}

double ReturnModel::Rate(const Signs& signs, int bin) const {
  float sum = weights_[At(0, bin)].value;
  for (int sign = 0; sign < kSigns; ++sign) {
    sum += weights_[At(Row(sign, signs[static_cast<size_t>(sign)]), bin)].value;
  }
  return std::exp(std::clamp(static_cast<double>(sum), -12.0, 3.0));
}

void ReturnModel::Learn(const Signs& signs, int bin, double seconds, double returns) {
  const double slope = std::max(returns - Rate(signs, bin) * seconds, -2.0);
  const auto follow = [slope](Weight& weight) {
    weight.scale = kForgetting * weight.scale + static_cast<float>(slope * slope);
    weight.value += static_cast<float>(kPace * slope / std::sqrt(weight.scale));
  };
  follow(weights_[At(0, bin)]);
  for (int sign = 0; sign < kSigns; ++sign) {
    follow(weights_[At(Row(sign, signs[static_cast<size_t>(sign)]), bin)]);
  }
}

void ReturnModel::Stayed(const Signs& signs, int bin) { Learn(signs, bin, Width(bin), 0); }

void ReturnModel::Returned(const Signs& signs, int bin, double seconds) {
  Learn(signs, bin, seconds, 1);
}

WorthCurve ReturnModel::Worth(const Signs& signs) const {
  std::array<double, kIdleBins> stay{};  // the probability of not coming back within the bin
  std::array<double, kIdleBins> held{};  // expected seconds in it until then
  for (int bin = 0; bin < kIdleBins; ++bin) {
    const double rate = Rate(signs, bin);
    const auto at = static_cast<size_t>(bin);
    stay[at] = std::exp(-rate * Width(bin));
    held[at] = (1 - stay[at]) / rate;
  }
  WorthCurve worth{};
  for (int bin = 0; bin < kIdleBins; ++bin) {
    double away = 1;
    double cost = 0;
    double best = 0;
    // No longer horizon has more than one return for what it costs.
    for (int next = bin; next < kIdleBins && best * cost < 1; ++next) {
      const auto at = static_cast<size_t>(next);
      cost += away * held[at];
      away *= stay[at];
      const bool last = next == kIdleBins - 1;
      if (IdleBinStart(next + 1) - IdleBinStart(bin) < kShortestHorizon && !last) continue;
      best = std::max(best, (1 - away) / cost);
    }
    worth[static_cast<size_t>(bin)] = static_cast<float>(best);
  }
  return worth;
}

}  // namespace tokenspeed::kv
