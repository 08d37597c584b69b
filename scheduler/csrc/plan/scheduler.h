// SPDX-License-Identifier: MIT
// The scheduler: requests in, plans out, results in, tokens out.
//
//   Submit / Abort     from frontends, at any time
//   BeginEpoch         a full set of workers is there; nothing runs before
//   Plan               the next step, at most `depth` ahead of Advance
//   Advance            the oldest step in flight is done on every rank
//   Transferred        a copy to or from the host tier has ended on every rank
//   EndEpoch           the workers are gone
//
// No sockets, clock, threads or randomness: the same events, their times included, give the same
// plans, bit for bit. A step costs O(rows + what changed), however long contexts and large pools
// are. Invariants (Verify checks all of them):
//   - running_ is in order of rank; a request there holds one slot, and its state the blocks;
//   - blocks are conserved, and held exactly by the tables of running requests and by transfers;
//   - a request whose loads are under way prefills; it samples nothing and seals nothing.
#pragma once

#include <deque>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kv/block_pool.h"
#include "plan/blocked_head.h"
#include "plan/boundary.h"
#include "plan/cadence.h"
#include "plan/counters.h"
#include "plan/decode_batch.h"
#include "plan/epoch_shape.h"
#include "plan/in_flight_step.h"
#include "plan/limits.h"
#include "plan/link_pace.h"
#include "plan/miss.h"
#include "plan/prefix_groups.h"
#include "plan/request.h"
#include "plan/row.h"
#include "plan/session.h"
#include "plan/slot.h"
#include "plan/step_plan.h"
#include "plan/token_event.h"
#include "plan/transfers.h"
#include "plan/worker_tables.h"

namespace tokenspeed::plan {

class Scheduler {
 public:
  // REQUIRES: limits.Validate().ok()
  explicit Scheduler(const Limits& limits);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  StatusOr<Rejection> Submit(Submission submission);
  // Unknown and finished requests are ignored. `kept` generated tokens count; -1 keeps all.
  void Abort(const RequestName& name, int64_t kept);
  // Aborts all requests of a frontend that is gone.
  void AbortClient(ClientId client);
  void AbortAll();
  // What a frontend knows about a session (SessionAction); one that is not known does nothing.
  // `ttl` 0: until the session's next request. kDemote and kPrefetch move what its last request
  // ended with between the tiers.
  void Hint(std::string_view salt, std::string_view session, int64_t action, TimeNs now,
            TimeNs ttl);
  // From now on every Submit is refused with kDraining.
  void Drain() { draining_ = true; }

  // REQUIRES: no epoch runs; epochs ascend; shape.Validate().ok()
  void BeginEpoch(Epoch epoch, const EpochShape& shape);
  // Requests with progress end with kWorkerLost; the others stay queued.
  void EndEpoch();
  bool in_epoch() const { return pool_ != nullptr; }

  // The next step, valid until the next call; null if there is nothing to do now.
  const StepPlan* Plan(TimeNs now);

  // The oldest step in flight is done. `tokens`: those of each sampling row, or why there is none;
  // `logprobs` beside them, or empty if no row asked; `counts`: the tokens of each row, or empty
  // for one each. An error (the workers broke the contract, the epoch must end) changes nothing.
  // `now`: when the step was done, on the clock of Plan; 0 if nobody knows.
  Status Advance(StepId step, std::span<const Token> tokens, std::span<const float> logprobs,
                 TimeNs now = 0, std::span<const int32_t> counts = {});

  // A transfer of the running epoch has ended on all ranks. False: nobody waits for this ticket.
  // `now`: as of Advance.
  bool Transferred(TicketId ticket, bool ok, TimeNs now = 0);
  // These tokens are about to be a prompt: loads what there is room for, and nobody waits.
  void Prefetch(std::span<const Token> tokens, const std::string& salt);
  // These tokens will not be a prompt soon: stores their blocks in the host tier.
  void Demote(std::span<const Token> tokens, const std::string& salt);

