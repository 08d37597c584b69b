// SPDX-License-Identifier: MIT
// The scheduler with a black box. What only reads goes straight through; a call that changes the
// core is written down first. A mutating method that this class does not offer cannot be called.
#pragma once

#include <memory>
#include <span>

#include "plan/scheduler.h"
#include "record/black_box.h"

namespace tokenspeed::record {

class RecordedScheduler : private plan::Scheduler {
 public:
  // REQUIRES: limits.Validate().ok(); `box` may be null: nothing is recorded.
  RecordedScheduler(const plan::Limits& limits, std::unique_ptr<BlackBox> box)
      : plan::Scheduler(limits), box_(std::move(box)) {}

  using plan::Scheduler::blocks;
  using plan::Scheduler::cache_log;
  using plan::Scheduler::ClearEvents;
  using plan::Scheduler::counters;
  using plan::Scheduler::events;
  using plan::Scheduler::host_blocks;
  using plan::Scheduler::in_epoch;
  using plan::Scheduler::in_flight;
  using plan::Scheduler::late_rejections;
  using plan::Scheduler::limits;
  using plan::Scheduler::live;
  using plan::Scheduler::NameOf;
  using plan::Scheduler::oldest_planned;
  using plan::Scheduler::reports;
  using plan::Scheduler::retained_blocks;
  using plan::Scheduler::running;
  using plan::Scheduler::sessions;
  using plan::Scheduler::Verify;
  using plan::Scheduler::waiting;

  StatusOr<plan::Rejection> Submit(plan::Submission submission);
  void Abort(const RequestName& name, int64_t kept);
  void AbortClient(ClientId client);
  void AbortAll();
  void Hint(std::string_view salt, std::string_view session, int64_t action, TimeNs now,
            TimeNs ttl);
  void Drain();
  void BeginEpoch(Epoch epoch, const plan::EpochShape& shape);
  void EndEpoch();
  const plan::StepPlan* Plan(TimeNs now);
  // The running digest of the latest plan: its caller encodes it anyway.
  void Planned(const Hash128& digest);
  Status Advance(StepId step, std::span<const Token> tokens, std::span<const float> logprobs,
                 TimeNs now = 0, std::span<const int32_t> counts = {});
  bool Transferred(TicketId ticket, bool ok, TimeNs now);
  void Prefetch(std::span<const Token> tokens, const std::string& salt);
  void Demote(std::span<const Token> tokens, const std::string& salt);

 private:
  void Settle(const Hash128& outcome = {});

  std::unique_ptr<BlackBox> box_;
};

// What the box keeps of an outcome that is no digest: 0 for success, else the refusal's code.
Hash128 OutcomeOf(const StatusOr<plan::Rejection>& taken);
Hash128 OutcomeOf(const Status& status);

}  // namespace tokenspeed::record
