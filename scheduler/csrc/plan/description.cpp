// SPDX-License-Identifier: MIT
// Scheduler::Describe. Two cores with one description take the same events to the same plans, but
// for prefix groups and for what retention has learnt. Steps are told by their distance from the
// last one planned, and counters by whether they have moved, so that a core that comes back to
// where it was says so.
#include <algorithm>
#include <ostream>

#include "plan/scheduler.h"

namespace tokenspeed::plan {

void Scheduler::DescribeRequest(std::ostream& out, const Request& request) const {
  out << "request " << request.name.client.value << '.' << request.name.id << " known "
      << request.known() << " last slot " << request.last_slot.value << " rest "
      << (request.rest > 0) << " limit " << request.limit << " admitted " << request.admitted
      << " preempted " << std::min(request.preemptions, kWorn) << " guest " << request.guest
      << " cached " << request.cached_tokens << " drafts " << request.drafts.Next(max_drafts_)
      << ' ';
  if (grouped()) out << "promotable " << request.promotable << " alone " << request.alone << ' ';
  std::visit(
      [&]<class S>(const S& state) {
        out << S::kName;
        if constexpr (requires { state.slot; }) {
          const Slot& place = slots_[static_cast<size_t>(state.slot.value)];
          out << " slot " << state.slot.value << " since "
              << std::max<int64_t>(last_step_.value - place.first.value, -1) << " announced "
              << place.announced << place.stale << ' ' << place.announced_blocks << " context "
              << state.context;
          state.table.Describe(out);
          for (const kv::SpanTable& table : state.groups.spans) table.Describe(out);
          for (const kv::StateTable& table : state.groups.states) table.Describe(out);
        }
        if constexpr (std::same_as<S, fsm::Decoding>) {
          const bool batched = batch_.Has(state.slot);
          out << " batched " << batched << " lag "
              << (batched ? batch_.Lag(state.slot, last_step_) : 0);
        }
        if constexpr (requires { state.overlap; }) {
          out << " rows " << state.overlap.rows() << " of " << state.overlap.most();
        }
      },
      request.state);
  out << '\n';
}

void Scheduler::Describe(std::ostream& out) const {
  out << "draining " << draining_ << " epoch " << in_epoch() << '\n';
  std::vector<const Request*> requests;
  for (const auto& [name, request] : requests_) requests.push_back(request.get());
  for (const auto& request : ending_) requests.push_back(request.get());
  std::ranges::sort(requests, {}, &Request::arrival);
  for (const Request* request : requests) {
    DescribeRequest(out, *request);
    if (request->former.last > StepId{}) {
      out << "left slot " << request->former.slot.value << " at "
          << last_step_.value - request->former.last.value << '\n';
    }
  }
  if (!in_epoch()) return;
  const auto list = [&](const char* name, const auto& slots) {
    out << name;
    for (const auto& slot : slots) out << ' ' << slot.value;
    out << '\n';
  };
  list("free slots", free_slots_);
  history_.Describe(out);
  out << "tables";
  worker_tables_.Describe(out);
  out << '\n';
  list("stalled", stalled_);
  out << "rows repeated " << batch_.repeated() << ':';
  for (const int32_t slot : batch_.slots()) out << ' ' << slot;
  out << "\nremoved";
  for (const int32_t slot : removed_slots_) out << ' ' << slot;
  for (const InFlightStep& step : in_flight_) {
    out << "\nstep " << last_step_.value - step.step.value;
    for (const int32_t slot : step.slots) out << ' ' << slot;
    for (const int32_t width : step.widths) out << " x" << width;
  }
  const auto head = waiting_.begin();
  const bool tried = head != waiting_.end() && blocked_.head == head->second->arrival;
  out << "\nblocked " << (tried ? blocked_.hits : -1) << ' ' << (tried ? blocked_.short_by : 0)
      << ' ' << (tried && blocked_.passed) << ' '
      << (tried &&
          blocked_.openings == openings_ + (parents_ ? parents_->releases() : pool_->releases()))
      << '\n';
  pool_->Describe(out);
  for (size_t group = 1; group < specs_.size(); ++group) {
    out << "group " << group << '\n';
    PoolOf(static_cast<int>(group)).Describe(out);
  }
  if (parents_) parents_->Describe(out);
  if (transfers_) transfers_->Describe(out);
}

}  // namespace tokenspeed::plan
