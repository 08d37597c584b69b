// SPDX-License-Identifier: MIT
// What can happen to the core, as values: a call of plan::Scheduler each. The order of the
// alternatives is the file format's; a new one goes to the end.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/siphash.h"
#include "plan/epoch_shape.h"
#include "plan/limits.h"
#include "plan/request.h"

namespace tokenspeed::record {

struct Submit {
  plan::Submission submission;
};
struct Abort {
  RequestName name;
  int64_t kept = -1;
};
struct AbortClient {
  ClientId client;
};
struct AbortAll {};
struct Drain {};
struct BeginEpoch {
  Epoch epoch;
  plan::EpochShape shape;
};
struct EndEpoch {};
struct Plan {
  TimeNs now = 0;
};
struct Advance {
  StepId step;
  std::vector<Token> tokens;
  std::vector<float> logprobs;
  TimeNs now = 0;
  std::vector<int32_t> counts;
};
struct Hint {
  std::string salt;
  std::string session;
  int64_t action = 0;  // plan::SessionAction
  TimeNs now = 0;
  TimeNs ttl = 0;
};
struct Transferred {
  TicketId ticket;
  bool ok = false;
  TimeNs now = 0;
};
struct Prefetch {
  std::vector<Token> tokens;
  std::string salt;
};
struct Demote {
  std::vector<Token> tokens;
  std::string salt;
};

using Event = std::variant<Submit, Abort, AbortClient, AbortAll, Drain, BeginEpoch, EndEpoch, Plan,
                           Advance, Hint, Transferred, Prefetch, Demote>;

// Replaces `out` by the event's fields, little-endian and back to back; its kind stands elsewhere.
void EncodeEvent(const Event& event, std::string& out);
// Errors: `kind` is no event, or the bytes are not exactly its fields.
Result<Event> DecodeEvent(size_t kind, Bytes bytes);

// The limits with the hash key: what is evicted among equals depends on it, and a box, which has
// every prompt in clear, is as private as the key.
void EncodeLimits(const plan::Limits& limits, std::string& out);
Result<plan::Limits> DecodeLimits(Bytes bytes);

// One line for people. It names counts, never token ids.
std::string Describe(const Event& event);

}  // namespace tokenspeed::record
