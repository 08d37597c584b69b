// SPDX-License-Identifier: MIT
// The block ids in the workers' tables, by slot and group, as the plans told them. The ids of a
// slot that is removed stay until it is added again: a table that begins with the same ones is
// announced by their number, so a session that comes back to its slot costs what is new.
#pragma once

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <vector>

#include "base/ids.h"
#include "plan/step_plan.h"

namespace tokenspeed::plan {

class WorkerTables {
 public:
  WorkerTables() = default;
  WorkerTables(int num_slots, int num_groups)
      : groups_(static_cast<size_t>(num_groups)), ids_(static_cast<size_t>(num_slots) * groups_) {}

  // The plan adds the slot, with a table of `size` blocks in the group: tells how many of the last
  // table's leading ids it keeps, as far as is_same(i, id) says so, and returns that.
  template <class IsSame>
  int Keep(StepPlan& plan, SlotId slot, int group, int size, IsSame is_same) {
    std::vector<int32_t>& ids = Ids(slot, group);
    const int most = std::min(size, static_cast<int>(ids.size()));
    const auto alike = [&](int from, int count) {
      bool all = true;  // no branches in this loop
      for (int i = from; i < from + count; ++i) all &= is_same(i, ids[static_cast<size_t>(i)]);
      return all;
    };
    constexpr int kAtOnce = 16;
    int same = 0;
    while (same + kAtOnce <= most && alike(same, kAtOnce)) same += kAtOnce;
    while (same < most && alike(same, 1)) ++same;
    ids.resize(static_cast<size_t>(same));
    if (same == 0) return 0;
    plan.kept_slots.push_back(slot.value);
    plan.kept_groups.push_back(group);
    plan.kept_blocks.push_back(same);
    return same;
  }
  // The plan appends a block to the slot's table in the group.
  void Append(StepPlan& plan, SlotId slot, int group, int32_t id) {
    plan.block_slots.push_back(slot.value);
    plan.block_groups.push_back(group);
    plan.block_ids.push_back(id);
    Ids(slot, group).push_back(id);
  }
  // Append will be called soon.
  void PrefetchEnd(SlotId slot, int group) const {
    const std::vector<int32_t>& ids = Ids(slot, group);
    __builtin_prefetch(ids.data() + ids.size(), 1);
  }
  // Writes down what decides the future.
  void Describe(std::ostream& out) const {
    for (const std::vector<int32_t>& ids : ids_) {
      for (const int32_t id : ids) out << ' ' << id;
      out << ';';
    }
  }

 private:
  std::vector<int32_t>& Ids(SlotId slot, int group) { return ids_[Place(slot, group)]; }
  const std::vector<int32_t>& Ids(SlotId slot, int group) const { return ids_[Place(slot, group)]; }
  size_t Place(SlotId slot, int group) const {
    return static_cast<size_t>(slot.value) * groups_ + static_cast<size_t>(group);
  }

  size_t groups_ = 0;
  std::vector<std::vector<int32_t>> ids_;  // of a slot and a group
};

}  // namespace tokenspeed::plan
