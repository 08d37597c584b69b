// SPDX-License-Identifier: MIT
#include "plan/miss.h"

#include <algorithm>
#include <cstring>
#include <ostream>
#include <utility>

namespace tokenspeed::plan {
namespace {

constexpr size_t kEarly = 4096;  // where system prompts have their nonces and timestamps
constexpr size_t kNonce = 48;    // their longest, in tokens
constexpr size_t kShift = 8;     // by which the text behind may have moved
constexpr size_t kSame = 32;     // equal tokens that tell that it goes on the same
constexpr int kAgain = 2;

// Both are known to begin with the same `same` tokens.
size_t CommonPrefix(std::span<const Token> a, std::span<const Token> b, size_t same = 0) {
  constexpr size_t kAtOnce = 4096;
  const size_t most = std::min(a.size(), b.size());
  same = std::min(same, most);
  while (same + kAtOnce <= most &&
         std::memcmp(a.data() + same, b.data() + same, kAtOnce * sizeof(Token)) == 0) {
    same += kAtOnce;
  }
  while (same < most && a[same] == b[same]) ++same;
  return same;
}

// Whether both go on the same some tokens behind the first difference.
bool GoesOnTheSame(std::span<const Token> now, std::span<const Token> then) {
  for (size_t skip = 1; skip <= kNonce; ++skip) {
    if (skip + kSame > now.size()) return false;
    const auto here = now.subspan(skip, kSame);
    for (size_t other = skip > kShift ? skip - kShift : 0; other <= skip + kShift; ++other) {
      if (other + kSame > then.size()) break;
      if (std::ranges::equal(here, then.subspan(other, kSame))) return true;
    }
  }
  return false;
}

}  // namespace

std::string PromptHistory::NameOf(ClientId client, std::string_view session) {
  // A name that no session can have: it begins with a zero.
  if (session.empty()) return std::string(1, '\0') + std::to_string(client.value);
  return std::string(session);
}

PromptOverlap PromptHistory::Compare(ClientId client, std::string_view session,
                                     std::string_view salt, std::span<const Token> prompt,
                                     const PromptOrigin& origin) const {
  const auto found = index_.find(Key{NameOf(client, session), std::string(salt)});
  if (found == index_.end()) return {};
  const Entry& entry = *found->second;
  const bool is_known = origin.extends != 0 && entry.prompt_id == origin.extends;
  const auto shared = static_cast<size_t>(is_known ? origin.shared : 0);
  return {CommonPrefix(prompt, entry.tokens, shared), entry.version};
}

size_t PromptHistory::CommonOf(const Entry& entry, std::span<const Token> prompt,
                               const PromptOverlap& common) {
  if (entry.version == common.version) return common.tokens;
  return CommonPrefix(prompt, entry.tokens);
}

MissReport PromptHistory::Explain(ClientId client, std::string_view session, std::string_view salt,
                                  std::span<const Token> prompt, int cached, int evicted,
                                  const PromptOverlap& common) {
  MissReport report;
  int left = static_cast<int>(prompt.size()) - cached;
  const auto take = [&left](int64_t tokens) {
    const int taken = static_cast<int>(std::clamp<int64_t>(tokens, 0, left));
    left -= taken;
    return taken;
  };
  report.evicted = take(evicted);
  const Key key{NameOf(client, session), std::string(salt)};
  if (const auto found = index_.find(key); found != index_.end()) {
    Entry& entry = *found->second;
    const std::span<const Token> then(entry.tokens);
    const size_t same = CommonOf(entry, prompt, common);
    const bool differs = same < prompt.size() && same < then.size();
    const bool nonce =
        differs && same < kEarly && GoesOnTheSame(prompt.subspan(same), then.subspan(same));
    if (nonce) {
      ++entry.nonces;
    } else if (differs) {
      entry.nonces = 0;
    }
    // Without a name it may just be another conversation.
    if (differs && (nonce || !session.empty())) {
      const size_t from = std::max(same, static_cast<size_t>(cached));
      report.diverged = take(static_cast<int64_t>(std::min(prompt.size(), then.size())) -
                             static_cast<int64_t>(from));
      report.diverged_at = static_cast<int32_t>(same);
      report.volatile_prefix = nonce && entry.nonces >= kAgain;
    }
  } else if (!session.empty()) {
    for (auto other = index_.lower_bound(Key{key.name, {}});
         other != index_.end() && other->first.name == key.name; ++other) {
      const std::span<const Token> then(other->second->tokens);
      if (CommonPrefix(prompt, then) < then.size()) continue;
      report.salted = take(static_cast<int64_t>(then.size()) - cached);
      break;
    }
  }
  report.fresh = left;
  return report;
}

void PromptHistory::Remember(ClientId client, std::string_view session, std::string_view salt,
                             std::vector<Token> tokens, std::optional<Trail> trail,
                             uint64_t prompt_id) {
  Key key{NameOf(client, session), std::string(salt)};
  const auto found = index_.find(key);
  if (found == index_.end()) {
    entries_.push_front({.key = key, .tokens = {}, .trail = {}});
    index_.emplace(std::move(key), entries_.begin());
  } else {
    entries_.splice(entries_.begin(), entries_, found->second);
  }
  Entry& entry = entries_.front();
  tokens_ -= entry.tokens.size();
  entry.tokens = std::move(tokens);
  entry.version = ++versions_;
  entry.prompt_id = prompt_id;
  entry.trail = std::move(trail);
  tokens_ += entry.tokens.size();
  while (tokens_ > most_tokens_ || entries_.size() > kMostEntries) {
    tokens_ -= entries_.back().tokens.size();
    index_.erase(entries_.back().key);
    entries_.pop_back();
  }
}

std::span<const Token> PromptHistory::Of(std::string_view session, std::string_view salt) const {
  const auto found = index_.find(Key{std::string(session), std::string(salt)});
  if (found == index_.end()) return {};
  return found->second->tokens;
}

std::optional<Trail> PromptHistory::TakeTrail(ClientId client, std::string_view session,
                                              std::string_view salt, std::span<const Token> prompt,
                                              int block_size, const PromptOverlap& common) {
  const auto found = index_.find(Key{NameOf(client, session), std::string(salt)});
  if (found == index_.end()) return std::nullopt;
  Entry& entry = *found->second;
  if (!entry.trail || entry.trail->chain.block_size() != block_size) return std::nullopt;
  std::optional<Trail> trail = std::exchange(entry.trail, std::nullopt);
  const auto same = CommonOf(entry, prompt, common) / static_cast<size_t>(block_size);
  trail->chain.Truncate(static_cast<int>(same));
  if (same < trail->blocks.size()) trail->blocks.resize(same);
  return trail;
}

void PromptHistory::ForgetBlocks() {
  for (Entry& entry : entries_) {
    if (!entry.trail) continue;
    entry.trail->blocks.clear();
    entry.trail->rest = 0;
  }
}

Status PromptHistory::Verify() const {
  size_t tokens = 0;
  for (const Entry& entry : entries_) tokens += entry.tokens.size();
  if (tokens != tokens_ || tokens > most_tokens_ || index_.size() != entries_.size()) {
    return Error{"the prompt history holds " + std::to_string(tokens) + " tokens in " +
                 std::to_string(entries_.size()) + " entries, counted " + std::to_string(tokens_) +
                 " in " + std::to_string(index_.size())};
  }
  return Ok{};
}

void PromptHistory::Describe(std::ostream& out) const {
  out << "trails";
  for (const auto& [key, entry] : index_) {
    out << ' ' << key.name << '/' << key.salt << " says";
    for (const Token token : entry->tokens) out << ' ' << token;
    if (entry->trail) out << " in " << entry->trail->slot.value << (entry->trail->rest > 0);
  }
  out << '\n';
}

}  // namespace tokenspeed::plan
