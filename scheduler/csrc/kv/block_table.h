// SPDX-License-Identifier: MIT
// The blocks of one running request in token order: sealed ones, then open ones.
// Releases from the tail, so that the head of a chain is evicted last.
#pragma once

#include <vector>

#include "kv/block.h"

namespace tokenspeed::kv {

class BlockTable {
 public:
  BlockTable() = default;
  BlockTable(BlockTable&&) noexcept = default;
  BlockTable& operator=(BlockTable&& other) noexcept;
  ~BlockTable() { Clear(); }

  int size() const { return static_cast<int>(sealed_.size() + open_.size()); }
  int sealed() const { return static_cast<int>(sealed_.size()); }
  int open() const { return static_cast<int>(open_.size()); }
  BlockId at(int i) const;

  // REQUIRES: open() == 0
  void Append(SealedBlock block);
  void Append(OpenBlock block) { open_.push_back(std::move(block)); }
  // Spreads the next `tokens` positions over the open blocks.
  // REQUIRES: they fit.
  void Fill(int tokens, int block_size);
  // Seals the first open block.
  // REQUIRES: it is full.
  void Seal(const ChainKey& key, std::span<const Token> tokens);
  void Clear();
  // Nobody finds these blocks from now on.
  void Forget();

 private:
  std::vector<SealedBlock> sealed_;
  std::vector<OpenBlock> open_;
};

}  // namespace tokenspeed::kv
