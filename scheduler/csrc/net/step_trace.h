// SPDX-License-Identifier: MIT
// What the scheduler did while it was asked to trace: plans, results, and the steps in flight, as
// Chrome trace events on the clock of Now(). Bounded: what is beyond the bound is counted.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "net/session.h"
#include "plan/step_plan.h"

namespace tokenspeed::net {

class StepTrace {
 public:
  // `directory` exists; the trace is written there, by Write.
  explicit StepTrace(std::string directory) : directory_(std::move(directory)) {}

  void Planned(const plan::StepPlan& plan, TimeNs start, TimeNs end);
  // The results of all steps up to `last` were taken in.
  void Advanced(StepId last, TimeNs start, TimeNs end);
  // Leaves `scheduler.json` in the directory, whole or not at all.
  Status Write() const;

 private:
  static constexpr size_t kMostEvents = 1'000'000;
  struct Event {
    enum class Kind : uint8_t { kPlan, kResult, kBegin, kEnd };
    Kind kind;
    StepId step;
    TimeNs start;
    TimeNs duration;
    int32_t rows;
    int32_t tokens;
  };
  void Add(const Event& event);

  const std::string directory_;
  std::vector<Event> events_;
  StepId planned_;   // the first and ...
  StepId advanced_;  // ... the last whose end is known
  int64_t dropped_ = 0;
};

}  // namespace tokenspeed::net
