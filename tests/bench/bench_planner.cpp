// SPDX-License-Identifier: MIT
// bench_planner: the core's side of bench_planner.py, without Python in the process.
//
//   bench_planner decode --running=N [--context=N] [--blocks=N] [--waiting=N] [--full] [--together]
//                        [--steps=N] [--passes=N]
//   bench_planner admission [--context=N] [--session [--whole]] [--passes=N]
//
// Prints one JSON object of metric: [a value a pass], in microseconds. A step is measured_plan and
// measured_advance, which stand alone so that callgrind can count them and nothing else.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "base/check.h"
#include "plan/scheduler.h"
#include "wire/codec.h"

namespace tokenspeed {
namespace {

constexpr int kBlockSize = 16;
constexpr int kVocab = 32'000;
constexpr TimeNs kStepTime = 20'000'000;  // on the clock that the core is told

using Clock = std::chrono::steady_clock;
using Options = std::map<std::string, int>;

double Microseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::micro>(to - from).count();
}

int Get(const Options& options, const char* name, int otherwise) {
  const auto found = options.find(name);
  return found == options.end() ? otherwise : found->second;
}

std::vector<Token> Prompt(int length, uint64_t seed) {
  std::vector<Token> tokens(static_cast<size_t>(length));
  for (Token& token : tokens) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    token = static_cast<Token>((seed >> 33) % kVocab);
  }
  return tokens;
}

// Plans and encodes a step; whether there was one.
bool Plan(plan::Scheduler& core, TimeNs now, std::string& frame, Hash128& digest, int* sampled) {
  const plan::StepPlan* plan = core.Plan(now);
  if (plan == nullptr) return false;
  wire::EncodePlan(*plan, frame);
  digest = wire::NextDigest(digest, wire::AsBytes(frame));
  *sampled = plan->Sampling();
  return true;
}

// Decodes a result and advances by it.
void Advance(plan::Scheduler& core, TimeNs now, const std::string& frame) {
  auto decoded = wire::DecodeFromWorker(wire::AsBytes(frame));
  const auto& result = std::get<wire::StepResult>(decoded.value());
  const Status status = core.Advance(StepId{result.step}, result.tokens, result.logprobs, now);
  TS_CHECK(status.ok(), "a true result is refused");
}

// What callgrind counts.
__attribute__((noinline)) bool measured_plan(plan::Scheduler& core, TimeNs now, std::string& frame,
                                             Hash128& digest, int* sampled) {
  return Plan(core, now, frame, digest, sampled);
}
__attribute__((noinline)) void measured_advance(plan::Scheduler& core, TimeNs now,
                                                const std::string& frame) {
  Advance(core, now, frame);
}
__attribute__((noinline)) void measured_submit(plan::Scheduler& core, plan::Submission submission) {
  TS_CHECK(core.Submit(std::move(submission)).ok(), "a request is refused");
}

class Bench {
 public:
  Bench(int slots, int blocks, int chunk = 8192) : core_(MakeLimits(slots, chunk)) {
    core_.BeginEpoch(Epoch{1}, {.num_blocks = blocks, .block_size = kBlockSize});
    digest_ = wire::FirstDigest(Epoch{1});
  }

  plan::Scheduler& core() { return core_; }
  bool measured = false;  // from now on

  plan::Submission Ask(std::vector<Token> prompt, int max_tokens, std::string session = {}) {
    plan::Submission submission;
    submission.name = {ClientId{1}, ++submitted_};
    submission.time = now_;
    submission.prompt = std::move(prompt);
    submission.max_tokens = max_tokens;
    submission.session = std::move(session);
    return submission;
  }
  void Submit(std::vector<Token> prompt, int max_tokens) {
    TS_CHECK(core_.Submit(Ask(std::move(prompt), max_tokens)).ok(), "a request is refused");
  }

  // A step in lock step with a worker that samples zeros; its microseconds, or -1 without one.
  double Step() {
    const auto plan = measured ? measured_plan : Plan;
    now_ += kStepTime;
    int sampled = 0;
    const auto start = Clock::now();
    if (!plan(core_, now_, plan_frame_, digest_, &sampled)) return -1;
    const auto planned = Clock::now();
    return Microseconds(start, planned) + Finish(sampled);
  }

  // The other half of a step whose plan was made.
  double Finish(int sampled) {
    wire::StepResult result;
    result.epoch = 1;
    result.step = ++step_;
    result.digest.bytes.assign(16, '\0');
    result.tokens.assign(static_cast<size_t>(sampled), 0);
    wire::Encode(result, result_frame_);
    const auto arrived = Clock::now();
    (measured ? measured_advance : Advance)(core_, now_, result_frame_);
    const auto done = Clock::now();
    core_.ClearEvents();
    return Microseconds(arrived, done);
  }

  // The time from submission to the first plan, of a prompt that is admitted at once.
  double Admit(plan::Submission submission) {
    int sampled = 0;
    const auto start = Clock::now();
    measured_submit(core_, std::move(submission));
    TS_CHECK(measured_plan(core_, now_, plan_frame_, digest_, &sampled), "nothing to plan");
    const auto planned = Clock::now();
    Finish(sampled);
    return Microseconds(start, planned);
  }

  void RunDry() {
    while (Step() >= 0) continue;
  }

 private:
  static plan::Limits MakeLimits(int slots, int chunk) {
    plan::Limits limits;
    limits.hash_key.bytes.fill(std::byte{7});
    limits.max_slots = slots;
    limits.max_step_tokens = chunk + slots;
    limits.max_model_len = 262'144;
    limits.max_waiting = 100'000;
    limits.vocab_size = kVocab;
    limits.decode_stretch = 0;
    return limits;
  }

