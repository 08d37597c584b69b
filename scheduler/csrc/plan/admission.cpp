// SPDX-License-Identifier: MIT
// From the queue to a slot, in order of rank. A prefill is finished before the next of its level
// begins; a higher level may begin beside it.
//
// A head that does not fit waits, and smaller requests may pass it as its guests: few at a time,
// each with room for its whole answer beside those of all who run. A guest never delays the head,
// since it leaves at once when its blocks are what the head lacks.
#include <algorithm>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {
namespace {

constexpr int kMostGuests = 8;  // running at a time, and looked at behind a head

}  // namespace

double Scheduler::Stretch(int decode_rows) const {
  const size_t crowd = prefilling_.size() + std::min(waiting_.size(), free_slots_.size());
  return Cadence::Stretch(limits_.decode_stretch, static_cast<int>(crowd), decode_rows);
}

PrefillBudget Scheduler::BudgetBeside(int decode_rows, int room, double stretch) const {
  int context = 0;
  if (!prefilling_.empty()) {
    context = std::get_if<fsm::Prefilling>(&prefilling_.front()->state)->context;
  }
  const int tokens = cadence_.PrefillTokens(decode_rows, context, stretch);
  return {.tokens = std::min(tokens, room), .room = room, .saved = cadence_.saved()};
}

