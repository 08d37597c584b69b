// SPDX-License-Identifier: MIT
// fuzz_scheduler EVENTS [SEED]: random events into the core, all invariants checked after each,
// every delivered token compared with what its request must produce alone. A failure prints the
// shortest event list that still fails.
#include <algorithm>
#include <cstring>
#include <deque>

#include "isolated.h"
#include "model_worker.h"
#include "plan/scheduler.h"

namespace tokenspeed {
namespace {

constexpr uint64_t kEventsPerTrial = 500;
constexpr int kTrialsPerChild = 20;

enum Kind : uint8_t { kSubmit, kAbort, kAbortClient, kPlan, kRetire, kBadResult, kEpoch, kKinds };
constexpr const char* kNames[] = {"submit", "abort",      "abort client", "plan",
                                  "retire", "bad result", "epoch"};

struct Event {
  Kind kind;
  uint32_t a, b, c;
};

// The run of one trial: the scheduler, a model worker, and what must come out.
class Trial {
 public:
  explicit Trial(uint64_t seed) : random_(seed), limits_(MakeLimits()), scheduler_(limits_) {
    BeginEpoch(static_cast<uint32_t>(random_.Next()));
  }

  bool Run(const std::vector<Event>& events) {
    for (const Event& event : events) {
      Take(event);
      if (!Check()) return false;
    }
    if (events.size() % 2 == 1) return true;  // destroyed as it is
    // Whatever is left must come to its end.
    for (int i = 0; scheduler_.live() > 0; ++i) {
      if (i > 100'000) return Fail("requests are stuck");
      while (Plan()) {
        if (!Check()) return false;
      }
      if (!Retire() && scheduler_.live() > 0) return Fail("live requests and nothing in flight");
      if (!Check()) return false;
    }
    while (Retire()) {
      if (!Check()) return false;
    }
    const kv::BlockCounts blocks = scheduler_.blocks();
    if (blocks.free + blocks.cached != blocks.total) return Fail("blocks are missing at rest");
    if (!asked_.empty()) return Fail("a request never ended");
    return Check();
  }

 private:
  struct InFlight {
    StepId step;
    std::vector<Token> tokens;
    std::set<int32_t> touched;
  };
  struct Asked {
    uint64_t hash = 0;
    int left = 0;
    Token stop = -1;
  };

  plan::Limits MakeLimits() {
    plan::Limits limits;
    limits.max_slots = static_cast<int32_t>(1 + random_.Below(6));
    limits.max_step_tokens = limits.max_slots + static_cast<int32_t>(random_.Below(20));
    limits.max_model_len = 48;
    limits.max_waiting = static_cast<int32_t>(1 + random_.Below(10));
    limits.vocab_size = static_cast<int32_t>(2 + random_.Below(20));
    limits.depth = static_cast<int32_t>(1 + random_.Below(3));
    limits.max_prefill_tokens = random_.Below(2) ? static_cast<int32_t>(random_.Below(9)) : 0;
    limits.prefix_caching = random_.Below(5) != 0;
    return limits;
  }

  void BeginEpoch(uint32_t shape) {
    epoch_ = Epoch{epoch_.value + 1};
    const int width = 1 + static_cast<int>(shape % 5);
    const int blocks = 8 + static_cast<int>(shape / 8 % 40);
    worker_ = std::make_unique<ModelWorker>(blocks, width, limits_.vocab_size);
    results_.clear();
    scheduler_.BeginEpoch(epoch_, blocks, width);
  }

  void Take(const Event& event) {
    switch (event.kind) {
      case kSubmit:
        return Submit(event);
      case kAbort:
        return scheduler_.Abort({ClientId{1 + event.a % 3}, event.b % (1 + submitted_)},
                                static_cast<int64_t>(event.c % 5) - 1);
      case kAbortClient:
        return scheduler_.AbortClient(ClientId{1 + event.a % 3});
      case kPlan:
        Plan();
        return;
      case kRetire:
        Retire();
        return;
      case kBadResult:
        return BadResult(event);
      case kEpoch:
        scheduler_.EndEpoch();
        return BeginEpoch(event.a);
      case kKinds:
        return;
    }
  }

  void Submit(const Event& event) {
    plan::Submission submission;
    submission.name = {ClientId{1 + event.a % 3}, submitted_++};
    // Few families of prompts, so that prefixes are shared at every depth.
    const size_t length = 1 + event.b % 40;
    for (size_t i = 0; i < length; ++i) {
      const uint32_t family = i < 6 ? event.c % 2 : event.c % 7;
      submission.prompt.push_back(
          static_cast<Token>((family * 31 + i * i) % static_cast<uint32_t>(limits_.vocab_size)));
    }
    submission.max_tokens = 1 + event.a / 8 % 24;
    if (event.a % 5 == 0) submission.salt = "salt";
    Asked asked;
    asked.left = static_cast<int>(std::min<int64_t>(
        submission.max_tokens, limits_.max_model_len - static_cast<int64_t>(length)));
    if (event.c % 3 == 0) {
      asked.stop = static_cast<Token>(event.c % static_cast<uint32_t>(limits_.vocab_size));
      submission.stop_ids = {asked.stop};
    }
    for (const Token token : submission.prompt) asked.hash = Fold(asked.hash, token);
    const auto key = std::pair(submission.name.client, submission.name.id);
    if (scheduler_.Submit(std::move(submission)).ok()) asked_.emplace(key, asked);
  }

  bool Plan() {
    const plan::StepPlan* plan = scheduler_.Plan(0);
    if (plan == nullptr) return false;
    std::vector<Token> tokens = worker_->Apply(*plan);
    for (const InFlight& earlier : results_) {
      for (const int32_t block : worker_->begun()) {
        if (earlier.touched.contains(block)) Fail("a block is reused before its step has retired");
      }
    }
    results_.push_back({plan->step, std::move(tokens), worker_->touched()});
    return true;
  }

  bool Retire() {
    if (results_.empty()) return false;
    const InFlight done = std::move(results_.front());
    results_.pop_front();
    if (!scheduler_.Advance(done.step, done.tokens, {}).ok()) Fail("a true result is refused");
    return true;
  }

  void BadResult(const Event& event) {
    std::vector<Token> tokens(event.a % 4, static_cast<Token>(event.b % 3) - 2);
    StepId step{static_cast<int64_t>(event.c % 4)};
    if (!results_.empty()) {
      step = StepId{results_.front().step.value + static_cast<int64_t>(event.c % 3) - 1};
      if (step == results_.front().step) tokens = results_.front().tokens;
      tokens.push_back(0);
    }
    if (scheduler_.Advance(step, tokens, {}).ok()) Fail("a bad result is taken");
  }

  bool Check() {
    for (const plan::TokenEvent& event : scheduler_.events()) {
      const auto found = asked_.find({event.name.client, event.name.id});
      if (found == asked_.end()) return Fail("an event of a request that has ended");
      Asked& asked = found->second;
      using fsm::FinishReason;
      FinishReason expected = FinishReason::kNone;
      if (event.token >= 0) {
        if (event.token != SampleAfter(asked.hash, limits_.vocab_size)) return Fail("wrong token");
        asked.hash = Fold(asked.hash, event.token);
        --asked.left;
        if (asked.left == 0) expected = FinishReason::kLength;
        if (event.token == asked.stop) expected = FinishReason::kStop;
        if (event.reason != expected) return Fail("wrong finish reason");
      } else if (event.reason != FinishReason::kAbort &&
                 event.reason != FinishReason::kWorkerLost) {
        return Fail("an end without a token");
      }
      if (event.reason != FinishReason::kNone) asked_.erase(found);
    }
    for (const plan::LateRejection& late : scheduler_.late_rejections()) {
      if (asked_.erase({late.name.client, late.name.id}) == 0) return Fail("rejected twice");
    }
    scheduler_.ClearEvents();
    if (!worker_->error().empty()) return Fail(worker_->error().c_str());
    if (worker_->max_step_tokens() > limits_.max_step_tokens) return Fail("a step over the budget");
    if (scheduler_.in_flight() > limits_.depth) return Fail("too many steps in flight");
    if (static_cast<size_t>(scheduler_.live()) != asked_.size()) return Fail("requests are lost");
    if (const Status status = scheduler_.Verify(); !status.ok()) {
      return Fail(status.error().message.c_str());
    }
    return failure_.empty();
  }

  bool Fail(const char* why) {
    if (failure_.empty()) std::fprintf(stderr, "invariant broken: %s\n", why);
    failure_ = why;
    return false;
  }

  Random random_;
  plan::Limits limits_;
  plan::Scheduler scheduler_;
  Epoch epoch_;
  std::unique_ptr<ModelWorker> worker_;
  std::deque<InFlight> results_;
  std::map<std::pair<ClientId, uint64_t>, Asked> asked_;
  uint64_t submitted_ = 0;
  std::string failure_;
};

std::vector<Event> RandomEvents(uint64_t seed) {
  Random random(seed ^ 0xABCDEF);
  std::vector<Event> events;
  const uint64_t bias = random.Below(3);  // some trials run the pipe full, some empty
  for (uint64_t i = seed % 8 == 0; i < kEventsPerTrial; ++i) {
    const uint64_t dice = random.Below(100);
    Kind kind = kRetire;
    if (dice < 20)
      kind = kSubmit;
    else if (dice < 24)
      kind = kAbort;
    else if (dice < 25)
      kind = kAbortClient;
    else if (dice < 27)
      kind = kBadResult;
    else if (dice < 28 && random.Below(3) == 0)
      kind = kEpoch;
    else if (dice < 55 + bias * 8)
      kind = kPlan;
    events.push_back({kind, static_cast<uint32_t>(random.Next()),
                      static_cast<uint32_t>(random.Next()), static_cast<uint32_t>(random.Next())});
  }
  return events;
}

bool Passes(uint64_t seed, const std::vector<Event>& events) {
  auto trial = std::make_unique<Trial>(seed);
  return trial->Run(events);
}

int Report(uint64_t seed) {
  const std::vector<Event> events = Shrink<Event>(
      RandomEvents(seed), [&](const std::vector<Event>& rest) { return Passes(seed, rest); });
  std::fprintf(stderr, "seed %llu fails with these %zu events:\n",
               static_cast<unsigned long long>(seed), events.size());
  for (const Event& event : events) {
    std::fprintf(stderr, "  %-12s %u %u %u\n", kNames[event.kind], event.a, event.b, event.c);
  }
  Survives([&] { return Passes(seed, events); }, false);
  return 1;
}

}  // namespace
}  // namespace tokenspeed

int main(int argc, char** argv) {
  using namespace tokenspeed;
  const uint64_t count = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100'000;
  const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const uint64_t last = first + (count + kEventsPerTrial - 1) / kEventsPerTrial;
  volatile uint64_t* current = SharedCounter();
  for (uint64_t seed = first; seed < last; seed += kTrialsPerChild) {
    const bool passed = Survives(
        [&] {
          for (uint64_t each = seed; each < std::min(last, seed + kTrialsPerChild); ++each) {
            *current = each;
            if (!Passes(each, RandomEvents(each))) return false;
          }
          return true;
        },
        true);
    if (!passed) return Report(*current);
  }
  std::printf("%llu trials of %llu events and their ends: all invariants hold\n",
              static_cast<unsigned long long>(last - first),
              static_cast<unsigned long long>(kEventsPerTrial));
  return 0;
}
