// SPDX-License-Identifier: MIT
// Strong ids: integers of different meaning that do not convert into each other.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace tokenspeed {

template <class Tag, class T>
struct StrongId {
  T value{};
  friend auto operator<=>(const StrongId&, const StrongId&) = default;
};

using BlockId = StrongId<struct BlockTag, int32_t>;          // 0 is the workers' scratch block
using HostBlockId = StrongId<struct HostBlockTag, int32_t>;  // block of the workers' host pool
using SlotId = StrongId<struct SlotTag, int32_t>;      // place of a running request on the workers
using StepId = StrongId<struct StepTag, int64_t>;      // counts from 1 in each epoch
using Epoch = StrongId<struct EpochTag, int64_t>;      // life of one set of workers, from 1
using ClientId = StrongId<struct ClientTag, int64_t>;  // one frontend connection
using Arrival = StrongId<struct ArrivalTag, int64_t>;  // order of submission, never reused
using TicketId = StrongId<struct TicketTag, int32_t>;  // one copy between pools, from 1
using TimeNs = int64_t;                                // monotonic clock of the caller
using Token = int32_t;

inline constexpr TimeNs kMillisecond = 1'000'000;

// A request as its frontend names it.
struct RequestName {
  ClientId client;
  uint64_t id = 0;
  friend bool operator==(const RequestName&, const RequestName&) = default;
};

struct RequestNameHash {
  size_t operator()(const RequestName& name) const {
    uint64_t mixed = name.id ^ (static_cast<uint64_t>(name.client.value) * 0x9E3779B97F4A7C15ull);
    mixed = (mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93ull;
    return static_cast<size_t>(mixed ^ (mixed >> 32));
  }
};

}  // namespace tokenspeed
