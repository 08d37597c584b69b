// SPDX-License-Identifier: MIT
// Scheduler, where an epoch has several block groups: what a request needs in each, windows that
// slide and snapshots of states. Nothing here runs, and no request has tables behind its first,
// where there is one group with its memory for itself.
#include <algorithm>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {

using kv::GroupKind;
using kv::GroupSpec;

namespace {

int CeilDiv(int64_t value, int64_t by) { return static_cast<int>((value + by - 1) / by); }

}  // namespace

void Scheduler::BeginGroups(const EpochShape& shape) {
  specs_ = shape.groups;
  stride_ = shape.block_size;
  for (const GroupSpec& spec : specs_) stride_ = std::lcm(stride_, int64_t{spec.tokens});
  parents_ = std::make_unique<kv::ParentPool>(shape.num_blocks);
  kv::Retention* retention = limits_.evict_by_reuse ? &retention_ : nullptr;
  for (const GroupSpec& spec : specs_) {
    auto pool = std::make_unique<kv::BlockPool>(*parents_, spec.share, spec.tokens,
                                                limits_.prefix_caching, retention);
    (pool_ ? other_pools_.emplace_back() : pool_) = std::move(pool);
  }
}

kv::GroupTables Scheduler::MakeTables() const {
  kv::GroupTables tables;
  for (int group = 1; group < static_cast<int>(specs_.size()); ++group) {
    const GroupSpec& spec = specs_[static_cast<size_t>(group)];
    if (spec.kind == GroupKind::kState) {
      tables.states.emplace_back(group, spec);
    } else {
      tables.spans.emplace_back(group, spec);
    }
  }
  return tables;
}

kv::BlockPool& Scheduler::PoolOf(int group) const {
  return group == 0 ? *pool_ : *other_pools_[static_cast<size_t>(group) - 1];
}

int Scheduler::Retiring() const {
  int retiring = pool_->counts().retiring;
  for (const auto& pool : other_pools_) retiring += pool->counts().retiring;
  return retiring;
}

int Scheduler::Parents(int64_t tokens, int64_t from, int64_t chunk) const {
  int parents = 0;
  for (const GroupSpec& spec : specs_) {
    const int64_t width = int64_t{spec.tokens} * spec.share;
    const int all = CeilDiv(CeilDiv(tokens, spec.tokens) - from / spec.tokens, spec.share);
    switch (spec.kind) {
      case GroupKind::kFull:
        parents += all;
        break;
      case GroupKind::kWindow: {
        const int64_t seen = spec.span - 1 + chunk;  // at once; so many touch at most:
        parents += std::min<int64_t>(all, seen <= 1 ? 1 : (seen - 2) / width + 2);
        break;
      }
      case GroupKind::kState:
        ++parents;
        break;
    }
  }
  return parents;
}

int Scheduler::ParentsHeld(const Request& request) const {
  const auto& [table, groups] = TablesOf(request);
  int parents = CeilDiv(table.size(), pool_->share());
  for (const kv::SpanTable& span : groups.spans) {
    parents += CeilDiv(span.blocks().size(), span.spec().share);
  }
  for (const kv::StateTable& state : groups.states) {
    parents += CeilDiv(state.open(), state.spec().share);
  }
  return parents;
}

int Scheduler::Reach(const kv::BlockTable& table, const kv::GroupTables& groups) const {
  int reach = table.size() * pool_->block_size();
  for (const kv::SpanTable& span : groups.spans) reach = std::min(reach, span.reach());
  for (const kv::StateTable& state : groups.states) {
    if (!state.has_live()) return 0;
  }
  return reach;
}

bool Scheduler::Grant(Request& request, int group) {
  return PoolOf(group).AllocateParent([&](kv::OpenBlock block) {
    const Status granted = fsm::Apply(request.state, fsm::BlockGranted{std::move(block), group});
    TS_CHECK(granted.ok(), "growth of request " << request.arrival.value);
  });
}

bool Scheduler::GrantNext(Request& request) {
  const auto& [table, groups] = TablesOf(request);
  int narrowest = 0;
  int reach = table.size() * pool_->block_size();
  for (const kv::SpanTable& span : groups.spans) {
    if (span.reach() < reach) narrowest = span.group();
    reach = std::min(reach, span.reach());
  }
  for (const kv::StateTable& state : groups.states) {
    if (!state.has_live()) narrowest = state.group();
  }
  return Grant(request, narrowest);
}

