// SPDX-License-Identifier: MIT
#include "plan/prefix_groups.h"

#include <algorithm>
#include <ranges>

#include "base/check.h"

namespace tokenspeed::plan {

PrefixGroups::PrefixGroups(int max_slots, int num_blocks, TableOf table_of)
    : table_of_(std::move(table_of)),
      places_(static_cast<size_t>(max_slots)),
      holders_(static_cast<size_t>(num_blocks)) {}

void PrefixGroups::Wrote(SlotId slot, BlockId block) {
  holder(block) = {slot.value, place(slot).tenancy};
}

void PrefixGroups::MarkChanged(SlotId slot) {
  if (place(slot).changed) return;
  place(slot).changed = true;
  changed_.push_back(slot);
}

void PrefixGroups::Repeat(SlotId slot) {
  if (place(slot).group != kNone) MarkChanged(slot);
}

void PrefixGroups::Enter(SlotId slot, int32_t group) {
  Exit(slot);
  groups_[static_cast<size_t>(group)].members.push_back(slot);
  place(slot).group = group;
  MarkChanged(slot);
}

void PrefixGroups::Exit(SlotId slot) {
  const int32_t id = std::exchange(place(slot).group, kNone);
  if (id == kNone) return;
  MarkChanged(slot);
  Group& group = groups_[static_cast<size_t>(id)];
  std::erase(group.members, slot);
  if (group.members.size() > 1) return;
  for (const SlotId last : group.members) {
    place(last).group = kNone;
    MarkChanged(last);
  }
  group.members.clear();
  free_groups_.push_back(id);
}

void PrefixGroups::Leave(SlotId slot) {
  Exit(slot);
  Place& own = place(slot);
  own.former = std::exchange(own.tenancy, ++own.latest);
  if (own.changed) std::erase(changed_, slot);
  own.changed = false;
}

SlotId PrefixGroups::FindPartner(SlotId slot, const kv::BlockPool& pool, int32_t* shared) {
  const kv::BlockTable& table = table_of_(slot);
  // Whoever else runs with a block of the prefix has those before it, too.
  const auto held = [&](int i) { return pool.users(table.sealed_at(i).id()) > 1; };
  const auto all = std::views::iota(0, table.sealed());
  for (int depth = *std::ranges::partition_point(all, held); depth > 0; --depth) {
    const BlockId block = table.at(depth - 1);
    const Holder& hint = holder(block);
    if (hint.slot == kNone || hint.slot == slot.value || pool.users(block) < 2) continue;
    const SlotId partner{hint.slot};
    if (place(partner).tenancy != hint.tenancy) continue;
    const kv::BlockTable& other = table_of_(partner);
    const int32_t most = std::min(depth, other.sealed());
    int32_t same = 0;
    while (same < most && other.at(same) == table.at(same)) ++same;
    if (same == 0) continue;
    *shared = same;
    return partner;
  }
  *shared = 0;
  return slot;
}

void PrefixGroups::Join(SlotId slot, const kv::BlockPool& pool) {
  Exit(slot);
  int32_t shared = 0;
  const SlotId partner = FindPartner(slot, pool, &shared);
  if (shared > 0) {
    const int32_t group = place(partner).group;
    const int32_t depth = group == kNone ? 0 : groups_[static_cast<size_t>(group)].blocks;
    // A pair of its own reads `shared` blocks once; in the old group both would read their
    // shared - depth blocks alone. The pair is cheaper from shared > 2 * depth on.
    if (shared > 2 * depth) {
      if (free_groups_.empty()) {
        free_groups_.push_back(static_cast<int32_t>(groups_.size()));
        groups_.emplace_back();
      }
      const int32_t fresh = free_groups_.back();
      free_groups_.pop_back();
      groups_[static_cast<size_t>(fresh)].blocks = shared;
      Enter(partner, fresh);
      Enter(slot, fresh);
    } else if (shared >= depth) {
      Enter(slot, group);
    }
  }
  const kv::BlockTable& table = table_of_(slot);
  const Holder last = holder(table.at(table.sealed() - 1));
  if (last.slot == slot.value && last.tenancy == place(slot).former) {
    place(slot).tenancy = last.tenancy;  // who had the slot before left its name on all of them
    return;
  }
  const Holder now{slot.value, place(slot).tenancy};
  for (int i = 0; i < table.sealed(); ++i) holder(table.sealed_at(i).id()) = now;
}

void PrefixGroups::Write(StepPlan& plan, const std::function<Known(SlotId)>& known) {
  if (changed_.empty()) return;
  std::erase_if(changed_, [&](SlotId slot) {
    const Known table = known(slot);
    if (table == Known::kNot) return false;
    const int32_t group = table == Known::kWhole ? place(slot).group : kNone;
    plan.prefix_slots.push_back(slot.value);
    plan.prefix_groups.push_back(group);
    plan.prefix_blocks.push_back(group == kNone ? 0 : groups_[static_cast<size_t>(group)].blocks);
    place(slot).changed = false;
    return true;
  });
}

Status PrefixGroups::Verify() const {
  for (size_t id = 0; id < groups_.size(); ++id) {
    const Group& group = groups_[id];
    if (group.members.empty()) continue;
    if (group.members.size() < 2) return Broken("prefix group ", id, " has one member");
    const kv::BlockTable& first = table_of_(group.members.front());
    for (const SlotId slot : group.members) {
      if (places_[static_cast<size_t>(slot.value)].group != static_cast<int32_t>(id)) {
        return Broken("prefix group ", id, " lists slot ", slot.value, ", which is elsewhere");
      }
      const kv::BlockTable& table = table_of_(slot);
      if (table.sealed() < group.blocks) {
        return Broken("prefix group ", id, " is deeper than a member's table");
      }
      for (int i = 0; i < group.blocks; ++i) {
        if (table.at(i) != first.at(i)) {
          return Broken("prefix group ", id, " does not share its blocks");
        }
      }
    }
  }
  return Ok{};
}

}  // namespace tokenspeed::plan
