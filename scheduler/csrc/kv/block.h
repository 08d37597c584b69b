// SPDX-License-Identifier: MIT
// Handles of KV blocks. The life of a block is written in their types:
//
//   BlockPool::Allocate -> OpenBlock --std::move(open).Seal(key, tokens)--> SealedBlock
//   --Share()-->
//
// OpenBlock:   exclusive and writable, of one request; cannot be copied, shared or found.
// SealedBlock: read-only; may be shared; found by its chain hash while the pool keeps it.
// Both are move-only and give their block back in the destructor; the pool then holds it behind
// the fence of the steps in flight. The pool outlives every handle.
#pragma once

#include <span>
#include <utility>

#include "base/ids.h"
#include "base/siphash.h"

namespace tokenspeed::kv {

class BlockPool;

// Where a block stands in its chain of blocks.
struct ChainKey {
  Hash128 hash;
  Hash128 parent;
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
  ~SealedBlock();

  BlockId id() const { return id_; }
  // Another handle of the same block.
  // REQUIRES: not moved from.
  SealedBlock Share() const;
  // The content is not to be trusted: nobody finds the block from now on.
  // REQUIRES: not moved from.
  void Forget();

 private:
  friend class BlockPool;
  friend class OpenBlock;
  SealedBlock(BlockPool* pool, BlockId id) : pool_(pool), id_(id) {}

  BlockPool* pool_;
  BlockId id_;
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
  // A planned step writes the next `tokens` positions.
  // REQUIRES: not moved from; filled() + tokens <= the pool's block size.
  void Fill(int tokens);
  // The content is final from here on. A block whose hash another block carries is not found.
  // REQUIRES: not moved from; full; `tokens` is its whole content.
  SealedBlock Seal(const ChainKey& key, std::span<const Token> tokens) &&;

 private:
  friend class BlockPool;
  OpenBlock(BlockPool* pool, BlockId id) : pool_(pool), id_(id) {}

  BlockPool* pool_;
  BlockId id_;
  int filled_ = 0;
};

}  // namespace tokenspeed::kv
