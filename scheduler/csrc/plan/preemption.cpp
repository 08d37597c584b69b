// SPDX-License-Identifier: MIT
// Making room: the victim is whoever costs least to compute again. The first in rank never goes, so
// there is always one that comes to its end.
#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {

SlotId Scheduler::SlotOf(const Request& request) const {
  if (const auto* state = std::get_if<fsm::Prefilling>(&request.state)) return state->slot;
  const auto* state = std::get_if<fsm::Decoding>(&request.state);
  TS_CHECK(state != nullptr, "request " << request.arrival.value << " does not run");
  return state->slot;
}

bool Scheduler::HasChunk(const Request& request) const {
  return slots_[static_cast<size_t>(SlotOf(request).value)].chunked.value == last_step_.value + 1;
}

int Scheduler::ContextOf(const Request& request) const {
  if (const auto* state = std::get_if<fsm::Prefilling>(&request.state)) return state->context;
  const auto* state = std::get_if<fsm::Decoding>(&request.state);
  const int lag = batch_.Has(state->slot) ? batch_.Lag(state->slot, last_step_) : 0;
  return state->context + lag;
}

int Scheduler::Recomputation(const Request& request) const {
  // Blocks that others hold stay, and are found again.
  return ContextOf(request) - groups_->Shared(SlotOf(request)) * pool_->block_size();
}

Request* Scheduler::VictimFor(const Request& request) {
  Request* victim = nullptr;
  const auto reluctance = [this](const Request& candidate) {
    return std::tuple(!candidate.guest, candidate.priority, candidate.preemptions >= kWorn,
                      Recomputation(candidate));
  };
  for (size_t i = running_.size(); i-- > 1;) {
    Request& candidate = *running_[i];
    if (candidate.rank <= request.rank) break;
    // What a chunk of this plan writes may be shared already.
    if (HasChunk(candidate)) continue;
    if (victim == nullptr || reluctance(candidate) < reluctance(*victim)) victim = &candidate;
  }
  return victim;
}

bool Scheduler::Grow(Request& request) {
  for (;;) {
    if (grouped()) {
      if (GrantNext(request)) return true;
    } else if (std::optional<kv::OpenBlock> block = pool_->Allocate()) {
      const Status grown = fsm::Apply(request.state, fsm::BlockGranted{std::move(*block)});
      TS_CHECK(grown.ok(), "growth of request " << request.arrival.value);
      return true;
    }
    if (Retiring() > 0) return false;                       // some come back with the next result
    if (transfers_ && transfers_->due() > 0) return false;  // or with the next ticket
    Request* victim = VictimFor(request);
    if (victim == nullptr) return false;
    Displace(*victim);
  }
}

void Scheduler::Displace(Request& request) {
  request.lost = ContextOf(request);
  ++request.preemptions;
  ++counters_.preemptions;
  Withdraw(request);
}

void Scheduler::Withdraw(Request& request) {
  const bool guest = request.guest;
  LeaveSlot(request);
  const Status moved = fsm::Apply(request.state, fsm::Preempt{});
  TS_CHECK(moved.ok(), "preemption of request " << request.arrival.value);
  request.rank.fresh = guest;           // a guest's turn has not come yet
  request.rank.deadline = kNoDeadline;  // of the first token, which is out or will be late
  ++openings_;
  if (std::get_if<fsm::Preempted>(&request.state)->overlap.empty()) {
    Requeue(request);
  } else {
    preempted_.push_back(&request);
  }
}

}  // namespace tokenspeed::plan
