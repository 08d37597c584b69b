// SPDX-License-Identifier: MIT
// Scheduler::Verify: every invariant of the scheduler, checked the slow way.
#include <algorithm>
#include <vector>

#include "plan/scheduler.h"

namespace tokenspeed::plan {
namespace {

std::string Name(const Request& request) {
  return "request " + std::to_string(request.arrival.value);
}

}  // namespace

Status Scheduler::VerifyDecoding(const Request& request, const fsm::Decoding& state,
                                 int context) const {
  // Results that the state has not been told of are no longer in flight.
  const int in_flight = context + 1 - request.known();
  if (in_flight < 0 || in_flight > static_cast<int>(in_flight_.size())) {
    return Broken(Name(request), " has context ", context, " and ", request.known(), " known, ",
                  in_flight_.size(), " steps in flight");
  }
  if (max_drafts_ > 0) {
    if (batch_.size() > 0) return Broken("the batch has rows beside drafts");
    if (context != request.known() - 1 + state.overlap.rows()) {
      return Broken(Name(request), " has context ", context, ", ", request.known(), " known and ",
                    state.overlap.rows(), " rows in flight");
    }
    if (Covered(state) < 0 || state.ceiling() > request.limit - 1) {
      return Broken(Name(request), " may reach ", state.ceiling(), " tokens of ", request.limit,
                    " in ", state.table.size(), " blocks");
    }
    return Ok{};
  }
  const bool stalled = std::ranges::count(stalled_, state.slot) > 0;
  const bool over = !batch_.Has(state.slot) && context >= request.limit - 1;
  if (batch_.Has(state.slot) + stalled + over != 1) {
    return Broken(Name(request), " decodes and is not in one place");
  }
  if (!batch_.Has(state.slot)) return Ok{};
  const int rows = BatchRows(request, state) - (context - state.context);
  if (rows < 0 || !batch_.IsDue(state.slot, StepId{last_step_.value + 1 + rows})) {
    return Broken(Name(request), " is not due in ", rows, " steps");
  }
  return Ok{};
}

Status Scheduler::VerifyLists() const {
  std::vector<const Request*> prefilling;
  int batched = 0;
  int logprobs = 0;
  for (const Request* request : running_) {
    if (std::holds_alternative<fsm::Prefilling>(request->state)) prefilling.push_back(request);
    const auto* decoding = std::get_if<fsm::Decoding>(&request->state);
    if (!decoding || !batch_.Has(decoding->slot)) continue;
    ++batched;
    logprobs += request->sampling.logprobs;
  }
  if (!std::ranges::equal(prefilling, prefilling_)) return Broken("a prefill is listed wrongly");
  if (batched != batch_.size() || logprobs != batch_logprobs_) {
    return Broken("not ", batch_.size(), " requests are in the batch");
  }
  return Ok{};
}

Status Scheduler::Verify() const {
  if (Status sessions = sessions_.Verify(); !sessions.ok()) return sessions;
  int64_t visitors = 0;
  for (const auto& [name, request] : requests_) visitors += request->session != nullptr;
  if (visitors != sessions_.live()) {
    return Broken(visitors, " requests are of a session, the sessions count ", sessions_.live());
  }
  if (requests_.size() != waiting_.size() + running_.size() + preempted_.size()) {
    return Broken(requests_.size(), " requests, ", waiting_.size(), " waiting, ", running_.size(),
                  " running, ", preempted_.size(), " preempted");
  }
  for (const auto& [rank, request] : waiting_) {
    if (!std::holds_alternative<fsm::Waiting>(request->state) || request->rank != rank ||
        rank.arrival != request->arrival || request->guest) {
      return Broken(Name(*request), " is queued in another state");
    }
  }
  if (!pool_) {
    if (!running_.empty() || !preempted_.empty() || !ending_.empty() || !in_flight_.empty()) {
      return Broken("requests run outside of an epoch");
    }
    return Ok{};
  }

  const kv::BlockCounts& counts = pool_->counts();
  if (counts.free + counts.open + counts.shared + counts.retiring + counts.cached != counts.total) {
    return Broken("blocks are not conserved");
  }
  if (Retiring() > 0 && in_flight_.empty()) return Broken("blocks retire behind no step");
  if (Status pool = pool_->Verify(); !pool.ok()) return pool;
  if (transfers_) {
    if (Status transfers = transfers_->Verify(); !transfers.ok()) return transfers;
  }

  const int width = pool_->block_size();
  const int blocks = pool_->num_blocks();
  std::vector<int> held(static_cast<size_t>(blocks));
  std::vector<uint8_t> open(static_cast<size_t>(blocks));
  std::vector<uint8_t> slots(slots_.size());
  const Request* last = nullptr;
  int guests = 0;
  for (const Request* request : running_) {
    if (last != nullptr && request->rank <= last->rank)
      return Broken(Name(*request), " runs out of order");
    last = request;
    guests += request->guest;
    const auto* prefilling = std::get_if<fsm::Prefilling>(&request->state);
    const auto* decoding = std::get_if<fsm::Decoding>(&request->state);
    if (!prefilling && !decoding) return Broken(Name(*request), " runs in another state");
    const SlotId id = prefilling ? prefilling->slot : decoding->slot;
    const bool batched = decoding && batch_.Has(id);
    const int lag = batched ? batch_.Lag(id, last_step_) : 0;
    const int context = prefilling ? prefilling->context : decoding->context + lag;
    const kv::BlockTable& table = prefilling ? prefilling->table : decoding->table;
    const auto place = static_cast<size_t>(id.value);
    if (slots_[place].request != request || slots[place]) {
      return Broken(Name(*request), " is not the one in slot ", id.value);
    }
    slots[place] = 1;
    if (decoding) {
      if (Status state = VerifyDecoding(*request, *decoding, context); !state.ok()) return state;
    }
    if (table.sealed() * width + table.filled() + lag != context) {
      return Broken(Name(*request), " has context ", context, ", its blocks hold ", table.sealed(),
                    " x ", width, " + ", table.filled(), " tokens");
    }
    if (prefilling && context >= request->known())
      return Broken(Name(*request), " has nothing to prefill");
    if (context > table.size() * width)
      return Broken(Name(*request), " has tokens without a block");
    for (const TicketId ticket : request->loads) {
      if (decoding || !transfers_->Loads(ticket)) {
        return Broken(Name(*request), " waits for ticket ", ticket.value,
                      ", which does not load for it");
      }
    }
    // A decoding request seals when it needs the next block, or ends; one that waits for loads
    // when they are done.
    if (prefilling && request->loads.empty() &&
        std::min(context, request->known()) / width > table.sealed()) {
      return Broken(Name(*request), " has a full block open");
    }
    for (int i = 0; i < table.size(); ++i) {
      const int block = table.at(i).value;
      if (block < 1 || block >= blocks) return Broken(Name(*request), " holds block ", block);
      ++held[static_cast<size_t>(block)];
      if (i < table.sealed()) continue;
      if (open[static_cast<size_t>(block)]) return Broken("open block ", block, " is held twice");
      open[static_cast<size_t>(block)] = 1;
    }
  }
  if (transfers_) {
    transfers_->ForEachHeld([&](int group, BlockId block) {
      if (group == 0) ++held[static_cast<size_t>(block.value)];
    });
  }
  if (guests != guests_) return Broken(guests, " guests run, counted ", guests_);
  if (running_.size() + free_slots_.size() != slots_.size())
    return Broken("slots are not conserved");
  if (Status history = history_.Verify(); !history.ok()) return history;
  if (Status lists = VerifyLists(); !lists.ok()) return lists;
  int opened = 0;
  int shared = 0;
  for (int block = 1; block < blocks; ++block) {
    const int holders = held[static_cast<size_t>(block)];
    if (holders != pool_->users(BlockId{block})) {
      return Broken("block ", block, " has ", holders, " holders, counted ",
                    pool_->users(BlockId{block}));
    }
    const bool is_open = open[static_cast<size_t>(block)] != 0;
    if (holders > 1 && is_open) return Broken("open block ", block, " is shared");
    opened += is_open;
    shared += holders > 0 && !is_open;
  }
  if (opened != counts.open || shared != counts.shared) {
    return Broken(opened, " open and ", shared, " shared blocks are held, counted ", counts.open,
                  " and ", counts.shared);
  }
  for (const Request* request : preempted_) {
    const auto* state = std::get_if<fsm::Preempted>(&request->state);
    if (!state || state->overlap.empty()) {
      return Broken(Name(*request), " is preempted and waits for nothing");
    }
  }
  if (Status overlap = VerifyOverlap(); !overlap.ok()) return overlap;
  if (grouped()) {
    if (Status groups = VerifyGroups(); !groups.ok()) return groups;
  }
  return groups_->Verify();
}

Status Scheduler::VerifyOverlap() const {
  std::vector<const Request*> tenants;  // of each row
  for (const InFlightStep& step : in_flight_) {
    for (const int32_t id : step.slots) tenants.push_back(&TenantOf(SlotId{id}, step.step));
  }
  std::ranges::sort(tenants);
  const auto check = [&](const Request& request) -> Status {
    const int counted = std::visit(
        [&]<class S>(const S& state) {
          if constexpr (std::same_as<S, fsm::Decoding>) {
            const int lag = batch_.Has(state.slot) ? batch_.Lag(state.slot, last_step_) : 0;
            return state.context + lag + 1 - request.known();
          } else if constexpr (requires { state.overlap; }) {
            return state.overlap.rows();
          } else {
            return 0;
          }
        },
        request.state);
    const std::ptrdiff_t rows = std::ssize(std::ranges::equal_range(tenants, &request));
    if (counted == rows) return Ok{};
    return Broken(Name(request), " has ", rows, " rows in flight, its state says ", counted);
  };
  for (const auto& [name, request] : requests_) {
    if (Status checked = check(*request); !checked.ok()) return checked;
  }
  for (const auto& request : ending_) {
    const auto* state = std::get_if<fsm::Ending>(&request->state);
    if (!state || state->overlap.empty()) {
      return Broken(Name(*request), " has ended and waits for nothing");
    }
    if (Status checked = check(*request); !checked.ok()) return checked;
  }
  return Ok{};
}

}  // namespace tokenspeed::plan
