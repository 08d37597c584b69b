// SPDX-License-Identifier: MIT
// The scheduler's side of the host tier: what requests wait for, and what becomes of them.
//
// A request whose prefix goes on in the host tier is admitted with blocks that loads write. Its
// chunks run behind them at once (the workers load layer by layer), but until all its tickets are
// done no token is sampled and no block is sealed: whatever was computed over bytes that never came
// is seen by nobody. A load that fails or is late withdraws the request, which starts over without
// the blocks that failed. Blocks are stored when a request leaves its slot.
#include <algorithm>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {

// The next block of the prefix comes from the host tier, if that has it.
std::optional<kv::SealedBlock> Scheduler::ExpectBlock(Request& request, SlotId id,
                                                      const kv::ChainKey& key,
                                                      std::span<const Token> content) {
  auto expected = transfers_->Load(0, key, content, Transfers::Waiter{id, request.arrival},
                                   [this] { return pool_->Allocate(); });
  if (!expected) return std::nullopt;
  if (std::ranges::find(request.loads, expected->ticket) == request.loads.end()) {
    request.loads.push_back(expected->ticket);
  }
  if (!request.restarted()) request.host_tokens += pool_->block_size();
  return std::move(expected->block);
}

// What is computed costs the same whether the blocks before it were loaded or not, so each block
// may go the way that is shorter for it; the longer the context, the more often that is the load.
bool Scheduler::LoadPays(int context) {
  const TimeNs load = link_pace_.BlockTime();
  const TimeNs compute = cadence_.PrefillTime(pool_->block_size(), context);
  if (load == 0 || compute == 0 || load <= compute) return true;
  link_pace_.Forgo();
  return false;
}

void Scheduler::AnnounceLoads(const Request& request, SlotId id) {
  for (const TicketId ticket : request.loads) {
    plan_.wait_slots.push_back(id.value);
    plan_.wait_tickets.push_back(ticket.value);
  }
}

// A request leaves its slot with this table: what it sealed and the host tier lacks is stored, tail
// first, as its blocks are released.
void Scheduler::OfferStores(const kv::BlockTable& table) {
  if (!transfers_) return;
  for (int i = table.sealed() - 1; i >= 0; --i) {
    const kv::SealedBlock& block = table.sealed_at(i);
    // What stands before a stored block was stored, too, when its own request left.
    if (transfers_->Has(0, block.key().hash)) return transfers_->Touch(0, block.key().hash);
    transfers_->Want(0, block);
  }
}

void Scheduler::ForgetStored(const kv::BlockTable& table) {
  if (!transfers_) return;
  for (int i = 0; i < table.sealed(); ++i) transfers_->Forget(0, table.sealed_at(i).key().hash);
}

bool Scheduler::Transferred(TicketId ticket, bool ok, TimeNs now) {
  if (!transfers_) return false;
  const std::optional<Transfers::Ended> ended = transfers_->End(ticket, ok);
  if (!ended) return false;
  if (ended->load && ok && now > 0) {
    // It began with its step, that is when the one before was done, unless nobody waits for it.
    const bool waited = !in_flight_.empty() && in_flight_.front().step <= ended->step;
    link_pace_.Observe(ended->weight, waited ? std::max(ended->begun, last_done_) : ended->begun,
                       now);
  }
  TransferEnded(*ended);
  return true;
}

void Scheduler::GiveUpTransfers(TimeNs now) {
  for (const Transfers::Ended& ended : transfers_->GiveUp(now)) TransferEnded(ended);
}

void Scheduler::TransferEnded(const Transfers::Ended& ended) {
  ++openings_;
  if (!ended.ok) {
    ++counters_.failed_transfers;
  } else {
    (ended.load ? counters_.loaded_blocks : counters_.stored_blocks) += ended.blocks;
  }
  for (const Transfers::Waiter& waiter : ended.waiters) {
    Request* waiting = slot(waiter.slot).request;
    if (waiting == nullptr || waiting->arrival != waiter.arrival) continue;  // it left meanwhile
    Request& request = *waiting;
    if (!ended.ok) {
      LoadFailed(request);
    } else if (std::erase(request.loads, ended.ticket) > 0 && request.loads.empty()) {
      auto& state = *std::get_if<fsm::Prefilling>(&request.state);
      SealReady(request, state.table, state.context, state.slot);
      SealGroups(request, state.groups, state.context);
    }
  }
}

void Scheduler::LoadFailed(Request& request) {
  if (!request.restarted()) {  // it will look for its prefix anew
    counters_.cached_tokens -= request.cached_tokens;
    request.cached_tokens = 0;
    request.host_tokens = 0;
  }
  Withdraw(request);
}

void Scheduler::Prefetch(std::span<const Token> tokens, const std::string& salt) {
  if (!transfers_) return;
  if (grouped()) return PrefetchGroups(tokens, salt);
  const int width = pool_->block_size();
  kv::HashChain chain(limits_.hash_key, salt, width);
  transfers_->BeginRun();
  // Half of what could be handed out: running requests need the rest.
  int spare = pool_->available() / 2 - running();
  for (int i = 0; spare > 0 && (i + 1) * width <= static_cast<int>(tokens.size()); ++i) {
    const auto content = tokens.subspan(static_cast<size_t>(i) * width, static_cast<size_t>(width));
    const kv::ChainKey key = chain.At(i, tokens);
    if (pool_->Peek(key, content) != kv::BlockPool::Presence::kAbsent) continue;
    const auto room = [this] { return pool_->Allocate(); };
    if (!transfers_->Load(0, key, content, std::nullopt, room)) return;
    --spare;
  }
}

void Scheduler::Demote(std::span<const Token> tokens, const std::string& salt) {
  if (!transfers_) return;
  if (grouped()) return DemoteGroups(tokens, salt);
  const int width = pool_->block_size();
  kv::HashChain chain(limits_.hash_key, salt, width);
  for (int i = static_cast<int>(tokens.size()) / width - 1; i >= 0; --i) {
    const auto content = tokens.subspan(static_cast<size_t>(i) * width, static_cast<size_t>(width));
    const kv::ChainKey key = chain.At(i, tokens);
    if (transfers_->Has(0, key.hash)) continue;
    if (const auto block = pool_->Find(key, content)) transfers_->Want(0, *block);
  }
}

}  // namespace tokenspeed::plan
