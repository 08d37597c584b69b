// SPDX-License-Identifier: MIT
// Scheduler, where an epoch has several block groups: from where all of them can resume a request.
// Full groups have every block up to such a boundary, windows those that its next token reads,
// states a snapshot right there.
#include <algorithm>
#include <ranges>
#include <utility>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {

using kv::GroupKind;
using kv::GroupSpec;

namespace {

// A request that never runs, to look for its blocks.
Request Imagine(kv::HashChain chain, std::span<const Token> tokens) {
  Request request;
  request.tokens.assign(tokens.begin(), tokens.end());
  request.chain.emplace(std::move(chain));
  return request;
}

}  // namespace

// Chains.

kv::ChainKey Scheduler::KeyOf(Request& request, int64_t begin, int64_t end) const {
  const int width = pool_->block_size();
  const kv::ChainKey first = request.chain->At(static_cast<int>(begin / width), request.tokens);
  const kv::ChainKey last = request.chain->At(static_cast<int>(end / width) - 1, request.tokens);
  return {last.hash, first.parent};
}

std::span<const Token> Scheduler::Content(const Request& request, int64_t begin, int64_t end) {
  return std::span<const Token>(request.tokens)
      .subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

std::optional<BlockId> Scheduler::LookUp(Request& request, int group, int64_t end) const {
  const kv::BlockPool& pool = PoolOf(group);
  const int64_t begin = end - pool.block_size();
  return pool.Lookup(KeyOf(request, begin, end), Content(request, begin, end));
}

bool Scheduler::Stands(Request& request, int group, int64_t end, bool host) const {
  const kv::BlockPool& pool = PoolOf(group);
  const int64_t begin = end - pool.block_size();
  const kv::ChainKey key = KeyOf(request, begin, end);
  const auto content = Content(request, begin, end);
  return pool.Lookup(key, content) || (host && transfers_->Holds(group, key, content));
}

Boundary Scheduler::FindBoundary(Request& request, bool host) const {
  if (!pool_->findable() || request.alone) return {};
  // The last token is always computed.
  int64_t full = request.known() - 1;
  for (int group = 0; group < static_cast<int>(specs_.size()); ++group) {
    const GroupSpec& spec = specs_[static_cast<size_t>(group)];
    if (spec.kind != GroupKind::kFull) continue;
    int64_t end = 0;
    while (end + spec.tokens <= full && Stands(request, group, end + spec.tokens, host)) {
      end += spec.tokens;
    }
    full = end;
  }
  Boundary found;
  for (int64_t end = full / stride_ * stride_; end > 0; end -= stride_) {
    const bool states = ResumesStates(request, end, host);
    if (!states && found.promotable > 0) continue;
    if (const int64_t missing = MissingInWindows(request, end, host); missing >= 0) {
      end = (missing + stride_) / stride_ * stride_;  // nothing behind it can be resumed either
      continue;
    }
    found.promotable = std::max(found.promotable, static_cast<int>(end));
    if (!states) continue;
    found.end = static_cast<int>(end);
    break;
  }
  return found;
}

bool Scheduler::ResumesStates(Request& request, int64_t end, bool host) const {
  for (int group = 1; group < static_cast<int>(specs_.size()); ++group) {
    if (specs_[static_cast<size_t>(group)].kind != GroupKind::kState) continue;
    if (!Stands(request, group, end, host)) return false;
  }
  return true;
}

int64_t Scheduler::MissingInWindows(Request& request, int64_t end, bool host) const {
  for (int group = 1; group < static_cast<int>(specs_.size()); ++group) {
    const GroupSpec& spec = specs_[static_cast<size_t>(group)];
    if (spec.kind != GroupKind::kWindow) continue;
    const int64_t first = FirstNeeded(group, end);
    for (int64_t block = end / spec.tokens; block-- > first;) {
      if (!Stands(request, group, (block + 1) * spec.tokens, host)) return block * spec.tokens;
    }
  }
  return -1;
}

int64_t Scheduler::FirstNeeded(int group, int64_t end) const {
  const GroupSpec& spec = specs_[static_cast<size_t>(group)];
  if (spec.kind == GroupKind::kState) return end / spec.tokens - 1;
  return kv::SpanTable(group, spec).FirstRead(static_cast<int>(end));
}

template <class Visit>
void Scheduler::ForEachNeeded(int64_t boundary, Visit visit) const {
  for (int group = 0; group < static_cast<int>(specs_.size()); ++group) {
    const int64_t tokens = specs_[static_cast<size_t>(group)].tokens;
    int64_t end = (FirstNeeded(group, boundary) + 1) * tokens;
    for (; end <= boundary; end += tokens) visit(group, end);
  }
}

int Scheduler::IdleParents(Request& request, const Boundary& found) const {
  int idle = 0;
  int of = 0;
  int last = -1;
  ForEachNeeded(found.end, [&](int group, int64_t end) {
    if (std::exchange(of, group) != group) last = -1;
    const std::optional<BlockId> block = LookUp(request, group, end);
    if (!block) return;  // it comes from the host tier
    const int parent = block->value / PoolOf(group).share();
    idle += parent != last && parents_->is_idle(parent);
    last = parent;
  });
  return idle;
}

int Scheduler::ParentsFor(Request& request, const Boundary& found) const {
  std::vector<int> loads(specs_.size());
  ForEachNeeded(found.end, [&](int group, int64_t end) {
    loads[static_cast<size_t>(group)] += !LookUp(request, group, end);
  });
  int parents = IdleParents(request, found);
  for (size_t group = 0; group < loads.size(); ++group) {
    const int share = specs_[group].share;
    parents += (loads[group] + share - 1) / share;
  }
  return parents;
}

// The host tier's boundary, where that is worth its loads and the device has room for them.
Boundary Scheduler::ChooseBoundary(Request& request) {
  const Boundary here = FindBoundary(request, false);
  if (!transfers_) return here;
  Boundary there = FindBoundary(request, true);
  if (there.end <= here.end || !LoadsPay(request, here, there)) return here;
  if (ParentsFor(request, there) > parents_->available()) return here;
  there.loaded = there.end - here.end;
  return there;
}

bool Scheduler::LoadsPay(Request& request, const Boundary& here, const Boundary& there) {
  TimeNs loads = 0;
  ForEachNeeded(there.end, [&](int group, int64_t end) {
    if (!LookUp(request, group, end)) loads += link_pace_.BlockTime() * transfers_->Weight(group);
  });
  const TimeNs compute = cadence_.PrefillTime(there.end - here.end, here.end);
  if (loads == 0 || compute == 0 || loads <= compute) return true;
  link_pace_.Forgo();
  return false;
}

// A prefix that is there.

void Scheduler::FindResumable(Request& request) {
  auto& state = *std::get_if<fsm::Prefilling>(&request.state);
  if (!pool_->findable()) return;
  const bool untouched =
      state.context == 0 && Reach(state.table, state.groups) == 0 && state.table.size() == 0;
  const Boundary found = untouched ? ChooseBoundary(request) : Boundary{};
  if (found.end > 0) Resume(request, state, found);
  if (untouched) request.promotable = found.promotable > found.end ? found.promotable : 0;
  if (request.session == nullptr) Recognise(request, state.table);
  if (found.end == 0) return;
  ClaimHits(request, state.table);
  if (found.loaded > 0) ClaimGroups(request, state.groups);
  groups_->Join(state.slot, *pool_);
  if (request.restarted()) return;
  request.host_tokens += found.loaded;
  request.cached_tokens += found.end;
  counters_.cached_tokens += found.end;
  // Known here, but a group has let go of what it needs.
  request.evicted_tokens += std::max(0, found.promotable - found.end);
}

std::vector<NeededBlock> Scheduler::TakeBoundary(Request& request, const Boundary& found,
                                                 LoadRoom& room,
                                                 const std::optional<Transfers::Waiter>& waiter) {
  std::vector<NeededBlock> taken;
  std::vector<int> loads(specs_.size());
  ForEachNeeded(found.end, [&](int group, int64_t end) {
    kv::BlockPool& pool = PoolOf(group);
    const int64_t begin = end - pool.block_size();
    auto block = pool.Find(KeyOf(request, begin, end), Content(request, begin, end));
    TS_CHECK(block || found.loaded > 0, "group " << group << " lost a block at token " << end);
    loads[static_cast<size_t>(group)] += !block;
    taken.push_back({group, end, std::move(block)});
  });
  room.resize(specs_.size());
  if (found.loaded == 0) return taken;
  for (size_t group = 0; group < loads.size(); ++group) {
    kv::BlockPool& pool = PoolOf(static_cast<int>(group));
    std::vector<kv::OpenBlock>& own = room[group];
    while (static_cast<int>(own.size()) < loads[group]) {
      const bool given = pool.AllocateParent([&](auto block) { own.push_back(std::move(block)); });
      TS_CHECK(given, "no parent for the loads of request " << request.arrival.value);
    }
    std::ranges::reverse(own);  // the next one is the last
  }
  transfers_->BeginRun();
  for (NeededBlock& each : taken) {
    if (each.block) continue;
    const int64_t begin = each.end - PoolOf(each.group).block_size();
    std::vector<kv::OpenBlock>& own = room[static_cast<size_t>(each.group)];
    auto expected = transfers_->Load(each.group, KeyOf(request, begin, each.end),
                                     Content(request, begin, each.end), waiter, [&own] {
                                       std::optional<kv::OpenBlock> next(std::move(own.back()));
                                       own.pop_back();
                                       return next;
                                     });
    TS_CHECK(expected, "the host tier lost a block at token " << each.end);
    each.block = std::move(expected->block);
    if (waiter && std::ranges::find(request.loads, expected->ticket) == request.loads.end()) {
      request.loads.push_back(expected->ticket);
    }
  }
  return taken;
}

void Scheduler::Resume(Request& request, fsm::Prefilling& state, const Boundary& found) {
  LoadRoom room;
  auto taken = TakeBoundary(request, found, room, Transfers::Waiter{state.slot, request.arrival});
  std::vector<kv::SealedBlock> blocks;
  for (kv::SpanTable& table : state.groups.spans) table.Skip(table.FirstRead(found.end));
  for (NeededBlock& each : taken) {
    if (each.group == 0) {
      blocks.push_back(std::move(*each.block));
    } else {
      state.groups.Resume(each.group, std::move(*each.block), found.end);
    }
  }
  On(state, fsm::PrefixFound{std::move(blocks), pool_->block_size()});
  // What is left of the last parent is for the next tokens.
  for (int group = 0; group < static_cast<int>(specs_.size()); ++group) {
    std::vector<kv::OpenBlock>& own = room[static_cast<size_t>(group)];
    while (!own.empty()) {
      On(state, fsm::BlockGranted{std::move(own.back()), group});
      own.pop_back();
    }
  }
}

void Scheduler::ClaimGroups(Request& request, kv::GroupTables& groups) {
  for (const kv::SpanTable& table : groups.spans) {
    for (int i = table.blocks().sealed(); i-- > 0;) {
      ClaimFor(request, table.group(), table.blocks().at(i));
    }
  }
  for (const kv::StateTable& table : groups.states) {
    ClaimFor(request, table.group(), table.origin());
  }
}

// The host tier, from one group's blocks to all groups'.

void Scheduler::WantBoundary(Request& request, int64_t boundary, int first_group) {
  std::vector<std::pair<int, int64_t>> needed;
  ForEachNeeded(boundary, [&](int group, int64_t end) {
    if (group >= first_group) needed.emplace_back(group, end);
  });
  // Of each group from the tail, as its blocks are released.
  for (const auto& [group, end] : needed | std::views::reverse) {
    kv::BlockPool& pool = PoolOf(group);
    const int64_t begin = end - pool.block_size();
    const kv::ChainKey key = KeyOf(request, begin, end);
    if (transfers_->Has(group, key.hash)) {
      transfers_->Touch(group, key.hash);
    } else if (const auto block = pool.Find(key, Content(request, begin, end))) {
      transfers_->Want(group, *block);
    }
  }
}

void Scheduler::OfferGroups(Request& request, const kv::GroupTables& groups, int context) {
  if (!transfers_) return;
  int64_t latest = std::min(context, request.known()) / stride_ * stride_;
  // A next turn without what was generated, such as its reasoning, goes on from the prompt.
  int64_t prompt = std::min(context, request.prompt_tokens) / stride_ * stride_;
  for (const kv::StateTable& table : groups.states) {
    latest = prompt = std::min<int64_t>(latest, table.latest());
  }
  if (latest > 0) WantBoundary(request, latest, 1);
  if (prompt > 0 && prompt < latest) WantBoundary(request, prompt, 1);
}

void Scheduler::PrefetchGroups(std::span<const Token> tokens, const std::string& salt) {
  Request request = Imagine({limits_.hash_key, salt, pool_->block_size()}, tokens);
  Boundary found = FindBoundary(request, true);
  found.loaded = found.end - FindBoundary(request, false).end;
  // Half of what could be handed out: running requests need the rest.
  const int spare = parents_->available() / 2 - running() * static_cast<int>(specs_.size());
  LoadRoom room;
  if (found.loaded > 0 && ParentsFor(request, found) <= spare) {
    TakeBoundary(request, found, room, std::nullopt);
  }
}

void Scheduler::DemoteGroups(std::span<const Token> tokens, const std::string& salt) {
  Request request = Imagine({limits_.hash_key, salt, pool_->block_size()}, tokens);
  if (const Boundary found = FindBoundary(request, false); found.end > 0) {
    WantBoundary(request, found.end, 0);
  }
}

}  // namespace tokenspeed::plan
