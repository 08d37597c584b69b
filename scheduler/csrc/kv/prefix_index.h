// SPDX-License-Identifier: MIT
// Which sealed block carries a chain hash: open addressing, no allocation after construction.
// A hash is known by its first 96 bits: an entry is 16 bytes, and never in two cache lines. Hashes
// that agree in those are one here, so what is found is a hint, which the finder checks.
// Invariant: at most one block for a hash; a removal leaves no tombstone.
#pragma once

#include <optional>
#include <vector>

#include "base/ids.h"
#include "base/siphash.h"

namespace tokenspeed::kv {

class PrefixIndex {
 public:
  // Holds up to `max_blocks` entries.
  explicit PrefixIndex(int max_blocks);

  std::optional<BlockId> Find(const Hash128& hash) const;
  // Asks the processor for the memory that the other calls will read.
  void Prefetch(const Hash128& hash) const { __builtin_prefetch(&entries_[Home(hash)]); }
  // Returns false, and changes nothing, if the hash is there already.
  bool Insert(const Hash128& hash, BlockId block);
  // REQUIRES: the hash is there.
  void Erase(const Hash128& hash);
  int size() const { return size_; }

 private:
  static constexpr BlockId kEmpty{-1};
  struct alignas(16) Entry {
    uint64_t low = 0;  // of the hash, then the next 32 bits
    uint32_t middle = 0;
    BlockId block = kEmpty;

    explicit Entry(const Hash128& hash, BlockId block = kEmpty) : low(hash.low()), block(block) {
      std::memcpy(&middle, hash.bytes.data() + sizeof(low), sizeof(middle));
    }
    Entry() = default;
    bool SameHash(const Entry& other) const { return low == other.low && middle == other.middle; }
  };
  static_assert(sizeof(Entry) == 16);

  size_t Home(const Hash128& hash) const { return hash.low() & mask_; }
  // The hash's entry, or the empty one where it would go.
  size_t Locate(const Hash128& hash) const;

  std::vector<Entry> entries_;
  size_t mask_;
  int size_ = 0;
};

}  // namespace tokenspeed::kv
