// SPDX-License-Identifier: MIT
#include "kv/cache_log.h"

#include <map>
#include <utility>

#include "kv/block_pool.h"

namespace tokenspeed::kv {

void CacheLog::End() {
  pool_ = nullptr;
  if (enabled_) events_.push_back({});
}

std::vector<CacheLog::Event> CacheLog::Snapshot() const {
  std::vector<Event> found;
  if (pool_ == nullptr) return found;
  const auto low = [](const Hash128& hash) {
    uint64_t high;
    std::memcpy(&high, hash.bytes.data() + sizeof(high), sizeof(high));
    return std::pair(hash.low(), high);
  };
  std::map<std::pair<uint64_t, uint64_t>, size_t> at;
  pool_->ForEachFindable([&](const ChainKey& key, std::span<const Token> tokens) {
    at.emplace(low(key.hash), found.size());
    found.push_back({Event::Kind::kStored, key, {tokens.begin(), tokens.end()}});
  });
  std::vector<Event> ordered;
  ordered.reserve(found.size());
  std::vector<bool> taken(found.size());
  std::vector<size_t> chain;
  for (size_t start = 0; start < found.size(); ++start) {
    for (size_t next = start; !taken[next];) {
      taken[next] = true;
      chain.push_back(next);
      const auto before = at.find(low(found[next].key.parent));
      if (before == at.end()) break;
      next = before->second;
    }
    for (; !chain.empty(); chain.pop_back()) ordered.push_back(std::move(found[chain.back()]));
  }
  return ordered;
}

}  // namespace tokenspeed::kv
