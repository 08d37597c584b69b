// SPDX-License-Identifier: MIT
#include "kv/ghost_cache.h"

#include <algorithm>

namespace tokenspeed::kv {

void GhostCache::Resize(int64_t blocks) {
  capacity_ = blocks;
  Trim();
}

int64_t GhostCache::Arrive(int owner) {
  const auto at = static_cast<size_t>(owner);
  if (at >= sizes_.size()) sizes_.resize(at + 1);
  idle_.Erase(owner);
  return sizes_[at];
}

void GhostCache::Leave(int owner, int64_t blocks, const Rank& rank) {
  const auto at = static_cast<size_t>(owner);
  if (at >= sizes_.size()) sizes_.resize(at + 1);
  used_ += blocks - sizes_[at];
  sizes_[at] = blocks;
  if (blocks > 0) idle_.Set(owner, rank);
  Trim();
}

void GhostCache::Rerank(int owner, const Rank& rank) {
  if (idle_.contains(owner)) idle_.Set(owner, rank);
}

void GhostCache::Forget(int owner) {
  const auto at = static_cast<size_t>(owner);
  idle_.Erase(owner);
  if (at >= sizes_.size()) return;
  used_ -= sizes_[at];
  sizes_[at] = 0;
}

void GhostCache::Trim() {
  while (used_ > capacity_ && !idle_.empty()) {
    const int owner = idle_.top();
    int64_t& size = sizes_[static_cast<size_t>(owner)];
    const int64_t gone = std::min(size, used_ - capacity_);
    size -= gone;
    used_ -= gone;
    if (size == 0) idle_.Erase(owner);
  }
}

}  // namespace tokenspeed::kv
