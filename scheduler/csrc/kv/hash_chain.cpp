// SPDX-License-Identifier: MIT
#include "kv/hash_chain.h"

#include "base/check.h"

namespace tokenspeed::kv {

HashChain::HashChain(const Hash128& key, std::string_view salt, int block_size)
    : key_(key), block_size_(block_size) {
  hashes_.push_back(SipHash128(key, std::as_bytes(std::span(salt.data(), salt.size()))));
}

void HashChain::Truncate(int blocks) {
  if (blocks < known()) hashes_.resize(static_cast<size_t>(blocks) + 1);
}

void HashChain::ExtendBoth(HashChain& one, std::span<const Token> tokens, HashChain& other,
                           std::span<const Token> others) {
  const auto next = [](const HashChain& chain, std::span<const Token> all) {
    const auto width = static_cast<size_t>(chain.block_size_);
    return std::as_bytes(all.subspan(static_cast<size_t>(chain.known()) * width, width));
  };
  const auto [hash, beside] =
      SipHash128Pair(one.key_, {one.hashes_.back().view(), other.hashes_.back().view()},
                     {next(one, tokens), next(other, others)});
  one.hashes_.push_back(hash);
  other.hashes_.push_back(beside);
}

ChainKey HashChain::At(int i, std::span<const Token> tokens) {
  const size_t block = static_cast<size_t>(i);
  const size_t width = static_cast<size_t>(block_size_);
  TS_CHECK((block + 1) * width <= tokens.size(),
           "block " << i << " of " << tokens.size() << " tokens is not whole");
  while (hashes_.size() <= block + 1) {
    const auto content = tokens.subspan((hashes_.size() - 1) * width, width);
    hashes_.push_back(SipHash128(key_, hashes_.back().view(), std::as_bytes(content)));
  }
  return {hashes_[block + 1], hashes_[block]};
}

}  // namespace tokenspeed::kv
