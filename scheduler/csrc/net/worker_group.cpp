// SPDX-License-Identifier: MIT
#include "net/worker_group.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace tokenspeed::net {

namespace {

Result<std::vector<kv::GroupSpec>> GroupsOf(const wire::Hello& hello) {
  const size_t count = hello.group_kinds.size();
  if (hello.group_tokens.size() != count || hello.group_spans.size() != count ||
      hello.group_shares.size() != count) {
    return Error{"the group columns have " + std::to_string(count) + " kinds, " +
                 std::to_string(hello.group_tokens.size()) + " tokens, " +
                 std::to_string(hello.group_spans.size()) + " spans and " +
                 std::to_string(hello.group_shares.size()) + " shares; give one of each a group"};
  }
  std::vector<kv::GroupSpec> groups;
  for (size_t i = 0; i < count; ++i) {
    groups.push_back({static_cast<kv::GroupKind>(hello.group_kinds[i]), hello.group_tokens[i],
                      hello.group_spans[i], hello.group_shares[i]});
  }
  return groups;
}

}  // namespace

template <class Message>
void WorkerGroup::Send(const Identity& to, const Message& message) {
  wire::Encode(message, buffer_);
  router_.Send(to, buffer_);
}

std::optional<int> WorkerGroup::RankOf(const Identity& identity) const {
  for (size_t rank = 0; rank < workers_.size(); ++rank) {
    if (workers_[rank] && workers_[rank]->identity == identity) return static_cast<int>(rank);
  }
  return std::nullopt;
}

wire::Welcome WorkerGroup::MakeWelcome() const {
  const plan::Limits& limits = scheduler_.limits();
  return {.epoch = epoch_.value,
          .ready = scheduler_.in_epoch(),
          .max_model_len = limits.max_model_len,
          .vocab_size = limits.vocab_size,
          .block_size = block_size_,
          .num_blocks = num_blocks_,
          .kept_prompts = FrontendDesk::kKeptPrompts};
}

void WorkerGroup::Handle(const Router::Incoming& message) {
  auto decoded = message.whole ? wire::DecodeFromWorker(wire::AsBytes(message.frame))
                               : Result<wire::FromWorker>(Error{"a message of several frames"});
  const std::optional<int> rank = RankOf(message.from);
  if (!decoded.ok()) {
    session_.Drop("worker: " + decoded.error().message);
    if (rank) {
      Send(message.from, wire::Refused{static_cast<int64_t>(plan::RefusalCode::kMalformed),
                                       decoded.error().message});
    }
    return;
  }
  wire::FromWorker& any = decoded.value();
  if (const auto* hello = std::get_if<wire::Hello>(&any)) return Greet(message.from, *hello);
  if (!rank) return Send(message.from, wire::HelloRequired{});
  if (auto* result = std::get_if<wire::StepResult>(&any)) {
    TakeResult(*rank, std::move(*result));
  } else if (const auto* ack = std::get_if<wire::StepAck>(&any)) {
    TakeAck(*rank, *ack);
  } else if (const auto* transfers = std::get_if<wire::Transfers>(&any)) {
    TakeTransfers(*rank, *transfers);
  } else if (const auto* failed = std::get_if<wire::WorkerFailed>(&any)) {
    EndEpoch("rank " + std::to_string(*rank) + " failed in step " + std::to_string(failed->step) +
             ": " + failed->message);
  }
}

