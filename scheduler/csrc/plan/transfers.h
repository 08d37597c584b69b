// SPDX-License-Identifier: MIT
// The copies between the device pool and the host tier of one epoch.
//
//   Want          this block shall be stored when a step has room for it
//   Load          a device block for a host block, for a request that waits for it
//   Begin, Write  which copies the next plan starts
//   End           a ticket came back: its blocks are let go
//   GiveUp        tickets that take too long; their blocks stay held until they come back
//
// A ticket is a batch of blocks with one fate. A store reads a block whose writing step has
// retired. A loaded block is read by rows that wait for its ticket, and found when the ticket is
// done. Costs O(blocks moved), nothing where there is nothing to move.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <ostream>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kv/block_pool.h"
#include "kv/host_pool.h"
#include "kv/tickets.h"
#include "plan/step_plan.h"

namespace tokenspeed::plan {

class Transfers {
 public:
  // `patience`: how long a copy may take; 0 is for ever.
  // REQUIRES: `pool` is findable and outlives this; host_blocks >= 1.
  Transfers(kv::BlockPool& pool, int num_blocks, int host_blocks, TimeNs patience);
  // The workers are gone: every copy has failed.
  ~Transfers();

  const kv::HostCounts& host() const { return host_.counts(); }
  // Device blocks that come back with a ticket that is not overdue.
  int due() const { return due_; }

  // Whether the host tier has this block, or will have it.
  bool Has(const Hash128& hash) const { return host_.Has(hash); }
  // The conversation that ends with this block was used just now.
  void Touch(const Hash128& hash) { host_.Touch(hash); }
  // Nobody shall find the host's copy.
  void Forget(const Hash128& hash) { host_.Forget(hash); }
  // Stores the block soon, unless it has left the device by then.
  void Want(const kv::SealedBlock& block);

  // A request that waits for a load.
  struct Waiter {
    SlotId slot;
    Arrival arrival;
    friend bool operator==(const Waiter&, const Waiter&) = default;
  };
  struct Expected {
    kv::SealedBlock block;  // written when the ticket is done
    TicketId ticket;
  };
  // Loads that are asked for from here on share no ticket with earlier ones.
  void BeginRun() { run_ = TicketId{}; }
  // The device block that a load writes with this content: one under way, else a new one.
  // Nothing if the host tier does not have the content or the device has no block for it.
  std::optional<Expected> Load(const kv::ChainKey& key, std::span<const Token> tokens,
                               const std::optional<Waiter>& waiter);

  // A step is being planned: chooses what it stores.
  void Begin(TimeNs now);
  // Whether there is a copy to start.
  bool ready() const { return !starting_.empty(); }
  // Writes the copies that `step` starts.
  // REQUIRES: Begin was called for this plan.
  void Write(StepPlan& plan, StepId step);

  // What became of a ticket.
  struct Ended {
    TicketId ticket;
    bool load = false;
    bool ok = false;
    int blocks = 0;
    StepId step;                  // that started a load ...
    TimeNs begun = 0;             // ... and when that was planned
    std::vector<Waiter> waiters;  // of a load
  };
  // The workers report the ticket. Nothing if it is unknown, or was given up: then its blocks are
  // let go and whoever waited knows already.
  std::optional<Ended> End(TicketId ticket, bool ok);
  // The copies that are overdue at `now`, as failed ones.
  std::vector<Ended> GiveUp(TimeNs now);

  // Calls visit(block) for each handle of a device block that a copy holds.
  void ForEachHeld(const std::function<void(BlockId)>& visit) const;
  // Whether a load with this ticket, not given up, is under way.
  bool Loads(TicketId ticket) const;
  Status Verify() const;
  // Of the copies under way, in order of their tickets: what from where to where, and who waits.
  void Describe(std::ostream& out) const;

 private:
  struct Storing {
    kv::TransferringBlock source;
    kv::OpenHostBlock target;
  };
  struct StoreBatch {
    std::vector<Storing> blocks;
    bool given_up = false;
  };
  struct Loading {
    kv::HostBlock source;
    kv::SealedBlock block;  // for who waits for the load, too
    kv::TransferringBlock target;
  };
  struct LoadBatch {
    std::vector<Loading> blocks;
    std::vector<Waiter> waiters;
    StepId step;
    TimeNs begun = 0;
    bool given_up = false;
  };
  struct Place {  // of a host block, while a load reads it
    TicketId ticket;
    int index = 0;
  };
  struct Deadline {
    TimeNs time;
    TicketId ticket;
  };

  Place& place(HostBlockId id) { return places_[static_cast<size_t>(id.value)]; }
  TicketId Issue();
  void Choose();
  static void Finish(StoreBatch& store, const kv::Completion& completion);
  static void Finish(LoadBatch& load, const kv::Completion& completion);
  // Nobody waits for the copy any more, or finds what it reads.
  Ended GiveUp(TicketId ticket, StoreBatch& store);
  Ended GiveUp(TicketId ticket, LoadBatch& load);

  kv::BlockPool& pool_;
  kv::HostPool host_;
  const TimeNs patience_;
  const int most_;  // blocks that a step may start to store
  TimeNs now_ = 0;
  kv::Tickets tickets_;
  TicketId run_;  // the ticket that the next new load may join; 0: none

  std::deque<BlockId> wanted_;             // in order; wanted_hash_ says which content
  std::vector<Hash128> wanted_hash_;       // by device block
  std::vector<bool> is_wanted_;            // by device block
  std::map<TicketId, StoreBatch> stores_;  // under way
  std::map<TicketId, LoadBatch> loads_;    // under way
  std::vector<Place> places_;              // by host block
  std::vector<TicketId> starting_;         // in the next plan
  std::deque<Deadline> deadlines_;
  int stores_due_ = 0;  // stores that were not given up
  int due_ = 0;
};

}  // namespace tokenspeed::plan
