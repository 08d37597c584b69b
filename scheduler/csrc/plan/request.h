// SPDX-License-Identifier: MIT
// A request: what was asked, the tokens known so far, and its state.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "fsm/states.h"
#include "kv/hash_chain.h"
#include "plan/draft_width.h"
#include "plan/miss.h"
#include "plan/rank.h"

namespace tokenspeed::plan {

struct Session;

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
  std::string shaping{};  // what the workers do to its logits; only they read it
};

// The event that brings a request in.
struct Submission {
  RequestName name;
  TimeNs time = 0;
  std::vector<Token> prompt;
  PromptOrigin origin{};
  int64_t max_tokens = 0;
  Sampling sampling;
  std::vector<Token> stop_ids;
  int64_t priority = 0;
  std::string salt;
  std::string session;  // a name within the salt; empty: told by the prefix
  TimeNs retain = 0;    // keep its blocks if possible for this long after it ends
  TimeNs deadline = 0;  // of the first token, on the clock of `time`; 0: none
};

// The steps in which a request held a slot.
struct Tenancy {
  SlotId slot;
  StepId first;
  StepId last;

  bool Covers(SlotId id, StepId step) const { return slot == id && first <= step && step <= last; }
};

// The token ids that end a request. MayHold is one bit test; it errs to the side of true.
class StopIds {
 public:
  StopIds() = default;
  explicit StopIds(std::vector<Token> ids) : ids_(std::move(ids)) {
    std::ranges::sort(ids_);
    for (const Token id : ids_) filter_ |= Bit(id);
  }
  bool MayHold(Token token) const { return (filter_ & Bit(token)) != 0; }
  bool Holds(Token token) const { return std::ranges::binary_search(ids_, token); }

 private:
  static uint64_t Bit(Token token) {
    return uint64_t{1} << ((static_cast<uint32_t>(token) * 0x9E3779B1u) >> 26);
  }
  uint64_t filter_ = 0;
  std::vector<Token> ids_;  // ascending
};

// What every token touches stands in front, in one cache line; behind it, in the next four, what a
// row touches that ends its block.
struct alignas(64) Request {
  std::vector<Token> tokens;  // prompt, then the generated tokens that are known
  RequestName name;
  int32_t limit = 0;  // tokens at which it ends with kLength
  int32_t cached_tokens = 0;
  int32_t prompt_tokens = 0;
  StopIds stop_ids;

  fsm::State state;
  std::optional<kv::HashChain> chain;
  std::vector<TicketId> loads;  // under way: its blocks hang on them
  Session* session = nullptr;   // from submission if it has a name, else from admission
  int32_t preemptions = 0;
  int32_t host_tokens = 0;     // of cached_tokens: loaded from the host tier
  bool admitted = false;       // has been on a slot
  bool guest = false;          // runs ahead of a head of the queue that does not fit
  int32_t evicted_tokens = 0;  // of the prompt: computed, though they had been here before
  int32_t promotable = 0;  // tokens that all groups but states could resume: a snapshot helps there
  bool alone = false;      // takes nothing that others wrote: its blocks would lie too scattered
  int32_t lost = 0;        // tokens it had computed when it was preempted
  int32_t likely_hits = 0;  // blocks, when last looked at in the queue
  int32_t priority = 0;
  Rank rank;  // changes only off the queue and off the slots
  Arrival arrival;
  DraftWidth drafts;
  Tenancy former;  // of its last slot, while rows of it are in flight
  Sampling sampling;
  TimeNs submitted = 0;
  TimeNs queued = 0;  // until it first had a slot
  StepId first_step;  // that could have a row of it
  TimeNs retain = 0;  // its blocks are wanted for this long after it ends
  std::string salt;
  std::string session_name;
  std::vector<kv::BlockMark> trail;  // of leading blocks that were its own, or its session's
  SlotId last_slot{-1};              // where they were
  uint64_t rest = 0;                 // by which the pool knows its session's table at rest
  uint64_t prompt_id = 0;            // of its PromptOrigin
  PromptOverlap common;              // of its prompt and its session's history

  // Asks the processor for what a row touches that ends its block: first the request, later what
  // that leads to.
  void PrefetchDue() const {
    constexpr size_t kDueBytes = 320;
    const auto* memory = reinterpret_cast<const std::byte*>(this);
    for (size_t line = 0; line < kDueBytes; line += 64) __builtin_prefetch(memory + line, 1);
  }
  void PrefetchEnds() const {
    if (const auto* decoding = std::get_if<fsm::Decoding>(&state)) decoding->table.PrefetchEnds();
    if (chain) chain->PrefetchEnd();
  }

  bool restarted() const { return preemptions > 0; }
  int32_t known() const { return static_cast<int32_t>(tokens.size()); }
};

}  // namespace tokenspeed::plan
