// SPDX-License-Identifier: MIT
#include "plan/session.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace tokenspeed::plan {
namespace {

// A hint that names no time holds for this long at most.
constexpr TimeNs kLongestHint = TimeNs{3600} * 1'000'000'000;

// Cheap, and no more than a hint.
uint64_t PrintOf(std::span<const Token> tokens) {
  uint64_t print = 0;
  for (const Token token : tokens) print = (print ^ static_cast<uint32_t>(token)) * 0x100000001B3u;
  return print;
}

}  // namespace

std::string SessionTable::KeyOf(std::string_view salt, std::string_view name) {
  std::string key = std::to_string(salt.size());
  key.append(1, ':').append(salt).append(name);
  return key;
}

Session* SessionTable::Find(std::string_view salt, std::string_view name) {
  const auto found = by_key_.find(KeyOf(salt, name));
  return found == by_key_.end() ? nullptr : &*found->second;
}

Session& SessionTable::Named(std::string_view salt, std::string_view name) {
  std::string key = KeyOf(salt, name);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return Add(std::move(key));
  Session& session = *found->second;
  session.over = false;
  return session;
}

Session* SessionTable::EndingWith(const Hash128& tip) {
  const auto found = by_tip_.find(tip);
  return found == by_tip_.end() ? nullptr : found->second;
}

Session* SessionTable::ExtendedBy(std::span<const Token> prompt, int blocks, kv::HashChain& chain) {
  const auto width = static_cast<size_t>(chain.block_size());
  auto depth = prints_.upper_bound(static_cast<int>(prompt.size() / width));
  while (depth != prints_.begin()) {
    --depth;
    if (depth->first <= blocks) break;
    const auto last = prompt.subspan(static_cast<size_t>(depth->first - 1) * width, width);
    if (!depth->second.contains(PrintOf(last))) continue;
    Session* session = EndingWith(chain.At(depth->first - 1, prompt).hash);
    if (session != nullptr) return session;
  }
  return nullptr;
}

Session* SessionTable::Of(kv::OwnerId owner) {
  if (!retention_.is_open(owner) || static_cast<size_t>(owner.slot) >= by_owner_.size()) {
    return nullptr;
  }
  const std::optional<Place>& place = by_owner_[static_cast<size_t>(owner.slot)];
  return place ? &**place : nullptr;
}

Session& SessionTable::Add(std::string key) {
  // Sessions with live requests stay; there are no more of them than requests.
  for (size_t tried = sessions_.size(); sessions_.size() >= max_sessions_ && tried > 0; --tried) {
    const Place oldest = std::prev(sessions_.end());
    if (oldest->live == 0) {
      Forget(oldest);
    } else {
      sessions_.splice(sessions_.begin(), sessions_, oldest);
    }
  }
  Session& session = sessions_.emplace_front();
  const Place place = sessions_.begin();
  session.owner = retention_.Open();
  const auto slot = static_cast<size_t>(session.owner.slot);
  if (slot >= by_owner_.size()) by_owner_.resize(slot + 1);
  by_owner_[slot] = place;
  session.key = std::move(key);
  if (!session.key.empty()) by_key_.emplace(session.key, place);
  return session;
}

void SessionTable::Forget(Place place) {
  ClearTip(*place);
  if (!place->key.empty()) by_key_.erase(place->key);
  by_owner_[static_cast<size_t>(place->owner.slot)].reset();
  retention_.Close(place->owner);
  sessions_.erase(place);
}

void SessionTable::Enter(Session& session, TimeNs now, int64_t blocks) {
  ++session.live;
  ClearTip(session);
  sessions_.splice(sessions_.begin(), sessions_,
                   *by_owner_[static_cast<size_t>(session.owner.slot)]);
  retention_.Arrived(session.owner, now, blocks);
}

void SessionTable::Leave(Session& session, TimeNs now, const kv::Visit& visit) {
  TS_CHECK(session.live > 0, "a request leaves a session that has none");
  --session.live;
  retention_.Left(session.owner, now, visit);
  if (session.live == 0 && session.over) {
    Forget(*by_owner_[static_cast<size_t>(session.owner.slot)]);
  }
}

void SessionTable::SetTip(Session& session, const Hash128& tip, int blocks,
                          std::span<const Token> last) {
  TS_CHECK(session.key.empty() && session.live == 0, "a tip of a session that needs none");
  if (!by_tip_.emplace(tip, &session).second) return;
  session.tip = tip;
  session.tip_blocks = blocks;
  session.tip_print = PrintOf(last);
  prints_[blocks].insert(session.tip_print);
}

void SessionTable::ClearTip(Session& session) {
  if (session.tip_blocks == 0) return;
  by_tip_.erase(session.tip);
  const auto depth = prints_.find(session.tip_blocks);
  depth->second.erase(depth->second.find(session.tip_print));
  if (depth->second.empty()) prints_.erase(depth);
  session.tip_blocks = 0;
}

void SessionTable::Hint(Session* session, int64_t action, TimeNs now, TimeNs ttl) {
  if (session == nullptr) return;
  const TimeNs until = now + (ttl > 0 ? std::min(ttl, kLongestHint) : kLongestHint);
  switch (static_cast<SessionAction>(action)) {
    case SessionAction::kEnd:
      session->over = true;
      if (session->live == 0) Forget(*by_owner_[static_cast<size_t>(session->owner.slot)]);
      return;
    case SessionAction::kToolCall:
    case SessionAction::kPrefetch:
      return retention_.Expect(session->owner, kv::Outlook::kToolCall);
    case SessionAction::kHuman:
      return retention_.Expect(session->owner, kv::Outlook::kHuman);
    case SessionAction::kRetain:
      return retention_.Retain(session->owner, until);
    case SessionAction::kRelease:
      return retention_.Retain(session->owner, 0);
    case SessionAction::kDemote:
      return retention_.Demote(session->owner);
  }
}

int64_t SessionTable::live() const {
  int64_t live = 0;
  for (const Session& session : sessions_) live += session.live;
  return live;
}

Status SessionTable::Verify() const {
  size_t named = 0;
  size_t tips = 0;
  for (const Session& session : sessions_) {
    named += !session.key.empty();
    tips += session.tip_blocks > 0;
    if (session.live < 0) return Error{"a session has fewer than no requests"};
    if (session.over && session.live == 0) return Error{"a session that is over is remembered"};
    if (!retention_.is_open(session.owner)) return Error{"a session owns nothing"};
    const bool present = retention_.rank(session.owner).tier == kv::Rank::kPresent;
    if (present != (session.live > 0)) {
      return Error{"a session with " + std::to_string(session.live) + " requests is ranked wrong"};
    }
  }
  if (sessions_.size() > max_sessions_) return Error{"the session table overflows"};
  if (named != by_key_.size()) return Error{"session names are not conserved"};
  size_t prints = 0;
  for (const auto& [depth, set] : prints_) prints += set.size();
  if (tips != by_tip_.size() || tips != prints) return Error{"session tips are not conserved"};
  return retention_.Verify();
}

}  // namespace tokenspeed::plan
