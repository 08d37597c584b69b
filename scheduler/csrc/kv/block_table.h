// SPDX-License-Identifier: MIT
// The blocks of one running request in token order: sealed ones, then open ones.
// Releases from the tail, so that the head of a chain is evicted last.
#pragma once

#include <ostream>
#include <utility>
#include <vector>

#include "kv/block.h"

namespace tokenspeed::kv {

class BlockTable {
 public:
  BlockTable() = default;
  BlockTable(BlockTable&& other) noexcept { *this = std::move(other); }
  BlockTable& operator=(BlockTable&& other) noexcept;
  ~BlockTable() { Clear(); }

  int size() const { return sealed() + open(); }
  int sealed() const { return static_cast<int>(sealed_.size()); }
  int open() const { return static_cast<int>(open_.size() - closed_); }
  BlockId at(int i) const;
  // REQUIRES: i < sealed()
  const SealedBlock& sealed_at(int i) const { return sealed_[static_cast<size_t>(i)]; }

  // No memory moves until there are more than so many blocks.
  void Reserve(int blocks) { sealed_.reserve(static_cast<size_t>(blocks)); }
  // REQUIRES: open() == 0
  void Append(SealedBlock block);
  void Append(std::vector<SealedBlock> blocks);
  void Append(OpenBlock block) { open_.push_back(std::move(block)); }
  // The step that is being planned writes the next `tokens` positions and drafts to up to `ahead`
  // more.
  // REQUIRES: the open blocks have room for all.
  void Fill(int tokens, int ahead, int block_size);
  // The drafts in the next `tokens` positions are accepted.
  // REQUIRES: Fill had them ahead.
  void Accept(int tokens, int block_size);
  // Positions of the open blocks that are filled.
  int filled() const;
  // The block that is open will be sealed soon.
  void PrefetchEnds() const {
    __builtin_prefetch(sealed_.data() + sealed_.size(), 1);
    __builtin_prefetch(open_.data(), 1);
  }
  // Seals the first open block.
  // REQUIRES: it is full.
  void Seal(const ChainKey& key, std::span<const Token> tokens);
  // Gives up the first `blocks`.
  // REQUIRES: blocks <= sealed()
  void DropFront(int blocks);
  void Clear();
  // The sealed blocks, which are the caller's from now on.
  std::vector<SealedBlock> TakeSealed() { return std::exchange(sealed_, {}); }
  // Nobody finds these blocks from now on.
  void Forget();
  void Describe(std::ostream& out) const;

 private:
  std::vector<SealedBlock> sealed_;
  std::vector<OpenBlock> open_;
  size_t closed_ = 0;  // of open_, from the front: sealed since, their handles are empty
};

}  // namespace tokenspeed::kv
