// SPDX-License-Identifier: MIT
// All KV blocks of one epoch, each in exactly one place:
//
//   free      on the free list
//   open      held by one OpenBlock
//   shared    held by one or more other handles
//   retiring  held by nobody who runs, but a step in flight may still touch it
//   cached    held by nobody, findable; evicted by rank of its owner, or, without a Retention,
//             least recently released first
//   resting   held by tables at rest only
//
// A table at rest is what a session's last request held: whole, so that the next one takes it up in
// no time. Its blocks count as cached. When its owner is the next to lose something it gives up its
// tail, block by block, and those are cached as any other.
//
// Invariant: the six counts add up to total(). Every operation is O(1); Match is O(1) a block.
// Block 0 is the workers' scratch block and is never handed out.
//
// Where several groups share one memory each has a pool, and a ParentPool decides whose memory is
// whose: a pool allocates whole parents then, and its free blocks are in nobody's hands.
#pragma once

#include <array>
#include <deque>
#include <iosfwd>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kv/block.h"
#include "kv/cache_log.h"
#include "kv/evicted_hashes.h"
#include "kv/eviction_queue.h"
#include "kv/parent_pool.h"
#include "kv/prefix_index.h"

namespace tokenspeed::kv {

struct BlockCounts {
  int total = 0;
  int free = 0;
  int open = 0;
  int shared = 0;
  int retiring = 0;
  int cached = 0;
};

class BlockPool {
 public:
  // `num_blocks` counts the scratch block. `findable` false turns the prefix index off.
  // REQUIRES: num_blocks >= 2, block_size >= 1.
  // `retention`, if any, ranks what is cached and outlives the pool.
  BlockPool(int num_blocks, int block_size, bool findable, Retention* retention = nullptr);
  // The pool of the next group of `parents`, which outlives it; each has `share` of its blocks.
  BlockPool(ParentPool& parents, int share, int block_size, bool findable,
            Retention* retention = nullptr);
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // `log`, which outlives the pool, is told what becomes findable and what stops to be.
  void Watch(CacheLog* log);
  // Calls visit(key, tokens) for each block that is findable.
  template <class Visit>
  void ForEachFindable(Visit visit) const {
    for (int id = 0; id < num_blocks_; ++id) {
      if (use(BlockId{id}).indexed) visit(node(BlockId{id}).key, content(BlockId{id}));
    }
  }

  int block_size() const { return block_size_; }
  bool findable() const { return findable_; }
  BlockCounts counts() const;
  // Blocks that Allocate can hand out now.
  int available() const {
    return count(Place::kFree) + count(Place::kCached) + count(Place::kResting);
  }
  // Grows whenever available() grows.
  uint64_t releases() const { return releases_; }

  // Takes a free block, else evicts cached ones; nothing if there are neither.
  // REQUIRES: the pool has its memory for itself.
  std::optional<OpenBlock> Allocate();
  // Takes all blocks of a parent in order, calling take(OpenBlock) for each; false: there is none.
  // REQUIRES: the memory is shared with other groups.
  template <class Take>
  bool AllocateParent(Take take) {
    const std::optional<int> parent = parents_->Take(group_, share_);
    if (!parent) return false;
    for (int i = 0; i < share_; ++i) take(Open(BlockId{*parent * share_ + i}));
    return true;
  }
  int share() const { return share_; }
  // Blocks are 0 to num_blocks() - 1.
  int num_blocks() const { return num_blocks_; }

