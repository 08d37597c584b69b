// SPDX-License-Identifier: MIT
// Submit, Abort, epochs and ends; planning.cpp holds Plan, decoding.cpp its steady state,
// results.cpp Advance.
#include "plan/scheduler.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "fsm/transitions.h"

namespace tokenspeed::plan {

using fsm::FinishReason;

namespace {

constexpr size_t kMaxSessions = size_t{1} << 17;

}  // namespace

Status Limits::Validate() const {
  const auto bad = [](const char* name, int64_t value, const char* fix) -> Status {
    return Error{std::string(name) + " is " + std::to_string(value) + "; " + fix};
  };
  if (max_slots < 1) return bad("max_slots", max_slots, "at least one request must run");
  if (max_step_tokens < max_slots) {
    return bad("max_step_tokens", max_step_tokens,
               "every running request may need one token of a step: give at least max_slots");
  }
  if (max_model_len < 2) return bad("max_model_len", max_model_len, "give at least 2 tokens");
  if (max_waiting < 1) return bad("max_waiting", max_waiting, "give at least 1");
  if (vocab_size < 1) return bad("vocab_size", vocab_size, "give the model's vocabulary size");
  if (depth < 1 || depth > 64) return bad("depth", depth, "give 1 to 64 plans in flight");
  if (max_prefill_tokens < 0) return bad("max_prefill_tokens", max_prefill_tokens, "0 is no bound");
  if (transfer_ms < 0 || transfer_ms > 86'400'000) {
    return bad("transfer_ms", transfer_ms, "give at most a day; 0 is no bound");
  }
  if (!std::isfinite(decode_stretch) || (decode_stretch != 0 && decode_stretch < 1)) {
    return Error{"decode_stretch is " + std::to_string(decode_stretch) +
                 "; give at least 1, or 0 for no bound"};
  }
  if (ageing < 1) return bad("ageing", ageing, "give at least 1 ns");
  return Ok{};
}

Scheduler::Scheduler(const Limits& limits) : limits_(limits), sessions_(retention_, kMaxSessions) {
  const Status valid = limits.Validate();
  TS_CHECK(valid.ok(), "limits that were not validated");
}

Scheduler::~Scheduler() = default;

const kv::BlockTable& Scheduler::TableOf(SlotId id) const {
  const Request* request = slots_[static_cast<size_t>(id.value)].request;
  TS_CHECK(request != nullptr, "slot " << id.value << " is empty");
  if (const auto* state = std::get_if<fsm::Prefilling>(&request->state)) return state->table;
  const auto* state = std::get_if<fsm::Decoding>(&request->state);
  TS_CHECK(state != nullptr, "slot " << id.value << " holds a request that does not run");
  return state->table;
}

Tables Scheduler::TablesOf(const Request& request) {
  if (const auto* state = std::get_if<fsm::Prefilling>(&request.state)) {
    return {state->table, state->groups};
  }
  const auto* state = std::get_if<fsm::Decoding>(&request.state);
  TS_CHECK(state != nullptr, "request " << request.arrival.value << " does not run");
  return {state->table, state->groups};
}

kv::BlockCounts Scheduler::blocks() const {
  if (!grouped()) return pool_ ? pool_->counts() : kv::BlockCounts{};
  kv::BlockCounts counts;
  counts.total = parents_->total();
  counts.free = parents_->unbound();
  counts.cached = parents_->idle();
  counts.shared = counts.total - counts.free - counts.cached;
  return counts;
}

int Scheduler::BlocksFor(int tokens) const {
  if (grouped()) return Parents(tokens, 0, limits_.max_step_tokens);
  return static_cast<int>((int64_t{tokens} + pool_->block_size() - 1) / pool_->block_size());
}

int Scheduler::BlocksNeeded(const Request& request) const {
  // The last token of a request is never an input, so its KV needs no room.
  return BlocksFor(std::min(request.known() + 1, request.limit - 1));
}

std::optional<Rejection> Scheduler::NeverFits(int32_t limit) const {
  const int needed = grouped() ? Parents(limit - 1, 0, 1) : BlocksFor(limit - 1);
  const int total = blocks().total;
  if (needed <= total) return std::nullopt;
  return Rejection{RefusalCode::kNeverFits,
                   "prompt and max_tokens need " + std::to_string(needed) + " KV blocks of " +
                       std::to_string(total) +
                       "; shorten the prompt, lower max_tokens or give the cache more memory"};
}

StatusOr<Rejection> Scheduler::Validate(const Submission& s, size_t known) const {
  const auto refuse = [](RefusalCode code, std::string message) -> StatusOr<Rejection> {
    return Rejection{code, std::move(message)};
  };
  const auto outside = [&](Token token) { return token < 0 || token >= limits_.vocab_size; };
  if (draining_) return refuse(RefusalCode::kDraining, "the server is shutting down; try another");
  if (requests_.contains(s.name)) {
    return refuse(RefusalCode::kDuplicate,
                  "request id " + std::to_string(s.name.id) + " is in use; ids must be unique");
  }
  if (s.prompt.empty()) return refuse(RefusalCode::kEmptyPrompt, "the prompt has no token");
  if (s.prompt.size() >= static_cast<size_t>(limits_.max_model_len)) {
    return refuse(RefusalCode::kTooLong, "the prompt has " + std::to_string(s.prompt.size()) +
                                             " tokens; with one generated token at most " +
                                             std::to_string(limits_.max_model_len) +
                                             " fit the model");
  }
  const auto unknown = std::span(s.prompt).subspan(known);
  for (const std::span<const Token> tokens : {unknown, std::span(s.stop_ids)}) {
    if (AllBetween(tokens, 0, static_cast<Token>(limits_.vocab_size - 1))) continue;
    const auto bad = std::ranges::find_if(tokens, outside);
    return refuse(RefusalCode::kTokenId, "token id " + std::to_string(*bad) +
                                             " is outside the vocabulary of " +
                                             std::to_string(limits_.vocab_size));
  }
  const auto parameter = [&](const char* name, auto value, const char* range) {
    return refuse(RefusalCode::kParameter,
                  std::string(name) + " is " + std::to_string(value) + "; it must be " + range);
  };
  const Sampling& sampling = s.sampling;
  if (s.max_tokens < 1) return parameter("max_tokens", s.max_tokens, "at least 1");
  if (!std::isfinite(sampling.temperature) || sampling.temperature < 0) {
    return parameter("temperature", sampling.temperature, "finite and not negative");
  }
  if (sampling.top_k < 0 || sampling.top_k > INT32_MAX) {
    return parameter("top_k", sampling.top_k, "0 (all) or positive, below 2^31");
  }
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return parameter("top_p", sampling.top_p, "over 0 and at most 1");
  }
  if (s.priority < -kMostPriority || s.priority > kMostPriority) {
    return parameter("priority", s.priority, "-100 to 100");
  }
  if (s.deadline < 0) return parameter("deadline", s.deadline, "not negative");
  if (waiting_.size() >= static_cast<size_t>(limits_.max_waiting)) {
    return refuse(RefusalCode::kQueueFull, std::to_string(waiting_.size()) +
                                               " requests are waiting, which is the limit; "
                                               "try again later");
  }
  return Ok{};
}

