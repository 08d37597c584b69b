// SPDX-License-Identifier: MIT
#include "record/recorded_scheduler.h"

#include <cstring>

namespace tokenspeed::record {
namespace {

Hash128 FromCode(uint64_t code) {
  Hash128 outcome;
  std::memcpy(outcome.bytes.data(), &code, sizeof(code));
  return outcome;
}

}  // namespace

Hash128 OutcomeOf(const StatusOr<plan::Rejection>& taken) {
  return FromCode(taken.ok() ? 0 : static_cast<uint64_t>(taken.error().code));
}

Hash128 OutcomeOf(const Status& status) { return FromCode(status.ok() ? 0 : 1); }

void RecordedScheduler::Settle(const Hash128& outcome) {
  if (box_) box_->Settle(outcome);
}

StatusOr<plan::Rejection> RecordedScheduler::Submit(plan::Submission submission) {
  if (!box_) return Scheduler::Submit(std::move(submission));
  record::Submit event{std::move(submission)};
  box_->Write(event);
  StatusOr<plan::Rejection> taken = Scheduler::Submit(std::move(event.submission));
  Settle(OutcomeOf(taken));
  return taken;
}

void RecordedScheduler::Abort(const RequestName& name, int64_t kept) {
  if (box_) box_->Write(record::Abort{name, kept});
  Scheduler::Abort(name, kept);
  Settle();
}

void RecordedScheduler::AbortClient(ClientId client) {
  if (box_) box_->Write(record::AbortClient{client});
  Scheduler::AbortClient(client);
  Settle();
}

void RecordedScheduler::AbortAll() {
  if (box_) box_->Write(record::AbortAll{});
  Scheduler::AbortAll();
  Settle();
}

void RecordedScheduler::Hint(std::string_view salt, std::string_view session, int64_t action,
                             TimeNs now, TimeNs ttl) {
  if (box_) box_->Write(record::Hint{std::string(salt), std::string(session), action, now, ttl});
  Scheduler::Hint(salt, session, action, now, ttl);
  Settle();
}

void RecordedScheduler::Drain() {
  if (box_) box_->Write(record::Drain{});
  Scheduler::Drain();
  Settle();
}

void RecordedScheduler::BeginEpoch(Epoch epoch, const plan::EpochShape& shape) {
  if (box_) box_->Write(record::BeginEpoch{epoch, shape});
  Scheduler::BeginEpoch(epoch, shape);
  Settle();
}

void RecordedScheduler::EndEpoch() {
  if (box_) box_->Write(record::EndEpoch{});
  Scheduler::EndEpoch();
  Settle();
}

const plan::StepPlan* RecordedScheduler::Plan(TimeNs now) {
  if (box_) box_->Write(record::Plan{now});
  const plan::StepPlan* plan = Scheduler::Plan(now);
  if (plan == nullptr) Settle();
  return plan;
}

void RecordedScheduler::Planned(const Hash128& digest) { Settle(digest); }

Status RecordedScheduler::Advance(StepId step, std::span<const Token> tokens,
                                  std::span<const float> logprobs, TimeNs now,
                                  std::span<const int32_t> counts) {
  if (box_) {
    box_->Write(record::Advance{step,
                                {tokens.begin(), tokens.end()},
                                {logprobs.begin(), logprobs.end()},
                                now,
                                {counts.begin(), counts.end()}});
  }
  Status status = Scheduler::Advance(step, tokens, logprobs, now, counts);
  Settle(OutcomeOf(status));
  return status;
}

bool RecordedScheduler::Transferred(TicketId ticket, bool ok, TimeNs now) {
  if (box_) box_->Write(record::Transferred{ticket, ok, now});
  const bool taken = Scheduler::Transferred(ticket, ok, now);
  Settle();
  return taken;
}

void RecordedScheduler::Prefetch(std::span<const Token> tokens, const std::string& salt) {
  if (box_) box_->Write(record::Prefetch{{tokens.begin(), tokens.end()}, salt});
  Scheduler::Prefetch(tokens, salt);
  Settle();
}

void RecordedScheduler::Demote(std::span<const Token> tokens, const std::string& salt) {
  if (box_) box_->Write(record::Demote{{tokens.begin(), tokens.end()}, salt});
  Scheduler::Demote(tokens, salt);
  Settle();
}

}  // namespace tokenspeed::record
