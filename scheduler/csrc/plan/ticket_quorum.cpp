// SPDX-License-Identifier: MIT
#include "plan/ticket_quorum.h"

namespace tokenspeed::plan {

void TicketQuorum::Reset(Epoch epoch) {
  epoch_ = epoch;
  pending_.clear();
}

void TicketQuorum::Planned(const StepPlan& plan) {
  Expect(plan.store_tickets);
  Expect(plan.load_tickets);
}

void TicketQuorum::Expect(const std::vector<int32_t>& tickets) {
  for (size_t i = 0; i < tickets.size(); ++i) {
    if (i > 0 && tickets[i] == tickets[i - 1]) continue;  // a ticket's blocks stand together
    Pending& pending = pending_[tickets[i]];
    pending.reported.assign(static_cast<size_t>(num_ranks_), false);
    pending.missing = num_ranks_;
  }
}

TicketQuorum::Verdict TicketQuorum::Report(int rank, Epoch epoch, int32_t ticket, bool ok) {
  if (epoch != epoch_) return Verdict::kIgnored;
  const auto found = pending_.find(ticket);
  if (found == pending_.end()) return Verdict::kIgnored;
  Pending& pending = found->second;
  if (pending.reported[static_cast<size_t>(rank)]) return Verdict::kIgnored;
  pending.reported[static_cast<size_t>(rank)] = true;
  pending.ok = pending.ok && ok;
  if (--pending.missing > 0) return Verdict::kTaken;
  const bool all_ok = pending.ok;
  pending_.erase(found);
  return all_ok ? Verdict::kDone : Verdict::kFailed;
}

}  // namespace tokenspeed::plan
