// SPDX-License-Identifier: MIT
#include "simulate/simulation.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "simulate/workload.h"

namespace tokenspeed::simulate {
namespace {

constexpr Token kAnswer = 1;  // what the device samples

class Simulation {
 public:
  Simulation(const Trace& trace, const Setting& setting)
      : setting_(setting),
        workload_(trace,
                  {.sessions = setting.sessions,
                   .rate = setting.rate,
                   .seed = setting.seed,
                   .requests = setting.requests,
                   .longest_pause = setting.longest_pause},
                  setting.limits.vocab_size),
        core_(setting.limits),
        slots_(static_cast<size_t>(setting.limits.max_slots)) {
    core_.BeginEpoch(Epoch{1}, setting.shape);
  }

  Outcome Run() {
    for (;;) {
      while (const plan::StepPlan* plan = core_.Plan(now_)) Start(*plan);
      const TimeNs step = steps_.empty() ? kNever : steps_.front().end;
      const TimeNs copy = std::min(loads_.next(), stores_.next());
      const TimeNs request = workload_.next().value_or(kNever);
      const TimeNs next = std::min({step, copy, request});
      if (next == kNever) break;
      now_ = next;
      if (copy == next) {
        EndCopy(loads_.next() == next ? loads_ : stores_);
      } else if (step == next) {
        EndStep();
      } else {
        Submit(workload_.Take());
      }
    }
    TS_CHECK(core_.live() == 0, core_.live() << " requests never end");
    outcome_.counters = core_.counters();
    outcome_.loading = loads_.busy;
    outcome_.storing = stores_.busy;
    return std::move(outcome_);
  }

 private:
  struct Slot {
    int32_t context = 0;
    int32_t group = -1;  // of rows that share a prefix ...
    int32_t shared = 0;  // ... of so many tokens
    TimeNs ready = 0;    // when what it waits for has landed
  };
  struct Step {
    StepId id;
    TimeNs end;
    size_t sampled;
  };
  // One direction of the link to the host: copies one after the other.
  struct Link {
    std::deque<std::pair<TimeNs, TicketId>> copies;  // ends
    TimeNs free = 0;
    TimeNs busy = 0;
    TimeNs next() const { return copies.empty() ? kNever : copies.front().first; }
  };

  void Submit(Live& live) {
    const TraceRow& row = live.at();
    const uint64_t id = outcome_.requests.size();
    Served& served = outcome_.requests.emplace_back();
    served.conversation = static_cast<int64_t>(live.index);
    served.row = static_cast<int32_t>(live.row);
    served.prompt = static_cast<int32_t>(live.prompt.size());
    served.ideal = workload_.IdealTokens(live);
    served.arrived = now_;
    lives_.push_back(&live);
    // The seed tells which request a slot is.
    const StatusOr<plan::Rejection> taken =
        core_.Submit({.name = {ClientId{1}, id},
                      .time = now_,
                      .prompt = live.prompt,
                      .max_tokens = std::max(row.output, 1),
                      .sampling = {.seed = id},
                      .stop_ids = {},
                      .salt = {},
                      .session = setting_.names ? std::to_string(live.index) : std::string()});
    if (taken.ok()) return;
    served.refused = static_cast<int32_t>(taken.error().code);
    Leave(live);
  }

  // The conversation ends.
  void Leave(Live& live) {
    Hint(live, plan::SessionAction::kEnd);
    workload_.End(live, now_);
  }

  void Hint(const Live& live, plan::SessionAction action) {
    if (!setting_.hints || !setting_.names) return;
    core_.Hint("", std::to_string(live.index), static_cast<int64_t>(action), now_, 0);
  }

  void Start(const plan::StepPlan& plan) {
    const TimeNs begin = std::max(now_, device_free_);
    Copy(plan.load_tickets, loads_, begin);
    Copy(plan.store_tickets, stores_, begin);
    for (const int32_t slot : plan.removed_slots) slots_[static_cast<size_t>(slot)] = {};
    for (size_t i = 0; i < plan.added_slots.size(); ++i) {
      slots_[static_cast<size_t>(plan.added_slots[i])].context = plan.added_context[i];
      Served& served = outcome_.requests[plan.added_seed[i]];
      if (served.admitted < 0) served.admitted = now_;
    }
    for (size_t i = 0; i < plan.prefix_slots.size(); ++i) {
      Slot& slot = slots_[static_cast<size_t>(plan.prefix_slots[i])];
      slot.group = plan.prefix_groups[i];
      slot.shared = plan.prefix_blocks[i] * setting_.shape.block_size;
    }
    for (size_t i = 0; i < plan.wait_slots.size(); ++i) {
      const auto landing = landings_.find(plan.wait_tickets[i]);
      if (landing == landings_.end()) continue;
      Slot& slot = slots_[static_cast<size_t>(plan.wait_slots[i])];
      slot.ready = std::max(slot.ready, landing->second);
    }
    TimeNs ready = 0;
    const StepShape shape = Run(plan, ready);
    const TimeNs took = shape.tokens > 0 ? Nanoseconds(StepSeconds(setting_.device, shape)) : 0;
    device_free_ = std::max(begin + took, ready);
    outcome_.busy += device_free_ - begin;
    outcome_.rows += std::ssize(rows_);
    steps_.push_back({plan.step, device_free_, static_cast<size_t>(shape.sampled)});
  }