// Admission.

bool Scheduler::FitsGroups(Request& head) {
  const uint64_t openings = openings_ + parents_->releases();
  if (blocked_.head == head.arrival && blocked_.openings == openings) return false;
  if (running_.empty()) return true;
  const int tokens =
      head.preemptions < kWorn ? std::min(head.known() + 1, head.limit - 1) : head.limit - 1;
  // What the host tier has is loaded into as many blocks as it would be computed into.
  const Boundary found = FindBoundary(head, false);
  int needed = Parents(tokens, found.end, limits_.max_step_tokens);
  if (found.end > 0) needed += IdleParents(head, found);
  const int room = Room();
  if (needed <= room) return true;
  blocked_ = {.head = head.arrival, .openings = openings, .hits = 0, .short_by = needed - room};
  return false;
}

bool Scheduler::StartAlone() {
  if (!in_flight_.empty() || running_.empty()) return false;
  if (transfers_ && transfers_->open() > 0) return false;  // blocks come back with their tickets
  Request& first = *running_.front();
  TS_CHECK(!first.alone, "request " << first.arrival.value << " finds no room for itself alone");
  Displace(first);
  first.alone = true;
  return true;
}

// Windows and snapshots.

bool Scheduler::WantsSnapshot(const Request& request, const kv::StateTable& table,
                              int context) const {
  return pool_->findable() && context > table.visited() && context % pool_->block_size() == 0 &&
         (context % table.spec().span == 0 || context == request.promotable);
}

int Scheduler::UpToSnapshot(const Request& request, const kv::GroupTables& groups, int begin,
                            int length) const {
  if (!pool_->findable() || groups.states.empty()) return length;
  int end = begin + length;
  if (begin < request.promotable && request.promotable < end) return request.promotable - begin;
  for (const kv::StateTable& table : groups.states) {
    const int last = end / table.spec().span * table.spec().span;
    if (last > begin) end = last;
  }
  return end - begin;
}

int Scheduler::RowsToSnapshot(const kv::GroupTables& groups, int context) const {
  int rows = std::numeric_limits<int>::max();
  if (!pool_->findable()) return rows;
  for (const kv::StateTable& table : groups.states) {
    const int span = table.spec().span;
    const int next = (context + (table.visited() < context ? span - 1 : span)) / span * span;
    rows = std::min(rows, next - context);
  }
  return rows;
}

void Scheduler::Touch(Request& request, kv::GroupTables& groups, int context) {
  if (!request.loads.empty()) return;  // the content hangs on theirs
  for (kv::SpanTable& table : groups.spans) table.Slide(context);
  for (kv::StateTable& table : groups.states) {
    table.Settle();
    while (table.oldest() > 0 && table.oldest() <= request.known()) {
      const int end = table.oldest();
      const int begin = end - pool_->block_size();
      const kv::SealedBlock snapshot =
          table.SealOldest(KeyOf(request, begin, end), Content(request, begin, end));
      ClaimFor(request, table.group(), snapshot.id());
    }
  }
}

void Scheduler::SealGroups(Request& request, kv::GroupTables& groups, int context) {
  if (!request.loads.empty()) return;
  for (kv::SpanTable& table : groups.spans) {
    const int tokens = table.spec().tokens;
    for (;;) {
      const int begin = table.next_seal() * tokens;
      const int end = begin + tokens;
      if (end > std::min(context, request.known())) break;
      const bool findable = pool_->findable();
      table.Seal(findable ? KeyOf(request, begin, end) : kv::ChainKey{},
                 Content(request, begin, end));
      if (findable) ClaimFor(request, table.group(), table.last_sealed());
    }
  }
}

void Scheduler::ClaimFor(const Request& request, int group, BlockId block) {
  if (request.session != nullptr) PoolOf(group).Claim(block, request.session->owner);
}

// The request leaves its slot: where its states stand at a boundary, nobody needs to come there
// again.
void Scheduler::LeaveGroups(Request& request, kv::GroupTables& groups, int context, bool sound) {
  if (!sound) return;
  Touch(request, groups, context);
  const int width = pool_->block_size();
  if (!pool_->findable()) return;
  if (context > 0 && context % width == 0 && context <= request.known()) {
    for (kv::StateTable& table : groups.states) {
      if (!table.has_live() || table.resumes()) continue;
      const int begin = context - width;
      const kv::SealedBlock snapshot =
          table.SealLive(KeyOf(request, begin, context), Content(request, begin, context), context);
      ClaimFor(request, table.group(), snapshot.id());
    }
  }
  OfferGroups(request, groups, context);
}

