// SPDX-License-Identifier: MIT
// check_ledger [DRAFTS|groups|windows|session|host] [EVENTS]: every interleaving of a small world,
// exhaustively, or of so many events at most. Two requests that share a prefix, each submitted up
// to twice, three blocks, two steps in flight, two epochs; events are submit, abort, plan, retire
// and the loss of the workers. Breadth first over the states of core and worker; a state is reached
// by playing its events into a fresh core. In each state all invariants hold, every token is the
// one that its request gives alone, no block is written while an earlier step may read it, and
// something can always go on. With groups, a full one and a state with a snapshot every two tokens
// share five parents, and there is one epoch. With windows, of two tokens, there is one instead of
// the state, and rows have a draft. With a session both requests are of one, whose tables rest, and
// eviction goes by owners: states count as equal where all owners stand in the same order now. With
// a host tier of two blocks the prompts are longer, so that each request needs the whole pool and
// finds its prefix in the host; copies land, the oldest or the latest first, fail, or are late; the
// second request comes once, in the only epoch.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <unordered_map>
#include <utility>

#include "model_worker.h"
#include "plan/scheduler.h"

namespace tokenspeed {
namespace {

constexpr int kRequests = 2;
constexpr int kLives = 2;  // of each request
constexpr int kBlocks = 3;
constexpr int kParents = 5;  // with groups: one request alone needs three, and a snapshot
constexpr int kBlockSize = 2;
constexpr int kEpochs = 2;
constexpr int kGroups = -1;  // in the place of drafts
constexpr int kSession = -2;
constexpr int kWindows = -3;
constexpr int kHost = -4;
constexpr int kHostBlocks = 2;
constexpr TimeNs kPatience = 10'000'000;  // of a copy
constexpr int kVocab = 5;
constexpr std::array<std::array<Token, 3>, kRequests> kPrompts = {{{1, 2, 3}, {1, 2, 4}}};
constexpr std::array<Token, 2> kLonger = {4, 1};  // behind them, with a host tier

enum Event : uint8_t {
  kSubmit0,
  kSubmit1,
  kAbort0,
  kAbort1,
  kPlan,
  kRetire,
  kEpoch,
  kLand,      // the oldest copy under way
  kLandLast,  // the latest of several
  kFail,
  kLate,  // all that are under way
  kEvents
};
constexpr const char* kNames[] = {"submit 0", "submit 1", "abort 0",   "abort 1", "plan", "retire",
                                  "epoch",    "land",     "land last", "fail",    "late"};

class World {
 public:
  explicit World(int drafts) : scheduler_(MakeLimits(drafts)), drafts_(drafts) { BeginEpoch(); }

  const std::string& failure() const { return failure_; }
  int live() const { return scheduler_.live(); }

  // Whether the event can happen now; then it has.
  bool Take(Event event) {
    switch (event) {
      case kSubmit0:
      case kSubmit1:
        return Submit(event - kSubmit0);
      case kAbort0:
      case kAbort1:
        if (!asked_[event - kAbort0]) return false;
        scheduler_.Abort({ClientId{1}, static_cast<uint64_t>(event - kAbort0)}, -1);
        break;
      case kPlan:
        return Plan();
      case kRetire:
        return Retire();
      case kEpoch:
        if (epoch_.value == (grouped() || drafts_ == kHost ? 1 : kEpochs)) return false;
        scheduler_.EndEpoch();
        Hear();
        BeginEpoch();
        break;
      case kLand:
        return EndCopy(worker_->tickets(), true);
      case kLandLast: {
        const std::vector<int32_t> tickets = worker_->tickets();
        return tickets.size() > 1 && EndCopy({tickets.back()}, true);
      }
      case kFail:
        return EndCopy(worker_->tickets(), false);
      case kLate:
        return BeLate();
      case kEvents:
        return false;
    }
    Hear();
    return true;
  }

  void Check() {
    if (!worker_->error().empty()) Fail(worker_->error());
    if (const Status status = scheduler_.Verify(); !status.ok()) Fail(status.error().message);
    const kv::BlockCounts blocks = scheduler_.blocks();
    const bool rest = scheduler_.live() == 0 && in_flight_.empty() && worker_->tickets().empty();
    if (rest && blocks.free + blocks.cached != blocks.total) Fail("blocks are missing at rest");
  }

  Hash128 Fingerprint() const {
    std::ostringstream text;
    scheduler_.Describe(text);
    worker_->Describe(text);
    text << "epoch " << epoch_.value;
    for (const int lives : lives_) text << ' ' << lives;
    for (const Step& step : in_flight_) {
      text << " result";
      for (const Token token : step.tokens) text << ' ' << token;
      for (const int32_t count : step.counts) text << " x" << count;
    }
    text << " last ticket " << last_ticket_ % 2 << " late";
    for (const int32_t ticket : worker_->tickets()) text << ' ' << late_.contains(ticket);
    text << " not told " << time_passed_;
    for (const auto& asked : asked_) {
      if (asked) text << " asked " << asked->left << ' ' << asked->hash;
    }
    const std::string bytes = std::move(text).str();
    return SipHash128({}, std::as_bytes(std::span(bytes)));
  }

