// SPDX-License-Identifier: MIT
// One life of a core under random events: a model worker reads every token from its blocks, and
// what each request must produce is computed apart from the core. `Take` checks after every event;
// the first thing that is wrong is `failure()`.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "isolated.h"
#include "model_worker.h"
#include "plan/step_quorum.h"
#include "plan/ticket_quorum.h"
#include "record/recorded_scheduler.h"
#include "wire/codec.h"

namespace tokenspeed {

enum Kind : uint8_t {
  kSubmit,
  kAbort,
  kAbortClient,
  kPlan,
  kReport,     // the next report of a rank arrives
  kRepeat,     // an old report arrives again: of this epoch or of one that is over
  kBadResult,  // a result that no worker sent
  kNumeric,    // logits of the next sampled row are not finite
  kEpoch,      // the workers die and new ones come
  kDrain,
  kHint,         // a frontend tells what it knows about a session, and time passes
  kTransfer,     // a copy to or from the host tier ends
  kBadTransfer,  // a ticket that is not out ends
  kPrefetch,     // or demote
  kKinds
};
inline constexpr std::array<const char*, kKinds> kNames = {
    "submit",  "abort", "abort client", "plan", "report",   "repeat",       "bad result",
    "numeric", "epoch", "drain",        "hint", "transfer", "bad transfer", "prefetch"};

struct Event {
  Kind kind;
  std::array<uint32_t, 3> dice;
};

class Trial {
 public:
  // Limits, shapes and ranks are a function of the seed; a path records what happens.
  explicit Trial(uint64_t seed, const std::string& box_path = {})
      : random_(seed),
        limits_(MakeLimits()),
        ranks_(1 + static_cast<int>(random_.Below(3))),
        core_(limits_, OpenBox(box_path)),
        quorum_(ranks_),
        tickets_(ranks_),
        families_(random_.Below(2) == 0 ? 2 : 7) {
    BeginEpoch(static_cast<uint32_t>(random_.Next()));
  }

  const std::string& failure() const { return failure_; }
  // It loaded from the host tier beside drafts and several block groups.
  bool mixed() const { return mixed_; }

  // False if something was wrong, now or before.
  bool Take(const Event& event) {
    now_ += static_cast<TimeNs>(event.dice[2] % 1000) * 1000;
    Dispatch(event);
    return Check();
  }

  // Input stops: whatever lives must end within the bound, and leave nothing behind.
  bool Finish() {
    // A step moves its first request forward by a token at least, so that each request needs at
    // most twice its length: once computed, once more after it was displaced.
    const int64_t bound = scheduler_.counters().steps + limits_.depth +
                          int64_t{2} * scheduler_.live() * limits_.max_model_len;
    while (scheduler_.live() > 0) {
      while (Plan()) {
        if (!Check()) return false;
      }
      const bool heard = DeliverAll();
      if (!Transfer(0, true) && !heard) return Fail("live requests and nothing in flight");
      if (!Check()) return false;
      if (scheduler_.counters().steps > bound + host_blocks_) return Fail("requests are stuck");
    }
    // What is stored on the way out comes to its end, too.
    while (DeliverAll() || Transfer(0, true) || Plan()) {
      if (!Check()) return false;
    }
    const kv::BlockCounts blocks = scheduler_.blocks();
    if (blocks.free + blocks.cached != blocks.total) return Fail("blocks are missing at rest");
    if (!asked_.empty()) return Fail("a request never ended");
    return Check();
  }

 private:
  // What a rank says of a step.
  struct Report {
    int rank;
    bool is_result;  // else an ack
    Epoch epoch;
    StepId step;
    Hash128 digest;
    Hash128 token_hash;
    std::vector<Token> tokens;
    std::vector<int32_t> counts;
  };
  struct Running {
    StepId step;
    BlockSet touched;
  };
  struct Named {  // a prompt that later ones may name
    uint64_t id = 0;
    std::vector<Token> tokens;
  };
  struct Asked {
    uint64_t hash = 0;
    int left = 0;
    Token stop = -1;
  };

