// SPDX-License-Identifier: MIT
// The slots that get one token in every planned step, as columns in the form that a plan wants. A
// row that only goes on costs its bytes in the plan; it is looked at when it is due.
//
// Invariant: a slot has at most one row. The state of a request with a row lags behind the plans by
// Lag() tokens; whoever reads its context brings it up to date first (Scheduler::Settle).
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace tokenspeed::plan {

class DecodeBatch {
 public:
  DecodeBatch() = default;
  explicit DecodeBatch(int max_slots) : places_(static_cast<size_t>(max_slots)) {}

  // The slot has a row in the next `rows` steps after `planned`, then it is due.
  // REQUIRES: it has none yet; rows >= 0.
  void Join(SlotId slot, StepId planned, int rows);
  // It is due after `rows` steps behind `planned`.
  // REQUIRES: it has a row; no lag.
  void Renew(SlotId slot, StepId planned, int rows);
  // REQUIRES: it has a row; no lag.
  void Leave(SlotId slot);
  bool Has(SlotId slot) const { return place(slot).row >= 0; }

  // Steps up to `planned` that the state of the slot's request does not know of.
  int Lag(SlotId slot, StepId planned) const {
    return static_cast<int>(planned.value - place(slot).settled.value);
  }
  void Settled(SlotId slot, StepId planned) { place(slot).settled = planned; }

  // Appends the slots that must be looked at before they get a row in `step`.
  void AppendDue(StepId step, std::vector<SlotId>& due) const;
  bool IsDue(SlotId slot, StepId step) const { return due_[row(slot)] == Stamp(step); }

  int size() const { return static_cast<int>(slots_.size()); }
  // A plan is made of the rows: how many of the first are those of the plan before.
  int repeated() const { return repeated_; }
  int TakeRepeated() { return std::exchange(repeated_, size()); }
  // By row.
  std::span<const int32_t> slots() const { return slots_; }

 private:
  struct Place {
    int32_t row = -1;
    StepId settled;
  };
  // Steps are compared for equality within a block's length of each other: the low bits do.
  static uint32_t Stamp(StepId step) { return static_cast<uint32_t>(step.value); }

  Place& place(SlotId slot) { return places_[static_cast<size_t>(slot.value)]; }
  const Place& place(SlotId slot) const { return places_[static_cast<size_t>(slot.value)]; }
  size_t row(SlotId slot) const { return static_cast<size_t>(place(slot).row); }

  int repeated_ = 0;            // rows that no slot has left since the last plan
  std::vector<int32_t> slots_;  // by row
  std::vector<uint32_t> due_;   // by row
  std::vector<Place> places_;   // by slot
};

}  // namespace tokenspeed::plan
