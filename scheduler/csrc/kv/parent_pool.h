// SPDX-License-Identifier: MIT
// The memory that the block groups of one epoch share: parents of one size, each in one state:
//
//   unbound  of no group
//   busy     bound to a group; a step or a handle may touch one of its blocks
//   idle     bound; what it still has is cached, held by nobody
//
// A group takes a parent whole, an unbound one or an idle one, whose cached blocks are evicted
// then, and whoever asked gets all of its blocks. So a request that runs alone needs as many
// parents as its blocks fill, whatever ran before, and memory is never divided between groups
// beforehand. The parent is unbound again when its last block has left. Taking is O(blocks
// evicted).
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <vector>

#include "base/result.h"

namespace tokenspeed::kv {

class BlockPool;

class ParentPool {
 public:
  // Parent 0 is the workers' scratch and is never handed out.
  // REQUIRES: num_parents >= 2
  explicit ParentPool(int num_parents);
  ParentPool(const ParentPool&) = delete;
  ParentPool& operator=(const ParentPool&) = delete;

  // The pool of the next group; returns the group. It is called back for evictions.
  int Add(BlockPool* pool);

  int total() const { return static_cast<int>(parents_.size()) - 1 - kLists; }
  int unbound() const { return unbound_; }
  int idle() const { return idle_; }
  // Parents that Take can hand out now.
  int available() const { return unbound_ + idle_; }
  bool is_idle(int parent) const { return at(parent).group >= 0 && at(parent).busy == 0; }
  // Grows whenever available() grows.
  uint64_t releases() const { return releases_; }

  // Binds a parent to the group, with all of its `share` blocks busy; nothing if there is none.
  std::optional<int> Take(int group, int share);

  // Of BlockPool: a block of the parent is held again, was cached until now ...
  void Held(int parent);
  // ... is free or cached, was busy ...
  void Left(int parent, bool cached);
  // ... or is free, was cached.
  void Evicted(int parent);

  Status Verify() const;
  void Describe(std::ostream& out) const;

 private:
  struct Parent {
    int32_t group = -1;  // -1: unbound
    int32_t busy = 0;    // blocks
    int32_t cached = 0;
    int32_t next = 0;
    int32_t previous = 0;
  };
  // Doubly linked lists; the sentinels lie behind the real parents.
  enum List : int { kUnbound = 0, kIdle = 1, kLists = 2 };

  Parent& at(int parent) { return parents_[static_cast<size_t>(parent)]; }
  const Parent& at(int parent) const { return parents_[static_cast<size_t>(parent)]; }
  int sentinel(List list) const { return static_cast<int>(parents_.size()) - kLists + list; }
  void PushBack(List list, int parent);
  void Unlink(int parent);
  // The idle parent whose content is worth least.
  int Victim();
  void Unbind(int parent);

  std::vector<Parent> parents_;
  std::vector<BlockPool*> pools_;  // by group
  int unbound_ = 0;
  int idle_ = 0;
  uint64_t releases_ = 0;
};

}  // namespace tokenspeed::kv
