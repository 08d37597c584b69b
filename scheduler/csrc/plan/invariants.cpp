// SPDX-License-Identifier: MIT
// Scheduler::Verify: every invariant of the scheduler, checked the slow way.
#include <algorithm>
#include <set>
#include <sstream>

#include "plan/scheduler.h"

namespace tokenspeed::plan {
namespace {

template <class... Parts>
Status Broken(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return Error{text.str()};
}

}  // namespace

Status Scheduler::Verify() const {
  if (requests_.size() != waiting_.size() + running_.size() + preempted_.size()) {
    return Broken(requests_.size(), " requests, ", waiting_.size(), " waiting, ", running_.size(),
                  " running, ", preempted_.size(), " preempted");
  }
  Arrival last;
  bool fresh = false;
  for (const auto& [arrival, request] : waiting_) {
    if (!std::holds_alternative<fsm::Waiting>(request->state) || request->arrival != arrival) {
      return Broken("request ", arrival.value, " is queued in another state");
    }
    if (request->admitted && fresh) return Broken("request ", arrival.value, " was passed");
    fresh = fresh || !request->admitted;
  }
  if (!pool_) {
    if (!running_.empty() || !preempted_.empty() || !in_flight_.empty()) {
      return Broken("requests run outside of an epoch");
    }
    return Ok{};
  }

  const kv::BlockCounts& counts = pool_->counts();
  if (counts.free + counts.open + counts.shared + counts.retiring + counts.cached != counts.total) {
    return Broken("blocks are not conserved");
  }
  if (counts.retiring > 0 && in_flight_.empty()) return Broken("blocks retire behind no step");
  if (Status pool = pool_->Verify(); !pool.ok()) return pool;

  const int width = pool_->block_size();
  std::vector<int> held(static_cast<size_t>(counts.total) + 1);
  std::set<int> open;
  std::set<int> slots;
  for (const Request* request : running_) {
    const std::string name = "request " + std::to_string(request->arrival.value);
    if (request->arrival <= last) return Broken(name, " runs out of order");
    last = request->arrival;
    const auto* prefilling = std::get_if<fsm::Prefilling>(&request->state);
    const auto* decoding = std::get_if<fsm::Decoding>(&request->state);
    if (!prefilling && !decoding) return Broken(name, " runs in another state");
    const SlotId id = prefilling ? prefilling->slot : decoding->slot;
    const int context = prefilling ? prefilling->context : decoding->context;
    const kv::BlockTable& table = prefilling ? prefilling->table : decoding->table;
    if (slots_[static_cast<size_t>(id.value)].request != request ||
        !slots.insert(id.value).second) {
      return Broken(name, " is not the one in slot ", id.value);
    }
    if (decoding && context != request->known() + decoding->in_flight - 1) {
      return Broken(name, " has context ", context, ", ", request->known(), " known and ",
                    decoding->in_flight, " tokens in flight");
    }
    if (prefilling && context >= request->known()) return Broken(name, " has nothing to prefill");
    if (context > table.size() * width) return Broken(name, " has tokens without a block");
    if (std::min(context, request->known()) / width > table.sealed()) {
      return Broken(name, " has a full block open");
    }
    for (int i = 0; i < table.size(); ++i) {
      const int block = table.at(i).value;
      if (block < 1 || block > counts.total) return Broken(name, " holds block ", block);
      ++held[static_cast<size_t>(block)];
      if (i >= table.sealed() && !open.insert(block).second) {
        return Broken("open block ", block, " is held twice");
      }
    }
  }
  if (slots.size() + free_slots_.size() != slots_.size()) return Broken("slots are not conserved");
  if (std::ranges::count_if(running_, [](const Request* request) {
        return std::holds_alternative<fsm::Decoding>(request->state);
      }) != decoding_) {
    return Broken("not ", decoding_, " requests decode");
  }
  int shared = 0;
  for (int block = 1; block <= counts.total; ++block) {
    const int holders = held[static_cast<size_t>(block)];
    if (holders != pool_->holders(BlockId{block})) {
      return Broken("block ", block, " has ", holders, " holders, counted ",
                    pool_->holders(BlockId{block}));
    }
    if (holders > 1 && open.contains(block)) return Broken("open block ", block, " is shared");
    shared += holders > 0 && !open.contains(block);
  }
  if (static_cast<int>(open.size()) != counts.open || shared != counts.shared) {
    return Broken(open.size(), " open and ", shared, " shared blocks in tables, counted ",
                  counts.open, " and ", counts.shared);
  }
  for (const Request* request : preempted_) {
    const auto* state = std::get_if<fsm::Preempted>(&request->state);
    if (!state || state->in_flight <= 0) {
      return Broken("request ", request->arrival.value, " is preempted and waits for nothing");
    }
  }
  return groups_->Verify();
}

}  // namespace tokenspeed::plan
