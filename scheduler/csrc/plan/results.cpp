// SPDX-License-Identifier: MIT
// Scheduler::Advance: the tokens of a step that is done.
#include <algorithm>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {

using fsm::FinishReason;

Status Scheduler::Advance(StepId step, std::span<const Token> tokens,
                          std::span<const float> logprobs) {
  if (in_flight_.empty() || in_flight_.front().step != step) {
    return Error{"a result of step " + std::to_string(step.value) +
                 ", which is not the oldest in flight"};
  }
  InFlightStep& done = in_flight_.front();
  if (tokens.size() != done.slots.size()) {
    return Error{"step " + std::to_string(step.value) + " sampled " +
                 std::to_string(done.slots.size()) + " rows, its result has " +
                 std::to_string(tokens.size()) + " tokens"};
  }
  if (logprobs.size() != tokens.size() && (done.wants_logprobs || !logprobs.empty())) {
    return Error{"step " + std::to_string(step.value) + " has " + std::to_string(tokens.size()) +
                 " tokens and " + std::to_string(logprobs.size()) + " logprobs"};
  }
  for (const Token token : tokens) {
    if (token >= -1 && token < limits_.vocab_size) continue;
    return Error{"step " + std::to_string(step.value) + " sampled token id " +
                 std::to_string(token) + " outside the vocabulary of " +
                 std::to_string(limits_.vocab_size)};
  }
  std::vector<int32_t> slots = std::move(done.slots);
  in_flight_.pop_front();
  pool_->Retired(step);
  ++counters_.steps;
  for (size_t i = 0; i < tokens.size(); ++i) {
    Request* request = TenantOf(SlotId{slots[i]}, step);
    if (request == nullptr) {  // it ended while this step was in flight
      ++counters_.overrun_tokens;
      continue;
    }
    Arrived(*request, tokens[i], logprobs.empty() ? nullptr : &logprobs[i]);
  }
  slots.clear();
  spare_slots_.push_back(std::move(slots));
  return Ok{};
}

Request* Scheduler::TenantOf(SlotId id, StepId step) {
  const Slot& place = slot(id);
  if (place.first <= step) return place.request;
  for (Request* request : preempted_) {
    const Tenancy& former = request->former;
    if (former.slot == id && former.first <= step && step <= former.last) return request;
  }
  return nullptr;
}

TokenEvent& Scheduler::AddEvent(const Request& request) {
  TokenEvent& event = events_.emplace_back();
  event.name = request.name;
  event.cached_tokens = request.cached_tokens;
  return event;
}

// A decoding request's state hears of its tokens when it is settled; one that was preempted waits
// for them.
void Scheduler::Arrived(Request& request, Token token, const float* logprob) {
  auto* preempted = std::get_if<fsm::Preempted>(&request.state);
  if (preempted != nullptr) On(*preempted, fsm::TokensKnown{1});
  if (token < 0) {
    // Whatever made the logits so may be in its KV: nobody else shall read it.
    if (auto* decoding = std::get_if<fsm::Decoding>(&request.state)) {
      LeaveBatch(request, *decoding);
      decoding->table.Forget();
    }
    return End(request, FinishReason::kNumeric);
  }
  request.tokens.push_back(token);
  ++counters_.generated_tokens;
  TokenEvent& event = AddEvent(request);
  event.token = token;
  if (logprob != nullptr && request.sampling.logprobs) {
    event.logprob = *logprob;
    event.has_logprob = true;
  }
  if (request.stop_ids.MayHold(token) && request.stop_ids.Holds(token)) {
    event.reason = FinishReason::kStop;
  } else if (request.known() >= request.limit) {
    event.reason = FinishReason::kLength;
  }
  if (event.reason != FinishReason::kNone) {
    Remove(request, event.reason);
  } else if (preempted != nullptr && preempted->in_flight == 0) {
    std::erase(preempted_, &request);
    Requeue(request);
  }
}

}  // namespace tokenspeed::plan
