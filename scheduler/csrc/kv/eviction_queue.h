// SPDX-License-Identifier: MIT
// Which cached block of one pool goes next.
//
// Only leaves are candidates: blocks that no findable block continues, since a prefix is useful
// without its tail and never the other way round. Each leaf stands in the list of its owner, and a
// heap orders the owners that have leaves by rank; evicting a leaf makes its parent one. A block
// remembers the last two owners that used it, and the better one decides. A leaf that its owner's
// last visits did not use is of a branch that was given up, and nobody's.
// Every operation is O(1), or O(log owners) where a heap moves.
#pragma once

#include <functional>
#include <iosfwd>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kv/indexed_heap.h"
#include "kv/rank.h"

namespace tokenspeed::kv {

class Retention;

class EvictionQueue {
 public:
  // `retention` outlives the queue. Blocks are 0 to num_blocks - 1; `ghosts` as Retention::Attach.
  // `shed` takes the tail from the table at rest of the owner in a slot: its block is cached then,
  // or somebody holds it.
  EvictionQueue(Retention& retention, int num_blocks, int ghosts, std::function<void(int)> shed);
  ~EvictionQueue();
  EvictionQueue(const EvictionQueue&) = delete;
  EvictionQueue& operator=(const EvictionQueue&) = delete;

  // The owner uses the block, which is held.
  void Claim(BlockId id, OwnerId owner);
  OwnerId owner(BlockId id) const { return node(id).owner; }
  // The block is findable from now on, as the continuation of `parent`; or no longer.
  void Indexed(BlockId id, std::optional<BlockId> parent);
  void Unindexed(BlockId id);
  // A findable block is held by nobody; or is taken again.
  void Cached(BlockId id);
  void Taken(BlockId id);
  bool is_open(OwnerId owner) const;
  // So many blocks of the owner, who is open, are in a table at rest; 0: there is none any more.
  void Rested(OwnerId owner, int blocks);

  // What stood before the block in its chain when it became findable, and maybe not any more.
  std::optional<BlockId> parent(BlockId id) const {
    const BlockId parent = node(id).parent;
    return parent == kNone ? std::nullopt : std::optional(parent);
  }
  void Prefetch(BlockId id) const { __builtin_prefetch(&node(id), 1); }
  // The next to go; nothing if every cached block has a continuation.
  std::optional<BlockId> Victim();
  // What it is worth.
  // REQUIRES: Victim() found one just now.
  const Rank& victim_rank() const { return owners_.top_key(); }
  // Cached blocks whose owner is retained. O(owners).
  int retained() const;

  // Of Retention: an owner has another rank, or is gone.
  void Rerank(int slot, const Rank& rank);
  // ... has ended one visit more; its blocks are not yet cached again.
  void Visited(int slot);
  void Disown(int slot);

  Status Verify() const;
  // Writes down what goes in which order as things are.
  void Describe(std::ostream& out) const;

 private:
  static constexpr BlockId kNone{-1};
  struct alignas(64) Node {  // one cache line
    OwnerId owner;
    OwnerId other;  // that used it before
    BlockId parent = kNone;
    uint32_t parent_life = 0;
    uint32_t visit = 0;  // of the owner, when it was cached
    uint32_t life = 0;   // grows when the block stops being findable
    int32_t children = 0;
    bool indexed = false;
    bool cached = false;
    int32_t list = -1;  // the owner slot in whose list it stands as a leaf
    BlockId next = kNone;
    BlockId previous = kNone;
  };
  struct Leaves {
    BlockId first = kNone;
    BlockId last = kNone;
    int32_t cached = 0;   // blocks of the owner, leaves or not
    int32_t resting = 0;  // those of its table at rest
  };

  Node& node(BlockId id) { return nodes_[static_cast<size_t>(id.value)]; }
  const Node& node(BlockId id) const { return nodes_[static_cast<size_t>(id.value)]; }
  Leaves& leaves(int slot) {
    if (static_cast<size_t>(slot) >= leaves_.size()) leaves_.resize(static_cast<size_t>(slot) + 1);
    return leaves_[static_cast<size_t>(slot)];
  }
  // The slot under which a block counts: its owner's, or nobody's.
  int SlotOf(const Node& n) const;
  // The slot in whose list it stands if it is a leaf: nobody's if its owner has given it up.
  int ListOf(const Node& n) const;
  void Enlist(BlockId id);
  void Delist(BlockId id);
  bool Succeed(BlockId id, BlockId parent);
  void Settle(BlockId id);
  void Shed(int slot);
  // Nothing of the owner can go: it is no candidate.
  void LeaveIfBare(int slot);

  Retention& retention_;
  const std::function<void(int)> shed_;
  std::vector<Node> nodes_;
  std::vector<Leaves> leaves_;
  IndexedHeap<Rank> owners_;
};

}  // namespace tokenspeed::kv
