// SPDX-License-Identifier: MIT
// Who is expected back, and how soon: the ranks of all owners of cached blocks.
//
// An owner is present while one of its requests waits or runs, else idle. When it becomes idle,
// what it will be worth is read from the ReturnModel once, for all bins of idle time: what the
// model learns meanwhile moves hit rates by less than a tenth of a point and would cost a dozen
// times as much. So a rank changes only where a bin begins, and Tick does that work when it is due:
// O(log owners), 28 times an idle period at most. Two ghost caches run beside the pool, one by
// worth and one least recently used; while the second hits more, worth counts for nothing and the
// order is that of last use. Hints move an owner between tiers. They never pin: whatever is cached
// can be evicted.
#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kv/ghost_cache.h"
#include "kv/indexed_heap.h"
#include "kv/rank.h"
#include "kv/return_model.h"

namespace tokenspeed::kv {

class EvictionQueue;

// What a request leaves behind.
struct Visit {
  int64_t blocks = 0;     // of its context that nobody else brought
  int64_t generated = 0;  // tokens
  uint8_t prefix = 0;     // a digest of its first block
};

class Retention {
 public:
  Retention() : owners_(1) {}  // slot 0 is nobody
  Retention(const Retention&) = delete;
  Retention& operator=(const Retention&) = delete;

  OwnerId Open();
  // Its blocks are nobody's from now on.
  // REQUIRES: open and idle.
  void Close(OwnerId id);
  bool is_open(OwnerId id) const {
    return id.slot > 0 && at(id).open && at(id).generation == id.generation;
  }

  // A request of the owner comes, whose prompt has `blocks`; the last one to leave makes it idle.
  void Arrived(OwnerId id, TimeNs now, int64_t blocks);
  void Left(OwnerId id, TimeNs now, const Visit& visit);
  // Hints, each until the owner's next request. Those of an owner that is not open do nothing.
  void Expect(OwnerId id, Outlook outlook);
  void Demote(OwnerId id);
  // Keeps if possible until `until`, requests or not.
  void Retain(OwnerId id, TimeNs until);
  bool retained(int slot) const;
  // For simulations: the idle owner comes back at `at`; ranks are exact if this is told of all.
  void Foretell(OwnerId id, TimeNs at);

  // Time passes.
  void Tick(TimeNs now);

  // Nobody's if the owner is not open.
  const Rank& rank(OwnerId id) const;
  // How often the owner became idle.
  // REQUIRES: open.
  uint32_t visits(OwnerId id) const { return at(id).visits; }
  // Whether ranks follow worth now, or plain last use.
  bool by_worth() const { return by_worth_; }

  // The queue is told of every change of rank. `blocks`: of its pool, for the ghosts; 0: none of
  // another pool's beside it.
  void Attach(EvictionQueue* queue, int64_t blocks);
  void Detach(EvictionQueue* queue);

  Status Verify() const;

 private:
  struct Owner {
    uint32_t generation = 0;
    bool open = false;
    bool demoted = false;
    uint8_t bin = 0;  // of idle time, which has been learnt up to its begin
    Outlook outlook = Outlook::kUnknown;
    Signs signs{};
    WorthCurve worth{};   // while idle
    int32_t present = 0;  // requests
    uint32_t visits = 0;  // that have ended
    int32_t gaps = 0;     // seen so far
    float usual_gap = 0;  // mean of the logarithms, recent ones counting more
    float last_gap = 0;   // seconds
    TimeNs since = 0;     // idle, or present
    TimeNs retained_until = 0;
    Rank rank;
  };

  Owner& at(OwnerId id) { return owners_[static_cast<size_t>(id.slot)]; }
  const Owner& at(OwnerId id) const { return owners_[static_cast<size_t>(id.slot)]; }
  // The owner if it is open.
  Owner* Find(OwnerId id) { return is_open(id) ? &at(id) : nullptr; }
  void Rerank(int slot);
  void Schedule(int slot);
  void Compare(int64_t by_worth, int64_t by_use);
  void Refresh();

  std::vector<Owner> owners_;
  std::vector<int32_t> free_slots_;
  IndexedHeap<TimeNs> due_;  // when an owner's bin or its retention ends
  ReturnModel model_;
  TimeNs now_ = 0;
  uint64_t stamp_ = 0;
  std::vector<EvictionQueue*> queues_;

  GhostCache worth_ghost_;
  GhostCache use_ghost_;
  double worth_hits_ = 0;  // blocks, recent requests counting more
  double use_hits_ = 0;
  bool by_worth_ = true;
  size_t stale_ = 0;  // slots below may still have the rank of the other order
};

}  // namespace tokenspeed::kv