 private:
  struct Step {
    StepId step;
    std::vector<Token> tokens;
    std::vector<int32_t> counts;
    BlockSet touched;
  };
  struct Asked {
    uint64_t hash = 0;
    int left = 0;
  };

  static plan::Limits MakeLimits(int drafts) {
    plan::Limits limits;
    limits.max_slots = kRequests;
    limits.max_step_tokens = 4;
    limits.max_model_len = 16;
    limits.max_waiting = kRequests;
    limits.vocab_size = kVocab;
    limits.depth = 2;
    limits.max_prefill_tokens = 2;
    limits.evict_by_reuse = drafts == kSession;
    limits.transfer_ms = kPatience / 1'000'000;
    return limits;
  }

  void BeginEpoch() {
    epoch_ = Epoch{epoch_.value + 1};
    const plan::EpochShape shape = Shape();
    worker_ = std::make_unique<ModelWorker>(shape, kVocab);
    in_flight_.clear();
    late_.clear();
    last_ticket_ = 0;
    scheduler_.BeginEpoch(epoch_, shape);
  }

  bool grouped() const { return drafts_ == kGroups || drafts_ == kWindows; }
  int drafts() const { return drafts_ == kWindows ? 1 : std::max(drafts_, 0); }

  plan::EpochShape Shape() const {
    if (!grouped()) {
      return {.num_blocks = 1 + kBlocks,
              .block_size = kBlockSize,
              .host_blocks = drafts_ == kHost ? kHostBlocks : 0,
              .max_drafts = drafts()};
    }
    const int32_t size = kBlockSize;
    const auto second = drafts_ == kGroups ? kv::GroupKind::kState : kv::GroupKind::kWindow;
    return {.num_blocks = 1 + kParents,
            .block_size = size,
            .max_drafts = drafts(),
            .groups = {{.kind = kv::GroupKind::kFull, .tokens = size},
                       {.kind = second, .tokens = size, .span = size}}};
  }

  bool Submit(int which) {
    const auto index = static_cast<size_t>(which);
    const int lives = drafts_ == kHost && which == 1 ? 1 : kLives;
    if (asked_[index] || lives_[index] == lives) return false;
    ++lives_[index];
    plan::Submission submission;
    submission.name = {ClientId{1}, static_cast<uint64_t>(which)};
    submission.prompt.assign(kPrompts[index].begin(), kPrompts[index].end());
    if (drafts_ == kHost) {
      submission.prompt.insert(submission.prompt.end(), kLonger.begin(), kLonger.end());
    }
    submission.max_tokens = 2 + drafts();  // room for a row of several tokens
    if (drafts_ == kSession) submission.session = "session";
    Asked asked;
    asked.left = submission.max_tokens;
    for (const Token token : submission.prompt) asked.hash = Fold(asked.hash, token);
    asked_[index] = asked;
    if (!scheduler_.Submit(std::move(submission)).ok()) Fail("a request is refused");
    Hear();
    return true;
  }

  bool Plan() {
    const plan::StepPlan* plan = scheduler_.Plan(now_);
    if (const bool told = std::exchange(time_passed_, false); plan == nullptr) return told;
    for (const auto& started : {plan->store_tickets, plan->load_tickets}) {
      for (const int32_t ticket : started) last_ticket_ = std::max(last_ticket_, ticket);
    }
    std::vector<Token> tokens = worker_->Apply(*plan);
    for (const Step& earlier : in_flight_) {
      for (const int32_t block : worker_->begun().members()) {
        if (earlier.touched.Contains(block)) Fail("a block is reused before its step has retired");
      }
    }
    in_flight_.push_back({plan->step, std::move(tokens), worker_->counts(), worker_->touched()});
    Hear();
    return true;
  }

  bool Retire() {
    if (in_flight_.empty()) return false;
    const Step done = std::move(in_flight_.front());
    in_flight_.pop_front();
    if (!scheduler_.Advance(done.step, done.tokens, {}, 0, done.counts).ok())
      Fail("a true result is refused");
    Hear();
    return true;
  }

  bool EndCopy(const std::vector<int32_t>& tickets, bool ok) {
    if (tickets.empty()) return false;
    worker_->End(tickets.front(), ok);
    scheduler_.Transferred(TicketId{tickets.front()}, ok);
    late_.erase(tickets.front());
    Hear();
    return true;
  }

