// SPDX-License-Identifier: MIT
// CHECK guards our own invariants: it prints both sides and aborts. Bad input is a Result instead.
#pragma once

#include <sstream>
#include <string>

namespace tokenspeed {

// Prints one line on stderr and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& detail);

}  // namespace tokenspeed

#define TS_CHECK(condition, detail)                                                   \
  do {                                                                                \
    if (!(condition)) [[unlikely]] {                                                  \
      std::ostringstream check_stream_;                                               \
      check_stream_ << detail; /* NOLINT: streams its operands */                     \
      ::tokenspeed::CheckFailed(__FILE__, __LINE__, #condition, check_stream_.str()); \
    }                                                                                 \
  } while (false)
