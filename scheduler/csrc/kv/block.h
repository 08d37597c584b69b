// SPDX-License-Identifier: MIT
// Handles of KV blocks. The life of a block is written in their types; each arrow consumes its
// handle or names the proof that it needs:
//
//   BlockPool::Allocate -> OpenBlock --Seal--> SealedBlock --Retire(RetiredStep)--> RetiredBlock
//                              |                                                        |
//                              '------------Receive--> TransferringBlock <----Lend------'
//                                                        '--Finish(Completion)--> the pool
//
// OpenBlock:         exclusive and writable, of one request.
// SealedBlock:       read-only, may be shared; for readers in the workers' order of steps.
// RetiredBlock:      its writes have left the workers: for readers outside of that order.
// TransferringBlock: one end of a copy; only the completion of its ticket gives it back.
// InFlightBlock:     held by nobody, but a step in flight may still touch it.
//
// All are move-only, and their constructors belong to the pool. A handle that goes out of scope
// gives its block up: it becomes an InFlightBlock, which only a RetiredStep frees. The pool
// outlives every handle. Use behind a move is a CHECK: C++ cannot refuse it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "base/ids.h"
#include "base/siphash.h"
#include "kv/tickets.h"

namespace tokenspeed::kv {

class BlockPool;
class RetiredBlock;
class TransferringBlock;
struct Delivery;

// Where a block stands in its chain of blocks.
struct ChainKey {
  Hash128 hash;
  Hash128 parent;
};

// Tells a sealed block from all others that ever stand in its place.
struct BlockMark {
  BlockId id;
  uint64_t life = 0;  // even: it was never found by anybody
};

// Proof that every step up to step() has left the workers; a pool that was told makes it.
class RetiredStep {
 public:
  StepId step() const { return step_; }

 private:
  friend class BlockPool;
  explicit RetiredStep(StepId step) : step_(step) {}

  StepId step_;
};

// Given up by its last holder; steps up to fence() may touch it. Only the pool sees one.
class InFlightBlock {
 public:
  InFlightBlock(InFlightBlock&&) noexcept = default;
  InFlightBlock& operator=(InFlightBlock&&) = delete;

  BlockId id() const { return id_; }
  StepId fence() const { return fence_; }

 private:
  friend class BlockPool;
  InFlightBlock(BlockId id, StepId fence) : id_(id), fence_(fence) {}

  BlockId id_;
  StepId fence_;
};

class SealedBlock {
 public:
  SealedBlock(SealedBlock&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  SealedBlock& operator=(SealedBlock&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~SealedBlock() {
    if (pool_ != nullptr) GiveUp();
  }

  BlockId id() const { return id_; }
  // REQUIRES: not moved from; `tokens` also that the pool has its prefix index.
  const ChainKey& key() const;
  std::span<const Token> tokens() const;
  // Another handle of the same block.
  // REQUIRES: not moved from.
  SealedBlock Share() const;
  // A handle for readers of any order; nothing while a step that writes the block is in flight.
  // REQUIRES: not moved from.
  std::optional<RetiredBlock> Retire(const RetiredStep& proof) const;
  // The content is not to be trusted: nobody finds the block from now on.
  // REQUIRES: not moved from.
  void Forget();

 private:
  friend class BlockPool;
  friend class OpenBlock;
  friend class RetiredBlock;
  SealedBlock(BlockPool* pool, BlockId id) : pool_(pool), id_(id) {}
  void GiveUp();

  BlockPool* pool_;
  BlockId id_;
};

class RetiredBlock {
 public:
  RetiredBlock(RetiredBlock&&) noexcept = default;
  RetiredBlock& operator=(RetiredBlock&&) noexcept = default;

  BlockId id() const { return block_.id(); }
  // The ticket's copy reads the block from now on.
  TransferringBlock Lend(TicketId ticket) &&;

 private:
  friend class SealedBlock;
  explicit RetiredBlock(SealedBlock block) : block_(std::move(block)) {}

  SealedBlock block_;
};

class TransferringBlock {
 public:
  TransferringBlock(TransferringBlock&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)),
        id_(other.id_),
        ticket_(other.ticket_),
        target_(other.target_) {}
  TransferringBlock& operator=(TransferringBlock&&) = delete;
  // REQUIRES: finished or moved from.
  ~TransferringBlock();

  BlockId id() const { return id_; }
  TicketId ticket() const { return ticket_; }
  // The copy is over. A target whose copy succeeded can be found from now on; others are given
  // up, and a target whose copy failed holds nothing.
  // REQUIRES: the completion of ticket().
  void Finish(const Completion& completion) &&;

 private:
  friend class RetiredBlock;
  friend class OpenBlock;
  TransferringBlock(BlockPool* pool, BlockId id, TicketId ticket, bool target)
      : pool_(pool), id_(id), ticket_(ticket), target_(target) {}

  BlockPool* pool_;
  BlockId id_;
  TicketId ticket_;
  bool target_;
};

class OpenBlock {
 public:
  OpenBlock(OpenBlock&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_), filled_(other.filled_) {}
  OpenBlock& operator=(OpenBlock&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    std::swap(filled_, other.filled_);
    return *this;
  }
  ~OpenBlock();

  BlockId id() const { return id_; }
  int filled() const { return filled_; }
  // The step that is being planned writes the next `tokens` positions, and maybe drafts behind.
  // REQUIRES: not moved from; filled() + tokens <= the pool's block size.
  void Fill(int tokens);
  // The drafts in the next `tokens` positions, which earlier steps wrote, are accepted.
  // REQUIRES: as Fill.
  void Accept(int tokens);
  // The content is final from here on. A block whose hash another block carries is not found.
  // `before`: the block that it goes on, if the caller has it.
  // REQUIRES: not moved from; full; `tokens` is its whole content; `before` has the key's parent.
  SealedBlock Seal(const ChainKey& key, std::span<const Token> tokens,
                   std::optional<BlockId> before = std::nullopt) &&;
  // The ticket's copy writes the whole block. Readers that wait for the ticket may have it at
  // once; it is found and can retire when the ticket is done.
  // REQUIRES: not moved from; empty; `tokens` is its whole content.
  Delivery Receive(TicketId ticket, const ChainKey& key, std::span<const Token> tokens) &&;

 private:
  friend class BlockPool;
  OpenBlock(BlockPool* pool, BlockId id) : pool_(pool), id_(id) {}

  BlockPool* pool_;
  BlockId id_;
  int filled_ = 0;
};

// A block that a copy fills: for its readers, and for the copy.
struct Delivery {
  SealedBlock block;
  TransferringBlock transfer;
};

}  // namespace tokenspeed::kv
