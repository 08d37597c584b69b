// SPDX-License-Identifier: MIT
#include "plan/decode_batch.h"

#include <algorithm>

#include "base/check.h"

namespace tokenspeed::plan {

void DecodeBatch::Join(SlotId slot, StepId planned, int rows) {
  TS_CHECK(!Has(slot) && rows >= 0, "slot " << slot.value << " joins for " << rows << " rows");
  place(slot) = {.row = size(), .settled = planned};
  slots_.push_back(slot.value);
  due_.push_back(Stamp(StepId{planned.value + 1 + rows}));
}

void DecodeBatch::Renew(SlotId slot, StepId planned, int rows) {
  TS_CHECK(Has(slot) && Lag(slot, planned) == 0, "slot " << slot.value << " has no row, or lags");
  due_[row(slot)] = Stamp(StepId{planned.value + 1 + rows});
}

void DecodeBatch::Leave(SlotId slot) {
  TS_CHECK(Has(slot), "slot " << slot.value << " has no row");
  const size_t hole = row(slot);
  repeated_ = std::min(repeated_, static_cast<int>(hole));
  slots_[hole] = slots_.back();
  due_[hole] = due_.back();
  place(SlotId{slots_[hole]}).row = static_cast<int32_t>(hole);
  slots_.pop_back();
  due_.pop_back();
  place(slot).row = -1;
}

void DecodeBatch::AppendDue(StepId step, std::vector<SlotId>& due) const {
  constexpr size_t kStride = 16;  // compared at once
  const uint32_t stamp = Stamp(step);
  for (size_t begin = 0; begin < due_.size(); begin += kStride) {
    const size_t end = std::min(begin + kStride, due_.size());
    uint32_t any = 0;
    for (size_t i = begin; i < end; ++i) any |= due_[i] == stamp;
    if (any == 0) continue;
    for (size_t i = begin; i < end; ++i) {
      if (due_[i] == stamp) due.push_back(SlotId{slots_[i]});
    }
  }
}

}  // namespace tokenspeed::plan
