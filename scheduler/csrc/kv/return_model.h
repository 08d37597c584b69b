// SPDX-License-Identifier: MIT
// How soon an idle session comes back, learnt online from those that did and those that did not.
//
// Idle time is cut into bins that grow by half an octave. Within a bin a session returns at a
// constant rate, exp(sum of one weight for each of its signs): an additive hazard model whose
// weights follow the gradient of the Poisson likelihood, each at its own pace (AdaGrad with slow
// forgetting). A session that stays away teaches as much as one that returns, bin by bin, so
// nothing waits for an end that may never come.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tokenspeed::kv {

inline constexpr int kIdleBins = 28;
// Seconds of idle time at which a bin begins: 0, 0.5, 0.71, 1, ... 4096.
double IdleBinStart(int bin);
int IdleBinOf(double seconds);

// What is known about a session while it idles, each sign at one of kSignLevels levels.
enum Sign : int {
  kOutlookSign,    // what the frontend said about its return
  kUsualGapSign,   // its own gaps so far
  kLastGapSign,    // the last one
  kGeneratedSign,  // tokens of its last answer
  kServiceSign,    // seconds that its last request took
  kPrefixSign,     // which first block it shares with others
  kSigns,
};
inline constexpr int kSignLevels = 40;
using Signs = std::array<uint8_t, kSigns>;
using WorthCurve = std::array<float, kIdleBins>;  // by the bin that idle time has reached
// The level of a value >= 0, `steps` levels to the octave.
uint8_t SignLevel(double value, int steps);

// What a frontend expects of a session after an answer.
enum class Outlook : uint8_t { kUnknown = 0, kToolCall = 1, kHuman = 2 };

class ReturnModel {
 public:
  ReturnModel();

  // A session stayed away throughout `bin`.
  void Stayed(const Signs& signs, int bin);
  // A session came back `seconds` into `bin`.
  void Returned(const Signs& signs, int bin, double seconds);
  // What keeping one block of a session that has idled into each bin is worth: the best rate over
  // all horizons h of P(return within h) / E[time until return or h], in 1/s (a Gittins index).
  WorthCurve Worth(const Signs& signs) const;

 private:
  struct Weight {
    float value = 0.0f;
    float scale = 0.1f;  // decayed sum of squared gradients
  };
  static size_t At(int row, int bin) { return static_cast<size_t>(row * kIdleBins + bin); }
  double Rate(const Signs& signs, int bin) const;
  void Learn(const Signs& signs, int bin, double seconds, double returns);

  std::vector<Weight> weights_;  // row 0 is common to all, then kSignLevels rows a sign
};

}  // namespace tokenspeed::kv
