// SPDX-License-Identifier: MIT
// BlockPool: what must hold of it, and what decides its future.
#include <algorithm>
#include <ostream>
#include <sstream>

#include "kv/block_pool.h"

namespace tokenspeed::kv {

Status BlockPool::Verify() const {
  int places[kPlaces] = {};
  int indexed = 0;
  std::vector<int> resting(uses_.size());
  ForEachResting([&](BlockId id) { ++resting[static_cast<size_t>(id.value)]; });
  for (int i = share_; i < num_blocks_; ++i) {
    const Node& n = node(BlockId{i});
    const Use& u = use(BlockId{i});
    ++places[static_cast<int>(u.place)];
    indexed += u.indexed;
    const bool held = u.place == Place::kOpen || u.place == Place::kShared;
    if (held != (u.holders > u.resting)) return Broken("block ", i, " has ", u.holders, " holders");
    const bool rests = u.place == Place::kResting;
    if (rests ? u.resting == 0 : u.resting > 0 && !held && u.place != Place::kRetiring) {
      return Broken("block ", i, " rests in ", u.resting, " tables");
    }
    resting[static_cast<size_t>(i)] -= u.resting;
    if (u.place == Place::kOpen && (u.holders != 1 || n.sealed || u.indexed)) {
      return Broken("open block ", i, " is shared, sealed or findable");
    }
    if (u.place == Place::kCached && !u.indexed) return Broken("cached block ", i, " is lost");
    if (u.place == Place::kFree && u.indexed) return Broken("free block ", i, " is findable");
    if (u.indexed != (Mark(BlockId{i}).life % 2 == 1)) {
      return Broken("block ", i, " has a life that is not its own");
    }
    if (u.indexed && index_.Find(n.key.hash) != BlockId{i}) {
      return Broken("block ", i, " is not where the index says");
    }
  }
  if (std::ranges::count(resting, 0) != std::ssize(resting)) return Broken("rests are miscounted");
  if (indexed != index_.size()) return Broken(indexed, " blocks, ", index_.size(), " in the index");
  for (int place = 0; place < kPlaces; ++place) {
    const int counted = count(static_cast<Place>(place));
    if (places[place] != counted) {
      return Broken("place ", place, " holds ", places[place], " blocks, counted ", counted);
    }
  }
  constexpr Place kListed[kLists] = {Place::kFree, Place::kRetiring, Place::kCached};
  for (int list = 0; list < kLists; ++list) {
    const BlockId end = sentinel(static_cast<List>(list));
    int length = 0;
    StepId fence;
    for (BlockId id = node(end).next; id != end; id = node(id).next) {
      const Node& n = node(id);
      if (use(id).place != kListed[list] || node(n.next).previous != id || ++length > num_blocks_) {
        return Broken("list ", list, " is torn at block ", id.value);
      }
      if (list == kRetiringList && (n.fence <= retired_ || n.fence < fence)) {
        return Broken("block ", id.value, " waits for step ", n.fence.value, ", retired ",
                      retired_.value);
      }
      fence = n.fence;
    }
    const bool loose = list == kFreeList && parents_ != nullptr;
    if (length != (loose ? 0 : places[static_cast<int>(kListed[list])])) {
      return Broken("list ", list, " holds ", length, " blocks");
    }
  }
  return eviction_ ? eviction_->Verify() : Status(Ok{});
}

void BlockPool::Describe(std::ostream& out) const {
  const auto ago = [this](StepId step) {
    return step <= retired_ ? -1 : std::max<int64_t>(planned_.value - step.value, -2);
  };
  out << "retired " << planned_.value - retired_.value << '\n';
  for (int i = share_; i < num_blocks_; ++i) {
    const Node& n = node(BlockId{i});
    const Use& u = use(BlockId{i});
    out << "block " << i << " place " << static_cast<int>(u.place) << " holders " << u.holders;
    if (u.place != Place::kFree) out << " written " << ago(n.written);
    if (u.place == Place::kRetiring) out << " fence " << ago(n.fence);
    if (u.indexed) out << " key " << n.key.hash.low() << ' ' << n.key.parent.low();
    out << '\n';
  }
  for (int list = 0; list < kLists; ++list) {
    const BlockId end = sentinel(static_cast<List>(list));
    out << "list " << list;
    for (BlockId id = node(end).next; id != end; id = node(id).next) out << ' ' << id.value;
    out << '\n';
  }
  if (eviction_) eviction_->Describe(out);
  for (const Resting& table : rests_) {
    out << "rest";
    for (const SealedBlock& block : table.blocks) out << ' ' << block.id().value;
    out << '\n';
  }
}

}  // namespace tokenspeed::kv
