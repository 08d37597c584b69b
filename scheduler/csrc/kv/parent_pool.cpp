// SPDX-License-Identifier: MIT
#include "kv/parent_pool.h"

#include "base/check.h"
#include "kv/block_pool.h"

namespace tokenspeed::kv {

ParentPool::ParentPool(int num_parents)
    : parents_(static_cast<size_t>(num_parents) + kLists), unbound_(num_parents - 1) {
  TS_CHECK(num_parents >= 2, num_parents << " parents");
  for (const List list : {kUnbound, kIdle}) {
    const int end = sentinel(list);
    at(end).next = at(end).previous = end;
  }
  for (int parent = 1; parent < num_parents; ++parent) PushBack(kUnbound, parent);
}

int ParentPool::Add(BlockPool* pool) {
  pools_.push_back(pool);
  return static_cast<int>(pools_.size()) - 1;
}

void ParentPool::PushBack(List list, int parent) {
  const int end = sentinel(list);
  const int last = at(end).previous;
  at(parent).previous = last;
  at(parent).next = end;
  at(last).next = parent;
  at(end).previous = parent;
}

void ParentPool::Unlink(int parent) {
  at(at(parent).previous).next = at(parent).next;
  at(at(parent).next).previous = at(parent).previous;
}

std::optional<int> ParentPool::Take(int group, int share) {
  if (available() == 0) return std::nullopt;
  if (unbound_ == 0) {
    const int victim = Victim();
    pools_[static_cast<size_t>(at(victim).group)]->EvictParent(victim);
  }
  const int parent = at(sentinel(kUnbound)).next;
  Unlink(parent);
  --unbound_;
  at(parent).group = group;
  at(parent).busy = share;
  return parent;
}

// By rank of the blocks' owners where pools have ranks, else least recently used.
int ParentPool::Victim() {
  while (unbound_ == 0) {
    BlockPool* worst = nullptr;
    std::optional<BlockPool::Candidate> candidate;
    for (BlockPool* pool : pools_) {
      const auto next = pool->NextVictim();
      // One owner's windows and states go before the blocks that they depend on.
      if (!next || (candidate && candidate->rank < next->rank)) continue;
      candidate = next;
      worst = pool;
    }
    if (!candidate || is_idle(candidate->parent)) {
      return candidate ? candidate->parent : at(sentinel(kIdle)).next;
    }
    worst->Evict(candidate->block);  // its neighbours are in use: it goes alone
  }
  TS_CHECK(false, "a parent that was in use is unbound");
}

void ParentPool::Unbind(int parent) {
  at(parent).group = -1;
  ++unbound_;
  PushBack(kUnbound, parent);
}

void ParentPool::Held(int parent) {
  Parent& own = at(parent);
  TS_CHECK(own.cached > 0, "parent " << parent << " has nothing cached");
  --own.cached;
  if (own.busy++ > 0) return;
  Unlink(parent);
  --idle_;
}

void ParentPool::Left(int parent, bool cached) {
  Parent& own = at(parent);
  TS_CHECK(own.busy > 0, "parent " << parent << " is not busy");
  own.cached += cached;
  if (--own.busy > 0) return;
  ++releases_;
  if (own.cached == 0) return Unbind(parent);
  PushBack(kIdle, parent);
  ++idle_;
}

void ParentPool::Evicted(int parent) {
  Parent& own = at(parent);
  TS_CHECK(own.cached > 0, "parent " << parent << " has nothing cached");
  if (--own.cached > 0 || own.busy > 0) return;
  Unlink(parent);
  --idle_;
  Unbind(parent);
}

void ParentPool::Describe(std::ostream& out) const {
  for (int parent = 1; parent < sentinel(kUnbound); ++parent) {
    out << (parent > 1 ? ' ' : '\n') << at(parent).group;
  }
  for (const List list : {kUnbound, kIdle}) {
    out << (list == kUnbound ? "\nunbound" : "\nidle");
    const int end = sentinel(list);
    for (int parent = at(end).next; parent != end; parent = at(parent).next) out << ' ' << parent;
  }
  out << '\n';
}

Status ParentPool::Verify() const {
  int unbound = 0;
  int idle = 0;
  const int end = sentinel(kUnbound);
  for (int parent = 1; parent < end; ++parent) {
    const Parent& own = at(parent);
    int busy = 0;
    int cached = 0;
    for (size_t group = 0; group < pools_.size(); ++group) {
      const BlockPool::Occupancy of = pools_[group]->Occupied(parent);
      if (static_cast<int>(group) == own.group) {
        busy = of.in_use;
        cached = of.cached;
      } else if (of.in_use + of.cached > 0) {
        return Broken("parent ", parent, " of group ", own.group, " holds blocks of group ", group);
      }
    }
    if (busy != own.busy || cached != own.cached) {
      return Broken("parent ", parent, " has ", busy, " busy and ", cached, " cached blocks, ",
                    "counted ", own.busy, " and ", own.cached);
    }
    if (own.group >= 0 && busy + cached == 0) return Broken("parent ", parent, " is bound in vain");
    unbound += own.group < 0;
    idle += own.group >= 0 && own.busy == 0;
  }
  for (const List list : {kUnbound, kIdle}) {
    int length = 0;
    for (int parent = at(sentinel(list)).next; parent != sentinel(list); parent = at(parent).next) {
      const bool right = list == kUnbound ? at(parent).group < 0 : is_idle(parent);
      if (!right || at(at(parent).next).previous != parent || ++length > total()) {
        return Broken("the list of parents is torn at parent ", parent);
      }
    }
    if (length != (list == kUnbound ? unbound : idle)) return Broken(length, " parents are listed");
  }
  if (unbound != unbound_ || idle != idle_) {
    return Broken(unbound, " unbound and ", idle, " idle parents, counted ", unbound_, " and ",
                  idle_);
  }
  return Ok{};
}

}  // namespace tokenspeed::kv
