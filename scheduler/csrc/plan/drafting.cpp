// SPDX-License-Identifier: MIT
// Decoding with drafts. A row carries the last token and the worker's own guesses at those behind
// it; its result says how many were accepted. The next steps are planned before that is known, so
// a request's context is a range: blocks cover its ceiling, what is sealed lies below its floor.
// Positions behind what was accepted stay with the request: its next row writes them again.
//
// Drafts take what nobody else needs. A row of one token is what a request gets before chunks and
// admission; it is made, and widened by the tokens and blocks that are left, when they are through.
// Until then its request can be a victim as any other.
#include <algorithm>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {

using fsm::FinishReason;

void Scheduler::PlanLastTokens() {
  // In order of rank: whoever goes to make room has not been looked at.
  for (size_t i = 0; i < running_.size(); ++i) {
    Request& request = *running_[i];
    auto* state = std::get_if<fsm::Decoding>(&request.state);
    if (state == nullptr || MostTokens(request, *state) == 0) continue;
    SealReady(request, state->table, state->context, state->slot);
    SealGroups(request, state->groups, state->context);
    Touch(request, state->groups, state->context);
    while (Covered(*state) < 1) {
      // Only drafts in flight need more than the floor: nobody goes for them.
      if (state->ceiling() > state->context ? !GrowSpare(request, *state) : !Grow(request)) break;
    }
    if (Covered(*state) > 0) drafting_.push_back(&request);
  }
}

int Scheduler::MostTokens(const Request& request, const fsm::Decoding& state) const {
  // The rows in flight may bring all that is left.
  return std::max(request.limit - request.known() - state.overlap.most(), 0);
}

int Scheduler::Covered(const fsm::Decoding& state) const {
  return Reach(state.table, state.groups) - state.ceiling();
}

void Scheduler::PlanDrafts(int budget) {
  for (Request* request : drafting_) {
    auto* state = std::get_if<fsm::Decoding>(&request->state);
    // It lost its slot since, and may be back on one already.
    if (state == nullptr || HasChunk(*request)) continue;
    int width = std::min({MostTokens(*request, *state), 1 + request->drafts.Next(max_drafts_),
                          1 + std::max(budget, 0)});
    while (Covered(*state) < width && GrowSpare(*request, *state)) continue;
    width = std::min(width, Covered(*state));
    budget -= width - 1;
    counters_.drafted_tokens += width - 1;
    const int before = state->context;
    On(*state, fsm::RowsPlanned{.rows = 1, .width = width, .block_size = pool_->block_size()});
    AnnounceSlot(*request, state->slot, state->table, before);
    if (grouped()) AnnounceGroups(state->slot, state->groups);
    AddRow(*request, state->slot, 0, width, width > 1 ? kRowSamples | kRowDrafts : kRowSamples);
  }
}

// A block for drafts, if the others' next tokens have theirs.
bool Scheduler::GrowSpare(Request& request, fsm::Decoding& state) {
  if (grouped()) {
    const int reserved = static_cast<int>(running_.size() * specs_.size());
    return parents_->available() > reserved && GrantNext(request);
  }
  if (pool_->available() <= static_cast<int>(running_.size())) return false;
  std::optional<kv::OpenBlock> block = pool_->Allocate();
  if (!block) return false;
  On(state, fsm::BlockGranted{std::move(*block)});
  return true;
}

}  // namespace tokenspeed::plan
