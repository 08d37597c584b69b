// SPDX-License-Identifier: MIT
// The states of a request. A state owns the blocks that the request holds in it, so leaving the
// state any other way than by an arrow of transitions.h gives them back. Rows between plan and
// result are part of the state: see Overlap.
#pragma once

#include <cstdint>
#include <variant>

#include "base/ids.h"
#include "fsm/overlap.h"
#include "kv/block_table.h"
#include "kv/group_table.h"

namespace tokenspeed::fsm {

// Wire values: see ipc/messages.py.
enum class FinishReason : uint8_t {
  kNone = 0,
  kStop = 1,
  kLength = 2,
  kAbort = 3,
  kWorkerLost = 4,
  kNumeric = 5,
  kNoToken = 6,
};

// Queued. A request that was preempted waits here again, with its generated tokens.
struct Waiting {
  static constexpr const char* kName = "Waiting";
};

// On a slot; tokens of the known history are being computed. Its rows sample nothing.
struct Prefilling {
  static constexpr const char* kName = "Prefilling";
  SlotId slot;
  kv::BlockTable table;
  int context = 0;         // tokens whose KV the planned steps have written or found
  kv::GroupTables groups;  // behind the first
};

// On a slot; every planned row samples.
struct Decoding {
  static constexpr const char* kName = "Decoding";
  SlotId slot;
  kv::BlockTable table;
  int context = 0;  // tokens whose KV the planned steps have written or found, at least
  Overlap overlap;
  kv::GroupTables groups;

  // At most: if every draft in flight is accepted.
  int ceiling() const { return context + overlap.most() - overlap.fewest(); }
};

// Off its slot to make room; waits for the tokens that are still in flight.
struct Preempted {
  static constexpr const char* kName = "Preempted";
  Overlap overlap;
};

// Over for its client; rows of it that are still in flight are thrown away as they retire.
struct Ending {
  static constexpr const char* kName = "Ending";
  FinishReason reason = FinishReason::kNone;
  Overlap overlap;
};

struct Finished {
  static constexpr const char* kName = "Finished";
  FinishReason reason = FinishReason::kNone;
};

using State = std::variant<Waiting, Prefilling, Decoding, Preempted, Ending, Finished>;

}  // namespace tokenspeed::fsm
