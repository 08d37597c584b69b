// SPDX-License-Identifier: MIT
// What a pool would hold under another ranking: sizes only, one number an owner. Two of them, fed
// alike, tell which ranking hits more without trying both on the blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kv/indexed_heap.h"
#include "kv/rank.h"

namespace tokenspeed::kv {

class GhostCache {
 public:
  void Resize(int64_t blocks);
  // The owner's request begins: blocks of it that are there. They stay until Leave.
  int64_t Arrive(int owner);
  // Its last request is gone and leaves `blocks`.
  void Leave(int owner, int64_t blocks, const Rank& rank);
  void Rerank(int owner, const Rank& rank);
  void Forget(int owner);

 private:
  void Trim();

  int64_t capacity_ = 0;
  int64_t used_ = 0;
  std::vector<int64_t> sizes_;
  IndexedHeap<Rank> idle_;
};

}  // namespace tokenspeed::kv