std::optional<plan::Rejection> WorkerGroup::Misfit(const wire::Hello& hello) const {
  using plan::RefusalCode;
  const auto ranks = static_cast<int64_t>(workers_.size());
  if (hello.num_ranks != ranks || hello.rank < 0 || hello.rank >= ranks) {
    return plan::Rejection{RefusalCode::kRank, "rank " + std::to_string(hello.rank) + " of " +
                                                   std::to_string(hello.num_ranks) +
                                                   " in a run of " + std::to_string(ranks)};
  }
  if (workers_[static_cast<size_t>(hello.rank)]) {
    return plan::Rejection{RefusalCode::kRank,
                           "rank " + std::to_string(hello.rank) + " is connected already"};
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4;
  if (hello.num_blocks < 2 || hello.num_blocks > kMost || hello.block_size < 1 ||
      hello.block_size > 65536 || hello.num_blocks * hello.block_size > kMost) {
    return plan::Rejection{RefusalCode::kShape,
                           std::to_string(hello.num_blocks) + " KV blocks of " +
                               std::to_string(hello.block_size) + " tokens are out of range"};
  }
  if (hello.host_blocks < 0 || hello.host_blocks > kMost ||
      hello.host_blocks * hello.block_size > kMost) {
    return plan::Rejection{RefusalCode::kShape,
                           std::to_string(hello.host_blocks) + " host blocks of " +
                               std::to_string(hello.block_size) + " tokens are out of range"};
  }
  if (hello.max_drafts < 0) {
    return plan::Rejection{RefusalCode::kShape, "max_drafts is " +
                                                    std::to_string(hello.max_drafts) +
                                                    "; 0 is a worker that drafts nothing"};
  }
  Result<std::vector<kv::GroupSpec>> groups = GroupsOf(hello);
  if (!groups.ok()) return plan::Rejection{RefusalCode::kShape, groups.error().message};
  const auto drafts = std::min<int64_t>(hello.max_drafts, plan::EpochShape::kMostDrafts);
  const Status valid = plan::EpochShape{.num_blocks = static_cast<int32_t>(hello.num_blocks),
                                        .block_size = static_cast<int32_t>(hello.block_size),
                                        .host_blocks = static_cast<int32_t>(hello.host_blocks),
                                        .max_drafts = static_cast<int32_t>(drafts),
                                        .groups = groups.value()}
                           .Validate();
  if (!valid.ok()) return plan::Rejection{RefusalCode::kShape, valid.error().message};
  for (const auto& other : workers_) {
    if (!other) continue;
    if (other->groups != groups.value()) {
      return plan::Rejection{RefusalCode::kShape,
                             "rank " + std::to_string(hello.rank) +
                                 " has other block groups than the others; "
                                 "start all ranks from one release and config"};
    }
    if (other->block_size != hello.block_size) {
      return plan::Rejection{RefusalCode::kShape,
                             "rank " + std::to_string(hello.rank) + " has blocks of " +
                                 std::to_string(hello.block_size) + " tokens, others have " +
                                 std::to_string(other->block_size)};
    }
    if (other->program_hash != hello.program_hash.bytes) {
      return plan::Rejection{RefusalCode::kShape,
                             "rank " + std::to_string(hello.rank) +
                                 " runs another program than the others; "
                                 "start all ranks from one release and config"};
    }
  }
  return std::nullopt;
}

void WorkerGroup::Greet(const Identity& from, const wire::Hello& hello) {
  std::optional<plan::Rejection> refusal = session_.Refuse(hello, 1);
  if (!refusal && RankOf(from)) EndEpoch(hello.name + " said Hello again");
  if (!refusal && hello.rank >= 0 && hello.rank < static_cast<int64_t>(workers_.size())) {
    // The rank's former process may be dead without our knowing.
    const auto& former = workers_[static_cast<size_t>(hello.rank)];
    if (former) {
      Send(former->identity, wire::Heartbeat{Now()});
      DropLost();
    }
  }
  if (!refusal) refusal = Misfit(hello);
  if (refusal) {
    Log("refused worker " + hello.name + ": " + refusal->message);
    Send(from, wire::Refused{static_cast<int64_t>(refusal->code), refusal->message});
    return;
  }
  workers_[static_cast<size_t>(hello.rank)] = Worker{from,
                                                     hello.name,
                                                     hello.num_blocks,
                                                     hello.block_size,
                                                     hello.program_hash.bytes,
                                                     hello.host_blocks,
                                                     hello.max_drafts,
                                                     GroupsOf(hello).value()};
  Log("worker " + hello.name + " joined as rank " + std::to_string(hello.rank));
  if (std::ranges::all_of(workers_, [](const auto& worker) { return worker.has_value(); })) {
    BeginEpoch();
  } else {
    Send(from, MakeWelcome());
  }
}

void WorkerGroup::BeginEpoch() {
  int64_t blocks = workers_.front()->num_blocks;
  int64_t host_blocks = workers_.front()->host_blocks;
  int64_t drafts = plan::EpochShape::kMostDrafts;
  for (const auto& worker : workers_) {
    blocks = std::min(blocks, worker->num_blocks);
    host_blocks = std::min(host_blocks, worker->host_blocks);
    drafts = std::min(drafts, worker->max_drafts);
  }
  num_blocks_ = static_cast<int>(blocks);
  block_size_ = static_cast<int>(workers_.front()->block_size);
  epoch_ = Epoch{epoch_.value + 1};
  retired_ = StepId{};
  digest_ = wire::FirstDigest(epoch_);
  quorum_.Reset(epoch_);
  tickets_.Reset(epoch_);
  const plan::EpochShape shape{.num_blocks = num_blocks_,
                               .block_size = block_size_,
                               .host_blocks = static_cast<int32_t>(host_blocks),
                               .max_drafts = static_cast<int32_t>(drafts),
                               .groups = workers_.front()->groups};
  scheduler_.BeginEpoch(epoch_, shape);
  Log("epoch " + std::to_string(epoch_.value) + " begins with " + std::to_string(workers_.size()) +
      " ranks and " + std::to_string(num_blocks_ - 1) + " KV blocks of " +
      std::to_string(block_size_) + " tokens, " + std::to_string(host_blocks) + " host blocks");
  for (const auto& worker : workers_) Send(worker->identity, MakeWelcome());
}

void WorkerGroup::EndEpoch(const std::string& why) {
  if (scheduler_.in_epoch()) {
    Log("epoch " + std::to_string(epoch_.value) + " ends: " + why);
  } else {
    Log("workers dismissed: " + why);
  }
  scheduler_.EndEpoch();
  quorum_.Reset(Epoch{});
  tickets_.Reset(Epoch{});
  SendShutdown(why);
  for (auto& worker : workers_) {
    if (worker) router_.Forget(worker->identity);
    worker.reset();
  }
}

void WorkerGroup::DropLost() {
  // Ending the epoch talks to the others, which may be found lost in turn: they are forgotten.
  for (const Identity& identity : router_.TakeLost()) {
    const std::optional<int> rank = RankOf(identity);
    router_.Forget(identity);
    if (!rank) continue;
    const std::string who = "rank " + std::to_string(*rank) + " (" +
                            workers_[static_cast<size_t>(*rank)]->name + ") is gone";
    workers_[static_cast<size_t>(*rank)].reset();
    if (scheduler_.in_epoch()) {
      EndEpoch(who);
    } else {
      Log(who);
    }
  }
}

void WorkerGroup::TakeResult(int rank, wire::StepResult result) {
  plan::Details details{std::move(result.detail_slots), std::move(result.detail_bytes),
                        std::move(result.details), result.began_ns, result.ended_ns};
  if (rank != 0 || result.digest.bytes.size() != 16 || !details.WellFormed()) {
    return session_.Drop("a malformed step result from rank " + std::to_string(rank));
  }
  const auto verdict =
      quorum_.Result(Epoch{result.epoch}, StepId{result.step},
                     Hash128::From(wire::AsBytes(result.digest.bytes)), std::move(result.tokens),
                     std::move(result.logprobs), std::move(result.counts), std::move(details));
  if (verdict == plan::StepQuorum::Verdict::kIgnored) {
    return session_.Drop("a result of step " + std::to_string(result.step) + " of epoch " +
                         std::to_string(result.epoch) + " that nobody waits for");
  }
  RetireSteps();
}

void WorkerGroup::TakeAck(int rank, const wire::StepAck& ack) {
  if (ack.digest.bytes.size() != 16 || ack.token_hash.bytes.size() != 16) {
    return session_.Drop("a malformed step ack from rank " + std::to_string(rank));
  }
  const auto verdict = quorum_.Ack(rank, Epoch{ack.epoch}, StepId{ack.step},
                                   Hash128::From(wire::AsBytes(ack.digest.bytes)),
                                   Hash128::From(wire::AsBytes(ack.token_hash.bytes)));
  if (verdict == plan::StepQuorum::Verdict::kIgnored) {
    return session_.Drop("an ack of step " + std::to_string(ack.step) + " of epoch " +
                         std::to_string(ack.epoch) + " that nobody waits for");
  }
  RetireSteps();
}

void WorkerGroup::TakeTransfers(int rank, const wire::Transfers& transfers) {
  if (transfers.tickets.size() != transfers.ok.size()) {
    return session_.Drop("a malformed report of transfers from rank " + std::to_string(rank));
  }
  using Verdict = plan::TicketQuorum::Verdict;
  for (size_t i = 0; i < transfers.tickets.size(); ++i) {
    const int32_t ticket = transfers.tickets[i];
    const Verdict verdict =
        tickets_.Report(rank, Epoch{transfers.epoch}, ticket, transfers.ok[i] != 0);
    if (verdict == Verdict::kIgnored) {
      session_.Drop("a report of transfer " + std::to_string(ticket) + " of epoch " +
                    std::to_string(transfers.epoch) + " that nobody waits for");
    } else if (verdict != Verdict::kTaken) {
      scheduler_.Transferred(TicketId{ticket}, verdict == Verdict::kDone, Now());
      if (verdict == Verdict::kFailed) {
        Log("transfer " + std::to_string(ticket) + " failed; its blocks are computed again");
      }
    }
  }
}

void WorkerGroup::RetireSteps() {
  const TimeNs start = Now();
  for (;;) {
    auto popped = quorum_.Pop();
    if (!popped.ok()) return EndEpoch(popped.error().message);
    const std::optional<plan::CompleteStep>& step = popped.value();
    if (!step) break;
    frontends_.TakeDetails(step->step, step->details);
    const Status advanced =
        scheduler_.Advance(step->step, step->tokens, step->logprobs, start, step->counts);
    if (!advanced.ok()) return EndEpoch(advanced.error().message);
    retired_ = step->step;
  }
  const TimeNs end = Now();
  plan_time_ += end - start;
  if (scheduler_.in_flight() == 0 && scheduler_.running() > 0) drained_ = start;
  if (trace_) trace_->Advanced(retired_, start, end);
}

void WorkerGroup::SendPlans() {
  if (!scheduler_.in_epoch()) return;
  for (;;) {
    const TimeNs start = Now();
    const plan::StepPlan* plan = scheduler_.Plan(start);
    if (plan != nullptr) {
      wire::EncodePlan(*plan, buffer_);
      digest_ = wire::NextDigest(digest_, wire::AsBytes(buffer_));
      scheduler_.Planned(digest_);
      quorum_.Planned(plan->step, digest_);
      tickets_.Planned(*plan);
    }
    const TimeNs end = Now();
    plan_time_ += end - start;
    if (plan == nullptr) return;
    if (drained_ > 0) gap_time_ += end - std::exchange(drained_, 0);
    if (trace_) trace_->Planned(*plan, start, end);
    const std::string_view digest(reinterpret_cast<const char*>(digest_.bytes.data()),
                                  digest_.bytes.size());
    for (const auto& worker : workers_) router_.Send(worker->identity, buffer_, digest);
  }
}

void WorkerGroup::Profile(const std::string& directory) {
  if (trace_) {
    if (const Status written = trace_->Write(); !written.ok()) Log(written.error().message);
    trace_.reset();
  }
  if (!directory.empty()) trace_.emplace(directory);
  for (const auto& worker : workers_) {
    if (worker) Send(worker->identity, wire::Profile{directory});
  }
}

void WorkerGroup::SendHeartbeats() {
  for (const auto& worker : workers_) {
    if (worker && !router_.has_backlog(worker->identity)) {
      Send(worker->identity, wire::Heartbeat{Now()});
    }
  }
}

void WorkerGroup::SendShutdown(const std::string& reason) {
  for (const auto& worker : workers_) {
    if (worker) Send(worker->identity, wire::Shutdown{reason});
  }
}

}  // namespace tokenspeed::net