  plan::Limits MakeLimits() {
    plan::Limits limits;
    // A replay does not know the key: no plan may depend on it.
    for (std::byte& byte : limits.hash_key.bytes) byte = static_cast<std::byte>(random_.Next());
    limits.max_slots = static_cast<int32_t>(1 + random_.Below(6));
    limits.max_step_tokens = limits.max_slots + static_cast<int32_t>(random_.Below(20));
    limits.max_model_len = 48;
    limits.max_waiting = static_cast<int32_t>(1 + random_.Below(10));
    limits.vocab_size = static_cast<int32_t>(2 + random_.Below(20));
    limits.depth = static_cast<int32_t>(1 + random_.Below(3));
    limits.max_prefill_tokens = random_.Below(2) ? static_cast<int32_t>(random_.Below(9)) : 0;
    limits.ageing = static_cast<TimeNs>(1000 + random_.Below(5'000'000));
    limits.prefix_caching = random_.Below(5) != 0;
    limits.evict_by_reuse = random_.Below(4) != 0;
    limits.transfer_ms = random_.Below(2) ? 10 : 0;
    return limits;
  }

  std::unique_ptr<record::BlackBox> OpenBox(const std::string& path) {
    if (path.empty()) return nullptr;
    auto box = record::BlackBox::Create(path, int64_t{1} << 20, limits_);
    if (!box.ok()) Fail(box.error().message);
    return box.ok() ? std::move(box).value() : nullptr;
  }

  // Half of the epochs have several groups, or parents of several blocks.
  static plan::EpochShape MakeShape(uint32_t dice) {
    plan::EpochShape shape;
    shape.block_size = 1 + static_cast<int>(dice % 5);
    shape.host_blocks = dice / 512 % 3 == 0 ? 0 : 1 + static_cast<int>(dice / 2048 % 60);
    // Half of the pools in front of a host tier are small, so that there is something to load.
    const uint32_t most = shape.host_blocks > 0 && dice / 1024 % 2 == 0 ? 8 : 40;
    shape.num_blocks = 8 + static_cast<int>(dice / 8 % most);
    constexpr std::array<int32_t, 6> kDrafts = {0, 0, 0, 0, 1, 4};
    shape.max_drafts = kDrafts[dice / 131072 % 6];
    Random random(dice);
    // By chance drafts, a host tier and several groups seldom meet: here they do.
    const bool mixed = random.Below(8) == 0;
    if (mixed) {
      shape.max_drafts = 1 + static_cast<int>(random.Below(4));
      shape.host_blocks = std::max(shape.host_blocks, 20);
      shape.num_blocks = 8 + static_cast<int>(random.Below(16));
    } else if (random.Below(2) == 0) {
      return shape;
    }
    const auto share = [&] { return 1 + static_cast<int>(random.Below(3)); };
    shape.groups.push_back({.tokens = shape.block_size, .share = share()});
    for (auto more = mixed ? 1 + random.Below(2) : random.Below(3); more > 0; --more) {
      const auto kind = static_cast<kv::GroupKind>(random.Below(mixed ? 2 : 3));  // no state
      kv::GroupSpec spec{.kind = kind, .tokens = shape.block_size, .share = share()};
      if (kind != kv::GroupKind::kState) spec.tokens *= 1 + static_cast<int>(random.Below(2));
      if (kind != kv::GroupKind::kFull) spec.span = spec.tokens * share();
      if (kind == kv::GroupKind::kState) shape.max_drafts = 0;
      shape.groups.push_back(spec);
    }
    return shape;
  }

  void BeginEpoch(uint32_t dice) {
    epoch_ = Epoch{epoch_.value + 1};
    const plan::EpochShape shape = MakeShape(dice);
    host_blocks_ = shape.host_blocks;
    if (!shape.groups.empty()) {
      host_blocks_ = 0;
      for (const kv::GroupSpec& spec : shape.groups) host_blocks_ += shape.host_blocks * spec.share;
    }
    mixes_ = shape.max_drafts > 0 && shape.groups.size() > 1;
    worker_ = std::make_unique<ModelWorker>(shape, limits_.vocab_size);
    running_.clear();
    reports_.assign(static_cast<size_t>(ranks_), {});
    digest_ = wire::FirstDigest(epoch_);
    quorum_.Reset(epoch_);
    tickets_.Reset(epoch_);
    Core().BeginEpoch(epoch_, shape);
  }

