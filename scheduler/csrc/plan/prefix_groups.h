// SPDX-License-Identifier: MIT
// Which running slots share leading blocks, so that attention can read those once for all of them.
// A slot is in at most one group. Invariant: a group has two or more members, and the first
// `blocks` entries of their tables are the same sealed blocks. Changes are collected and written
// into the next plan. Joining costs O(shared blocks), leaving O(members).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kv/block_pool.h"
#include "kv/block_table.h"
#include "plan/step_plan.h"

namespace tokenspeed::plan {

class PrefixGroups {
 public:
  using TableOf = std::function<const kv::BlockTable&(SlotId)>;

  // `table_of` gives the table of a slot that is in use.
  PrefixGroups(int max_slots, int num_blocks, TableOf table_of);

  // The slot is the one that wrote this block.
  void Wrote(SlotId slot, BlockId block);
  // The slot's table now begins with blocks that were found in the pool, at least one.
  void Join(SlotId slot, const kv::BlockPool& pool);
  // The slot's request is gone.
  void Leave(SlotId slot);
  // The workers forgot what they knew of the slot's group: say it again.
  void Repeat(SlotId slot);
  // Leading blocks of the slot that another running slot holds too, as far as a group knows.
  int32_t Shared(SlotId slot) const {
    const int32_t group = places_[static_cast<size_t>(slot.value)].group;
    return group == kNone ? 0 : groups_[static_cast<size_t>(group)].blocks;
  }
  // What the workers know of a slot: nothing, a table that is behind, or its table.
  enum class Known { kNot, kBehind, kWhole };
  // Writes the changes of slots that the workers know. One that is behind shares nothing until it
  // is repeated.
  void Write(StepPlan& plan, const std::function<Known(SlotId)>& known);

  Status Verify() const;

 private:
  static constexpr int32_t kNone = -1;
  struct Group {
    std::vector<SlotId> members;
    int32_t blocks = 0;
  };
  struct Place {
    int32_t group = kNone;
    bool changed = false;
    uint32_t tenancy = 0;  // tells the slot's requests apart, but for those that go on as ...
    uint32_t former = UINT32_MAX;  // ... the one before did
    uint32_t latest = 0;           // no tenancy is larger
  };
  struct Holder {
    int32_t slot = kNone;
    uint32_t tenancy = 0;
  };

  Place& place(SlotId slot) { return places_[static_cast<size_t>(slot.value)]; }
  Holder& holder(BlockId block) { return holders_[static_cast<size_t>(block.value)]; }
  // A slot in use other than `slot` that shares the most leading blocks; how many it shares.
  SlotId FindPartner(SlotId slot, const kv::BlockPool& pool, int32_t* shared);
  void Enter(SlotId slot, int32_t group);
  void Exit(SlotId slot);
  void MarkChanged(SlotId slot);

  TableOf table_of_;
  std::vector<Place> places_;
  std::vector<Holder> holders_;  // by block
  std::vector<Group> groups_;
  std::vector<int32_t> free_groups_;
  std::vector<SlotId> changed_;
};

}  // namespace tokenspeed::plan
