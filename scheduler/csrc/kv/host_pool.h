// SPDX-License-Identifier: MIT
// The blocks of the host tier: copies of sealed device blocks, found by the same chain keys. Each
// is
//
//   free      on the free list
//   written   held by one OpenHostBlock, the target of a store; nobody finds it
//   resident  found by its key; held by the HostBlocks of loads that read it, or evictable
//
// Eviction takes the coldest resident block that nobody holds and that no other block follows in
// its chain, so a conversation is trimmed from its tail and its head stays of use. Each block group
// has a pool, and HostParents decides whose memory is whose.
// Invariant: the three counts add up to total. Every operation is O(1), or O(share) where a parent
// changes hands.
#pragma once

#include <iosfwd>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kv/block.h"
#include "kv/host_parents.h"
#include "kv/prefix_index.h"

namespace tokenspeed::kv {

class HostPool;

// Exclusive, the target of a store; move-only, given back in the destructor.
class OpenHostBlock {
 public:
  OpenHostBlock(OpenHostBlock&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  OpenHostBlock& operator=(OpenHostBlock&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~OpenHostBlock();

  HostBlockId id() const { return id_; }
  // The content is in: the block is found from now on.
  // REQUIRES: not moved from.
  void Seal() &&;

 private:
  friend class HostPool;
  OpenHostBlock(HostPool* pool, HostBlockId id) : pool_(pool), id_(id) {}

  HostPool* pool_;
  HostBlockId id_;
};

// A resident block that a load reads; move-only, given back in the destructor.
class HostBlock {
 public:
  HostBlock(HostBlock&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  HostBlock& operator=(HostBlock&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~HostBlock();

  HostBlockId id() const { return id_; }
  // REQUIRES: not moved from.
  const ChainKey& key() const;
  std::span<const Token> tokens() const;
  // The content is not to be trusted: nobody finds the block from now on.
  void Forget();

 private:
  friend class HostPool;
  HostBlock(HostPool* pool, HostBlockId id) : pool_(pool), id_(id) {}

  HostPool* pool_;
  HostBlockId id_;
};

struct HostCounts {
  int total = 0;
  int free = 0;
  int written = 0;
  int resident = 0;
};

class HostPool {
 public:
  // The pool of the next group of `parents`, which outlives it; each has `share` of its blocks.
  // REQUIRES: share >= 1, block_size >= 1.
  HostPool(HostParents& parents, int share, int block_size);
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;

  const HostCounts& counts() const { return counts_; }

  // A block to be written with this content: a free one, else what is coldest goes. Nothing if the
  // pool has this key already, or if all that could go is held or is the block before this one.
  std::optional<OpenHostBlock> Allocate(const ChainKey& key, std::span<const Token> tokens);
  // The resident block with this key and content.
  std::optional<HostBlock> Find(const ChainKey& key, std::span<const Token> tokens);
  // Find without taking.
  std::optional<HostBlockId> Lookup(const ChainKey& key, std::span<const Token> tokens) const;
  // Whether a block with this hash is resident or being written.
  bool Has(const Hash128& hash) const { return index_.Find(hash).has_value(); }
  // Its conversation was used just now.
  void Touch(const Hash128& hash);
  // Nobody finds the block with this hash from now on, also if it is still being written.
  void Forget(const Hash128& hash);

  // Of HostParents. When its coldest block was used; nothing if none could go.
  std::optional<uint64_t> coldest_used() const;
  // Blocks of a parent that are not free.
  int used(int parent) const { return used_[static_cast<size_t>(parent)]; }

  // Walks everything; the error names the first broken invariant.
  Status Verify() const;
  // Writes down what decides the future of each block, where no other group shares the memory.
  void Describe(std::ostream& out) const;

 private:
  friend class OpenHostBlock;
  friend class HostBlock;

  enum class Place : uint8_t { kFree, kWritten, kResident };
  struct Node {
    HostBlockId next;
    HostBlockId previous;
    int32_t holders = 0;
    int32_t followers = 0;  // blocks of the pool that stand behind it in a chain
    Place place = Place::kFree;
    bool forgotten = false;
    bool listed = false;  // in the list of evictable blocks
    uint64_t used = 0;    // when its conversation was, as far as the block was told
    ChainKey key;
  };

  Node& node(HostBlockId id) { return nodes_[static_cast<size_t>(id.value)]; }
  const Node& node(HostBlockId id) const { return nodes_[static_cast<size_t>(id.value)]; }
  std::span<Token> content(HostBlockId id);
  std::span<const Token> content(HostBlockId id) const;
  // The node of a hash; null if the pool does not have it.
  Node* NodeOf(const Hash128& hash);

  void Link(HostBlockId id, HostBlockId before);
  void Unlink(HostBlockId id);
  void Unlist(HostBlockId id);
  // Lists the block if it is evictable now.
  void List(HostBlockId id, bool coldest);
  int ParentOf(HostBlockId id) const { return id.value / share_; }
  bool has_spare() const { return node(spare_).next != spare_; }
  // Makes blocks of an unbound parent spare ones, if there is one.
  void Bind();
  // Evicts something, so that there is a spare block behind `key`, if that can be.
  void MakeSpare(const ChainKey& key);
  // Gives up the parent of its coldest block, with all that is in it. False: some of it is held.
  bool Vacate();
  void Follow(const ChainKey& key);
  void Unfollow(const ChainKey& key);
  void Unindex(HostBlockId id);
  void Free(HostBlockId id);
  void Written(HostBlockId id);
  void Release(HostBlockId id);
  // `used`: blocks of each parent that are not free, counted.
  Status VerifyParents(std::span<const int> used) const;

  HostParents& parents_;
  const int share_;  // blocks in a parent
  const int group_;
  const int num_blocks_;
  const int block_size_;
  const HostBlockId evictable_;  // the sentinel of the list, coldest first
  const HostBlockId spare_;      // ... and of the free blocks in parents of this pool
  std::vector<Node> nodes_;
  std::vector<int32_t> used_;  // by parent: blocks that are not free
  std::vector<Token> contents_;
  PrefixIndex index_;
  // How many blocks of the pool follow a block that is not here.
  std::unordered_map<uint64_t, int32_t> orphans_;
  HostCounts counts_;
};

}  // namespace tokenspeed::kv
