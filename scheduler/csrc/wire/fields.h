// SPDX-License-Identifier: MIT
// The fields of one frame as views into its bytes: nothing is copied and nothing is allocated for
// counts that the frame claims. One array level inside the message is kept, deeper ones skipped.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "base/result.h"
#include "base/siphash.h"

namespace tokenspeed::wire {

inline constexpr int kMaxFields = 64;  // of a message; the tail behind them is ignored
inline constexpr int kMaxNesting = 8;  // arrays and maps in each other

struct Field {
  enum class Kind : uint8_t {
    kOther,
    kBool,
    kUnsigned,
    kNegative,
    kFloat,
    kString,
    kBinary,
    kArray
  };
  Kind kind;
  uint64_t value;         // a number, a flag, the bits of a real; kArray: first of Fields::inner
  const std::byte* data;  // kString, kBinary
  size_t size;            // bytes; kArray: elements
};
static_assert(std::is_trivially_default_constructible_v<Field>);

// Not filled with zeros: a frame has few of the fields that there is room for.
struct Fields {
  std::array<Field, kMaxFields> outer;
  std::array<Field, kMaxFields> inner;
  int outer_count = 0;
  int inner_count = 0;
};

// Reads a frame that must be one array with an integer tag in front.
// REQUIRES: frame outlives `fields`.
Status ParseFields(Bytes frame, Fields& fields);

}  // namespace tokenspeed::wire
