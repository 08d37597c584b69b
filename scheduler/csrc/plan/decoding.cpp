// SPDX-License-Identifier: MIT
// The steady state of Scheduler::Plan. A decoding request is a row of the batch; it is looked at
// only when it is due: its blocks are full, or its last token is planned.
#include <algorithm>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {
namespace {

// All hashes first, two at a time: the index's memory comes in while the next ones are computed.
void HashSealing(std::span<Request* const> requests, kv::BlockPool& pool) {
  const auto table = [](const Request& request) -> const kv::BlockTable& {
    return std::get_if<fsm::Decoding>(&request.state)->table;
  };
  for (size_t i = 0; i < requests.size(); i += 2) {
    const auto pair = requests.subspan(i, std::min<size_t>(2, requests.size() - i));
    const auto lacks_one = [&](Request* each) {
      return each->chain->known() == table(*each).sealed();
    };
    if (pair.size() == 2 && std::ranges::all_of(pair, lacks_one)) {
      kv::HashChain::ExtendBoth(*pair[0]->chain, pair[0]->tokens, *pair[1]->chain, pair[1]->tokens);
    }
    for (Request* request : pair) {
      const kv::BlockTable& blocks = table(*request);
      const int next = blocks.sealed();
      pool.PrefetchSealing(request->chain->At(next, request->tokens).hash, blocks.at(next),
                           blocks.at(std::max(next - 1, 0)));
    }
  }
}

}  // namespace

void Scheduler::Settle(Request& request, fsm::Decoding& state) {
  if (max_drafts_ > 0) return;  // its state hears of every row
  if (batch_.Has(state.slot)) {
    On(state, fsm::RowsPlanned{.rows = batch_.Lag(state.slot, last_step_),
                               .width = 1,
                               .block_size = pool_->block_size()});
    batch_.Settled(state.slot, last_step_);
  }
  // One token more is sampled than is input; those that are not known are in flight.
  const int known = state.overlap.rows() - (state.context + 1 - request.known());
  On(state, fsm::RowsRetired{
                .rows = known, .width = 1, .tokens = known, .block_size = pool_->block_size()});
}

int Scheduler::BatchRows(const Request& request, const fsm::Decoding& state) const {
  // The last token of a request is never an input.
  const int rows = std::min(Reach(state.table, state.groups), request.limit - 1) - state.context;
  return grouped() ? std::min(rows, RowsToSnapshot(state.groups, state.context)) : rows;
}

void Scheduler::JoinBatch(Request& request) {
  const auto& state = *std::get_if<fsm::Decoding>(&request.state);
  if (max_drafts_ > 0 || state.context >= request.limit - 1) return;
  batch_.Join(state.slot, last_step_, BatchRows(request, state));
  batch_logprobs_ += request.sampling.logprobs;
}

void Scheduler::LeaveBatch(Request& request, fsm::Decoding& state) {
  Settle(request, state);
  SealReady(request, state.table, state.context, state.slot);
  if (grouped()) SealGroups(request, state.groups, state.context);
  if (!batch_.Has(state.slot)) return;
  batch_.Leave(state.slot);
  batch_logprobs_ -= request.sampling.logprobs;
}

void Scheduler::PlanDecodes() {
  due_.clear();
  due_.swap(stalled_);
  batch_.AppendDue(StepId{last_step_.value + 1}, due_);
  if (due_.empty()) return;
  for (const SlotId id : due_) slot(id).request->PrefetchDue();
  for (const SlotId id : due_) {
    slot(id).request->PrefetchEnds();
    worker_tables_.PrefetchEnd(id, 0);
  }
  std::erase_if(due_, [this](SlotId id) {
    Request& request = *slot(id).request;
    auto& state = *std::get_if<fsm::Decoding>(&request.state);
    Settle(request, state);
    const bool over = state.context >= request.limit - 1;
    if (over) {
      LeaveBatch(request, state);
    } else if (SealsNext(request, state.table, state.context) && pool_->findable()) {
      sealing_.push_back(&request);
    }
    return over;
  });
  HashSealing(sealing_, *pool_);
  sealing_.clear();
  if (grouped()) return GrowDue();
  MakeRoomForDue();
  for (const SlotId id : due_) {
    Request& request = *slot(id).request;
    auto& state = *std::get_if<fsm::Decoding>(&request.state);
    SealReady(request, state.table, state.context, id);
    std::optional<kv::OpenBlock> block = pool_->Allocate();
    TS_CHECK(block.has_value(), "no block for slot " << id.value << ", there was room for it");
    On(state, fsm::BlockGranted{std::move(*block)});
    grown_.push_back(id);
    if (batch_.Has(id)) {
      batch_.Renew(id, last_step_, BatchRows(request, state));
    } else {
      JoinBatch(request);
    }
  }
}

// Leaves as many slots due as the pool has blocks for: if a step or a transfer in flight gives back
// blocks the last in rank wait for it, else a victim goes. Where nobody can go, transfers that were
// given up hold the blocks until the workers report them.
void Scheduler::MakeRoomForDue() {
  const auto short_of = [this] { return static_cast<int>(due_.size()) > pool_->available(); };
  if (!short_of()) return;
  std::ranges::sort(due_, {}, [this](SlotId id) { return slot(id).request->rank; });
  while (short_of()) {
    const bool comes_back = pool_->counts().retiring > 0 || (transfers_ && transfers_->due() > 0);
    Request* victim = comes_back ? nullptr : VictimFor(*running_.front());
    if (victim != nullptr) {
      Displace(*victim);
      std::erase_if(due_, [this](SlotId id) { return slot(id).request == nullptr; });
      continue;
    }
    TS_CHECK(comes_back || transfers_, due_.size() << " blocks are due, " << pool_->available()
                                                   << " are there and nobody can go");
    const SlotId latest = due_.back();
    due_.pop_back();
    Request& request = *slot(latest).request;
    LeaveBatch(request, *std::get_if<fsm::Decoding>(&request.state));
    stalled_.push_back(latest);
  }
}

void Scheduler::WriteDecodes(InFlightStep& step) {
  for (const SlotId id : grown_) {
    // Whoever lost its slot since has no row.
    if (!batch_.Has(id)) continue;
    auto& state = *std::get_if<fsm::Decoding>(&slot(id).request->state);
    AnnounceBlocks(id, state.table);
    if (grouped()) PlanCopies(state.groups, id, state.context);
  }
  const std::span<const int32_t> slots = batch_.slots();
  const int repeated = batch_.TakeRepeated();
  const std::span<const int32_t> others = slots.subspan(static_cast<size_t>(repeated));
  plan_.repeated_rows = repeated;
  plan_.rows.assign(others.begin(), others.end());
  plan_.row_tokens.assign(others.size(), 1);
  plan_.row_flags.assign(others.size(), kRowSamples);
  step.slots.assign(slots.begin(), slots.end());
  step.wants_logprobs = batch_logprobs_ > 0;
}

}  // namespace tokenspeed::plan
