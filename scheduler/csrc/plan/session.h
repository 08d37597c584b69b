// SPDX-License-Identifier: MIT
// Conversations: what outlives their requests. A bounded table, oldest idle ones forgotten first.
//
// A session has a name within its salt, so the same name under another salt is another session.
// A request without a name continues the unnamed conversation whose last prompt it extends, which
// is told by the chain hash of that prompt's last whole block.
#pragma once

#include <list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/siphash.h"
#include "kv/hash_chain.h"
#include "kv/retention.h"

namespace tokenspeed::plan {

// Wire values: see ipc/messages.py.
enum class SessionAction : int32_t {
  kEnd = 1,
  kToolCall = 2,
  kHuman = 3,
  kRetain = 4,
  kDemote = 5,
  kPrefetch = 6,
  kRelease = 7,
};

struct Session {
  std::string key;  // of its salt and name; empty: unnamed
  kv::OwnerId owner;
  int live = 0;            // requests that wait or run
  bool over = false;       // to be forgotten once no request is live
  int borrowed = 0;        // leading blocks that another session brought
  Hash128 tip;             // unnamed: the last whole block of its last prompt ...
  int tip_blocks = 0;      // ... and how many there were; 0: none
  uint64_t tip_print = 0;  // of its tokens
};

class SessionTable {
 public:
  // `retention` outlives the table.
  SessionTable(kv::Retention& retention, size_t max_sessions)
      : retention_(retention), max_sessions_(max_sessions) {}

  // The session of this name, a new one if there is none.
  Session& Named(std::string_view salt, std::string_view name);
  Session* Find(std::string_view salt, std::string_view name);
  Session& Unnamed() { return Add(std::string()); }
  // The idle unnamed session whose last prompt ended with this block.
  Session* EndingWith(const Hash128& tip);
  // The one of the longest last prompt that `prompt` extends, of more than `blocks` blocks.
  Session* ExtendedBy(std::span<const Token> prompt, int blocks, kv::HashChain& chain);
  Session* Of(kv::OwnerId owner);

  // A request of the session comes, and goes.
  void Enter(Session& session, TimeNs now, int64_t blocks);
  void Leave(Session& session, TimeNs now, const kv::Visit& visit);
  // The session's last prompt had `blocks` and ended with this one, whose tokens are `last`.
  // REQUIRES: unnamed and idle.
  void SetTip(Session& session, const Hash128& tip, int blocks, std::span<const Token> last = {});
  // Nothing for an unknown session or action.
  void Hint(Session* session, int64_t action, TimeNs now, TimeNs ttl);

  // Requests of all sessions. O(sessions).
  int64_t live() const;
  int size() const { return static_cast<int>(sessions_.size()); }
  Status Verify() const;

 private:
  using Place = std::list<Session>::iterator;
  struct HashOfHash {
    size_t operator()(const Hash128& hash) const { return static_cast<size_t>(hash.low()); }
  };

  static std::string KeyOf(std::string_view salt, std::string_view name);
  Session& Add(std::string key);
  void Forget(Place place);
  void ClearTip(Session& session);

  kv::Retention& retention_;
  const size_t max_sessions_;
  std::list<Session> sessions_;  // most recently used first
  std::unordered_map<std::string, Place> by_key_;
  std::unordered_map<Hash128, Session*, HashOfHash> by_tip_;
  // Prints of all tips by their depth: most prompts need no hash to know that they extend none.
  std::map<int, std::unordered_multiset<uint64_t>> prints_;
  std::vector<std::optional<Place>> by_owner_;
};

}  // namespace tokenspeed::plan
