// SPDX-License-Identifier: MIT
// What became findable in a pool and what stopped to be, in order, for those outside who keep an
// index of it. Empty until Enable(). Beside several groups the first one's pool writes it.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kv/block.h"

namespace tokenspeed::kv {

class BlockPool;

class CacheLog {
 public:
  struct Event {
    enum class Kind : uint8_t { kStored, kRemoved, kCleared };
    Kind kind = Kind::kCleared;
    ChainKey key;
    std::vector<Token> tokens;  // of kStored: the whole block
  };

  void Enable() { enabled_ = true; }
  // What happened since the last call.
  std::vector<Event> Take() { return std::exchange(events_, {}); }
  // All that is findable now as kStored, each block behind the one before it.
  std::vector<Event> Snapshot() const;

 private:
  friend class BlockPool;
  void Begin(const BlockPool* pool) { pool_ = pool; }
  void End();
  void Stored(const ChainKey& key, std::span<const Token> tokens) {
    if (enabled_) events_.push_back({Event::Kind::kStored, key, {tokens.begin(), tokens.end()}});
  }
  void Removed(const ChainKey& key) {
    if (enabled_) events_.push_back({Event::Kind::kRemoved, key, {}});
  }

  bool enabled_ = false;
  const BlockPool* pool_ = nullptr;  // null between epochs
  std::vector<Event> events_;
};

}  // namespace tokenspeed::kv
