// SPDX-License-Identifier: MIT
// Messages to bytes and back. The bytes are those that ipc/codec.py writes and reads.
#pragma once

#include <string>
#include <variant>

#include "base/ids.h"
#include "base/result.h"
#include "base/siphash.h"
#include "wire/fields.h"
#include "wire/messages.h"

namespace tokenspeed::wire {

inline constexpr size_t kMaxStringBytes = 8192;
inline constexpr size_t kMaxBlobBytes = 1024;

// Replaces `out` by the message's bytes.
template <class Message>
void Encode(const Message& message, std::string& out);
void EncodePlan(const plan::StepPlan& plan, std::string& out);

// Reads the fields behind the tag.
template <class Message>
Result<Message> FromFields(const Fields& fields);

// One of the messages that are legal on a socket, or why the frame is none.
template <class... Messages>
Result<std::variant<Messages...>> DecodeOneOf(Bytes frame) {
  using Any = std::variant<Messages...>;
  Fields fields;
  if (Status parsed = ParseFields(frame, fields); !parsed.ok()) return Error(parsed.error());
  const uint64_t tag = fields.outer[0].value;
  Result<Any> result = Error{"tag " + std::to_string(tag) + " does not belong on this socket"};
  const auto attempt = [&]<class Message>(Message*) {
    if (tag != static_cast<uint64_t>(Message::kTag)) return;
    Result<Message> message = FromFields<Message>(fields);
    result = message.ok() ? Result<Any>(Any(std::move(message).value())) : Error(message.error());
  };
  (attempt(static_cast<Messages*>(nullptr)), ...);
  return result;
}

using FromFrontend = std::variant<Hello, Heartbeat, Submit, Abort, SessionHint, Profile>;
using FromWorker = std::variant<Hello, Heartbeat, StepResult, StepAck, WorkerFailed, Transfers>;
Result<FromFrontend> DecodeFromFrontend(Bytes frame);
Result<FromWorker> DecodeFromWorker(Bytes frame);
Result<SchedulerConfig> DecodeConfig(Bytes frame);
// Any message at all, for tests: decodes and encodes again.
Result<std::string> Reencode(Bytes frame);

// The running digest of an epoch's plans, before its first plan and after each.
Hash128 FirstDigest(Epoch epoch);
inline Hash128 NextDigest(const Hash128& previous, Bytes plan) {
  return SipHash128(previous, plan);
}

inline Bytes AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace tokenspeed::wire
