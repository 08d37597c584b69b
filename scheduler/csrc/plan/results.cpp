// SPDX-License-Identifier: MIT
// Scheduler::Advance: the tokens of a step that is done.
#include <algorithm>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {

using fsm::FinishReason;

namespace {

// Asks for the memory of rows to come: first the request's, then the end of its tokens.
inline void PrefetchRow(std::span<const Slot> slots, std::span<const int32_t> rows, size_t row) {
  constexpr size_t kAhead = 8;
  const auto tenant = [&](size_t i) {
    return slots[static_cast<size_t>(rows[std::min(i, rows.size() - 1)])].request;
  };
  __builtin_prefetch(tenant(row + 2 * kAhead));
  const Request* request = tenant(row + kAhead);
  if (request != nullptr) __builtin_prefetch(std::to_address(request->tokens.end()), 1);
}

}  // namespace

Status Scheduler::ValidateResult(StepId step, std::span<const Token> tokens,
                                 std::span<const float> logprobs,
                                 std::span<const int32_t> counts) const {
  if (in_flight_.empty() || in_flight_.front().step != step) {
    return Error{"a result of step " + std::to_string(step.value) +
                 ", which is not the oldest in flight"};
  }
  const InFlightStep& done = in_flight_.front();
  if (!counts.empty() && counts.size() != done.slots.size()) {
    return Error{"step " + std::to_string(step.value) + " sampled " +
                 std::to_string(done.slots.size()) + " rows, its result has counts of " +
                 std::to_string(counts.size())};
  }
  size_t expected = counts.empty() ? done.slots.size() : 0;
  for (size_t row = 0; row < counts.size(); ++row) {
    const int32_t width = done.widths.empty() ? 1 : done.widths[row];
    if (counts[row] < 1 || counts[row] > width) {
      return Error{"step " + std::to_string(step.value) + " counts " + std::to_string(counts[row]) +
                   " tokens of row " + std::to_string(row) + ", which has 1 to " +
                   std::to_string(width)};
    }
    expected += static_cast<size_t>(counts[row]);
  }
  if (tokens.size() != expected) {
    return Error{"step " + std::to_string(step.value) + " sampled " +
                 std::to_string(done.slots.size()) + " rows, its result has " +
                 std::to_string(tokens.size()) + " tokens, not " + std::to_string(expected)};
  }
  if (logprobs.size() != tokens.size() && (done.wants_logprobs || !logprobs.empty())) {
    return Error{"step " + std::to_string(step.value) + " has " + std::to_string(tokens.size()) +
                 " tokens and " + std::to_string(logprobs.size()) + " logprobs"};
  }
  const auto last = static_cast<Token>(limits_.vocab_size - 1);
  if (AllBetween(tokens, kNoneAllowed, last)) return Ok{};
  for (const Token token : tokens) {
    if (token >= kNoneAllowed && token <= last) continue;
    return Error{"step " + std::to_string(step.value) + " sampled token id " +
                 std::to_string(token) + " outside the vocabulary of " +
                 std::to_string(limits_.vocab_size)};
  }
  return Ok{};
}

Status Scheduler::Advance(StepId step, std::span<const Token> tokens,
                          std::span<const float> logprobs, TimeNs now,
                          std::span<const int32_t> counts) {
  if (Status valid = ValidateResult(step, tokens, logprobs, counts); !valid.ok()) return valid;
  InFlightStep done = std::move(in_flight_.front());
  in_flight_.pop_front();
  // The workers run one step after the other.
  if (now > 0 && !done.waits) cadence_.Observe(done.work, now - std::max(done.planned, last_done_));
  last_done_ = now;
  pool_->Retired(step);
  for (const auto& pool : other_pools_) pool->Retired(step);
  ++counters_.steps;
  const float* logprob = logprobs.empty() ? nullptr : logprobs.data();
  if (done.widths.empty()) RowsArrived(done, tokens, logprob);
  size_t at = 0;  // in `tokens`
  for (size_t i = 0; i < done.widths.size(); ++i) {
    const size_t count = counts.empty() ? 1 : static_cast<size_t>(counts[i]);
    RunArrived(TenantOf(SlotId{done.slots[i]}, step), tokens.subspan(at, count),
               logprob == nullptr ? nullptr : logprob + at, done.widths[i]);
    at += count;
  }
  done.slots.clear();
  done.widths.clear();
  spare_steps_.push_back(std::move(done));
  return Ok{};
}

[[gnu::always_inline]] inline FinishReason Scheduler::Deliver(Request& request, Token token,
                                                              const float* logprob) {
  if (request.known() == request.prompt_tokens) [[unlikely]]
    Explain(request);
  request.tokens.emplace_back(Token{token});  // push_back(token) would be a call
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
  return event.reason;
}

// A token a row. The hottest loop: it stands alone, with Deliver in it, so that the compiler keeps
// what it needs in registers.
[[gnu::noinline]] void Scheduler::RowsArrived(const InFlightStep& done,
                                              std::span<const Token> tokens,
                                              const float* logprobs) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    PrefetchRow(slots_, done.slots, i);
    const SlotId id{done.slots[i]};
    const float* logprob = logprobs == nullptr ? nullptr : logprobs + i;
    if (const Slot& place = slot(id); place.first <= done.step && tokens[i] >= 0) {
      // It decodes; its state hears of the token when it is settled.
      const FinishReason reason = Deliver(*place.request, tokens[i], logprob);
      if (reason != FinishReason::kNone) Remove(*place.request, reason);
      continue;
    }
    Request& request = TenantOf(id, done.step);
    if (std::holds_alternative<fsm::Ending>(request.state)) {
      ThrowAway(request);
    } else {
      Arrived(request, tokens[i], logprob);
    }
  }
}