  // The block with this key and content, if the pool has it.
  std::optional<SealedBlock> Find(const ChainKey& key, std::span<const Token> tokens);
  // Find without taking: whether it is there, and whether it is held by anybody now.
  enum class Presence { kAbsent, kUnheld, kHeld };
  Presence Peek(const ChainKey& key, std::span<const Token> tokens) const;
  std::optional<BlockId> Lookup(const ChainKey& key, std::span<const Token> tokens) const;
  // Block `id`, if it still is the one that is found by this hash.
  std::optional<SealedBlock> Hold(BlockId id, const Hash128& hash);
  // The blocks with these marks, in order, up to the first that is not found any more.
  void Retake(std::span<const BlockMark> marks, std::vector<SealedBlock>& blocks);
  BlockMark Mark(BlockId id) const { return {id, lives_[static_cast<size_t>(id.value)]}; }
  // Find of this hash will be soon.
  void Prefetch(const Hash128& hash) const {
    if (findable_) index_.Prefetch(hash);
  }
  // The block is about to be sealed with this hash, behind `before`.
  // REQUIRES: findable().
  void PrefetchSealing(const Hash128& hash, BlockId id, BlockId before) const;
  // A block of this key was evicted, as far as the pool remembers.
  bool WasEvicted(const ChainKey& key) const { return evicted_.Holds(key.hash); }
  int holders(BlockId id) const { return use(id).holders; }
  // Holders but for tables at rest.
  int users(BlockId id) const { return use(id).holders - use(id).resting; }

  // Lays a table to rest for its owner, up to the first block that nobody finds; an owner's earlier
  // one is given up. Returns by what Wake knows it; 0: nothing rests.
  // REQUIRES: the pool has its memory for itself.
  uint64_t Rest(OwnerId owner, std::vector<SealedBlock> blocks);
  // Takes up the first `most` blocks of that table, as far as they are still there and found.
  std::vector<SealedBlock> Wake(OwnerId owner, uint64_t rest, int most);
  // Gives up all tables at rest.
  void GiveUpRests();
  // Calls visit(block) for each handle of a table at rest.
  template <class Visit>
  void ForEachResting(Visit visit) const {
    for (const Resting& table : rests_) {
      for (const SealedBlock& block : table.blocks) visit(block.id());
    }
  }

  // Who uses a block that is held, and whom it is kept for afterwards.
  void Claim(BlockId id, OwnerId owner) {
    if (eviction_) eviction_->Claim(id, owner);
  }
  OwnerId owner(BlockId id) const { return eviction_ ? eviction_->owner(id) : OwnerId{}; }
  int retained() const { return eviction_ ? eviction_->retained() : 0; }

  // Of ParentPool. What would go next, and what it is worth; nothing where there are no ranks.
  struct Candidate {
    BlockId block;
    int parent = 0;
    Rank rank;
  };
  std::optional<Candidate> NextVictim();
  void Evict(BlockId id);
  // REQUIRES: the parent is idle.
  void EvictParent(int parent);
  // Blocks of a parent that are neither free nor cached; that are cached.
  struct Occupancy {
    int in_use = 0;
    int cached = 0;
  };
  Occupancy Occupied(int parent) const {
    Occupancy counted;
    for (int i = parent * share_; i < (parent + 1) * share_; ++i) {
      const Place place = use(BlockId{i}).place;
      counted.cached += place == Place::kCached;
      counted.in_use += place != Place::kFree && place != Place::kCached;
    }
    return counted;
  }

  // From now on a released block waits until `step` has retired.
  // REQUIRES: steps ascend.
  void Planned(StepId step);
  // Every step up to `step` has left the workers.
  RetiredStep Retired(StepId step);
  RetiredStep retired() const { return RetiredStep(retired_); }

  // Walks everything; the error names the first broken invariant.
  Status Verify() const;
  // Writes down what decides the future of each block; steps by their distance from the last.
  void Describe(std::ostream& out) const;

 private:
  friend class OpenBlock;
  friend class SealedBlock;
  friend class TransferringBlock;

  enum class Place : uint8_t { kFree, kOpen, kShared, kRetiring, kCached, kResting };
  static constexpr int kPlaces = 6;
  // So many go together in a pool where they are such a part at most: what they were is then on its
  // way from memory side by side, and few steps wait for it.
  static constexpr int kEvictedAtOnce = 16;
  static constexpr int kSmallPart = 2048;
  struct alignas(64) Node {  // one cache line
    BlockId next;
    BlockId previous;
    bool sealed = false;
    StepId written;  // the last step that writes it
    StepId fence;    // while retiring: the last step that may touch it
    ChainKey key;
  };
  // Apart from the rest of the node: a table is taken up by touching this of each block.
  struct Use {
    int32_t holders = 0;
    int32_t resting = 0;  // of holders: in tables at rest
    Place place = Place::kFree;
    bool indexed = false;
  };
  struct Resting {
    std::vector<SealedBlock> blocks;
    uint64_t rest = 0;
  };
  struct Retreat {  // a table that rests when the steps that read it have retired
    OwnerId owner;
    uint64_t rest;
    StepId fence;
  };
  // A doubly linked list through the nodes; its sentinel lies behind the real nodes.
  enum List : int { kFreeList = 0, kRetiringList = 1, kCachedList = 2, kLists = 3 };

