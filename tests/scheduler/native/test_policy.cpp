// SPDX-License-Identifier: MIT
// Who comes first, and how much prefill a step takes on.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "expect.h"
#include "plan/cadence.h"
#include "plan/link_pace.h"
#include "plan/rank.h"

namespace tokenspeed::plan {
namespace {

constexpr TimeNs kSecond = 1'000'000'000;
constexpr int kAll = std::numeric_limits<int32_t>::max();

Rank Ranked(TimeNs time, int32_t priority, int64_t arrival, TimeNs deadline = kNoDeadline) {
  return RankOf(time, priority, 10 * kSecond, deadline, Arrival{arrival});
}

void ALevelIsWorthAnAgeingTime() {
  const Rank first = Ranked(0, 0, 1);
  EXPECT(first < Ranked(1, 0, 2));                 // arrival decides between equals
  EXPECT(Ranked(5 * kSecond, 1, 2) < first);       // a level more goes first ...
  EXPECT(!(Ranked(25 * kSecond, 1, 2) < first));   // ... but not before who has waited for it
  EXPECT(first < Ranked(1001 * kSecond, 100, 2));  // whatever the level
  EXPECT(Ranked(9 * kSecond, -100, 2) < Ranked(1010 * kSecond, 0, 3));
}

void DeadlinesOrderABandAndNoMore() {
  EXPECT(Ranked(5, 0, 2, 7 * kSecond) < Ranked(0, 0, 1));
  EXPECT(Ranked(5, 0, 2, 7 * kSecond) < Ranked(6, 0, 3, 8 * kSecond));
  EXPECT(Ranked(0, 0, 1) < Ranked(10 * kSecond, 0, 2, 11 * kSecond));
}

void WhoRanBeforeComesBackBeforeTheFresh() {
  Rank back = Ranked(0, 0, 9);
  back.fresh = false;
  EXPECT(back < Ranked(0, 0, 1));
  EXPECT(back < Ranked(0, 0, 1, 1));  // a deadline does not keep it out
  EXPECT(Ranked(0, 1, 10) < back);    // a higher band does
}

// A device whose steps take 1 ms, 20 us a prefill token and 1 us for 1000 pairs.
TimeNs Took(const StepWork& work) {
  return (work.decode_rows > 0 ? kMillisecond : 0) + 20'000 * TimeNs{work.prefill_tokens} +
         static_cast<TimeNs>(work.prefill_pairs);
}

StepWork Chunk(int rows, int tokens, int context) {
  return {rows, tokens, tokens * (context + tokens / 2.0)};
}

void LoadsAreTimedOneBehindTheOther() {
  LinkPace pace;
  EXPECT(pace.BlockTime() == 0);
  pace.Observe(10, 0, 10 * kMillisecond);
  EXPECT(pace.BlockTime() == kMillisecond);
  // Two that began together: the second had the link behind the first.
  pace.Observe(10, 20 * kMillisecond, 30 * kMillisecond);
  pace.Observe(10, 20 * kMillisecond, 40 * kMillisecond);
  EXPECT(pace.BlockTime() == kMillisecond);
  pace.Observe(10, 50 * kMillisecond, 50 * kMillisecond);  // nobody knows
  pace.Observe(0, 50 * kMillisecond, 60 * kMillisecond);
  EXPECT(pace.BlockTime() == kMillisecond);
  for (int i = 0; i < 100; ++i) {
    const TimeNs begun = (100 + 50 * i) * kMillisecond;
    pace.Observe(10, begun, begun + 30 * kMillisecond);
  }
  EXPECT(std::abs(pace.BlockTime() - 3 * kMillisecond) < kMillisecond / 100);
  for (int i = 0; i < 100; ++i) pace.Forgo();
  EXPECT(pace.BlockTime() < kMillisecond);
}

void NobodyToProtectIsNoBound() {
  const Cadence fresh;
  EXPECT(fresh.PrefillTokens(0, 0, 1.5) == kAll);
  EXPECT(fresh.PrefillTokens(8, 0, 1.5) == kAll);  // nothing is known
  EXPECT(fresh.PrefillTime(1000) == 0);
  Cadence cadence;
  cadence.Observe({8, 0, 0}, kMillisecond);
  EXPECT(cadence.PrefillTokens(8, 0, 1.5) == Cadence::kFirstPrefill);
  EXPECT(cadence.PrefillTokens(8, 0, 0) == kAll);  // protection is off
  cadence.Observe({8, 512, 0}, 0);                 // nobody knows how long it took
  EXPECT(cadence.PrefillTokens(8, 0, 1.5) == Cadence::kFirstPrefill);
}

void TheBudgetKeepsTheStretchOfADeviceItHasLearnt() {
  Cadence cadence;
  for (int i = 0; i < 20; ++i) cadence.Observe({8, 0, 0}, kMillisecond);
  for (int i = 0; i < 200; ++i) {
    const StepWork work = Chunk(8, 16 + 7 * (i % 13), 1000 * (i % 17));
    cadence.Observe(work, Took(work));
  }
  for (const int context : {0, 1000, 20'000, 100'000}) {
    for (const double stretch : {1.5, 4.0, 16.0}) {
      const int budget = cadence.PrefillTokens(8, context, stretch);
      const double took = static_cast<double>(Took(Chunk(8, budget, context)));
      EXPECT(budget == Cadence::kLeastPrefill || took <= stretch * kMillisecond);
      // It uses what it is given, too.
      EXPECT(took >= (1 + 0.8 * (stretch - 1)) * kMillisecond);
    }
  }
  const double alone = static_cast<double>(Took(Chunk(0, 10'000, 0)));
  EXPECT(std::abs(static_cast<double>(cadence.PrefillTime(10'000)) - alone) < 0.02 * alone);
}

void WhatEveryStepWithPrefillCostsIsWorthAsMuchPrefill() {
  // Four steps without prefill go by whatever a chunk's length: no bound of 1.5 can be kept.
  const auto took = [](const StepWork& work) {
    return (work.decode_rows > 0 ? kMillisecond : 0) + 4 * kMillisecond +
           work.prefill_tokens * kMillisecond / 100;
  };
  Cadence cadence;
  for (int i = 0; i < 20; ++i) cadence.Observe({8, 0, 0}, kMillisecond);
  for (int i = 0; i < 200; ++i) {
    const StepWork work = Chunk(8, 64 + 16 * (i % 29), 0);
    cadence.Observe(work, took(work));
  }
  const int budget = cadence.PrefillTokens(8, 0, 1.5);
  EXPECT(budget > 300 && budget < 500);
  EXPECT(cadence.PrefillTokens(8, 0, 16) > 800);
}

void ACrowdStretchesStepsToTwiceTheShareOfALongPrefill() {
  EXPECT(Cadence::Stretch(1.5, 1, 1) == 1.5);
  EXPECT(Cadence::Stretch(1.5, 17, 32) == 1.5);
  EXPECT(Cadence::Stretch(1.5, 25, 32) == 1.75);
  EXPECT(Cadence::Stretch(1.5, 4000, 32) == 2);
  EXPECT(Cadence::Stretch(3, 4000, 1) == 5);
  EXPECT(Cadence::Stretch(1, 4000, 32) == 1);
  EXPECT(Cadence::Stretch(1.5, 0, 32) == 1.5);
  EXPECT(Cadence::Stretch(1.5, 4000, 0) == 1.5);  // nobody to protect
  EXPECT(Cadence::Stretch(0, 4000, 32) == 0);     // protection is off
  EXPECT(Cadence::KeptStretch(1.5) == 1.75);
  EXPECT(Cadence::KeptStretch(1) == 1);
  EXPECT(Cadence::KeptStretch(0) == 0);
}

void OneSlowStepIsNotTheCadence() {
  Cadence cadence;
  for (int i = 0; i < 50; ++i) cadence.Observe({8, 0, 0}, kMillisecond);
  for (int i = 0; i < 200; ++i) {
    const StepWork work = Chunk(8, 100, 0);
    cadence.Observe(work, Took(work));
  }
  const int before = cadence.PrefillTokens(8, 0, 8);
  cadence.Observe({8, 0, 0}, 100 * kSecond);
  EXPECT(cadence.PrefillTokens(8, 0, 8) < 2 * before);
}

void WhatStepsLeaveOfTheirShareIsKeptForThoseThatEndByIt() {
  Cadence cadence;
  EXPECT(cadence.saved() == 0);
  for (int i = 0; i < 20; ++i) cadence.Observe({8, 0, 0}, kMillisecond);
  cadence.Planned({8, 0, 0}, 4);
  EXPECT(cadence.saved() == 0);  // what a prefill costs is not known
  for (int i = 0; i < 200; ++i) {
    const StepWork work = Chunk(8, 16 + 7 * (i % 13), 0);
    cadence.Observe(work, Took(work));
  }
  cadence.Planned({0, 0, 0}, 4);  // nobody to protect
  cadence.Planned({8, 0, 0}, 0);  // protection is off
  EXPECT(cadence.saved() == 0);
  for (int i = 0; i < 10; ++i) cadence.Planned({8, 0, 0}, 4);
  const TimeNs saved = cadence.saved();
  EXPECT(saved > 26 * kMillisecond && saved <= 30 * kMillisecond);
  // A share that is used leaves nothing; more is taken from what was kept, and never below none.
  cadence.Planned(Chunk(8, cadence.PrefillTokens(8, 0, 4), 0), 4);
  EXPECT(std::abs(cadence.saved() - saved) < kMillisecond / 10);
  cadence.Planned(Chunk(8, 1200, 0), 4);
  EXPECT(cadence.saved() < saved / 2);
  cadence.Planned(Chunk(8, 8192, 0), 4);
  EXPECT(cadence.saved() == 0);
  for (int i = 0; i < 10'000; ++i) cadence.Planned({8, 0, 0}, 4);
  EXPECT(cadence.saved() == Cadence::kMostPause);
}

void EstimatesStayFiniteWhateverTheTimes() {
  Cadence cadence;
  uint64_t state = 1;
  const auto random = [&state](uint64_t bound) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % bound;
  };
  for (int i = 0; i < 100'000; ++i) {
    const int tokens = random(3) == 0 ? 0 : static_cast<int>(random(8192));
    const StepWork work = Chunk(static_cast<int>(random(64)), tokens,
                                random(2) == 0 ? 0 : static_cast<int>(random(200'000)));
    cadence.Observe(work, static_cast<TimeNs>(random(1ull << (10 + i % 30))));
    const int budget = cadence.PrefillTokens(1 + static_cast<int>(random(64)),
                                             static_cast<int>(random(200'000)), 1.5);
    EXPECT(budget >= Cadence::kLeastPrefill);
    EXPECT(cadence.PrefillTime(100'000) >= 0);
    cadence.Planned(Chunk(8, tokens, 0), 1.5);
    EXPECT(cadence.saved() >= 0 && cadence.saved() <= Cadence::kMostPause);
  }
}

}  // namespace
}  // namespace tokenspeed::plan

int main() {
  using namespace tokenspeed::plan;
  ALevelIsWorthAnAgeingTime();
  DeadlinesOrderABandAndNoMore();
  WhoRanBeforeComesBackBeforeTheFresh();
  LoadsAreTimedOneBehindTheOther();
  NobodyToProtectIsNoBound();
  TheBudgetKeepsTheStretchOfADeviceItHasLearnt();
  WhatEveryStepWithPrefillCostsIsWorthAsMuchPrefill();
  ACrowdStretchesStepsToTwiceTheShareOfALongPrefill();
  OneSlowStepIsNotTheCadence();
  WhatStepsLeaveOfTheirShareIsKeptForThoseThatEndByIt();
  EstimatesStayFiniteWhateverTheTimes();
  return 0;
}