int Scheduler::LikelyHits(Request& request) const {
  if (!request.trail.empty()) return static_cast<int>(request.trail.size());
  if (grouped() || !pool_->findable()) return 0;
  // Blocks of a chain are evicted from its end, so the first that is absent can be searched for;
  // it is mostly where it was.
  const auto absent = [&](int block) {
    return PeekBlock(request, block) == kv::BlockPool::Presence::kAbsent;
  };
  int low = 0;
  int high = (request.known() - 1) / pool_->block_size();
  const int before = std::min(request.likely_hits, high);
  if (before < high && !absent(before)) {
    low = before + 1;
  } else if (before < high) {
    high = before;
    if (before > 0 && !absent(before - 1)) low = before;
  }
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (absent(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return request.likely_hits = low;
}

bool Scheduler::IsShort(Request& request, const PrefillBudget& budget) {
  if (budget.saved == 0) return false;
  StartChain(request);
  const int cached = LikelyHits(request) * pool_->block_size();
  return cadence_.TimeToEnd(request.known() - cached, cached, budget).has_value();
}

Request& Scheduler::Head(TimeNs now) {
  for (;;) {
    Request& head = *waiting_.begin()->second;
    if (head.rank.deadline == kNoDeadline) return head;
    if (now + cadence_.PrefillTime(head.known()) <= head.rank.deadline) return head;
    auto node = waiting_.extract(waiting_.begin());
    node.key().deadline = head.rank.deadline = kNoDeadline;
    waiting_.insert(std::move(node));
  }
}

int Scheduler::BlocksHeld(const Request& request) const {
  return grouped() ? ParentsHeld(request) : TablesOf(request).table.size();
}

int Scheduler::Room() const {
  // What running prefills still need is theirs, and a block for each running request's next token.
  const int running = static_cast<int>(running_.size());
  int room = grouped() ? parents_->available() - running * static_cast<int>(specs_.size())
                       : pool_->available() - running;
  for (const Request* request : prefilling_) {
    room -= std::max(0, BlocksNeeded(*request) - BlocksHeld(*request));
  }
  return room;
}

bool Scheduler::Fits(Request& head) {
  if (grouped()) return FitsGroups(head);
  using Presence = kv::BlockPool::Presence;
  const uint64_t openings = openings_ + pool_->releases();
  const bool again = blocked_.head == head.arrival;
  if (again && blocked_.openings == openings) return false;
  const int room = Room();
  // Who was preempted over and over comes back when there is room for all of it.
  const int needed = head.preemptions < kWorn ? BlocksNeeded(head) : BlocksFor(head.limit - 1);
  if (needed <= room) return true;
  // More hits than last time would begin with the block that was missing then.
  int hits = 0;
  int unheld = 0;  // of the hits: they would leave the pool's available blocks
  if (again && needed - blocked_.hits > room &&
      PeekBlock(head, blocked_.hits) == Presence::kAbsent) {
    hits = blocked_.hits;
  } else {
    for (Presence block; (block = PeekBlock(head, hits)) != Presence::kAbsent; ++hits) {
      unheld += block == Presence::kUnheld;
    }
    if (needed - hits + unheld <= room) return true;
  }
  blocked_ = {.head = head.arrival,
              .openings = openings,
              .hits = hits,
              .short_by = needed - hits + unheld - room};
  return false;
}

bool Scheduler::PrefillsAt(int32_t priority) const {
  return std::ranges::any_of(
      prefilling_, [priority](const Request* request) { return request->priority >= priority; });
}

void Scheduler::StartChain(Request& request) {
  if (request.chain) return;
  auto past = history_.TakeTrail(request.name.client, request.session_name, request.salt,
                                 request.tokens, pool_->block_size(), request.common);
  if (past) {
    request.chain = std::move(past->chain);
    request.trail = std::move(past->blocks);
    request.last_slot = past->slot;
    request.rest = past->rest;
    return;
  }
  request.chain.emplace(limits_.hash_key, request.salt, pool_->block_size());
}

void Scheduler::Admit(TimeNs now, PrefillBudget& budget) {
  while (budget.room > 0 && budget.tokens + budget.saved > 0 && !waiting_.empty() &&
         !free_slots_.empty()) {
    Request& head = Head(now);
    // Victims ahead of it come back first, once their tokens are in.
    for (const Request* victim : preempted_) {
      if (victim->rank < head.rank) return;
    }
    if (PrefillsAt(head.priority) && !IsShort(head, budget)) return PassLongPrefill(budget);
    StartChain(head);
    if (Fits(head)) {
      Enter(head, budget);
    } else if (!ReclaimFromGuests()) {
      return PassHead(budget);
    }
  }
}

SlotId Scheduler::TakeSlot(const Request& request) {
  auto found = std::ranges::find(free_slots_, request.last_slot);
  if (found == free_slots_.end()) found = free_slots_.begin();
  const SlotId id = *found;
  free_slots_.erase(found);
  return id;
}

void Scheduler::Enter(Request& request, PrefillBudget& budget) {
  const SlotId id = TakeSlot(request);
  const Status moved = fsm::Apply(request.state, fsm::Admit{id});
  TS_CHECK(moved.ok(), "admission of request " << request.arrival.value);
  if (grouped()) std::get_if<fsm::Prefilling>(&request.state)->groups = MakeTables();
  slot(id) = Slot{};
  slot(id).request = &request;
  slot(id).first = StepId{last_step_.value + 1};
  for (std::vector<Request*>* list : {&running_, &prefilling_}) {
    list->insert(std::ranges::lower_bound(*list, request.rank, {}, &Request::rank), &request);
  }
  waiting_.erase(request.rank);
  if (!request.admitted) {
    counters_.prompt_tokens += request.prompt_tokens;
    request.queued = std::max<TimeNs>(0, now_ - request.submitted);
    request.first_step = slot(id).first;
  }
  request.admitted = true;
  // Growing any of these later costs a step.
  request.tokens.reserve(static_cast<size_t>(request.limit));
  request.chain->Reserve(BlocksFor(request.limit));
  if (request.trail.empty()) {
    std::get_if<fsm::Prefilling>(&request.state)->table.Reserve(BlocksFor(request.limit - 1));
  }
  PlanChunk(request, budget);
}

bool Scheduler::ReclaimFromGuests() {
  // What comes back with the next result may be enough.
  const int retiring = Retiring();
  if (guests_ == 0 || blocked_.short_by <= retiring) return false;
  std::vector<Request*> guests;
  int held = 0;
  for (Request* request : running_) {
    if (!request->guest || HasChunk(*request)) continue;
    guests.push_back(request);
    held += BlocksHeld(*request);
  }
  if (held == 0 || blocked_.short_by > retiring + held) return false;
  for (Request* guest : guests) Displace(*guest);
  return true;
}

int Scheduler::RoomInTheEnd() const {
  int room = grouped() ? parents_->available() : pool_->available();
  for (const Request* request : running_) {
    room -= BlocksFor(request->limit - 1) - BlocksHeld(*request);
  }
  return room;
}

void Scheduler::PassLongPrefill(PrefillBudget& budget) {
  // Who has waited for an ageing time is passed no more.
  const TimeNs waited = now_ - waiting_.begin()->second->submitted;
  if (budget.saved == 0 || waited >= limits_.ageing) return;
  auto next = std::next(waiting_.begin());
  for (int i = 0; i < kMostGuests && next != waiting_.end(); ++i) {
    if (guests_ >= kMostGuests || free_slots_.empty()) return;
    Request& request = *(next++)->second;
    if (!IsShort(request, budget) || BlocksFor(request.limit - 1) > RoomInTheEnd()) continue;
    request.guest = true;
    ++guests_;
    Enter(request, budget);
  }
}

void Scheduler::PassHead(PrefillBudget& budget) {
  if (blocked_.passed || blocked_.short_by <= Retiring()) return;
  auto next = std::next(waiting_.begin());
  for (int i = 0; i < kMostGuests && next != waiting_.end(); ++i) {
    if (budget.tokens <= 0 || guests_ >= kMostGuests || free_slots_.empty()) return;
    Request& request = *(next++)->second;
    if (PrefillsAt(request.priority)) return;
    if (BlocksFor(request.limit - 1) > RoomInTheEnd()) continue;
    StartChain(request);
    request.guest = true;
    ++guests_;
    Enter(request, budget);
  }
  blocked_.passed = true;
}

}  // namespace tokenspeed::plan
