// SPDX-License-Identifier: MIT
// Tickets name copies between pools that run beside the steps. Whoever holds blocks of a ticket
// gives them back with its Completion, and only Tickets makes one, once for each ticket.
#pragma once

#include <optional>
#include <set>

#include "base/ids.h"

namespace tokenspeed::kv {

// Proof that a ticket's copies have ended on every rank.
class Completion {
 public:
  Completion(Completion&&) noexcept = default;
  Completion& operator=(Completion&&) = delete;

  TicketId ticket() const { return ticket_; }
  bool ok() const { return ok_; }  // every block was copied

 private:
  friend class Tickets;
  Completion(TicketId ticket, bool ok) : ticket_(ticket), ok_(ok) {}

  TicketId ticket_;
  bool ok_;
};

class Tickets {
 public:
  TicketId Issue() {
    last_ = TicketId{last_.value + 1};
    open_.insert(last_);
    return last_;
  }
  // Nothing if the ticket is not open: never issued, or completed before.
  std::optional<Completion> Complete(TicketId ticket, bool ok) {
    if (open_.erase(ticket) == 0) return std::nullopt;
    return Completion(ticket, ok);
  }
  int open() const { return static_cast<int>(open_.size()); }

 private:
  TicketId last_;
  std::set<TicketId> open_;
};

}  // namespace tokenspeed::kv
