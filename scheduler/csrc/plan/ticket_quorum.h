// SPDX-License-Identifier: MIT
// Collects every rank's report of each transfer under way. A ticket is done when all ranks have
// reported it, and failed if any of them said so. Late, duplicate and foreign reports are refused.
#pragma once

#include <optional>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "plan/step_plan.h"

namespace tokenspeed::plan {

class TicketQuorum {
 public:
  explicit TicketQuorum(int num_ranks) : num_ranks_(num_ranks) {}

  // Forgets every ticket: a new epoch.
  void Reset(Epoch epoch);
  // The tickets of the copies that this plan starts.
  void Planned(const StepPlan& plan);

  enum class Verdict { kIgnored, kTaken, kDone, kFailed };
  // kIgnored: late, twice, of another epoch or never planned; count it and go on. kDone, kFailed:
  // this was the last rank.
  Verdict Report(int rank, Epoch epoch, int32_t ticket, bool ok);

 private:
  struct Pending {
    std::vector<bool> reported;  // by rank
    int missing = 0;
    bool ok = true;
  };
  void Expect(const std::vector<int32_t>& tickets);

  const int num_ranks_;
  Epoch epoch_;
  std::unordered_map<int32_t, Pending> pending_;
};

}  // namespace tokenspeed::plan