  // The rows of a step; `ready`: when the last load that one of them waits for has landed.
  StepShape Run(const plan::StepPlan& plan, TimeNs& ready) {
    StepShape shape;
    int64_t tokens = 0;
    int64_t read = 0;
    const auto repeated = static_cast<size_t>(plan.repeated_rows);
    rows_.resize(repeated);
    rows_.insert(rows_.end(), plan.rows.begin(), plan.rows.end());
    for (size_t i = 0; i < rows_.size(); ++i) {
      Slot& slot = slots_[static_cast<size_t>(rows_[i])];
      const int32_t length = i < repeated ? 1 : plan.row_tokens[i - repeated];
      shape.pairs += static_cast<double>(length) * (slot.context + 0.5 * (length + 1));
      slot.context += length;
      tokens += length;
      read += slot.context - Repeated(slot, plan.step);
      ready = std::max(ready, slot.ready);
    }
    shape.tokens = static_cast<double>(tokens);
    shape.sampled = plan.Sampling();
    shape.context_read = static_cast<double>(read);
    return shape;
  }

  // Tokens of the slot's context that another row of this step reads, too.
  int32_t Repeated(const Slot& slot, StepId step) {
    if (slot.group < 0) return 0;
    const auto group = static_cast<size_t>(slot.group);
    if (group >= read_in_.size()) read_in_.resize(group + 1);
    return std::exchange(read_in_[group], step) == step ? slot.shared : 0;
  }

  void Copy(const std::vector<int32_t>& tickets, Link& link, TimeNs begin) {
    const double block_s =
        setting_.shape.block_size * setting_.device.kv_token_bytes / setting_.device.link_bandwidth;
    for (size_t i = 0; i < tickets.size();) {
      size_t end = i;
      while (end < tickets.size() && tickets[end] == tickets[i]) ++end;
      const TimeNs took = Nanoseconds(static_cast<double>(end - i) * block_s);
      link.free = std::max(link.free, begin) + took;
      link.busy += took;
      link.copies.emplace_back(link.free, TicketId{tickets[i]});
      if (&link == &loads_) landings_[tickets[i]] = link.free;
      i = end;
    }
  }

  void EndCopy(Link& link) {
    const TicketId ticket = link.copies.front().second;
    link.copies.pop_front();
    landings_.erase(ticket.value);
    core_.Transferred(ticket, true, now_);
  }

  void EndStep() {
    const Step step = steps_.front();
    steps_.pop_front();
    answers_.resize(step.sampled, kAnswer);
    const Status taken = core_.Advance(step.id, answers_, {}, now_);
    TS_CHECK(taken.ok(), "the core refuses a step of the simulation");
    for (const plan::MissReport& report : core_.reports()) {
      Served& served = outcome_.requests[report.name.id];
      served.host = report.host;
      served.evicted = report.evicted;
    }
    for (const plan::TokenEvent& event : core_.events()) Arrived(event);
    core_.ClearEvents();
  }

  void Arrived(const plan::TokenEvent& event) {
    Served& served = outcome_.requests[event.name.id];
    if (event.token >= 0) {
      ++served.output;
      if (served.first < 0) {
        served.first = now_;
        served.cached = event.cached_tokens;
      } else {
        outcome_.gaps.Add(now_ - served.last);
      }
      served.last = outcome_.end = now_;
    }
    if (event.reason == fsm::FinishReason::kNone) return;
    Live& live = *lives_[event.name.id];
    if (live.last()) return Leave(live);
    const uint8_t stop = live.at().stop;
    if (stop == 1) Hint(live, plan::SessionAction::kToolCall);
    if (stop == 2) Hint(live, plan::SessionAction::kHuman);
    workload_.Answered(live, now_);
  }

  const Setting& setting_;
  Workload workload_;
  plan::Scheduler core_;
  TimeNs now_ = 0;
  TimeNs device_free_ = 0;
  std::vector<Slot> slots_;
  std::vector<int32_t> rows_;    // slots of the last step's rows
  std::vector<StepId> read_in_;  // by prefix group: the last step that read its prefix
  std::deque<Step> steps_;
  Link loads_;
  Link stores_;
  std::unordered_map<int32_t, TimeNs> landings_;  // of loads under way, by ticket
  std::vector<Live*> lives_;                      // by request; of those that run, valid
  std::vector<Token> answers_;
  Outcome outcome_;
};

}  // namespace

Outcome Simulate(const Trace& trace, const Setting& setting) {
  return Simulation(trace, setting).Run();
}

}  // namespace tokenspeed::simulate
