// SPDX-License-Identifier: MIT
// Scheduler: which conversation a request belongs to, and what it leaves behind.
#include <algorithm>

#include "plan/scheduler.h"

namespace tokenspeed::plan {

void Scheduler::Hint(std::string_view salt, std::string_view session, int64_t action, TimeNs now,
                     TimeNs ttl) {
  Passed(now);
  Session* known = sessions_.Find(salt, session);
  if (known == nullptr) return;
  if (transfers_ && !session.empty()) {
    const std::span<const Token> tokens = history_.Of(session, salt);
    const auto kind = static_cast<SessionAction>(action);
    if (kind == SessionAction::kDemote) Demote(tokens, std::string(salt));
    if (kind == SessionAction::kPrefetch) Prefetch(tokens, std::string(salt));
  }
  sessions_.Hint(known, action, now_, ttl);
}

void Scheduler::Passed(TimeNs now) {
  now_ = std::max(now_, now);
  retention_.Tick(now_);
}

void Scheduler::Enter(Request& request, Session& session) {
  const int width = pool_ ? pool_->block_size() : 1;
  request.session = &session;
  sessions_.Enter(session, now_, request.prompt_tokens / width);
}

// A request without a name takes up the unnamed conversation whose last prompt it extends.
void Scheduler::Recognise(Request& request, const kv::BlockTable& table) {
  const int hits = table.sealed();
  if (hits > 0) {
    Session* session = sessions_.Of(pool_->owner(table.at(hits - 1)));
    if (session != nullptr && session->tip_blocks > 0 && session->tip_blocks <= hits) {
      return Enter(request, *session);
    }
  }
  const auto prompt =
      std::span<const Token>(request.tokens).first(static_cast<size_t>(request.prompt_tokens));
  Session* session = sessions_.ExtendedBy(prompt, hits, *request.chain);
  Enter(request, session != nullptr ? *session : sessions_.Unnamed());
}

// The blocks that it found are kept for it from now on. Those behind one that is its own already
// were claimed before.
void Scheduler::ClaimHits(Request& request, const kv::BlockTable& table) {
  if (!limits_.evict_by_reuse) return;
  const kv::OwnerId owner = request.session->owner;
  int foreign = 0;
  for (int block = table.sealed() - 1; block >= 0; --block) {
    const BlockId id = table.at(block);
    if (pool_->owner(id) == owner) break;
    pool_->Claim(id, owner);
    ++foreign;
  }
  if (foreign > 0) request.session->borrowed = foreign;
}

void Scheduler::Depart(Request& request) {
  Session* session = std::exchange(request.session, nullptr);
  if (session == nullptr) return;
  kv::Visit visit{.generated = request.known() - request.prompt_tokens};
  const int width = pool_ ? pool_->block_size() : 1;
  const int blocks = request.known() / width;
  visit.blocks = std::max(0, blocks - session->borrowed);
  const int whole = request.prompt_tokens / width;
  const bool chained = request.admitted && request.chain && whole > 0 && pool_->findable();
  if (chained) {
    // Not the chain's hash: what is learnt does not depend on the key.
    const auto first = std::span<const Token>(request.tokens).first(static_cast<size_t>(width));
    visit.prefix = static_cast<uint8_t>(SipHash128({}, std::as_bytes(first)).low());
  }
  if (request.retain > 0) {
    retention_.Retain(session->owner, now_ + request.retain);
  }
  const bool last = session->live == 1;
  const bool tip = chained && last && session->key.empty() && !session->over;
  const Hash128 end = tip ? request.chain->At(whole - 1, request.tokens).hash : Hash128{};
  sessions_.Leave(*session, now_, visit);
  if (tip) {
    const auto width_of = static_cast<size_t>(width);
    const auto last = std::span<const Token>(request.tokens)
                          .subspan(static_cast<size_t>(whole - 1) * width_of, width_of);
    sessions_.SetTip(*session, end, whole, last);
  }
}

}  // namespace tokenspeed::plan
