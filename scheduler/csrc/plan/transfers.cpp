// SPDX-License-Identifier: MIT
#include "plan/transfers.h"

#include <algorithm>

#include "base/check.h"

namespace tokenspeed::plan {
namespace {

constexpr int kMostStores = 64;     // blocks in a step, so that the step stays short
constexpr int kStoresUnderWay = 2;  // tickets: their blocks cannot be evicted
constexpr int kLoadBlocks = 128;    // of a ticket: what one bad block costs

}  // namespace

Transfers::Tier::Tier(kv::BlockPool& device, kv::HostParents& parents)
    : pool(device),
      host(parents, device.share(), device.block_size()),
      wanted_hash(static_cast<size_t>(device.num_blocks())),
      is_wanted(static_cast<size_t>(device.num_blocks())),
      places(static_cast<size_t>(parents.total()) * static_cast<size_t>(device.share())) {
  TS_CHECK(device.findable(), "a host tier behind a pool without an index");
}

Transfers::Transfers(std::span<kv::BlockPool* const> pools, int num_parents, int host_parents,
                     TimeNs patience)
    : host_(host_parents), patience_(patience) {
  for (kv::BlockPool* pool : pools) {
    tiers_.emplace_back(*pool, host_);
    most_share_ = std::max(most_share_, pool->share());
  }
  most_ = std::clamp(num_parents * most_share_ / 16, 1, kMostStores);
}

kv::HostCounts Transfers::host() const {
  if (tiers_.size() == 1 && most_share_ == 1) return tiers_.front().host.counts();
  const int total = host_.total();
  const int unbound = host_.unbound();
  return {.total = total, .free = unbound, .written = 0, .resident = total - unbound};
}

Transfers::~Transfers() {
  for (auto& [ticket, store] : stores_) Finish(store, *tickets_.Complete(ticket, false));
  for (auto& [ticket, load] : loads_) Finish(load, *tickets_.Complete(ticket, false));
}

void Transfers::Want(int group, const kv::SealedBlock& block) {
  Tier& own = tier(group);
  const auto id = static_cast<size_t>(block.id().value);
  own.wanted_hash[id] = block.key().hash;
  if (own.is_wanted[id]) return;
  own.is_wanted[id] = true;
  wanted_.push_back({group, block.id()});
}

TicketId Transfers::Issue() {
  const TicketId ticket = tickets_.Issue();
  starting_.push_back(ticket);
  return ticket;
}

void Transfers::Begin(TimeNs now) {
  now_ = now;
  run_ = TicketId{};
  if (!wanted_.empty() && stores_due_ < kStoresUnderWay) Choose();
}

void Transfers::Choose() {
  TicketId ticket;
  StoreBatch batch;
  while (!wanted_.empty() && static_cast<int>(batch.blocks.size()) < most_) {
    const auto [group, id] = wanted_.front();
    Tier& own = tier(group);
    const auto place = static_cast<size_t>(id.value);
    const auto block = own.pool.Hold(id, own.wanted_hash[place]);
    if (block) {
      auto source = block->Retire(own.pool.retired());
      if (!source) break;  // its step is still in flight; so are those behind it
      if (auto target = own.host.Allocate(block->key(), block->tokens())) {
        if (batch.blocks.empty()) ticket = Issue();
        batch.blocks.push_back({group, std::move(*source).Lend(ticket), std::move(*target)});
      }
    }
    wanted_.pop_front();
    own.is_wanted[place] = false;
  }
  if (batch.blocks.empty()) return;
  due_ += static_cast<int>(batch.blocks.size());
  ++stores_due_;
  stores_.emplace(ticket, std::move(batch));
}

std::optional<Transfers::Expected> Transfers::Load(int group, const kv::ChainKey& key,
                                                   std::span<const Token> tokens,
                                                   const std::optional<Waiter>& waiter,
                                                   const Room& room) {
  auto source = tier(group).host.Find(key, tokens);
  if (!source) return std::nullopt;
  Place& at = place(group, source->id());
  if (at.ticket == TicketId{}) {
    auto target = room();
    if (!target) return std::nullopt;
    if (run_ == TicketId{} || static_cast<int>(loads_[run_].blocks.size()) == kLoadBlocks) {
      run_ = Issue();
    }
    LoadBatch& load = loads_[run_];
    at = {run_, static_cast<int>(load.blocks.size())};
    kv::Delivery delivery = std::move(*target).Receive(run_, key, tokens);
    load.blocks.push_back(
        {group, std::move(*source), std::move(delivery.block), std::move(delivery.transfer)});
    ++due_;
  }
  LoadBatch& load = loads_.at(at.ticket);
  if (waiter && (load.waiters.empty() || load.waiters.back() != *waiter)) {
    load.waiters.push_back(*waiter);
  }
  return Expected{load.blocks[static_cast<size_t>(at.index)].block.Share(), at.ticket};
}

void Transfers::Write(StepPlan& plan, StepId step) {
  for (const TicketId ticket : starting_) {
    if (patience_ > 0) deadlines_.push_back({now_ + patience_, ticket});
    if (const auto store = stores_.find(ticket); store != stores_.end()) {
      for (const Storing& block : store->second.blocks) {
        plan.store_tickets.push_back(ticket.value);
        plan.store_groups.push_back(block.group);
        plan.store_sources.push_back(block.source.id().value);
        plan.store_targets.push_back(block.target.id().value);
      }
    } else {
      LoadBatch& load = loads_.at(ticket);
      load.step = step;
      load.begun = now_;
      for (const Loading& block : load.blocks) {
        plan.load_tickets.push_back(ticket.value);
        plan.load_groups.push_back(block.group);
        plan.load_sources.push_back(block.source.id().value);
        plan.load_targets.push_back(block.target.id().value);
      }
    }
  }
  starting_.clear();
}

void Transfers::Finish(StoreBatch& store, const kv::Completion& completion) {
  // They are in order from the tail of their chain: its head is released last, to be evicted last.
  for (Storing& block : store.blocks) {
    std::move(block.source).Finish(completion);
    if (completion.ok() && !store.given_up) std::move(block.target).Seal();
  }
}

void Transfers::Finish(LoadBatch& load, const kv::Completion& completion) {
  for (Loading& block : load.blocks) std::move(block.target).Finish(completion);
  while (!load.blocks.empty()) load.blocks.pop_back();
}

Transfers::Ended Transfers::Fate(TicketId ticket, const auto& batch) const {
  Ended ended;
  ended.ticket = ticket;
  ended.blocks = static_cast<int>(batch.blocks.size());
  for (const auto& block : batch.blocks) ended.weight += Weight(block.group);
  return ended;
}

Transfers::Ended Transfers::GiveUp(TicketId ticket, StoreBatch& store) {
  store.given_up = true;
  --stores_due_;
  due_ -= static_cast<int>(store.blocks.size());
  return Fate(ticket, store);
}

Transfers::Ended Transfers::GiveUp(TicketId ticket, LoadBatch& load) {
  load.given_up = true;
  for (Loading& block : load.blocks) {
    place(block.group, block.source.id()) = {};
    block.source.Forget();
  }
  due_ -= static_cast<int>(load.blocks.size());
  Ended ended = Fate(ticket, load);
  ended.load = true;
  ended.waiters = std::exchange(load.waiters, {});
  return ended;
}

std::optional<Transfers::Ended> Transfers::End(TicketId ticket, bool ok) {
  if (std::ranges::find(starting_, ticket) != starting_.end()) return std::nullopt;
  const std::optional<kv::Completion> completion = tickets_.Complete(ticket, ok);
  if (!completion) return std::nullopt;
  std::optional<Ended> ended;
  if (auto found = stores_.find(ticket); found != stores_.end()) {
    auto node = stores_.extract(found);
    StoreBatch& store = node.mapped();
    Finish(store, *completion);
    if (!store.given_up) ended = GiveUp(ticket, store);
  } else {
    auto load = loads_.extract(ticket);
    TS_CHECK(!load.empty(), "ticket " << ticket.value << " is open and names no copy");
    if (!load.mapped().given_up && ok) {
      ended = Fate(ticket, load.mapped());
      ended->load = true;
      ended->step = load.mapped().step;
      ended->begun = load.mapped().begun;
      ended->waiters = std::move(load.mapped().waiters);
      due_ -= ended->blocks;
      for (const Loading& block : load.mapped().blocks) {
        place(block.group, block.source.id()) = {};
      }
    } else if (!load.mapped().given_up) {
      ended = GiveUp(ticket, load.mapped());
    }
    Finish(load.mapped(), *completion);
  }
  if (ended) ended->ok = ok;
  return ended;
}

std::vector<Transfers::Ended> Transfers::GiveUp(TimeNs now) {
  std::vector<Ended> ended;
  for (; !deadlines_.empty() && deadlines_.front().time < now; deadlines_.pop_front()) {
    const TicketId ticket = deadlines_.front().ticket;
    if (const auto store = stores_.find(ticket); store != stores_.end()) {
      ended.push_back(GiveUp(ticket, store->second));
    } else if (const auto load = loads_.find(ticket); load != loads_.end()) {
      ended.push_back(GiveUp(ticket, load->second));
    }
  }
  return ended;
}

void Transfers::ForEachHeld(const std::function<void(int, BlockId)>& visit) const {
  for (const auto& [ticket, store] : stores_) {
    for (const Storing& block : store.blocks) visit(block.group, block.source.id());
  }
  for (const auto& [ticket, load] : loads_) {
    for (const Loading& block : load.blocks) {
      visit(block.group, block.block.id());
      visit(block.group, block.target.id());
    }
  }
}

bool Transfers::Loads(TicketId ticket) const {
  const auto load = loads_.find(ticket);
  return load != loads_.end() && !load->second.given_up;
}

Status Transfers::Verify() const {
  int due = 0;
  int stores = 0;
  for (const auto& [ticket, store] : stores_) {
    if (store.blocks.empty()) return Error{"a store moves nothing"};
    if (store.given_up) continue;
    ++stores;
    due += static_cast<int>(store.blocks.size());
  }
  size_t reading = 0;
  for (const auto& [ticket, load] : loads_) {
    if (load.blocks.empty()) return Error{"a load moves nothing"};
    if (load.given_up) continue;
    due += static_cast<int>(load.blocks.size());
    for (size_t i = 0; i < load.blocks.size(); ++i, ++reading) {
      const auto source = static_cast<size_t>(load.blocks[i].source.id().value);
      const Place& at = tier(load.blocks[i].group).places[source];
      if (at.ticket != ticket || at.index != static_cast<int>(i)) {
        return Error{"a load is not where its host block says"};
      }
      if (load.blocks[i].block.id() != load.blocks[i].target.id()) {
        return Error{"a load is waited for in one block and writes another"};
      }
    }
  }
  size_t busy = 0;
  for (const Tier& each : tiers_) {
    for (const Place& at : each.places) busy += at.ticket != TicketId{};
    if (Status host = each.host.Verify(); !host.ok()) return host;
  }
  if (busy != reading) return Error{"host blocks name loads that have ended"};
  if (static_cast<size_t>(tickets_.open()) != stores_.size() + loads_.size()) {
    return Error{"tickets are not conserved"};
  }
  if (due != due_ || stores != stores_due_) {
    return Error{std::to_string(due) + " blocks are due in " + std::to_string(stores) +
                 " stores and the loads, counted " + std::to_string(due_) + " and " +
                 std::to_string(stores_due_)};
  }
  return host_.Verify();
}

void Transfers::Describe(std::ostream& out) const {
  const auto copies = [&](TicketId ticket, const char* kind, const auto& batch) {
    const bool starts = std::ranges::find(starting_, ticket) != starting_.end();
    out << kind << (starts ? " to start" : "") << (batch.given_up ? " given up" : "");
    for (const auto& each : batch.blocks) {
      out << ' ' << each.group << ':' << each.source.id().value << '>' << each.target.id().value;
    }
  };
  for (const auto& [ticket, store] : stores_) {
    copies(ticket, "store", store);
    out << '\n';
  }
  for (const auto& [ticket, load] : loads_) {
    copies(ticket, "load", load);
    for (const Waiter& waiter : load.waiters) out << " for slot " << waiter.slot.value;
    out << '\n';
  }
  out << "to store";
  for (const auto& [group, block] : wanted_) {
    const Hash128& hash = tier(group).wanted_hash[static_cast<size_t>(block.value)];
    out << ' ' << group << ':' << block.value << ' ' << hash.low();
  }
  out << '\n';
  for (const Tier& each : tiers_) each.host.Describe(out);
}

}  // namespace tokenspeed::plan
