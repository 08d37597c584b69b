// SPDX-License-Identifier: MIT
// The fields of one frame as views into its bytes: nothing is copied and nothing is allocated for
// counts that the frame claims. One array level inside the message is kept, deeper ones skipped.
#pragma once

#include <array>
#include <cstdint>

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
  Kind kind = Kind::kOther;
  bool flag = false;
  uint64_t number = 0;   // kUnsigned
  int64_t negative = 0;  // kNegative
  double real = 0.0;     // kFloat
  Bytes bytes{};         // kString, kBinary
  int first = 0;         // kArray: its elements among Fields::inner
  int count = 0;
};

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