  plan::Scheduler core_;
  TimeNs now_ = 1;
  int64_t step_ = 0;
  uint64_t submitted_ = 0;
  Hash128 digest_;
  std::string plan_frame_;
  std::string result_frame_;
};

double Quantile(std::vector<double> values, double q) {
  std::ranges::sort(values);
  return values[std::min(values.size() - 1, static_cast<size_t>(q * values.size()))];
}

using Metrics = std::map<std::string, std::vector<double>>;

Metrics Decode(const Options& options) {
  const int running = Get(options, "running", 1);
  const int context = Get(options, "context", 512);
  const int waiting = Get(options, "waiting", 0);
  const int steps = Get(options, "steps", 500);
  const int passes = Get(options, "passes", 3);
  const int answer = steps * passes + 512;
  const int needed = running * ((context + answer) / kBlockSize + 2);
  const int blocks = std::max(Get(options, "blocks", 0), needed + 64);
  Bench bench(waiting > 0 ? running + 8 : running, 1 + blocks);
  if (options.contains("full")) {
    for (int i = 0; bench.core().blocks().free > 1; ++i) {
      bench.Submit(Prompt(4096, 1'000'000u + static_cast<uint64_t>(i)), 1);
      bench.RunDry();
    }
  }
  for (int i = 0; i < running; ++i) {
    // Requests of a real queue do not reach the ends of their blocks together.
    const int phase = options.contains("together") ? 0 : i % kBlockSize;
    bench.Submit(Prompt(context + phase, static_cast<uint64_t>(i)), answer);
  }
  for (int64_t before = -1, now = 0; now - before < running;) {
    before = now;
    TS_CHECK(bench.Step() >= 0, "requests are stuck");
    now = bench.core().counters().generated_tokens;
  }
  for (int i = 0; i < waiting; ++i) {
    bench.Submit(Prompt(50'000, 2'000'000u + static_cast<uint64_t>(i)), 64);
  }
  for (int i = 0; i < 64; ++i) bench.Step();
  TS_CHECK(bench.core().running() == running && bench.core().waiting() == waiting,
           bench.core().running() << " run and " << bench.core().waiting() << " wait");
  Metrics metrics;
  bench.measured = true;
  for (int pass = 0; pass < passes; ++pass) {
    std::vector<double> times;
    for (int i = 0; i < steps; ++i) times.push_back(bench.Step());
    metrics["step_us_p50"].push_back(Quantile(times, 0.5));
    metrics["step_us_p99"].push_back(Quantile(times, 0.99));
  }
  TS_CHECK(bench.core().running() == running, "a request ended inside the measurement");
  TS_CHECK(bench.core().Verify().ok(), "an invariant is broken");
  return metrics;
}

Metrics Admission(const Options& options) {
  const int context = Get(options, "context", 131'072);
  const int passes = Get(options, "passes", 5);
  const bool session = options.contains("session");
  Bench bench(64, 1 + 3 * (context / kBlockSize + 1024));
  Metrics metrics;
  std::vector<Token> history = Prompt(context, 1);
  bench.Submit(Prompt(context, 2), 1);  // somebody was there before
  bench.RunDry();
  plan::Submission first = bench.Ask(history, 16, "session");
  first.origin.id = 1;
  TS_CHECK(bench.core().Submit(std::move(first)).ok(), "a request is refused");
  bench.RunDry();
  history.resize(history.size() + 16);  // its answer of zeros
  // What a frontend says that keeps its last prompt.
  plan::PromptOrigin origin{.id = 2, .extends = 1, .shared = context};
  for (int pass = 0; pass < passes; ++pass) {
    std::vector<Token> turn = session ? history : Prompt(context, 3 + static_cast<uint64_t>(pass));
    for (const Token token : Prompt(64, 100 + static_cast<uint64_t>(pass))) turn.push_back(token);
    history = turn;
    plan::Submission asked = bench.Ask(std::move(turn), 16, session ? "session" : "");
    if (session && !options.contains("whole")) asked.origin = origin;
    origin = {origin.id + 1, origin.id, static_cast<int32_t>(history.size())};
    const double time = bench.Admit(std::move(asked));
    const int64_t cached = bench.core().counters().cached_tokens;
    bench.RunDry();
    history.resize(history.size() + 16);
    TS_CHECK((cached > 0) == session, cached << " tokens were cached");
    metrics["admission_us"].push_back(time);
  }
  return metrics;
}

int Main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  Options options;
  for (int i = 2; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t end = argument.find('=');
    const int value = end == std::string::npos ? 1 : std::atoi(argument.c_str() + end + 1);
    options[argument.substr(2, end == std::string::npos ? end : end - 2)] = value;
  }
  if (what != "decode" && what != "admission") {
    std::fprintf(stderr, "bench_planner decode|admission [--name=value ...]; see the source\n");
    return 2;
  }
  const Metrics metrics = what == "decode" ? Decode(options) : Admission(options);
  const char* separator = "{";
  for (const auto& [name, values] : metrics) {
    std::printf("%s\"%s\": [", separator, name.c_str());
    for (size_t i = 0; i < values.size(); ++i) std::printf("%s%.3f", i ? ", " : "", values[i]);
    std::printf("]");
    separator = ", ";
  }
  std::printf("}\n");
  return 0;
}

}  // namespace
}  // namespace tokenspeed

int main(int argc, char** argv) { return tokenspeed::Main(argc, argv); }
