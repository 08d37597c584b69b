// SPDX-License-Identifier: MIT
// A trace of conversations: sizes, times and which blocks are equal, no text.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/ids.h"
#include "base/siphash.h"

namespace tokenspeed::simulate {

inline constexpr TimeNs kNever = std::numeric_limits<TimeNs>::max() / 2;

inline TimeNs Nanoseconds(double seconds) {
  return static_cast<TimeNs>(std::llround(seconds * 1e9));
}

// One request of a conversation.
struct TraceRow {
  int32_t input = 0;   // tokens
  int32_t output = 0;  // tokens
  int32_t kept = 0;    // leading blocks that are those of the row before
  int32_t blocks = 0;  // whole blocks of the input
  double service = 0;  // seconds it took where it was recorded
  double pause = 0;    // seconds between the end of the row before and this one
  uint8_t stop = 0;    // 0 unknown, 1 it called a tool, 2 its turn ended
};

struct Conversation {
  // Its leading blocks, shared with all conversations of the same key: those of the tools, and up
  // to which block those of tools and system prompt.
  uint64_t tool_key = 0;
  uint64_t system_key = 0;
  int32_t tool_blocks = 0;
  int32_t shared_blocks = 0;
  std::vector<TraceRow> rows;
};

struct Trace {
  int32_t block_tokens = 64;
  std::vector<Conversation> conversations;
};

// The blocks of a conversation's rows, one row after the other.
class BlockNames {
 public:
  BlockNames(const Conversation& conversation, uint64_t index)
      : conversation_(&conversation), index_(index) {}

  // Goes to the next row.
  void Advance(const TraceRow& row);
  int size() const { return static_cast<int>(own_.size()); }
  // The name of block `i`: equal names are equal content behind equal blocks.
  Hash128 At(int i) const;

 private:
  const Conversation* conversation_;
  uint64_t index_;
  uint64_t next_ = 0;
  std::vector<uint64_t> own_;  // a number that is new wherever the row differs from those before
};

}  // namespace tokenspeed::simulate
