// SPDX-License-Identifier: MIT
// A request: what was asked, the tokens known so far, and its state.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "fsm/states.h"
#include "kv/hash_chain.h"

namespace tokenspeed::plan {

// Wire values: see ipc/messages.py.
enum class RefusalCode : int32_t {
  kVersion = 1,
  kToken = 2,
  kRank = 3,
  kShape = 4,
  kMalformed = 5,
  kDuplicate = 6,
  kEmptyPrompt = 7,
  kTooLong = 8,
  kTokenId = 9,
  kParameter = 10,
  kQueueFull = 11,
  kNeverFits = 12,
  kDraining = 13,
};

struct Rejection {
  RefusalCode code;
  std::string message;
};

struct Sampling {
  float temperature = 0.0f;
  int64_t top_k = 0;
  float top_p = 1.0f;
  uint64_t seed = 0;
  bool logprobs = false;
};

// The event that brings a request in.
struct Submission {
  RequestName name;
  TimeNs time = 0;
  std::vector<Token> prompt;
  int64_t max_tokens = 0;
  Sampling sampling;
  std::vector<Token> stop_ids;
  int64_t priority = 0;
  std::string salt;
};

// The fields that every step touches stand in front, together.
struct Request {
  fsm::State state;
  std::vector<Token> tokens;  // prompt, then the generated tokens that are known
  int32_t prompt_tokens = 0;
  int32_t limit = 0;  // tokens at which it ends with kLength
  int32_t cached_tokens = 0;
  bool admitted = false;   // has been on a slot
  bool restarted = false;  // has been preempted
  Arrival arrival;
  RequestName name;
  std::vector<Token> stop_ids;  // ascending
  Sampling sampling;
  TimeNs submitted = 0;
  std::string salt;
  std::optional<kv::HashChain> chain;

  int32_t known() const { return static_cast<int32_t>(tokens.size()); }
};

}  // namespace tokenspeed::plan
