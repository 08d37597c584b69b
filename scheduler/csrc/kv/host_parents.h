// SPDX-License-Identifier: MIT
// The memory of the host tier, which the block groups share: parents of one size, each unbound or
// bound to a group, whose pool has `share` blocks in it. Whoever needs a block takes a spare one of
// its own parents, else an unbound parent, else what was used longest ago goes, whichever group has
// it: a block of its own, or a whole parent of another group.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <vector>

#include "base/result.h"

namespace tokenspeed::kv {

class HostPool;

class HostParents {
 public:
  // REQUIRES: num_parents >= 1
  explicit HostParents(int num_parents);
  HostParents(const HostParents&) = delete;
  HostParents& operator=(const HostParents&) = delete;

  // The pool of the next group; returns the group.
  int Add(HostPool* pool);

  int total() const { return static_cast<int>(groups_.size()); }
  int unbound() const { return static_cast<int>(unbound_.size()); }

  // Of HostPool. Binds an unbound parent to the group; nothing if there is none.
  std::optional<int> Take(int group);
  // The parent's last block is free.
  void Unbind(int parent);
  // The other pool whose coldest block was used before `used`, and before those of all others.
  HostPool* ColderThan(const HostPool* own, uint64_t used) const;
  // Later than all before.
  uint64_t Now() { return ++clock_; }

  Status Verify() const;
  // Writes down which parent goes to whom next.
  void Describe(std::ostream& out) const;

 private:
  std::vector<int32_t> groups_;  // by parent; -1: unbound
  std::vector<int> unbound_;
  std::vector<HostPool*> pools_;  // by group
  uint64_t clock_ = 0;
};

}  // namespace tokenspeed::kv
