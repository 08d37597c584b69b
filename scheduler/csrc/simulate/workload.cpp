// SPDX-License-Identifier: MIT
#include "simulate/workload.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"

namespace tokenspeed::simulate {
namespace {

uint64_t NextRandom(uint64_t& state) {  // splitmix64
  uint64_t x = state += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

}  // namespace

Workload::Workload(const Trace& trace, const Pace& pace, int32_t vocab_size)
    : trace_(trace),
      pace_(pace),
      mask_(std::bit_floor(static_cast<uint32_t>(vocab_size)) - 1),
      random_(pace.seed) {
  TS_CHECK(!trace.conversations.empty(), "a workload of no conversation");
  if (pace.rate > 0) {
    BeginAtRandom(0);
  } else {
    for (int i = 0; i < pace.sessions; ++i) Begin(0);
  }
}

std::optional<TimeNs> Workload::next() const {
  if (moments_.empty() || (pace_.requests > 0 && taken_ >= pace_.requests)) return std::nullopt;
  return moments_.top().time;
}

void Workload::Begin(TimeNs now) {
  const size_t known = trace_.conversations.size();
  if (begun_ >= known && pace_.requests == 0) return;
  auto live = std::make_unique<Live>(trace_.conversations[begun_ % known], begun_);
  moments_.push({now, order_++, live.get()});
  live_.emplace(begun_++, std::move(live));
}

void Workload::BeginAtRandom(TimeNs now) {
  const double uniform = static_cast<double>((NextRandom(random_) >> 11) + 1) * 0x1p-53;
  Begin(now + Nanoseconds(-std::log(uniform) / pace_.rate));
}

Live& Workload::Take() {
  const Moment moment = moments_.top();
  moments_.pop();
  ++taken_;
  if (pace_.rate > 0 && moment.live->row == 0) BeginAtRandom(moment.time);
  Write(*moment.live);
  return *moment.live;
}

void Workload::Write(Live& live) {
  const TraceRow& row = live.at();
  const auto width = static_cast<size_t>(trace_.block_tokens);
  std::vector<Token>& prompt = live.prompt;
  const auto before = static_cast<size_t>(live.names.size());
  const size_t kept =
      std::min({static_cast<size_t>(row.kept), static_cast<size_t>(row.blocks), before});
  live.names.Advance(row);
  prompt.resize(kept * width);
  const auto append = [&](uint64_t seed, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      seed = seed * 0x5851F42D4C957F2Dull + 0x14057B7EF767814Full;
      prompt.push_back(static_cast<Token>((seed >> 33) & mask_));
    }
  };
  for (size_t i = kept; i < static_cast<size_t>(row.blocks); ++i) {
    append(live.names.At(static_cast<int>(i)).low(), width);
  }
  // What fills no block is like nothing else.
  const auto input = static_cast<size_t>(std::max(row.input, 1));
  uint64_t own = live.index << 24 ^ live.row ^ 0x8000000000000000ull;
  prompt.resize(std::min(prompt.size(), input));
  append(NextRandom(own), input - prompt.size());
}

void Workload::Answered(Live& live, TimeNs now) {
  if (live.last()) return End(live, now);
  ++live.row;
  const double pause = std::min(live.at().pause, pace_.longest_pause);
  moments_.push({now + Nanoseconds(pause), order_++, &live});
}

void Workload::End(Live& live, TimeNs now) {
  live_.erase(live.index);
  if (pace_.rate == 0) Begin(now);
}

int32_t Workload::IdealTokens(const Live& live) {
  const TraceRow& row = live.at();
  const Conversation& conversation = *live.conversation;
  const int32_t blocks = std::min(row.blocks, row.input / trace_.block_tokens);
  const int32_t tools = std::min(conversation.tool_blocks, blocks);
  const int32_t shared =
      std::min(std::max(conversation.shared_blocks, conversation.tool_blocks), blocks);
  int32_t& tools_seen = tools_seen_[conversation.tool_key];
  int32_t& systems_seen = systems_seen_[conversation.system_key];
  int32_t ideal = std::min(tools, tools_seen);
  if (ideal == tools) ideal = std::clamp(systems_seen, tools, shared);
  if (ideal == shared) ideal = std::max(shared, live.row == 0 ? 0 : std::min(row.kept, blocks));
  tools_seen = std::max(tools_seen, tools);
  systems_seen = std::max(systems_seen, shared);
  return ideal * trace_.block_tokens;
}

}  // namespace tokenspeed::simulate
