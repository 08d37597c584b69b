// SPDX-License-Identifier: MIT
// BlockPool: tables at rest.
#include <algorithm>

#include "base/check.h"
#include "kv/block_pool.h"

namespace tokenspeed::kv {

uint64_t BlockPool::Rest(OwnerId owner, std::vector<SealedBlock> blocks) {
  TS_CHECK(parents_ == nullptr, "a table rests in a memory that groups share");
  GiveUpRest(owner);
  const auto lost =
      std::ranges::find_if(blocks, [this](const auto& block) { return !use(block.id()).indexed; });
  const auto found = static_cast<size_t>(lost - blocks.begin());
  while (blocks.size() > found) blocks.pop_back();
  if (blocks.empty() || !eviction_) {
    while (!blocks.empty()) blocks.pop_back();
    return 0;
  }
  for (size_t i = blocks.size(); i-- > 0;) {
    const BlockId id = blocks[i].id();
    Use& u = use(id);
    if (++u.resting == u.holders) Idle(id);
  }
  const auto slot = static_cast<size_t>(owner.slot);
  if (slot >= rests_.size()) rests_.resize(slot + 1);
  rests_[slot] = {std::move(blocks), ++last_rest_};
  if (planned_ > retired_) {
    retreats_.push_back({owner, last_rest_, planned_});
  } else {
    eviction_->Rested(owner, static_cast<int>(found));
  }
  return last_rest_;
}

std::vector<SealedBlock> BlockPool::Wake(OwnerId owner, uint64_t rest, int most) {
  const auto slot = static_cast<size_t>(owner.slot);
  if (rest == 0 || slot >= rests_.size() || rests_[slot].rest != rest) return {};
  Resting& table = rests_[slot];
  const size_t limit = std::min(table.blocks.size(), static_cast<size_t>(most));
  size_t taken = 0;
  int resting = 0;
  for (; taken < limit; ++taken) {
    const BlockId id = table.blocks[taken].id();
    Use& u = use(id);
    if (!u.indexed) break;
    --u.resting;
    if (u.place == Place::kResting) {
      u.place = Place::kShared;
      ++resting;
    } else if (u.place == Place::kRetiring) {
      Unlink(id);
      Move(id, Place::kShared);
    }
  }
  counts_[static_cast<size_t>(Place::kResting)] -= resting;
  counts_[static_cast<size_t>(Place::kShared)] += resting;
  while (table.blocks.size() > taken) DropLast(table);
  eviction_->Rested(owner, 0);
  return std::move(std::exchange(table, {}).blocks);
}

void BlockPool::DropLast(Resting& table) {
  SealedBlock block = std::move(table.blocks.back());
  table.blocks.pop_back();
  block.pool_ = nullptr;  // the handle of a table that does not run: no step touches it for this
  Use& u = use(block.id());
  --u.resting;
  --u.holders;
  if (u.place != Place::kResting || u.holders > 0) return;
  Free(InFlightBlock(block.id(), node(block.id()).fence), retired());
}

void BlockPool::Shed(int owner_slot) {
  Resting& table = rests_[static_cast<size_t>(owner_slot)];
  DropLast(table);
  if (table.blocks.empty()) table = {};
}

void BlockPool::GiveUpRest(OwnerId owner) {
  const auto slot = static_cast<size_t>(owner.slot);
  if (slot >= rests_.size() || rests_[slot].blocks.empty()) return;
  while (!rests_[slot].blocks.empty()) DropLast(rests_[slot]);
  rests_[slot] = {};
  eviction_->Rested(owner, 0);
}

void BlockPool::GiveUpRests() {
  for (size_t slot = 0; slot < rests_.size(); ++slot) {
    GiveUpRest(OwnerId{.slot = static_cast<int32_t>(slot)});
  }
}

}  // namespace tokenspeed::kv
