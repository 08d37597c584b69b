// SPDX-License-Identifier: MIT
// The copies between the device pools of the block groups and the host tier of one epoch.
//
//   Want          this block shall be stored when a step has room for it
//   Load          a device block for a host block, for a request that waits for it
//   Begin, Write  which copies the next plan starts
//   End           a ticket came back: its blocks are let go
//   GiveUp        tickets that take too long; their blocks stay held until they come back
//
// A ticket is a batch of blocks, of any groups, with one fate. A store reads a block whose writing
// step has retired. A loaded block is read by rows that wait for its ticket, and found when the
// ticket is done. Costs O(blocks moved), nothing where there is nothing to move.
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
  // `pools` by group; `num_parents` is their memory, `host_parents` that of the host tier.
  // `patience`: how long a copy may take; 0 is for ever.
  // REQUIRES: the pools are findable and outlive this; host_parents >= 1.
  Transfers(std::span<kv::BlockPool* const> pools, int num_parents, int host_parents,
            TimeNs patience);
  // The workers are gone: every copy has failed.
  ~Transfers();

  // In parents where there are several groups: all that are bound count as resident.
  kv::HostCounts host() const;
  // Device blocks that come back with a ticket that is not overdue.
  int due() const { return due_; }
  // Tickets that the workers have not reported.
  int open() const { return tickets_.open(); }

  // Whether the host tier has this block, or will have it.
  bool Has(int group, const Hash128& hash) const { return tier(group).host.Has(hash); }
  // Whether it could be loaded.
  bool Holds(int group, const kv::ChainKey& key, std::span<const Token> tokens) const {
    return tier(group).host.Lookup(key, tokens).has_value();
  }
  // The conversation that ends with this block was used just now.
  void Touch(int group, const Hash128& hash) { tier(group).host.Touch(hash); }
  // Nobody shall find the host's copy.
  void Forget(int group, const Hash128& hash) { tier(group).host.Forget(hash); }
  // Stores the block soon, unless it has left the device by then.
  void Want(int group, const kv::SealedBlock& block);

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
  using Room = std::function<std::optional<kv::OpenBlock>()>;
  // The device block that a load writes with this content: one under way, else one that `room`
  // gives. Nothing if the host tier does not have the content or there is no room.
  std::optional<Expected> Load(int group, const kv::ChainKey& key, std::span<const Token> tokens,
                               const std::optional<Waiter>& waiter, const Room& room);
  // What a block of the group weighs: as many as one block of the group whose blocks are smallest.
  int Weight(int group) const { return most_share_ / tier(group).pool.share(); }

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
    int weight = 0;               // of the blocks together
    StepId step;                  // that started a load ...
    TimeNs begun = 0;             // ... and when that was planned
    std::vector<Waiter> waiters;  // of a load
  };
  // The workers report the ticket. Nothing if it is unknown, or was given up: then its blocks are
  // let go and whoever waited knows already.
  std::optional<Ended> End(TicketId ticket, bool ok);
  // The copies that are overdue at `now`, as failed ones.
  std::vector<Ended> GiveUp(TimeNs now);

  // Calls visit(group, block) for each handle of a device block that a copy holds.
  void ForEachHeld(const std::function<void(int, BlockId)>& visit) const;
  // Whether a load with this ticket, not given up, is under way.
  bool Loads(TicketId ticket) const;
  Status Verify() const;
  // Of the copies under way, in order of their tickets: what from where to where, and who waits;
  // and the host's blocks. Not when a copy is overdue.
  void Describe(std::ostream& out) const;

 private:
  struct Storing {
    int group;
    kv::TransferringBlock source;
    kv::OpenHostBlock target;
  };
  struct StoreBatch {
    std::vector<Storing> blocks;
    bool given_up = false;
  };
  struct Loading {
    int group;
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
  struct Tier {  // of a group
    Tier(kv::BlockPool& device, kv::HostParents& parents);

    kv::BlockPool& pool;
    kv::HostPool host;
    std::vector<Hash128> wanted_hash;  // by device block
    std::vector<bool> is_wanted;       // by device block
    std::vector<Place> places;         // by host block
  };
  struct Wanted {
    int group;
    BlockId block;
  };
  struct Deadline {
    TimeNs time;
    TicketId ticket;
  };

  Tier& tier(int group) { return tiers_[static_cast<size_t>(group)]; }
  const Tier& tier(int group) const { return tiers_[static_cast<size_t>(group)]; }
  Place& place(int group, HostBlockId id) {
    return tier(group).places[static_cast<size_t>(id.value)];
  }
  TicketId Issue();
  void Choose();
  static void Finish(StoreBatch& store, const kv::Completion& completion);
  static void Finish(LoadBatch& load, const kv::Completion& completion);
  Ended Fate(TicketId ticket, const auto& batch) const;
  // Nobody waits for the copy any more, or finds what it reads.
  Ended GiveUp(TicketId ticket, StoreBatch& store);
  Ended GiveUp(TicketId ticket, LoadBatch& load);

  kv::HostParents host_;
  std::deque<Tier> tiers_;  // by group
  int most_share_ = 1;
  const TimeNs patience_;
  int most_ = 1;  // blocks that a step may start to store
  TimeNs now_ = 0;
  kv::Tickets tickets_;
  TicketId run_;  // the ticket that the next new load may join; 0: none

  std::deque<Wanted> wanted_;              // in order; the tier's wanted_hash says which content
  std::map<TicketId, StoreBatch> stores_;  // under way
  std::map<TicketId, LoadBatch> loads_;    // under way
  std::vector<TicketId> starting_;         // in the next plan
  std::deque<Deadline> deadlines_;
  int stores_due_ = 0;  // stores that were not given up
  int due_ = 0;
};

}  // namespace tokenspeed::plan