StatusOr<Rejection> Scheduler::Submit(Submission s) {
  const auto common = history_.Compare(s.name.client, s.session, s.salt, s.prompt, s.origin);
  StatusOr<Rejection> valid = Validate(s, common.tokens);
  const auto prompt = static_cast<int32_t>(std::min<size_t>(s.prompt.size(), INT32_MAX));
  const int64_t longest = std::clamp<int64_t>(s.max_tokens, 0, INT32_MAX) + prompt;
  const auto limit = static_cast<int32_t>(std::min<int64_t>(longest, limits_.max_model_len));
  if (valid.ok() && pool_) {
    if (std::optional<Rejection> never = NeverFits(limit)) valid = std::move(*never);
  }
  if (!valid.ok()) {
    ++counters_.rejected;
    return valid;
  }
  auto request = std::make_unique<Request>();
  request->name = s.name;
  request->arrival = last_arrival_ = Arrival{last_arrival_.value + 1};
  request->submitted = s.time;
  request->tokens = std::move(s.prompt);
  request->prompt_tokens = prompt;
  request->limit = limit;
  request->sampling = s.sampling;
  request->common = common;
  request->prompt_id = s.origin.id;
  request->stop_ids = StopIds(std::move(s.stop_ids));
  request->salt = std::move(s.salt);
  request->retain = s.retain;
  Passed(s.time);
  if (!s.session.empty()) Enter(*request, sessions_.Named(request->salt, s.session));
  request->session_name = std::move(s.session);
  request->priority = static_cast<int32_t>(s.priority);
  request->rank = RankOf(std::max<TimeNs>(s.time, 0), request->priority, limits_.ageing,
                         s.deadline > 0 ? s.deadline : kNoDeadline, request->arrival);
  waiting_.emplace(request->rank, request.get());
  requests_.emplace(s.name, std::move(request));
  return Ok{};
}

