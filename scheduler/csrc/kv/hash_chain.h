// SPDX-License-Identifier: MIT
// The keyed chain hashes of one request's tokens, a block at a time, each computed once:
//   root = SipHash(key, salt),  hash[i] = SipHash(key, hash[i-1] + tokens of block i).
#pragma once

#include <string_view>
#include <vector>

#include "kv/block.h"

namespace tokenspeed::kv {

class HashChain {
 public:
  HashChain(const Hash128& key, std::string_view salt, int block_size);

  // The key of block `i` of `tokens`.
  // REQUIRES: block i is whole; earlier tokens are those of earlier calls.
  ChainKey At(int i, std::span<const Token> tokens);

  // The next blocks of two chains, in little more than the time of one.
  // REQUIRES: both blocks are whole; the chains have one key and one block size.
  static void ExtendBoth(HashChain& one, std::span<const Token> tokens, HashChain& other,
                         std::span<const Token> others);

  int block_size() const { return block_size_; }
  // No memory moves until there are more than so many blocks.
  void Reserve(int blocks) {
    const size_t count = static_cast<size_t>(blocks) + 1;
    if (count > hashes_.capacity()) hashes_.reserve(count + count / 8);  // it goes on next turn
  }
  // Blocks whose hash is known already.
  int known() const { return static_cast<int>(hashes_.size()) - 1; }
  // REQUIRES: i < known()
  const Hash128& Known(int i) const { return hashes_[static_cast<size_t>(i) + 1]; }
  // The next block's hash will be asked for soon.
  void PrefetchEnd() const { __builtin_prefetch(hashes_.data() + hashes_.size(), 1); }
  // Other tokens follow behind the first `blocks`.
  void Truncate(int blocks);

 private:
  Hash128 key_;
  int block_size_;
  std::vector<Hash128> hashes_;  // the root first
};

}  // namespace tokenspeed::kv
