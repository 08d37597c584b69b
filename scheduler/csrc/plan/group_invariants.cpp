// SPDX-License-Identifier: MIT
// Scheduler::VerifyGroups: the invariants of epochs with several block groups, the slow way.
#include <algorithm>

#include "plan/scheduler.h"

namespace tokenspeed::plan {

Status Scheduler::VerifyTables(const Request& request, int settled) const {
  const auto& [table, groups] = TablesOf(request);
  const std::string name = "request " + std::to_string(request.arrival.value);
  if (groups.spans.size() + groups.states.size() + 1 != specs_.size()) {
    return Broken(name, " has tables of ", groups.spans.size() + groups.states.size() + 1,
                  " groups, the epoch has ", specs_.size());
  }
  for (const kv::SpanTable& span : groups.spans) {
    if (span.context() != settled) {
      return Broken(name, " has context ", settled, ", its blocks of group ", span.group(),
                    " hold ", span.context());
    }
    if (span.gone() > span.FirstRead(settled)) {
      return Broken(name, " gave up block ", span.gone() - 1, " of group ", span.group(),
                    ", which a query at ", settled, " reads");
    }
    const int sealed = table.sealed() * pool_->block_size();
    if (!request.loads.empty() && span.next_seal() * span.spec().tokens > sealed) {
      return Broken(name, " sealed block ", span.next_seal() - 1, " of group ", span.group(),
                    " over loads that may fail");
    }
  }
  for (const kv::StateTable& state : groups.states) {
    if (settled > 0 && !state.has_live() && !state.resumes()) {
      return Broken(name, " has no state and ", settled, " tokens");
    }
    if (state.oldest() > settled) return Broken(name, " has a snapshot ahead of its state");
  }
  return Ok{};
}

Status Scheduler::VerifyGroups() const {
  if (Status parents = parents_->Verify(); !parents.ok()) return parents;
  std::vector<std::vector<int>> held(specs_.size());
  for (size_t group = 0; group < specs_.size(); ++group) {
    const kv::BlockPool& pool = PoolOf(static_cast<int>(group));
    if (group > 0) {
      if (Status verified = pool.Verify(); !verified.ok()) return verified;
    }
    held[group].resize(static_cast<size_t>(pool.num_blocks()));
  }
  for (const Request* request : running_) {
    const auto* prefilling = std::get_if<fsm::Prefilling>(&request->state);
    const auto* decoding = std::get_if<fsm::Decoding>(&request->state);
    const int settled = prefilling ? prefilling->context : decoding->context;
    if (Status tables = VerifyTables(*request, settled); !tables.ok()) return tables;
    const auto& [table, groups] = TablesOf(*request);
    for (const kv::SpanTable& span : groups.spans) {
      for (int i = 0; i < span.blocks().size(); ++i) {
        ++held[static_cast<size_t>(span.group())][static_cast<size_t>(span.blocks().at(i).value)];
      }
    }
    for (const kv::StateTable& state : groups.states) {
      state.ForEachHeld([&](BlockId block) {
        ++held[static_cast<size_t>(state.group())][static_cast<size_t>(block.value)];
      });
    }
  }
  if (transfers_) {
    transfers_->ForEachHeld([&](int group, BlockId block) {
      ++held[static_cast<size_t>(group)][static_cast<size_t>(block.value)];
    });
  }
  for (size_t group = 1; group < specs_.size(); ++group) {
    const kv::BlockPool& pool = PoolOf(static_cast<int>(group));
    for (int block = 0; block < pool.num_blocks(); ++block) {
      if (pool.holders(BlockId{block}) == held[group][static_cast<size_t>(block)]) continue;
      return Broken("block ", block, " of group ", group, " has ",
                    held[group][static_cast<size_t>(block)], " holders, counted ",
                    pool.holders(BlockId{block}));
    }
  }
  return Ok{};
}

}  // namespace tokenspeed::plan