void Scheduler::Abort(const RequestName& name, int64_t kept) {
  const auto found = requests_.find(name);
  if (found == requests_.end()) return;
  Request& request = *found->second;
  const int64_t generated = request.known() - request.prompt_tokens;
  if (kept >= 0 && kept < generated) counters_.generated_tokens -= generated - kept;
  End(request, FinishReason::kAbort);
}

void Scheduler::AbortClient(ClientId client) {
  AbortIf([client](const Request& request) { return request.name.client == client; });
}

void Scheduler::AbortAll() {
  AbortIf([](const Request&) { return true; });
}

template <class Matches>
void Scheduler::AbortIf(Matches matches) {
  std::vector<Request*> chosen;
  for (const auto& [name, request] : requests_) {
    if (matches(*request)) chosen.push_back(request.get());
  }
  std::ranges::sort(chosen, {}, &Request::arrival);
  for (Request* request : chosen) End(*request, FinishReason::kAbort);
}

void Scheduler::BeginEpoch(Epoch epoch, const EpochShape& shape) {
  TS_CHECK(!pool_, "epoch " << epoch.value << " begins while " << epoch_.value << " runs");
  TS_CHECK(epoch > epoch_, "epoch " << epoch.value << " after " << epoch_.value);
  TS_CHECK(shape.Validate().ok(), "the shape of epoch " << epoch.value << " was not validated");
  epoch_ = epoch;
  last_step_ = StepId{};
  max_drafts_ = shape.max_drafts;
  if (shape.grouped()) {
    BeginGroups(shape);
  } else {
    pool_ =
        std::make_unique<kv::BlockPool>(shape.num_blocks, shape.block_size, limits_.prefix_caching,
                                        limits_.evict_by_reuse ? &retention_ : nullptr);
  }
  pool_->Watch(&cache_log_);
  if (shape.host_blocks > 0 && limits_.prefix_caching) {
    std::vector<kv::BlockPool*> pools = {pool_.get()};
    for (const auto& pool : other_pools_) pools.push_back(pool.get());
    transfers_ = std::make_unique<Transfers>(pools, shape.num_blocks, shape.host_blocks,
                                             limits_.transfer_ms * TimeNs{1'000'000});
  }
  groups_ = std::make_unique<PrefixGroups>(
      limits_.max_slots, pool_->num_blocks(),
      [this](SlotId id) -> const kv::BlockTable& { return TableOf(id); });
  slots_.assign(static_cast<size_t>(limits_.max_slots), Slot{});
  free_slots_.clear();
  for (int id = 0; id < limits_.max_slots; ++id) free_slots_.push_back(SlotId{id});
  worker_tables_ = WorkerTables(limits_.max_slots, std::max(1, static_cast<int>(specs_.size())));
  removed_slots_.clear();
  batch_ = DecodeBatch(limits_.max_slots);
  cadence_ = {};
  link_pace_ = {};
  last_done_ = 0;
  blocked_ = {};
  std::vector<Request*> impossible;
  for (const auto& [rank, request] : waiting_) {
    if (NeverFits(request->limit)) impossible.push_back(request);
  }
  for (Request* request : impossible) {
    late_rejections_.push_back({request->name, *NeverFits(request->limit)});
    ++counters_.rejected;
    waiting_.erase(request->rank);
    Depart(*request);
    requests_.erase(RequestName(request->name));
  }
}

void Scheduler::EndEpoch() {
  if (!pool_) return;
  transfers_.reset();
  std::vector<Request*> lost = running_;
  lost.insert(lost.end(), preempted_.begin(), preempted_.end());
  for (const auto& [rank, request] : waiting_) {
    if (request->admitted) lost.push_back(request);
    request->chain.reset();
    request->trail.clear();
    request->rest = 0;
  }
  std::ranges::sort(lost, {}, &Request::arrival);
  for (Request* request : lost) End(*request, FinishReason::kWorkerLost);
  history_.ForgetBlocks();
  ending_.clear();
  in_flight_.clear();
  for (size_t group = 0; group <= other_pools_.size(); ++group) {
    const kv::BlockCounts& counts = PoolOf(static_cast<int>(group)).counts();
    TS_CHECK(
        counts.open == 0 && counts.shared == 0,
        counts.open << " open and " << counts.shared << " shared blocks outlive their requests");
  }
  groups_.reset();
  other_pools_.clear();
  pool_.reset();
  parents_.reset();
  specs_.clear();
}