  void Dispatch(const Event& event) {
    const auto [a, b, c] = event.dice;
    switch (event.kind) {
      case kSubmit:
        return Submit(a, b, c);
      case kAbort:
        return Core().Abort({ClientId{1 + a % 3}, b % (1 + submitted_)},
                                static_cast<int64_t>(c % 5) - 1);
      case kAbortClient:
        return Core().AbortClient(ClientId{1 + a % 3});
      case kPlan:
        Plan();
        return;
      case kReport:
        Deliver(a);
        return;
      case kRepeat:
        return Repeat(a);
      case kBadResult:
        return BadResult(a, b, c);
      case kNumeric:
        poisoned_row_ = a % 4;
        return;
      case kEpoch:
        Core().EndEpoch();
        return BeginEpoch(a);
      case kDrain:
        drained_ = true;
        return Core().Drain();
      case kHint:
        now_ += static_cast<TimeNs>(b % 100) * 1'000'000'000;
        // Actions 0 and 8 are unknown ones.
        return Core().Hint(a % 5 == 0 ? "salt" : "", SessionName(c), a / 8 % 9, now_,
                               static_cast<TimeNs>(b % 3) * 20'000'000'000);
      case kTransfer:
        Transfer(a, b % 8 != 0);
        return;
      case kBadTransfer:
        return BadTransfer(a, b, c);
      case kPrefetch:
        if (a % 4 == 0) return Core().Demote(Prompt(b, c), "");
        return Core().Prefetch(Prompt(b, c), "");
      case kKinds:
        return;
    }
  }

  static std::string SessionName(uint32_t dice) {
    return dice % 3 == 0 ? "" : "session" + std::to_string(dice % 5);
  }

  // Few families of prompts, so that prefixes are shared at every depth.
  std::vector<Token> Prompt(uint32_t b, uint32_t c) const {
    std::vector<Token> prompt;
    const size_t length = 1 + b / 16 % 40;
    const auto vocab = static_cast<uint32_t>(limits_.vocab_size);
    for (size_t i = 0; i < length; ++i) {
      const uint32_t family = i < 6 ? c % 2 : c % families_;
      prompt.push_back(static_cast<Token>((family * 31 + i * i) % vocab));
    }
    return prompt;
  }

  // What a frontend that kept some prompts would say of this one.
  plan::PromptOrigin Origin(std::span<const Token> prompt, uint32_t dice) {
    if (dice % 4 == 0) return {};
    Named& earlier = named_[dice / 4 % named_.size()];
    const auto parting = std::ranges::mismatch(prompt, earlier.tokens);
    const auto same = static_cast<uint32_t>(parting.in1 - prompt.begin());
    plan::PromptOrigin origin{.id = ++last_named_, .extends = earlier.id};
    origin.shared = static_cast<int32_t>(dice % 8 == 1 ? dice / 32 % (same + 1) : same);
    Named& place = dice / 16 % 2 == 0 ? earlier : named_[dice / 64 % named_.size()];
    place = {origin.id, {prompt.begin(), prompt.end()}};
    return origin;
  }

  void Submit(uint32_t a, uint32_t b, uint32_t c) {
    plan::Submission submission;
    submission.name = {ClientId{1 + a % 3}, submitted_++};
    const bool again = b % 16 == 0 && !asked_.empty();
    if (again) submission.name = asked_.begin()->first;  // an id that is in use
    submission.time = now_;
    submission.priority = b % 3 == 0 ? static_cast<int64_t>(b / 3 % 5) - 2 : 0;
    if (c % 4 == 0) submission.deadline = now_ + 1 + static_cast<TimeNs>(a % 64) * 10'000;
    submission.prompt = Prompt(b, c);
    submission.origin = Origin(submission.prompt, a / 8);
    const size_t length = submission.prompt.size();
    const auto vocab = static_cast<uint32_t>(limits_.vocab_size);
    submission.max_tokens = 1 + a / 8 % 24;
    // The worker refuses to read what a request of another seed wrote.
    submission.sampling.seed = a % 5 == 0;
    if (a % 5 == 0) submission.salt = "salt";
    submission.session = SessionName(c);
    submission.retain = static_cast<TimeNs>(b / 64 % 3) * 10'000'000'000;
    Asked asked;
    asked.left = static_cast<int>(std::min<int64_t>(
        submission.max_tokens, limits_.max_model_len - static_cast<int64_t>(length)));
    if (c % 3 == 0) {
      asked.stop = static_cast<Token>(c % vocab);
      submission.stop_ids = {asked.stop};
    }
    for (const Token token : submission.prompt) asked.hash = Fold(asked.hash, token);
    const RequestName name = submission.name;
    if (!Core().Submit(std::move(submission)).ok()) return;
    if (again) Fail("an id that is in use is taken");
    if (drained_) Fail("a request is taken while draining");
    asked_.emplace(name, asked);
  }

  bool Plan() {
    const plan::StepPlan* plan = Core().Plan(now_);
    if (plan == nullptr) return false;
    mixed_ = mixed_ || (mixes_ && !plan->load_tickets.empty());
    wire::EncodePlan(*plan, frame_);
    digest_ = wire::NextDigest(digest_, wire::AsBytes(frame_));
    Core().Planned(digest_);
    quorum_.Planned(plan->step, digest_);
    tickets_.Planned(*plan);
    Report report{.rank = 0,
                  .is_result = true,
                  .epoch = epoch_,
                  .step = plan->step,
                  .digest = digest_,
                  .token_hash = {},
                  .tokens = worker_->Apply(*plan),
                  .counts = worker_->counts()};
    if (poisoned_row_ && *poisoned_row_ < report.tokens.size()) {
      report.tokens[*poisoned_row_] = -1;
      poisoned_row_.reset();
      ++numeric_;
    }
    for (const Running& earlier : running_) {
      for (const int32_t block : worker_->begun().members()) {
        if (earlier.touched.Contains(block)) Fail("a block is reused before its step has retired");
      }
    }
    running_.push_back({plan->step, worker_->touched()});
    report.token_hash = SipHash128(digest_, std::as_bytes(std::span(report.tokens)));
    reports_[0].push_back(report);
    report.is_result = false;
    report.tokens.clear();
    report.counts.clear();
    for (report.rank = 0; report.rank < ranks_; ++report.rank) {
      reports_[static_cast<size_t>(report.rank)].push_back(report);
    }
    return true;
  }

  // The next report of a rank, if there is one.
  bool Deliver(uint32_t rank) {
    auto& queue = reports_[rank % reports_.size()];
    if (queue.empty()) return false;
    heard_.push_back(std::move(queue.front()));
    queue.pop_front();
    if (Hear(heard_.back()) != plan::StepQuorum::Verdict::kTaken) Fail("a true report is ignored");
    if (heard_.size() > 20) heard_.pop_front();
    auto complete = quorum_.Pop();
    if (!complete.ok()) {
      Fail("ranks that agree are said to differ");
    } else if (complete.value()) {
      const plan::CompleteStep& step = *complete.value();
      running_.pop_front();
      if (!Core().Advance(step.step, step.tokens, {}, now_, step.counts).ok())
        Fail("a true result is refused");
    }
    return true;
  }

  bool DeliverAll() {
    bool any = false;
    for (uint32_t rank = 0; rank < reports_.size(); ++rank) {
      while (Deliver(rank)) any = true;
    }
    return any;
  }

  plan::StepQuorum::Verdict Hear(const Report& report) {
    if (report.is_result) {
      return quorum_.Result(report.epoch, report.step, report.digest, report.tokens, {},
                            report.counts);
    }
    return quorum_.Ack(report.rank, report.epoch, report.step, report.digest, report.token_hash);
  }

  void Repeat(uint32_t which) {
    if (heard_.empty()) return;
    if (Hear(heard_[which % heard_.size()]) != plan::StepQuorum::Verdict::kIgnored) {
      Fail("a report counts twice");
    }
  }

  // Ends one of the copies under way, also one that the core gave up; each rank reports it, twice.
  bool Transfer(uint32_t which, bool ok) {
    using Verdict = plan::TicketQuorum::Verdict;
    const std::vector<int32_t> tickets = worker_->tickets();
    if (tickets.empty()) return false;
    const int32_t ticket = tickets[which % tickets.size()];
    worker_->End(ticket, ok);
    for (int rank = 0; rank < ranks_; ++rank) {
      const bool last = rank + 1 == ranks_;
      const Verdict end = ok ? Verdict::kDone : Verdict::kFailed;
      const bool said = ok || static_cast<uint32_t>(rank) != which % static_cast<uint32_t>(ranks_);
      if (tickets_.Report(rank, epoch_, ticket, said) != (last ? end : Verdict::kTaken)) {
        Fail("the ranks' reports of a ticket do not add up");
      }
      if (tickets_.Report(rank, epoch_, ticket, true) != Verdict::kIgnored) {
        Fail("a report of a ticket counts twice");
      }
    }
    // In half of the trials nobody knows how long loads take: then each is worth it.
    const TimeNs time = limits_.vocab_size % 2 == 0 ? now_ : 0;
    Core().Transferred(TicketId{ticket}, ok, time);
    if (Core().Transferred(TicketId{ticket}, !ok, time)) Fail("a ticket ends twice");
    return true;
  }

  void BadTransfer(uint32_t a, uint32_t b, uint32_t c) {
    const int32_t ticket = static_cast<int32_t>(a % 64) - static_cast<int32_t>(b % 8);
    const std::vector<int32_t> tickets = worker_->tickets();
    if (std::ranges::find(tickets, ticket) != tickets.end()) return;
    if (Core().Transferred(TicketId{ticket}, c % 2, now_))
      Fail("a ticket that is not out ends");
  }

  // Straight into the core: another step, other counts, or tokens outside the vocabulary.
  void BadResult(uint32_t a, uint32_t b, uint32_t c) {
    std::vector<Token> tokens(a % 4, static_cast<Token>(b % 3) - 3);
    StepId step{static_cast<int64_t>(c % 4)};
    if (!running_.empty()) {
      step = StepId{running_.front().step.value + static_cast<int64_t>(c % 3) - 1};
      if (step == running_.front().step && b % 2) {
        const std::vector<int32_t> counts(1 + a % 3, b % 4 == 1 ? 0 : 100);
        if (Core().Advance(step, tokens, {}, now_, counts).ok()) Fail("bad counts are taken");
      }
      if (step == running_.front().step) tokens.resize(tokens.size() + 8, -2);
    }
    if (Core().Advance(step, tokens, {}).ok()) Fail("a bad result is taken");
  }

  bool Check() {
    for (const plan::TokenEvent& event : scheduler_.events()) Expect(event);
    for (const plan::LateRejection& late : scheduler_.late_rejections()) {
      if (asked_.erase(late.name) == 0) return Fail("rejected twice");
    }
    core_.ClearEvents();  // which no invariant speaks of
    if (!worker_->error().empty()) return Fail(worker_->error());
    if (worker_->max_step_tokens() > limits_.max_step_tokens) return Fail("a step over the budget");
    if (scheduler_.in_flight() > limits_.depth) return Fail("too many steps in flight");
    if (static_cast<size_t>(scheduler_.live()) != asked_.size()) return Fail("requests are lost");
    // What nobody has touched since it held holds.
    if (std::exchange(touched_, false)) {
      if (const Status status = scheduler_.Verify(); !status.ok()) {
        return Fail(status.error().message);
      }
    }
    return failure_.empty();
  }

  void Expect(const plan::TokenEvent& event) {
    using fsm::FinishReason;
    const auto found = asked_.find(event.name);
    if (found == asked_.end()) return static_cast<void>(Fail("an event of a request that ended"));
    Asked& asked = found->second;
    FinishReason expected = FinishReason::kNone;
    if (event.token >= 0) {
      if (event.token != SampleAfter(asked.hash, limits_.vocab_size)) Fail("wrong token");
      asked.hash = Fold(asked.hash, event.token);
      --asked.left;
      if (asked.left == 0) expected = FinishReason::kLength;
      if (event.token == asked.stop) expected = FinishReason::kStop;
      if (event.reason != expected) Fail("wrong finish reason");
    } else if (event.reason == FinishReason::kNumeric) {
      if (--numeric_ < 0) Fail("finite logits end a request");
    } else if (event.reason != FinishReason::kAbort && event.reason != FinishReason::kWorkerLost) {
      Fail("an end without a token");
    }
    if (event.reason != FinishReason::kNone) asked_.erase(found);
  }

  // Whoever may change the core comes this way.
  record::RecordedScheduler& Core() {
    touched_ = true;
    return core_;
  }

  bool Fail(const std::string& why) {
    if (failure_.empty()) failure_ = why;
    return false;
  }

  struct NameOrder {
    bool operator()(const RequestName& one, const RequestName& other) const {
      return std::pair(one.client, one.id) < std::pair(other.client, other.id);
    }
  };

  std::string failure_;
  Random random_;
  plan::Limits limits_;
  int ranks_;
  record::RecordedScheduler core_;
  const record::RecordedScheduler& scheduler_ = core_;  // to read
  bool touched_ = true;                                 // since the last check
  plan::StepQuorum quorum_;
  plan::TicketQuorum tickets_;
  uint32_t families_;
  Epoch epoch_;
  Hash128 digest_;
  TimeNs now_ = 0;
  std::string frame_;
  std::unique_ptr<ModelWorker> worker_;
  std::deque<Running> running_;              // steps in flight
  std::vector<std::deque<Report>> reports_;  // of each rank, on their way
  std::deque<Report> heard_;
  std::map<RequestName, Asked, NameOrder> asked_;
  std::optional<size_t> poisoned_row_;
  int host_blocks_ = 0;
  bool mixes_ = false;  // this epoch has drafts and several groups
  bool mixed_ = false;
  int numeric_ = 0;  // poisoned rows that have not ended a request
  uint64_t submitted_ = 0;
  std::array<Named, 4> named_;
  uint64_t last_named_ = 0;
  bool drained_ = false;
};

}  // namespace tokenspeed
