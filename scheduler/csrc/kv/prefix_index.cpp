// SPDX-License-Identifier: MIT
#include "kv/prefix_index.h"

#include <bit>

#include "base/check.h"

namespace tokenspeed::kv {

PrefixIndex::PrefixIndex(int max_blocks)
    : entries_(std::bit_ceil(static_cast<size_t>(max_blocks) * 2 + 2)),
      mask_(entries_.size() - 1) {}

size_t PrefixIndex::Locate(const Hash128& hash) const {
  const Entry wanted(hash);
  size_t at = Home(hash);
  while (entries_[at].block != kEmpty && !entries_[at].SameHash(wanted)) at = (at + 1) & mask_;
  return at;
}

std::optional<BlockId> PrefixIndex::Find(const Hash128& hash) const {
  const Entry& entry = entries_[Locate(hash)];
  if (entry.block == kEmpty) return std::nullopt;
  return entry.block;
}

bool PrefixIndex::Insert(const Hash128& hash, BlockId block) {
  Entry& entry = entries_[Locate(hash)];
  if (entry.block != kEmpty) return false;
  TS_CHECK(static_cast<size_t>(size_) < mask_, "index of " << entries_.size() << " is full");
  entry = Entry(hash, block);
  ++size_;
  return true;
}

void PrefixIndex::Erase(const Hash128& hash) {
  size_t hole = Locate(hash);
  TS_CHECK(entries_[hole].block != kEmpty, "erased a hash that is not indexed");
  // Close the hole: move back each later entry of the run that may stand there.
  for (size_t at = (hole + 1) & mask_; entries_[at].block != kEmpty; at = (at + 1) & mask_) {
    const size_t home = entries_[at].low & mask_;
    if (((at - home) & mask_) < ((at - hole) & mask_)) continue;
    entries_[hole] = entries_[at];
    hole = at;
  }
  entries_[hole] = {};
  --size_;
}

}  // namespace tokenspeed::kv