std::optional<TimeNs> Scheduler::oldest_planned() const {
  if (in_flight_.empty()) return std::nullopt;
  return in_flight_.front().planned;
}

void Scheduler::Requeue(Request& request) {
  const Status moved = fsm::Apply(request.state, fsm::Requeue{});
  TS_CHECK(moved.ok(), "requeue of request " << request.arrival.value);
  waiting_.emplace(request.rank, &request);
}

void Scheduler::LeaveSlot(Request& request) {
  const bool sound = request.loads.empty();
  request.loads.clear();
  SlotId id;
  if (auto* state = std::get_if<fsm::Prefilling>(&request.state)) {
    id = state->slot;
    if (grouped()) LeaveGroups(request, state->groups, state->context, sound);
    OfferStores(state->table);
    std::erase(prefilling_, &request);
  } else if (auto* decoding = std::get_if<fsm::Decoding>(&request.state)) {
    id = decoding->slot;
    LeaveBatch(request, *decoding);
    if (grouped()) LeaveGroups(request, decoding->groups, decoding->context, sound);
    OfferStores(decoding->table);
    std::erase(stalled_, id);
  } else {
    return;
  }
  LeaveTrail(request);
  request.last_slot = id;
  groups_->Leave(id);
  request.former = {.slot = id, .first = slot(id).first, .last = last_step_};
  if (slot(id).announced) removed_slots_.push_back(id.value);
  slot(id) = Slot{};
  free_slots_.push_back(id);
  running_.erase(std::ranges::lower_bound(running_, request.rank, {}, &Request::rank));
  guests_ -= request.guest;
  request.guest = false;
}

uint64_t Scheduler::LayToRest(Request& request) {
  const Session* session = request.session;
  if (grouped() || !limits_.evict_by_reuse || session == nullptr || session->over) return 0;
  kv::BlockTable* table = nullptr;
  if (auto* prefilling = std::get_if<fsm::Prefilling>(&request.state)) table = &prefilling->table;
  if (auto* decoding = std::get_if<fsm::Decoding>(&request.state)) table = &decoding->table;
  if (table == nullptr || session->key.empty()) return 0;
  return pool_->Rest(session->owner, table->TakeSealed());
}

void Scheduler::LeaveTrail(Request& request) {
  request.trail.clear();
  request.rest = 0;
  if (grouped() || !pool_->findable()) return;
  const kv::BlockTable& table = TablesOf(request).table;
  request.trail.reserve(static_cast<size_t>(table.sealed()));
  for (int i = 0; i < table.sealed(); ++i) request.trail.push_back(pool_->Mark(table.at(i)));
}

void Scheduler::End(Request& request, FinishReason reason) {
  AddEvent(request).reason = reason;
  Remove(request, reason);
}

void Scheduler::Remove(Request& request, FinishReason reason) {
  LeaveSlot(request);
  const uint64_t rest = reason == FinishReason::kWorkerLost ? 0 : LayToRest(request);
  Depart(request);
  if (std::holds_alternative<fsm::Waiting>(request.state)) waiting_.erase(request.rank);
  if (std::holds_alternative<fsm::Preempted>(request.state)) std::erase(preempted_, &request);
  const Status moved = fsm::Apply(request.state, fsm::Finish{reason});
  TS_CHECK(moved.ok(), "end of request " << request.arrival.value);
  ++counters_.finished;
  ++openings_;
  if (request.admitted) {
    std::optional<Trail> trail;
    if (request.chain) {
      trail = {std::move(*request.chain), std::move(request.trail), request.last_slot, rest};
    }
    history_.Remember(request.name.client, request.session_name, request.salt,
                      std::move(request.tokens), std::move(trail), request.prompt_id);
  }
  auto gone = requests_.extract(request.name);
  auto* ending = std::get_if<fsm::Ending>(&request.state);
  if (ending == nullptr) return;
  if (!ending->overlap.empty()) {
    ending_.push_back(std::move(gone.mapped()));
    return;
  }
  const Status settled = fsm::Apply(request.state, fsm::Settle{});
  TS_CHECK(settled.ok(), "end of request " << request.arrival.value);
}

void Scheduler::ClearEvents() {
  events_.clear();
  late_rejections_.clear();
  reports_.clear();
}

}  // namespace tokenspeed::plan
