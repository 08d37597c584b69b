// SPDX-License-Identifier: MIT
#include "kv/retention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "kv/eviction_queue.h"

namespace tokenspeed::kv {
namespace {

constexpr double kSecond = 1e9;
constexpr TimeNs kDuePeriod = 100'000'000;
constexpr uint8_t kNoGap = kSignLevels - 1;
constexpr float kGapWeight = 0.4f;       // of the newest gap in the usual one
constexpr double kHitMemory = 0.999;     // a request's weight in the comparison, per later request
constexpr double kWorthMargin = 1.05;    // by which last use must lead to take over
constexpr size_t kRefreshedAtOnce = 64;  // owners, for each request

double Seconds(TimeNs time) { return static_cast<double>(std::max<TimeNs>(time, 0)) / kSecond; }

}  // namespace

OwnerId Retention::Open() {
  int slot;
  if (free_slots_.empty()) {
    slot = static_cast<int>(owners_.size());
    owners_.emplace_back();
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
  }
  Owner& owner = owners_[static_cast<size_t>(slot)];
  const uint32_t generation = owner.generation + 1;
  owner = Owner{};
  owner.generation = generation;
  owner.open = true;
  owner.since = now_;
  owner.signs[kUsualGapSign] = owner.signs[kLastGapSign] = kNoGap;
  return {slot, owner.generation};
}

void Retention::Close(OwnerId id) {
  TS_CHECK(is_open(id) && at(id).present == 0, "close of owner " << id.slot);
  due_.Erase(id.slot);
  worth_ghost_.Forget(id.slot);
  use_ghost_.Forget(id.slot);
  at(id).open = false;
  at(id).rank = Rank{};
  for (EvictionQueue* queue : queues_) queue->Disown(id.slot);
  free_slots_.push_back(id.slot);
}

const Rank& Retention::rank(OwnerId id) const {
  return is_open(id) ? at(id).rank : owners_.front().rank;
}

bool Retention::retained(int slot) const {
  return owners_[static_cast<size_t>(slot)].retained_until > now_;
}

void Retention::Arrived(OwnerId id, TimeNs now, int64_t blocks) {
  TS_CHECK(is_open(id), "arrival at owner " << id.slot << ", which is not open");
  Tick(now);
  Owner& owner = at(id);
  if (owner.present++ > 0) return;
  if (owner.rank.stamp > 0) {  // it has left before
    const double gap = Seconds(now_ - owner.since);
    if (owner.rank.tier != Rank::kOver) {
      model_.Returned(owner.signs, owner.bin, std::max(gap - IdleBinStart(owner.bin), 0.0));
    }
    const auto log_gap = static_cast<float>(std::log(std::max(gap, 0.25)));
    owner.usual_gap += (owner.gaps == 0 ? 1.0f : kGapWeight) * (log_gap - owner.usual_gap);
    owner.last_gap = static_cast<float>(gap);
    ++owner.gaps;
  }
  Compare(std::min(worth_ghost_.Arrive(id.slot), blocks),
          std::min(use_ghost_.Arrive(id.slot), blocks));
  owner.since = now_;
  owner.demoted = false;
  owner.outlook = Outlook::kUnknown;
  Schedule(id.slot);
  Rerank(id.slot);
}

void Retention::Left(OwnerId id, TimeNs now, const Visit& visit) {
  TS_CHECK(is_open(id) && at(id).present > 0, "departure from owner " << id.slot);
  Tick(now);
  Owner& owner = at(id);
  if (--owner.present > 0) return;
  ++owner.visits;
  for (EvictionQueue* queue : queues_) queue->Visited(id.slot);
  Signs& signs = owner.signs;
  signs[kOutlookSign] = static_cast<uint8_t>(owner.outlook);
  if (owner.gaps > 0) {
    signs[kUsualGapSign] = SignLevel(std::exp(static_cast<double>(owner.usual_gap)), 3);
    signs[kLastGapSign] = SignLevel(static_cast<double>(owner.last_gap), 2);
  }
  signs[kGeneratedSign] = SignLevel(static_cast<double>(visit.generated) / 16, 2);
  signs[kServiceSign] = SignLevel(Seconds(now_ - owner.since), 2);
  signs[kPrefixSign] = static_cast<uint8_t>(visit.prefix % kSignLevels);
  owner.since = now_;
  owner.bin = 0;
  owner.rank.stamp = ++stamp_;
  owner.worth = model_.Worth(signs);
  Schedule(id.slot);
  Rerank(id.slot);
  const Rank& rank = owner.rank;
  Rank by_worth = rank;
  by_worth.worth = owner.worth.front();
  worth_ghost_.Leave(id.slot, visit.blocks, by_worth);
  use_ghost_.Leave(id.slot, visit.blocks, {rank.tier, 0.0f, rank.stamp});
  Refresh();
}

void Retention::Expect(OwnerId id, Outlook outlook) {
  Owner* owner = Find(id);
  if (owner == nullptr) return;
  owner->outlook = outlook;
  if (owner->present > 0) return;
  owner->signs[kOutlookSign] = static_cast<uint8_t>(outlook);
  owner->worth = model_.Worth(owner->signs);
  Rerank(id.slot);
}

void Retention::Demote(OwnerId id) {
  Owner* owner = Find(id);
  if (owner == nullptr) return;
  owner->demoted = true;
  owner->retained_until = 0;
  Schedule(id.slot);
  Rerank(id.slot);
}

void Retention::Retain(OwnerId id, TimeNs until) {
  Owner* owner = Find(id);
  if (owner == nullptr) return;
  owner->retained_until = until;
  Schedule(id.slot);
  Rerank(id.slot);
}

void Retention::Foretell(OwnerId id, TimeNs at) {
  Owner* owner = Find(id);
  if (owner == nullptr || owner->present > 0) return;
  due_.Erase(id.slot);
  owner->rank.worth = -static_cast<float>(Seconds(at));
  for (EvictionQueue* queue : queues_) queue->Rerank(id.slot, owner->rank);
}

void Retention::Tick(TimeNs now) {
  now_ = std::max(now_, now);
  while (!due_.empty() && due_.top_key() <= now_) {
    const int slot = due_.top();
    Owner& owner = owners_[static_cast<size_t>(slot)];
    if (owner.retained_until <= now_) owner.retained_until = 0;
    if (owner.present == 0) {
      const double idle = Seconds(now_ - owner.since);
      while (owner.bin + 1 < kIdleBins && IdleBinStart(owner.bin + 1) <= idle) {
        if (owner.rank.tier != Rank::kOver) model_.Stayed(owner.signs, owner.bin);
        ++owner.bin;
      }
    }
    Schedule(slot);
    Rerank(slot);
  }
}

void Retention::Schedule(int slot) {
  const Owner& owner = owners_[static_cast<size_t>(slot)];
  TimeNs due = 0;
  if (owner.present == 0 && owner.rank.stamp > 0 && owner.bin + 1 < kIdleBins) {
    // Rounded up, so that the bin has begun when the time is there, and few steps have this to do.
    due = owner.since + static_cast<TimeNs>(IdleBinStart(owner.bin + 1) * kSecond);
    due += kDuePeriod - due % kDuePeriod;
  }
  if (owner.retained_until > 0 && (due == 0 || owner.retained_until < due)) {
    due = owner.retained_until;
  }
  if (due > 0) {
    due_.Set(slot, due);
  } else {
    due_.Erase(slot);
  }
}

void Retention::Rerank(int slot) {
  Owner& owner = owners_[static_cast<size_t>(slot)];
  Rank& rank = owner.rank;
  const Rank::Tier before = std::exchange(rank.tier, owner.present > 0          ? Rank::kPresent
                                                     : owner.retained_until > 0 ? Rank::kRetained
                                                     : owner.demoted            ? Rank::kOver
                                                                                : Rank::kIdle);
  const float worth = owner.present > 0 ? 0.0f : owner.worth[owner.bin];
  rank.worth = by_worth_ ? worth : 0.0f;
  worth_ghost_.Rerank(slot, {rank.tier, worth, rank.stamp});
  if (rank.tier != before) use_ghost_.Rerank(slot, {rank.tier, 0.0f, rank.stamp});
  for (EvictionQueue* queue : queues_) queue->Rerank(slot, rank);
}

void Retention::Compare(int64_t by_worth, int64_t by_use) {
  worth_hits_ = kHitMemory * worth_hits_ + static_cast<double>(by_worth);
  use_hits_ = kHitMemory * use_hits_ + static_cast<double>(by_use);
  const bool better = by_worth_ ? use_hits_ <= kWorthMargin * worth_hits_ : use_hits_ < worth_hits_;
  if (better == by_worth_) return;
  by_worth_ = better;
  stale_ = owners_.size();
}

void Retention::Refresh() {
  for (size_t i = 0; i < kRefreshedAtOnce && stale_ > 0; ++i) {
    if (owners_[--stale_].open) Rerank(static_cast<int>(stale_));
  }
}

void Retention::Attach(EvictionQueue* queue, int64_t blocks) {
  queues_.push_back(queue);
  if (blocks == 0) return;
  worth_ghost_.Resize(blocks);
  use_ghost_.Resize(blocks);
}

void Retention::Detach(EvictionQueue* queue) { std::erase(queues_, queue); }

Status Retention::Verify() const {
  size_t open = 1;
  for (size_t slot = 1; slot < owners_.size(); ++slot) {
    const Owner& owner = owners_[slot];
    if (!owner.open) {
      if (owner.present > 0 || due_.contains(static_cast<int>(slot))) {
        return Broken("owner ", slot, " is closed and not gone");
      }
      continue;
    }
    ++open;
    if ((owner.rank.tier == Rank::kPresent) != (owner.present > 0)) {
      return Broken("owner ", slot, " has ", owner.present, " requests in another tier");
    }
    if (owner.retained_until > 0 && !due_.contains(static_cast<int>(slot))) {
      return Broken("owner ", slot, " is retained for ever");
    }
    if (owner.bin >= kIdleBins) return Broken("owner ", slot, " is in no idle bin");
  }
  if (open + free_slots_.size() != owners_.size()) return Error{"owners are not conserved"};
  return Ok{};
}

}  // namespace tokenspeed::kv