  Node& node(BlockId id) { return nodes_[static_cast<size_t>(id.value)]; }
  const Node& node(BlockId id) const { return nodes_[static_cast<size_t>(id.value)]; }
  Use& use(BlockId id) { return uses_[static_cast<size_t>(id.value)]; }
  const Use& use(BlockId id) const { return uses_[static_cast<size_t>(id.value)]; }
  BlockId first(List list) const { return node(sentinel(list)).next; }
  BlockId sentinel(List list) const { return BlockId{num_blocks_ + list}; }
  std::span<Token> content(BlockId id);
  std::span<const Token> content(BlockId id) const;
  int count(Place place) const { return counts_[static_cast<size_t>(place)]; }

  void Move(BlockId id, Place to);
  void PushBack(List list, BlockId id);
  void PushFront(List list, BlockId id);
  void Unlink(BlockId id);
  // `before` as of OpenBlock::Seal.
  void Index(BlockId id, std::optional<BlockId> before);
  void Unindex(BlockId id);
  OpenBlock Open(BlockId id);
  // The free list is empty: puts there what goes next, if anything is cached.
  void EvictSome();
  // Asks for the memory that the eviction of the block will touch.
  void PrefetchVictim(BlockId id, const Hash128& hash) const;
  int ParentOf(BlockId id) const { return id.value / share_; }

  void Fill(BlockId id) { node(id).written = StepId{planned_.value + 1}; }
  void Seal(BlockId id, const ChainKey& key, std::span<const Token> tokens,
            std::optional<BlockId> before);
  // Its writer is a copy: it is neither found nor retired before Received.
  void Receive(BlockId id, const ChainKey& key, std::span<const Token> tokens);
  void Received(BlockId id, bool ok);
  void Close(BlockId id, const ChainKey& key, std::span<const Token> tokens);
  void Share(BlockId id);
  bool IsRetired(BlockId id, const RetiredStep& proof) const {
    return node(id).written <= proof.step();
  }
  void Release(BlockId id);
  // Nobody who runs holds the block any more.
  void Idle(BlockId id);
  // A table at rest gives up its last block.
  void DropLast(Resting& table);
  // The owner's table gives up its tail, as the queue asks for it; or all.
  void Shed(int owner_slot);
  void GiveUpRest(OwnerId owner);
  // Keeps a block out of reach until its fence has retired.
  void Defer(InFlightBlock block);
  // Puts a block where it can be handed out.
  // REQUIRES: its fence has retired.
  void Free(InFlightBlock block, const RetiredStep& proof);

  BlockPool(int num_blocks, int block_size, bool findable, ParentPool* parents, int share);

  const int num_blocks_;
  const int block_size_;
  const bool findable_;
  ParentPool* const parents_;  // null: all memory is this pool's
  const int share_;            // blocks in a parent
  int group_ = 0;
  std::vector<Node> nodes_;
  std::vector<Use> uses_;
  std::vector<Token> contents_;
  PrefixIndex index_;
  EvictedHashes evicted_;
  std::optional<EvictionQueue> eviction_;
  CacheLog* log_ = nullptr;
  // Of each block: grows when it becomes findable and when it stops; odd while it is.
  std::vector<uint64_t> lives_;
  std::array<int, kPlaces> counts_{};
  uint64_t releases_ = 0;
  StepId planned_;
  StepId retired_;
  uint64_t last_rest_ = 0;
  std::deque<Retreat> retreats_;  // in order of their fences
  std::vector<Resting> rests_;    // by slot of their owner
};

}  // namespace tokenspeed::kv