// What a row brought: its tokens count up to the one that ends the request.
void Scheduler::RunArrived(Request& request, std::span<const Token> tokens, const float* logprobs,
                           int width) {
  const int block_size = pool_->block_size();
  const int brought = static_cast<int>(tokens.size());
  if (auto* ending = std::get_if<fsm::Ending>(&request.state)) {
    counters_.overrun_tokens += brought;
    On(*ending, fsm::RowsRetired{1, width, brought, block_size});
    return SettleEnding(request);
  }
  if (width > 1) {
    request.drafts.Learn(width - 1, brought - 1);
    counters_.accepted_tokens += brought - 1;
  }
  int taken = 0;
  FinishReason reason = FinishReason::kNone;
  bool failed = false;
  while (taken < brought && reason == FinishReason::kNone) {
    const auto at = static_cast<size_t>(taken);
    if (tokens[at] < 0) {
      reason = WhyNone(tokens[at]);
      failed = true;
      break;
    }
    reason = Deliver(request, tokens[at], logprobs == nullptr ? nullptr : logprobs + at);
    ++taken;
  }
  counters_.overrun_tokens += brought - taken;
  const fsm::RowsRetired retired{
      .rows = 1, .width = width, .tokens = std::max(1, taken), .block_size = block_size};
  auto* decoding = std::get_if<fsm::Decoding>(&request.state);
  auto* preempted = std::get_if<fsm::Preempted>(&request.state);
  if (decoding != nullptr) {
    On(*decoding, retired);
    if (failed) ForgetWritten(request, *decoding);
  } else {
    TS_CHECK(preempted != nullptr, "a row of request " << request.arrival.value << " came back");
    On(*preempted, retired);
  }
  if (failed) return End(request, reason);
  if (reason != FinishReason::kNone) return Remove(request, reason);
  ReturnIfWhole(request);
}

void Scheduler::Explain(const Request& request) {
  MissReport report =
      history_.Explain(request.name.client, request.session_name, request.salt, request.tokens,
                       request.cached_tokens, request.evicted_tokens, request.common);
  report.name = request.name;
  report.host = request.host_tokens;
  report.queued = request.queued;
  report.first_step = request.first_step;
  counters_.missed_new += report.fresh;
  counters_.missed_evicted += report.evicted;
  counters_.missed_salted += report.salted;
  counters_.missed_diverged += report.diverged;
  reports_.push_back(report);
}

Request* Scheduler::FindTenant(SlotId id, StepId step) const {
  const Slot& place = slots_[static_cast<size_t>(id.value)];
  if (place.first <= step) return place.request;
  for (Request* request : preempted_) {
    if (request->former.Covers(id, step)) return request;
  }
  for (const std::unique_ptr<Request>& request : ending_) {
    if (request->former.Covers(id, step)) return request.get();
  }
  return nullptr;
}

Request& Scheduler::TenantOf(SlotId id, StepId step) const {
  Request* tenant = FindTenant(id, step);
  TS_CHECK(tenant != nullptr, "nobody had slot " << id.value << " in step " << step.value);
  return *tenant;
}

std::optional<RequestName> Scheduler::NameOf(SlotId id, StepId step) const {
  if (id.value < 0 || static_cast<size_t>(id.value) >= slots_.size()) return std::nullopt;
  const Request* tenant = FindTenant(id, step);
  return tenant == nullptr ? std::nullopt : std::optional(tenant->name);
}

void Scheduler::ThrowAway(Request& request) {
  ++counters_.overrun_tokens;
  RetireRow(request);
}

void Scheduler::RetireRow(Request& request) {
  auto& state = *std::get_if<fsm::Ending>(&request.state);
  On(state, fsm::RowsRetired{1, 1, 1, pool_->block_size()});
  SettleEnding(request);
}

void Scheduler::SettleEnding(Request& request) {
  if (!std::get_if<fsm::Ending>(&request.state)->overlap.empty()) return;
  const Status settled = fsm::Apply(request.state, fsm::Settle{});
  TS_CHECK(settled.ok(), "last row of request " << request.arrival.value);
  std::erase_if(ending_, [&](const auto& other) { return other.get() == &request; });
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
  if (preempted != nullptr) On(*preempted, fsm::RowsRetired{1, 1, 1, pool_->block_size()});
  if (token < 0) {
    auto* decoding = std::get_if<fsm::Decoding>(&request.state);
    if (decoding != nullptr) ForgetWritten(request, *decoding);
    End(request, WhyNone(token));
    // A state that decodes counts its rows by the tokens that are known, and this one brought none.
    if (decoding != nullptr) RetireRow(request);
    return;
  }
  const FinishReason reason = Deliver(request, token, logprob);
  if (reason != FinishReason::kNone) return Remove(request, reason);
  if (preempted != nullptr) ReturnIfWhole(request);
}

void Scheduler::ForgetWritten(Request& request, fsm::Decoding& state) {
  // Whatever made the logits so may be in its KV.
  LeaveBatch(request, state);
  ForgetStored(state.table);
  state.table.Forget();
  if (grouped()) ForgetGroups(request, state.groups);
}

void Scheduler::ReturnIfWhole(Request& request) {
  const auto* preempted = std::get_if<fsm::Preempted>(&request.state);
  if (preempted == nullptr || !preempted->overlap.empty()) return;
  std::erase(preempted_, &request);
  Requeue(request);
}

}  // namespace tokenspeed::plan
