// SPDX-License-Identifier: MIT
// The states of a request. A state owns the blocks that the request holds in it, so leaving the
// state any other way than by an arrow of transitions.h gives them back.
#pragma once

#include <cstdint>
#include <variant>

#include "base/ids.h"
#include "kv/block_table.h"

namespace tokenspeed::fsm {

// Wire values: see ipc/messages.py.
enum class FinishReason : uint8_t {
  kNone = 0,
  kStop = 1,
  kLength = 2,
  kAbort = 3,
  kWorkerLost = 4,
  kNumeric = 5,
};

// Queued. A request that was preempted waits here again, with its generated tokens.
struct Waiting {};

// On a slot; tokens of the known history are being computed.
struct Prefilling {
  SlotId slot;
  kv::BlockTable table;
  int context = 0;  // tokens whose KV the planned steps have written or found
};

// On a slot; every planned row samples one token.
struct Decoding {
  SlotId slot;
  kv::BlockTable table;
  int context = 0;
  int in_flight = 0;  // sampled by planned steps, not known yet
};

// Off its slot to make room; waits for the tokens that are still in flight.
struct Preempted {
  int in_flight = 0;
};

struct Finished {
  FinishReason reason = FinishReason::kNone;
};

using State = std::variant<Waiting, Prefilling, Decoding, Preempted, Finished>;

template <class S>
constexpr const char* Name();
template <>
constexpr const char* Name<Waiting>() {
  return "Waiting";
}
template <>
constexpr const char* Name<Prefilling>() {
  return "Prefilling";
}
template <>
constexpr const char* Name<Decoding>() {
  return "Decoding";
}
template <>
constexpr const char* Name<Preempted>() {
  return "Preempted";
}
template <>
constexpr const char* Name<Finished>() {
  return "Finished";
}

}  // namespace tokenspeed::fsm