void Scheduler::PrepareSnapshots(Request& request, kv::GroupTables& groups, int context) {
  for (kv::StateTable& table : groups.states) {
    if (!WantsSnapshot(request, table, context)) continue;
    table.Visit(context);
    // Nobody goes for a snapshot: it is taken where there is a block for it.
    if (!table.has_spare()) Grant(request, table.group());
  }
}

void Scheduler::PlanCopies(kv::GroupTables& groups, SlotId id, int context) {
  const auto copy = [this](int group, BlockId source, BlockId target) {
    plan_.copy_groups.push_back(group);
    plan_.copy_sources.push_back(source.value);
    plan_.copy_targets.push_back(target.value);
  };
  for (kv::StateTable& table : groups.states) {
    if (table.resumes()) {
      copy(table.group(), table.origin(), table.live());
      table.Resumed();
    } else if (table.due() && table.visited() == context && table.has_spare()) {
      const BlockId snapshot = table.live();
      table.Fork();
      copy(table.group(), snapshot, table.live());
    }
  }
  AnnounceGroups(id, groups);
}

// A state's table is one block, which is written in place: nothing of it is kept.
void Scheduler::KeepGroups(SlotId id, kv::GroupTables& groups) {
  for (kv::SpanTable& table : groups.spans) {
    const kv::BlockTable& blocks = table.blocks();
    const int gone = table.gone();
    // Nobody reads what is gone: any id may stand there.
    table.announced = worker_tables_.Keep(
        plan_, id, table.group(), gone + blocks.size(),
        [&](int i, int32_t block) { return i < gone || blocks.at(i - gone).value == block; });
  }
}

void Scheduler::AnnounceGroups(SlotId id, kv::GroupTables& groups) {
  for (kv::SpanTable& table : groups.spans) {
    const kv::BlockTable& blocks = table.blocks();
    for (int& next = table.announced; next < table.gone() + blocks.size(); ++next) {
      const int32_t block = next < table.gone() ? 0 : blocks.at(next - table.gone()).value;
      worker_tables_.Append(plan_, id, table.group(), block);
    }
  }
  for (kv::StateTable& table : groups.states) {
    if (table.announced == table.live()) continue;
    table.announced = table.live();
    worker_tables_.Append(plan_, id, table.group(), table.announced.value);
  }
}

// Whatever made the request's logits so may be in all that it wrote.
void Scheduler::ForgetGroups(Request& request, kv::GroupTables& groups) {
  groups.states.clear();
  if (!pool_->findable()) return;
  for (int group = 1; group < static_cast<int>(specs_.size()); ++group) {
    kv::BlockPool& pool = PoolOf(group);
    const int64_t tokens = pool.block_size();
    for (int64_t end = tokens; end <= request.known(); end += tokens) {
      const auto content = Content(request, end - tokens, end);
      const kv::ChainKey key = KeyOf(request, end - tokens, end);
      if (auto found = pool.Find(key, content)) found->Forget();
      if (transfers_) transfers_->Forget(group, key.hash);
    }
  }
}

void Scheduler::GrowDue() {
  std::ranges::sort(due_, {}, [this](SlotId id) { return slot(id).request->rank; });
  for (const SlotId id : due_) {
    if (slot(id).request == nullptr) continue;  // it went for one before it
    Request& request = *slot(id).request;
    auto& state = *std::get_if<fsm::Decoding>(&request.state);
    SealReady(request, state.table, state.context, id);
    SealGroups(request, state.groups, state.context);
    Touch(request, state.groups, state.context);
    bool room = true;
    while (room && Reach(state.table, state.groups) <= state.context) room = Grow(request);
    if (!room) {
      LeaveBatch(request, state);
      stalled_.push_back(id);
      continue;
    }
    PrepareSnapshots(request, state.groups, state.context);
    grown_.push_back(id);
    if (batch_.Has(id)) {
      batch_.Renew(id, last_step_, BatchRows(request, state));
    } else {
      JoinBatch(request);
    }
  }
}

}  // namespace tokenspeed::plan