  // The core is told by the next plan.
  bool BeLate() {
    const std::vector<int32_t> tickets = worker_->tickets();
    if (tickets.size() == late_.size()) return false;
    late_ = {tickets.begin(), tickets.end()};
    now_ += 2 * kPatience;
    time_passed_ = true;
    return true;
  }

  void Hear() {
    for (const plan::TokenEvent& event : scheduler_.events()) {
      std::optional<Asked>& asked = asked_[event.name.id];
      if (!asked) return Fail("an event of a request that ended");
      if (event.token >= 0) {
        if (event.token != SampleAfter(asked->hash, kVocab)) Fail("wrong token");
        asked->hash = Fold(asked->hash, event.token);
        if (--asked->left < 0) Fail("a token too many");
      }
      if (event.reason != fsm::FinishReason::kNone) asked.reset();
    }
    scheduler_.ClearEvents();
  }

  void Fail(const std::string& why) {
    if (failure_.empty()) failure_ = why;
  }

  plan::Scheduler scheduler_;
  int drafts_;
  Epoch epoch_;
  std::unique_ptr<ModelWorker> worker_;
  std::deque<Step> in_flight_;
  std::array<std::optional<Asked>, kRequests> asked_;
  std::array<int, kRequests> lives_{};
  TimeNs now_ = 0;
  bool time_passed_ = false;  // since the last plan
  std::set<int32_t> late_;    // copies under way
  int32_t last_ticket_ = 0;
  std::string failure_;
};

// How a state was reached first.
struct Origin {
  uint32_t from;
  Event event;
};

std::vector<Event> PathTo(const std::vector<Origin>& states, uint32_t state) {
  std::vector<Event> path;
  for (; state != 0; state = states[state].from) path.push_back(states[state].event);
  return {path.rbegin(), path.rend()};
}

std::unique_ptr<World> Play(int drafts, const std::vector<Event>& path) {
  auto world = std::make_unique<World>(drafts);
  for (const Event event : path) world->Take(event);
  return world;
}

int Report(const std::string& why, const std::vector<Event>& path) {
  std::fprintf(stderr, "%s, after:", why.c_str());
  for (const Event event : path) std::fprintf(stderr, " %s,", kNames[event]);
  std::fprintf(stderr, "\n");
  return 1;
}

struct HashOf {
  size_t operator()(const Hash128& hash) const { return hash.low(); }
};

int Explore(int drafts, size_t most_events) {
  std::vector<Origin> states = {{0, kEvents}};
  std::unordered_map<Hash128, uint32_t, HashOf> seen = {{World(drafts).Fingerprint(), 0}};
  size_t arrows = 0;
  size_t longest = 0;
  for (uint32_t state = 0; state < states.size(); ++state) {
    const std::vector<Event> path = PathTo(states, state);
    longest = std::max(longest, path.size());
    if (longest == most_events) break;  // breadth first: so have all that follow
    bool goes_on = false;
    std::unique_ptr<World> played;  // until an event has changed it
    for (int next = 0; next < kEvents; ++next) {
      const auto event = static_cast<Event>(next);
      std::unique_ptr<World> world = played ? std::move(played) : Play(drafts, path);
      if (!world->Take(event)) {
        if (event == kPlan) world->Check();
        if (!world->failure().empty()) return Report(world->failure(), path);
        // What cannot happen is refused before it changes anything, but for a plan of nothing.
        if (event != kPlan) played = std::move(world);
        continue;
      }
      ++arrows;
      goes_on = goes_on || event == kPlan || event == kRetire || event == kLand;
      world->Check();
      if (!world->failure().empty()) {
        std::vector<Event> whole = path;
        whole.push_back(event);
        return Report(world->failure(), whole);
      }
      const auto id = static_cast<uint32_t>(states.size());
      if (seen.emplace(world->Fingerprint(), id).second) states.push_back({state, event});
    }
    if (!goes_on && Play(drafts, path)->live() > 0)
      return Report("live requests and no way on", path);
  }
  std::printf("%zu states, %zu arrows, longest shortest path %zu%s: all invariants hold\n",
              states.size(), arrows, longest, longest == most_events ? " (the limit)" : "");
  return 0;
}

}  // namespace
}  // namespace tokenspeed

int main(int argc, char** argv) {
  const std::string world = argc > 1 ? argv[1] : "0";
  const size_t most = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : SIZE_MAX;
  if (world == "groups") return tokenspeed::Explore(tokenspeed::kGroups, most);
  if (world == "windows") return tokenspeed::Explore(tokenspeed::kWindows, most);
  if (world == "host") return tokenspeed::Explore(tokenspeed::kHost, most);
  if (world == "session") return tokenspeed::Explore(tokenspeed::kSession, most);
  return tokenspeed::Explore(std::atoi(world.c_str()), most);
}
