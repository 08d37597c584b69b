// SPDX-License-Identifier: MIT
// fuzz_scheduler EVENTS [SEED [BOX]]: random events into the core; trial.h says what is checked
// after each. Every 16th trial is recorded and must replay bit for bit. A failure prints the
// shortest event list that still fails and leaves its black box in BOX (default: fuzz-SEED.box).
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>

#include "record/replay.h"
#include "trial.h"

namespace tokenspeed {
namespace {

constexpr uint64_t kEventsPerTrial = 500;
constexpr int kTrialsPerChild = 200;
constexpr uint64_t kRecordedTrials = 16;

// Each trial draws how often a kind comes, never among some: rare mixes are met on purpose.
std::vector<Event> RandomEvents(uint64_t seed) {
  constexpr std::array<uint64_t, kKinds> kWeights = {200, 30, 8, 320, 0,   20, 20,
                                                     8,   4,  1, 30,  100, 4,  4};
  Random random(seed ^ 0xABCDEF);
  const uint64_t ranks = 1 + random.Below(4);
  std::array<uint64_t, kKinds> weights = kWeights;
  for (uint64_t& weight : weights) weight = weight * random.Below(4) / 2;
  weights[kSubmit] = std::max<uint64_t>(weights[kSubmit], 20);
  weights[kPlan] = std::max<uint64_t>(weights[kPlan], 100);
  weights[kReport] = weights[kPlan] * ranks;
  if (seed % 4 != 0) weights[kDrain] = 0;
  uint64_t sum = 0;
  for (const uint64_t weight : weights) sum += weight;
  std::vector<Event> events;
  for (uint64_t i = 0; i < kEventsPerTrial; ++i) {
    uint64_t dice = random.Below(sum);
    uint8_t kind = 0;
    while (dice >= weights[kind]) dice -= weights[kind++];
    events.push_back({static_cast<Kind>(kind),
                      {static_cast<uint32_t>(random.Next()), static_cast<uint32_t>(random.Next()),
                       static_cast<uint32_t>(random.Next())}});
  }
  return events;
}

// Why the events of a trial fail; empty if they do not.
std::string Run(uint64_t seed, const std::vector<Event>& events, const std::string& box = {},
                volatile uint64_t* mixed = nullptr) {
  Trial trial(seed, box);
  const bool passes = std::ranges::all_of(events, [&](const Event& e) { return trial.Take(e); });
  if (passes && seed % 8 != 0) trial.Finish();  // some are destroyed as they are
  if (mixed != nullptr && trial.mixed()) *mixed = *mixed + 1;
  return trial.failure();
}

// Where a box comes to another end in a core of its own; empty if nowhere.
std::string ReplayFails(const std::string& path) {
  auto replay = record::Replay::Open(path);
  if (!replay.ok()) return replay.error().message;
  for (;;) {
    auto played = replay.value().Next();
    if (!played.ok()) return played.error().message;
    if (!played.value()) return {};
    if (!played.value()->same) return "a replay differs: " + played.value()->event;
  }
}

bool Passes(uint64_t seed, volatile uint64_t* mixed) {
  const std::vector<Event> events = RandomEvents(seed);
  if (seed % kRecordedTrials != 0) return Run(seed, events, {}, mixed).empty();
  const std::string box =
      std::filesystem::temp_directory_path() / ("fuzz-" + std::to_string(getpid()) + ".box");
  const bool passed = Run(seed, events, box, mixed).empty() && ReplayFails(box).empty();
  std::filesystem::remove(box);
  return passed;
}

// Smaller dice, one after the other, as long as the events still fail.
std::vector<Event> Simplify(uint64_t seed, std::vector<Event> events) {
  for (size_t i = 0; i < events.size(); ++i) {
    for (size_t k = 0; k < events[i].dice.size(); ++k) {
      for (const uint32_t smaller : {0u, 1u, events[i].dice[k] % 128}) {
        if (smaller >= events[i].dice[k]) break;
        std::vector<Event> simpler = events;
        simpler[i].dice[k] = smaller;
        if (Survives([&] { return Run(seed, simpler).empty(); }, true)) continue;
        events = std::move(simpler);
        break;
      }
    }
  }
  return events;
}

int Report(uint64_t seed, const std::string& box) {
  std::vector<Event> events = RandomEvents(seed);
  const size_t drawn = events.size();
  const auto passes = [&](const std::vector<Event>& rest) { return Run(seed, rest).empty(); };
  if (Survives([&] { return passes(events); }, true)) {
    std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(seed),
                 "the trial holds, its replay does not");
    Survives([&] { return Run(seed, events, box).empty(); }, true);
    return 1;
  }
  events = Simplify(seed, Shrink<Event>(std::move(events), passes));
  std::fprintf(stderr, "seed %llu fails with these %zu of %zu events:\n",
               static_cast<unsigned long long>(seed), events.size(), drawn);
  for (const Event& event : events) {
    std::fprintf(stderr, "  %-12s %u %u %u\n", kNames[event.kind], event.dice[0], event.dice[1],
                 event.dice[2]);
  }
  Survives(
      [&] {
        std::fprintf(stderr, "invariant broken: %s\n", Run(seed, events, box).c_str());
        return false;
      },
      false);
  std::fprintf(stderr, "step through it: tokenspeed scheduler replay %s --step\n", box.c_str());
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
  volatile uint64_t* mixed = SharedCounter();
  for (uint64_t seed = first; seed < last; seed += kTrialsPerChild) {
    const bool passed = Survives(
        [&] {
          for (uint64_t each = seed; each < std::min(last, seed + kTrialsPerChild); ++each) {
            *current = each;
            if (!Passes(each, mixed)) return false;
          }
          return true;
        },
        true, 60);
    if (passed) continue;
    std::fprintf(stderr, "found after %llu events\n",
                 static_cast<unsigned long long>((*current - first + 1) * kEventsPerTrial));
    const std::string name = "fuzz-" + std::to_string(*current) + ".box";
    return Report(*current, argc > 3 ? argv[3] : name);
  }
  std::printf(
      "%llu trials of %llu events and their ends: all invariants hold\n"
      "%llu of them loaded from the host tier beside drafts and several block groups\n",
      static_cast<unsigned long long>(last - first),
      static_cast<unsigned long long>(kEventsPerTrial), static_cast<unsigned long long>(*mixed));
  return 0;
}
