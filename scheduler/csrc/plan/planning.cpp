// SPDX-License-Identifier: MIT
// Scheduler::Plan. Decoding requests take one token each. What they leave of the budget, and what
// their cadence allows, goes to the prefilling ones in order of rank, a chunk each. Then the queue
// is admitted (admission.cpp).
#include <algorithm>

#include "base/check.h"
#include "fsm/transitions.h"
#include "plan/scheduler.h"

namespace tokenspeed::plan {

const StepPlan* Scheduler::Plan(TimeNs now) {
  Passed(now);
  if (transfers_) GiveUpTransfers(now);
  if (!pool_ || in_flight_.size() >= static_cast<size_t>(limits_.depth)) return nullptr;
  plan_.Clear();
  grown_.clear();
  if (transfers_) transfers_->Begin(now);
  short_rows_.clear();
  long_rows_.clear();
  drafting_.clear();

  if (max_drafts_ > 0) {
    PlanLastTokens();
  } else {
    PlanDecodes();
  }
  const int decodes = batch_.size() + static_cast<int>(drafting_.size());
  const int spare = limits_.max_step_tokens - decodes;
  const double stretch = Stretch(decodes);
  PrefillBudget budget = BudgetBeside(decodes, spare, stretch);
  for (size_t i = 0; i < prefilling_.size();) {
    Request* request = prefilling_[i];
    PlanChunk(*request, budget);
    if (i < prefilling_.size() && prefilling_[i] == request) ++i;
  }
  Admit(now, budget);
  if (max_drafts_ > 0) PlanDrafts(budget.room);
  const bool copies = transfers_ && transfers_->ready();
  if (batch_.size() == 0 && short_rows_.empty() && long_rows_.empty() && !copies) {
    return grouped() && StartAlone() ? Plan(now) : nullptr;
  }

  InFlightStep& step = in_flight_.emplace_back();
  if (!spare_steps_.empty()) {
    step = std::move(spare_steps_.back());
    spare_steps_.pop_back();
  }
  last_step_ = StepId{last_step_.value + 1};
  step.step = last_step_;
  step.planned = now;
  step.waits = false;
  step.work = {.decode_rows = decodes};
  WriteDecodes(step);
  WriteRows(short_rows_, step);
  WriteRows(long_rows_, step);
  if (copies) transfers_->Write(plan_, last_step_);
  plan_.epoch = epoch_;
  plan_.step = last_step_;
  plan_.removed_slots.swap(removed_slots_);
  removed_slots_.clear();
  groups_->Write(plan_, [this](SlotId id) {
    using Known = PrefixGroups::Known;
    if (!slot(id).announced) return Known::kNot;
    return slot(id).stale ? Known::kBehind : Known::kWhole;
  });
  cadence_.Planned(step.work, std::max(stretch, Cadence::KeptStretch(limits_.decode_stretch)));
  pool_->Planned(last_step_);
  for (const auto& pool : other_pools_) pool->Planned(last_step_);
  return &plan_;
}

void Scheduler::PlanChunk(Request& request, PrefillBudget& budget) {
  if (budget.room <= 0) return;
  FindPrefix(request);
  auto& state = *std::get_if<fsm::Prefilling>(&request.state);
  // A state goes on in a copy of its snapshot, which has to be there.
  if (!request.loads.empty() && !state.groups.states.empty()) return;
  const int width = pool_->block_size();
  const int before = state.context;
  if (grouped()) Touch(request, state.groups, before);
  // Nothing is sampled over blocks that have not landed: the last token waits for them.
  const int end = request.known() - (request.loads.empty() ? 0 : 1);
  const std::optional<TimeNs> beyond = cadence_.TimeToEnd(end - before, before, budget);
  int length = beyond ? end - before : budget.tokens;
  if (limits_.max_prefill_tokens > 0) length = std::min(length, limits_.max_prefill_tokens);
  // A chunk that is not the last ends with a block where it can, so that others find the block.
  if (before + length < request.known()) {
    const int aligned = (before + length) / width * width;
    if (aligned > before) length = aligned - before;
  }
  if (grouped()) length = UpToSnapshot(request, state.groups, before, length);
  while (Reach(state.table, state.groups) < before + length) {
    if (Grow(request)) continue;
    length = Reach(state.table, state.groups) - before;
  }
  if (length <= 0) return;
  budget.Take(length, length == end - before ? *beyond : 0);
  const SlotId id = state.slot;
  slot(id).chunked = StepId{last_step_.value + 1};
  if (before < request.lost) {
    counters_.recomputed_tokens += std::min(before + length, request.lost) - before;
  }
  const bool last = before + length == request.known();
  if (grouped() && !slot(id).announced) KeepGroups(id, state.groups);
  AnnounceSlot(request, id, state.table, before);
  if (grouped()) {
    PrepareSnapshots(request, state.groups, before);
    PlanCopies(state.groups, id, before);
  }
  const uint8_t flags = last ? kRowHasTokens | kRowSamples : kRowHasTokens;
  AddRow(request, id, before, length, flags);
  if (last) {
    TS_CHECK(request.loads.empty(), "a token is sampled over loads under way");
    const Status moved = fsm::Apply(request.state, fsm::PromptPlanned{length, width});
    TS_CHECK(moved.ok(), "end of prefill of request " << request.arrival.value);
    std::erase(prefilling_, &request);
    auto& decoding = *std::get_if<fsm::Decoding>(&request.state);
    SealReady(request, decoding.table, decoding.context, id);
    if (grouped()) SealGroups(request, decoding.groups, decoding.context);
  } else {
    On(state, fsm::ChunkPlanned{length, width});
    SealReady(request, state.table, state.context, id);
    if (grouped()) SealGroups(request, state.groups, state.context);
  }
  ++openings_;  // the head of the queue may find what this one writes
}

void Scheduler::FindPrefix(Request& request) {
  if (grouped()) return FindResumable(request);
  auto& state = *std::get_if<fsm::Prefilling>(&request.state);
  const int width = pool_->block_size();
  if (!pool_->findable() || state.context % width != 0 || state.table.open() > 0) return;
  if (!request.loads.empty()) return;
  const bool loads = transfers_ && LoadPays(state.context);
  if (loads) transfers_->BeginRun();
  const int before = state.context / width;
  // The last token is always computed, or there would be nothing to sample from.
  const int last = (request.known() - 1) / width;
  std::vector<kv::SealedBlock> found;
  if (before == 0 && !request.trail.empty()) {
    const auto trail = std::span<const kv::BlockMark>(request.trail)
                           .first(std::min(request.trail.size(), static_cast<size_t>(last)));
    if (request.rest > 0) {
      found = pool_->Wake(request.session->owner, std::exchange(request.rest, 0),
                          static_cast<int>(trail.size()));
    }
    const auto most = static_cast<size_t>(BlocksFor(request.limit - 1));
    if (most > found.capacity()) found.reserve(most + most / 8);  // it goes on next turn
    pool_->Retake(trail.subspan(found.size()), found);
  }
  request.trail.clear();
  for (int block; (block = before + static_cast<int>(found.size())) < last;) {
    const auto content =
        std::span<const Token>(request.tokens)
            .subspan(static_cast<size_t>(block) * width, static_cast<size_t>(width));
    const kv::ChainKey key = request.chain->At(block, request.tokens);
    constexpr int kAhead = 8;  // blocks whose place in the index is on its way from memory
    if (block + kAhead < request.chain->known()) {
      pool_->Prefetch(request.chain->Known(block + kAhead));
    }
    std::optional<kv::SealedBlock> hit = pool_->Find(key, content);
    if (!hit && loads) hit = ExpectBlock(request, state.slot, key, content);
    if (!hit) break;
    found.push_back(std::move(*hit));
  }
  const int hits = static_cast<int>(found.size());
  if (hits > 0) On(state, fsm::PrefixFound{std::move(found), width});
  if (request.session == nullptr) Recognise(request, state.table);
  if (hits == 0) return;
  ClaimHits(request, state.table);
  slot(state.slot).stale = true;
  groups_->Join(state.slot, *pool_);
  if (request.restarted()) return;
  request.cached_tokens += hits * width;
  counters_.cached_tokens += hits * width;
}

kv::BlockPool::Presence Scheduler::PeekBlock(Request& request, int block) const {
  const int width = pool_->block_size();
  if (!pool_->findable() || (block + 1) * width >= request.known()) {
    return kv::BlockPool::Presence::kAbsent;
  }
  const auto content = std::span<const Token>(request.tokens)
                           .subspan(static_cast<size_t>(block) * width, static_cast<size_t>(width));
  return pool_->Peek(request.chain->At(block, request.tokens), content);
}

bool Scheduler::SealsNext(const Request& request, const kv::BlockTable& table, int context) const {
  return (table.sealed() + 1) * pool_->block_size() <= std::min(context, request.known());
}

void Scheduler::SealReady(Request& request, kv::BlockTable& table, int context, SlotId id) {
  if (!request.loads.empty()) return;  // the content hangs on theirs
  const int width = pool_->block_size();
  while (SealsNext(request, table, context)) {
    const int block = table.sealed();
    const auto content =
        std::span<const Token>(request.tokens)
            .subspan(static_cast<size_t>(block) * width, static_cast<size_t>(width));
    if (pool_->findable()) {
      const kv::ChainKey key = request.chain->At(block, request.tokens);
      const bool prompt = !request.restarted() && (block + 1) * width <= request.prompt_tokens;
      if (prompt && pool_->WasEvicted(key)) request.evicted_tokens += width;
      table.Seal(key, content);
      groups_->Wrote(id, table.at(block));
      if (request.session != nullptr) pool_->Claim(table.at(block), request.session->owner);
    } else {
      table.Seal(kv::ChainKey{}, content);
    }
  }
}

void Scheduler::AnnounceSlot(const Request& request, SlotId id, const kv::BlockTable& table,
                             int context) {
  Slot& place = slot(id);
  if (!place.announced || place.stale) {
    if (place.announced) {
      removed_slots_.push_back(id.value);
      groups_->Repeat(id);
    }
    plan_.added_slots.push_back(id.value);
    plan_.added_context.push_back(context);
    plan_.added_temperature.push_back(request.sampling.temperature);
    plan_.added_top_k.push_back(static_cast<int32_t>(request.sampling.top_k));
    plan_.added_top_p.push_back(request.sampling.top_p);
    plan_.added_seed.push_back(request.sampling.seed);
    plan_.added_logprobs.push_back(request.sampling.logprobs ? 1 : 0);
    if (!request.sampling.shaping.empty()) AnnounceShaping(request);
    place.announced = true;
    place.stale = false;
    place.announced_blocks = worker_tables_.Keep(
        plan_, id, 0, table.sealed(),
        [&table](int i, int32_t block) { return table.sealed_at(i).id().value == block; });
    AnnounceLoads(request, id);
  }
  AnnounceBlocks(id, table);
}

// Slots that are added without one have none: the columns end where the last of them stands.
void Scheduler::AnnounceShaping(const Request& request) {
  const std::string& shaping = request.sampling.shaping;
  plan_.added_shaping_bytes.resize(plan_.added_slots.size());
  plan_.added_shaping_bytes.back() = static_cast<int32_t>(shaping.size());
  plan_.added_shaping.insert(plan_.added_shaping.end(), shaping.begin(), shaping.end());
  const auto outputs = request.tokens.begin() + request.prompt_tokens;
  plan_.added_output_counts.resize(plan_.added_slots.size());
  plan_.added_output_counts.back() = static_cast<int32_t>(request.tokens.end() - outputs);
  plan_.added_outputs.insert(plan_.added_outputs.end(), outputs, request.tokens.end());
}

void Scheduler::AnnounceBlocks(SlotId id, const kv::BlockTable& table) {
  const int known = std::exchange(slot(id).announced_blocks, table.size());
  for (int i = known; i < table.size(); ++i) {
    worker_tables_.Append(plan_, id, 0, table.at(i).value);
  }
}

void Scheduler::AddRow(Request& request, SlotId id, int begin, int length, uint8_t flags) {
  // Filled in place: copying a struct that was just written in parts stalls the processor.
  Row& row = (length == 1 ? short_rows_ : long_rows_).emplace_back();
  row.request = &request;
  row.slot = id;
  row.begin = begin;
  row.length = length;
  row.flags = flags;
}

void Scheduler::WriteRows(const std::vector<Row>& rows, InFlightStep& step) {
  for (const Row& row : rows) {
    plan_.rows.push_back(row.slot.value);
    plan_.row_tokens.push_back(row.length);
    plan_.row_flags.push_back(row.flags);
    if (row.flags & kRowHasTokens) {
      step.waits |= !row.request->loads.empty();
      step.work.prefill_tokens += row.length;
      step.work.prefill_pairs += row.length * (row.begin + row.length / 2.0);
      const auto begin = row.request->tokens.begin() + row.begin;
      plan_.prompt_tokens.insert(plan_.prompt_tokens.end(), begin, begin + row.length);
    }
    if (row.flags & kRowSamples) {
      step.slots.push_back(row.slot.value);
      if (max_drafts_ > 0) step.widths.push_back(row.flags & kRowDrafts ? row.length : 1);
      step.wants_logprobs |= row.request->sampling.logprobs;
      JoinBatch(*row.request);
    }
  }
}

}  // namespace tokenspeed::plan