  // What happened since the last Clear.
  const std::vector<TokenEvent>& events() const { return events_; }
  const std::vector<LateRejection>& late_rejections() const { return late_rejections_; }
  // One for each request whose first token is among the events.
  const std::vector<MissReport>& reports() const { return reports_; }
  void ClearEvents();

  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size() + preempted_.size()); }
  int live() const { return static_cast<int>(requests_.size()); }
  int in_flight() const { return static_cast<int>(in_flight_.size()); }
  std::optional<TimeNs> oldest_planned() const;  // of the steps in flight
  // Whose row slot `id` had in a step in flight; nobody's if the request is not there any more.
  std::optional<RequestName> NameOf(SlotId id, StepId step) const;
  // In parents where the epoch has several groups: unbound ones are free, idle ones cached.
  kv::BlockCounts blocks() const;
  int sessions() const { return sessions_.size(); }
  // Cached blocks that a hint asks to keep.
  int retained_blocks() const { return pool_ ? pool_->retained() : 0; }
  kv::HostCounts host_blocks() const { return transfers_ ? transfers_->host() : kv::HostCounts{}; }
  const Counters& counters() const { return counters_; }
  const Limits& limits() const { return limits_; }
  kv::CacheLog& cache_log() { return cache_log_; }

  // Walks everything; the error names the first broken invariant.
  Status Verify() const;
  // Writes down what decides the future: equal texts, equal futures.
  void Describe(std::ostream& out) const;

 private:
  static constexpr int kWorn = 3;  // preemptions behind which a request is spared
  Slot& slot(SlotId id) { return slots_[static_cast<size_t>(id.value)]; }
  const kv::BlockTable& TableOf(SlotId id) const;
  // REQUIRES: the request runs.
  static Tables TablesOf(const Request& request);
  int BlocksFor(int tokens) const;
  // Blocks that the known history and the next token need.
  int BlocksNeeded(const Request& request) const;
  // `known` tokens of the prompt were valid before.
  StatusOr<Rejection> Validate(const Submission& submission, size_t known) const;
  std::optional<Rejection> NeverFits(int32_t limit) const;

  // Decoding.
  void PlanDecodes();
  void MakeRoomForDue();
  // Brings the state up to the plans and results that the batch kept to itself.
  void Settle(Request& request, fsm::Decoding& state);
  // From the next plan on the request has a row in every step.
  void JoinBatch(Request& request);
  void LeaveBatch(Request& request, fsm::Decoding& state);
  int BatchRows(const Request& request, const fsm::Decoding& state) const;

  // Decoding with drafts.
  // Finds the requests that get a row in this step, and a block for its token.
  void PlanLastTokens();
  // Their rows, with up to `budget` drafts.
  void PlanDrafts(int budget);
  // Tokens that the next row can bring: of the answer, and with the blocks that are there.
  int MostTokens(const Request& request, const fsm::Decoding& state) const;
  int Covered(const fsm::Decoding& state) const;
  bool GrowSpare(Request& request, fsm::Decoding& state);

  // Planning.
  void PlanChunk(Request& request, PrefillBudget& budget);
  void FindPrefix(Request& request);
  // Gives the request one more block, if need be a victim's. False: no block now.
  bool Grow(Request& request);
  void Displace(Request& request);
  void Withdraw(Request& request);  // off its slot; it runs again from what is known of it
  // How long a step with prefill may be, and what that leaves for prefill, of so many tokens.
  double Stretch(int decode_rows) const;
  PrefillBudget BudgetBeside(int decode_rows, int room, double stretch) const;

  // Admission and preemption.
  void Admit(TimeNs now, PrefillBudget& budget);
  bool PrefillsAt(int32_t priority) const;  // one of this level or a higher one is unfinished
  void StartChain(Request& request);        // before the first look for its blocks in the pool
  // The slot where the workers know its blocks, else the one that is free for the longest time.
  // REQUIRES: one is free.
  SlotId TakeSlot(const Request& request);
  // The first of the queue; a deadline that cannot be met any more no longer counts.
  Request& Head(TimeNs now);
  bool Fits(Request& head);
  int BlocksHeld(const Request& request) const;  // or parents, where there are several groups
  int Room() const;                              // that nobody who runs will need soon
  void Enter(Request& request, PrefillBudget& budget);  // from the queue a slot
  // The head does not fit: displaces guests if their blocks are what it lacks.
  bool ReclaimFromGuests();
  void PassHead(PrefillBudget& budget);         // ... or lets some pass it
  void PassLongPrefill(PrefillBudget& budget);  // ... some that are short, while it waits
  bool IsShort(Request& request, const PrefillBudget& budget);
  int LikelyHits(Request& request) const;  // leading blocks that the pool has, by some looks
  int RoomInTheEnd() const;                // when all who run have given their longest answers
  // Whoever costs least to compute again, behind `request` in rank; null: nobody can go.
  Request* VictimFor(const Request& request);
  int Recomputation(const Request& request) const;
  // REQUIRES of these three: the request runs.
  SlotId SlotOf(const Request& request) const;
  int ContextOf(const Request& request) const;
  bool HasChunk(const Request& request) const;  // in the plan that is being made
  kv::BlockPool::Presence PeekBlock(Request& request, int block) const;
  // The first block that is not sealed is full and its tokens are known.
  bool SealsNext(const Request& request, const kv::BlockTable& table, int context) const;
  void SealReady(Request& request, kv::BlockTable& table, int context, SlotId slot);
  void AnnounceSlot(const Request& request, SlotId id, const kv::BlockTable& table, int context);
  void AnnounceShaping(const Request& request);
  void AnnounceBlocks(SlotId id, const kv::BlockTable& table);
  void AddRow(Request& request, SlotId id, int begin, int length, uint8_t flags);
  // Writes the rows into the plan's columns.
  void WriteDecodes(InFlightStep& step);
  void WriteRows(const std::vector<Row>& rows, InFlightStep& step);

  // Block groups.
  bool grouped() const { return parents_ != nullptr; }
  void BeginGroups(const EpochShape& shape);
  kv::GroupTables MakeTables() const;
  kv::BlockPool& PoolOf(int group) const;
  int Retiring() const;
  // Parents for `tokens` tokens, without what is found of the first `from`; `chunk` of them are
  // computed at once.
  int Parents(int64_t tokens, int64_t from, int64_t chunk) const;
  int ParentsHeld(const Request& request) const;
  // Tokens for which all groups have room.
  int Reach(const kv::BlockTable& table, const kv::GroupTables& groups) const;
  // One more parent of the group, or of the one that reaches least. False: there is none now.
  bool Grant(Request& request, int group);
  bool GrantNext(Request& request);
  void GrowDue();
  // Key and tokens of the block from `begin` to `end`; a group's block that ends there.
  kv::ChainKey KeyOf(Request& request, int64_t begin, int64_t end) const;
  static std::span<const Token> Content(const Request& request, int64_t begin, int64_t end);
  std::optional<BlockId> LookUp(Request& request, int group, int64_t end) const;
  // ... is on the device or, with `host`, in the host tier.
  bool Stands(Request& request, int group, int64_t end, bool host) const;
  Boundary FindBoundary(Request& request, bool host) const;
  Boundary ChooseBoundary(Request& request);
  bool LoadsPay(Request& request, const Boundary& here, const Boundary& there);
  bool ResumesStates(Request& request, int64_t end, bool host) const;
  // The first token of a block that a window lacks at `end`; -1: it lacks none.
  int64_t MissingInWindows(Request& request, int64_t end, bool host) const;
  // The first block that the group needs to resume at `end`.
  int64_t FirstNeeded(int group, int64_t end) const;
  // Calls visit(group, end) for each block that is needed, in order; `end` is the block's.
  template <class Visit>
  void ForEachNeeded(int64_t boundary, Visit visit) const;
  // Parents that taking the device's blocks makes busy, at most; ... and loading the others.
  int IdleParents(Request& request, const Boundary& found) const;
  int ParentsFor(Request& request, const Boundary& found) const;
  bool FitsGroups(Request& head);
  // Nothing can run and nothing is on its way: the first request starts over without the blocks
  // that it found, so that it fills its parents whole. False: that is not so.
  bool StartAlone();
  void FindResumable(Request& request);
  // Its blocks in order: those of the device, and those that loads write, for which `room` is made;
  // what is left of the parents stays there.
  std::vector<NeededBlock> TakeBoundary(Request& request, const Boundary& found, LoadRoom& room,
                                        const std::optional<Transfers::Waiter>& waiter);
  void Resume(Request& request, fsm::Prefilling& state, const Boundary& found);
  void ClaimGroups(Request& request, kv::GroupTables& groups);
  // Stores what the groups from `first_group` on need at the boundary.
  void WantBoundary(Request& request, int64_t boundary, int first_group);
  // A request leaves its slot with `context` tokens in these tables.
  void OfferGroups(Request& request, const kv::GroupTables& groups, int context);
  void PrefetchGroups(std::span<const Token> tokens, const std::string& salt);
  void DemoteGroups(std::span<const Token> tokens, const std::string& salt);
  bool WantsSnapshot(const Request& request, const kv::StateTable& table, int context) const;
  // A chunk from `begin` shortened so that it ends where a snapshot is wanted.
  int UpToSnapshot(const Request& request, const kv::GroupTables& groups, int begin,
                   int length) const;
  int RowsToSnapshot(const kv::GroupTables& groups, int context) const;
  // Before rows are planned from `context` on: lets go of what earlier plans needed.
  void Touch(Request& request, kv::GroupTables& groups, int context);
  void SealGroups(Request& request, kv::GroupTables& groups, int context);
  void ClaimFor(const Request& request, int group, BlockId block);
  // `sound`: it waits for no load.
  void LeaveGroups(Request& request, kv::GroupTables& groups, int context, bool sound);
  void PrepareSnapshots(Request& request, kv::GroupTables& groups, int context);
  void PlanCopies(kv::GroupTables& groups, SlotId id, int context);
  void KeepGroups(SlotId id, kv::GroupTables& groups);
  void AnnounceGroups(SlotId id, kv::GroupTables& groups);
  void ForgetGroups(Request& request, kv::GroupTables& groups);
  Status VerifyGroups() const;
  // `settled`: the tokens that the request's state knows of.
  Status VerifyTables(const Request& request, int settled) const;

  // Conversations.
  void Passed(TimeNs now);
  void Enter(Request& request, Session& session);
  void Recognise(Request& request, const kv::BlockTable& table);
  void ClaimHits(Request& request, const kv::BlockTable& table);
  void Depart(Request& request);
  // Transfers.
  std::optional<kv::SealedBlock> ExpectBlock(Request& request, SlotId id, const kv::ChainKey& key,
                                             std::span<const Token> content);
  // Whether a block behind `context` comes sooner from the host tier than by computing it.
  bool LoadPays(int context);
  void AnnounceLoads(const Request& request, SlotId id);
  void OfferStores(const kv::BlockTable& table);
  void ForgetStored(const kv::BlockTable& table);
  void GiveUpTransfers(TimeNs now);
  void TransferEnded(const Transfers::Ended& ended);
  void LoadFailed(Request& request);

  // Results and ends.
  template <class Matches>
  void AbortIf(Matches matches);
  Status ValidateResult(StepId step, std::span<const Token> tokens, std::span<const float> logprobs,
                        std::span<const int32_t> counts) const;
  void RowsArrived(const InFlightStep& done, std::span<const Token> tokens, const float* logprobs);
  void RunArrived(Request& request, std::span<const Token> tokens, const float* logprobs,
                  int width);
  void Arrived(Request& request, Token token, const float* logprob);
  // A token of a request that has not ended, and its event; the reason if it is the last.
  fsm::FinishReason Deliver(Request& request, Token token, const float* logprob);
  // Nobody shall read what this request has written.
  void ForgetWritten(Request& request, fsm::Decoding& state);
  // Queues a preempted request whose tokens are all in.
  void ReturnIfWhole(Request& request);
  // Ends a request with an event of its own.
  void End(Request& request, fsm::FinishReason reason);
  // Takes a request that has ended out of everything.
  void Remove(Request& request, fsm::FinishReason reason);
  void LeaveSlot(Request& request);
  // Which blocks the request had, for when it, or its session, comes back.
  void LeaveTrail(Request& request);
  // Its table stays whole for its session's next request.
  uint64_t LayToRest(Request& request);
  void Requeue(Request& request);
  // Whose row it was that slot `id` had in `step`; null if nobody's is in flight.
  Request* FindTenant(SlotId id, StepId step) const;
  Request& TenantOf(SlotId id, StepId step) const;
  // A row of a request that has ended is back.
  void ThrowAway(Request& request);
  void RetireRow(Request& request);
  void SettleEnding(Request& request);
  TokenEvent& AddEvent(const Request& request);
  void Explain(const Request& request);

  Status VerifyDecoding(const Request& request, const fsm::Decoding& state, int context) const;
  Status VerifyLists() const;
  Status VerifyOverlap() const;
  void DescribeRequest(std::ostream& out, const Request& request) const;

  const Limits limits_;
  bool draining_ = false;
  Epoch epoch_;
  StepId last_step_;
  Arrival last_arrival_;
  TimeNs now_ = 0;  // the latest time that an event told
  kv::Retention retention_;
  kv::CacheLog cache_log_;  // of the first group: the other ones tell no more of a prefix
  SessionTable sessions_;
  std::unique_ptr<kv::ParentPool> parents_;  // null where all memory is the first group's
  std::unique_ptr<kv::BlockPool> pool_;      // null between epochs; outlives the requests' blocks
  std::vector<std::unique_ptr<kv::BlockPool>> other_pools_;  // of the groups behind the first
  std::vector<kv::GroupSpec> specs_;                         // of all groups, if grouped
  int64_t stride_ = 0;                                       // boundaries are multiples of it
  std::unique_ptr<Transfers> transfers_;                     // null without a host tier
  std::unordered_map<RequestName, std::unique_ptr<Request>, RequestNameHash> requests_;
  std::map<Rank, Request*> waiting_;
  std::vector<Request*> running_;
  std::vector<Request*> prefilling_;  // of running_, in its order
  DecodeBatch batch_;                 // of running_, those that get a token in each step
  int batch_logprobs_ = 0;            // requests of the batch that want logprobs
  int max_drafts_ = 0;                // of the epoch; if any, the batch is empty
  std::vector<SlotId> stalled_;       // decoding, wait for a block
  std::vector<Request*> preempted_;
  std::vector<std::unique_ptr<Request>> ending_;  // over for their clients; rows are in flight

  std::unique_ptr<PrefixGroups> groups_;
  std::vector<Slot> slots_;
  std::vector<SlotId> free_slots_;  // free for the longest time first
  WorkerTables worker_tables_;
  std::vector<int32_t> removed_slots_;  // for the next plan
  std::deque<InFlightStep> in_flight_;
  std::vector<InFlightStep> spare_steps_;  // their memory

  uint64_t openings_ = 0;  // grows with whatever could help; so does BlockPool::releases
  BlockedHead blocked_;
  int guests_ = 0;  // of running_
  Cadence cadence_;
  LinkPace link_pace_;
  TimeNs last_done_ = 0;

  StepPlan plan_;
  std::vector<SlotId> due_;        // rows of the batch to look at in this step
  std::vector<Request*> sealing_;  // of those due: a block is full
  std::vector<SlotId> grown_;      // decoding slots that got a block in this step
  std::vector<Request*> drafting_;
  std::vector<Row> short_rows_;  // of one token: they stand before the longer ones
  std::vector<Row> long_rows_;
  std::vector<TokenEvent> events_;
  std::vector<LateRejection> late_rejections_;
  PromptHistory history_;
  std::vector<MissReport> reports_;
  Counters counters_;
};

}  // namespace tokenspeed::plan
