// SPDX-License-Identifier: MIT
// Scheduler, where an epoch has several block groups: from where all of them can resume a request.
// Full groups have every block up to such a boundary, windows those that its next token reads,
// states a snapshot right there.
#include <algorithm>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {

using kv::GroupKind;
using kv::GroupSpec;

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

Scheduler::Boundary Scheduler::FindBoundary(Request& request) const {
  if (!pool_->findable() || request.alone) return {};
  // The last token is always computed.
  int64_t full = request.known() - 1;
  for (int group = 0; group < static_cast<int>(specs_.size()); ++group) {
    const GroupSpec& spec = specs_[static_cast<size_t>(group)];
    if (spec.kind != GroupKind::kFull) continue;
    int64_t end = 0;
    while (end + spec.tokens <= full && LookUp(request, group, end + spec.tokens)) {
      end += spec.tokens;
    }
    full = end;
  }
  Boundary found;
  for (int64_t end = full / stride_ * stride_; end > 0; end -= stride_) {
    const bool states = ResumesStates(request, end);
    if (!states && found.promotable > 0) continue;
    if (const int64_t missing = MissingInWindows(request, end); missing >= 0) {
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

bool Scheduler::ResumesStates(Request& request, int64_t end) const {
  for (int group = 1; group < static_cast<int>(specs_.size()); ++group) {
    if (specs_[static_cast<size_t>(group)].kind != GroupKind::kState) continue;
    if (!LookUp(request, group, end)) return false;
  }
  return true;
}

int64_t Scheduler::MissingInWindows(Request& request, int64_t end) const {
  for (int group = 1; group < static_cast<int>(specs_.size()); ++group) {
    const GroupSpec& spec = specs_[static_cast<size_t>(group)];
    if (spec.kind != GroupKind::kWindow) continue;
    const int64_t first = kv::SpanTable(group, spec).FirstRead(static_cast<int>(end));
    for (int64_t block = end / spec.tokens; block-- > first;) {
      if (!LookUp(request, group, (block + 1) * spec.tokens)) return block * spec.tokens;
    }
  }
  return -1;
}

int Scheduler::IdleParents(Request& request, const Boundary& found) const {
  int idle = 0;
  for (int group = 0; group < static_cast<int>(specs_.size()); ++group) {
    const GroupSpec& spec = specs_[static_cast<size_t>(group)];
    int64_t first = 0;
    if (spec.kind == GroupKind::kWindow) first = kv::SpanTable(group, spec).FirstRead(found.end);
    if (spec.kind == GroupKind::kState) first = found.end / spec.tokens - 1;
    int last = -1;
    for (int64_t end = (first + 1) * spec.tokens; end <= found.end; end += spec.tokens) {
      const int parent = LookUp(request, group, end)->value / spec.share;
      idle += parent != last && parents_->is_idle(parent);
      last = parent;
    }
  }
  return idle;
}

// A prefix that is there.

void Scheduler::FindResumable(Request& request) {
  auto& state = *std::get_if<fsm::Prefilling>(&request.state);
  if (!pool_->findable()) return;
  const bool untouched =
      state.context == 0 && Reach(state.table, state.groups) == 0 && state.table.size() == 0;
  const Boundary found = untouched ? FindBoundary(request) : Boundary{};
  if (found.end > 0) Resume(request, state, found.end);
  if (untouched) request.promotable = found.promotable > found.end ? found.promotable : 0;
  if (request.session == nullptr) Recognise(request, state.table);
  if (found.end == 0) return;
  ClaimHits(request, state.table);
  groups_->Join(state.slot, *pool_);
  if (request.restarted()) return;
  request.cached_tokens += found.end;
  counters_.cached_tokens += found.end;
  // Known here, but a group has let go of what it needs.
  request.evicted_tokens += std::max(0, found.promotable - found.end);
}

void Scheduler::Resume(Request& request, fsm::Prefilling& state, int end) {
  const auto find = [&](int group, int64_t last) {
    kv::BlockPool& pool = PoolOf(group);
    const int64_t begin = last - pool.block_size();
    auto block = pool.Find(KeyOf(request, begin, last), Content(request, begin, last));
    TS_CHECK(block.has_value(), "group " << group << " lost a block at token " << last);
    return std::move(*block);
  };
  const int width = pool_->block_size();
  std::vector<kv::SealedBlock> blocks;
  for (int last = width; last <= end; last += width) blocks.push_back(find(0, last));
  On(state, fsm::PrefixFound{std::move(blocks), width});
  for (kv::SpanTable& table : state.groups.spans) {
    const int tokens = table.spec().tokens;
    table.Skip(table.FirstRead(end));
    for (int last = (table.gone() + 1) * tokens; last <= end; last += tokens) {
      table.Append(find(table.group(), last));
    }
  }
  for (kv::StateTable& table : state.groups.states) table.Resume(find(table.group(), end), end);
}

}  // namespace tokenspeed::plan
