// SPDX-License-Identifier: MIT
// Result<T, E>: a value, or why there is none. Used for bad input; our own bugs are CHECKs.
#pragma once

#include <sstream>
#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace tokenspeed {

struct Error {
  std::string message;
};

template <class T, class E = Error>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT
  Result(E error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  bool ok() const { return state_.index() == 0; }

  // REQUIRES: ok()
  T& value() & {
    TS_CHECK(ok(), "value() of a Result that holds an error");
    return *std::get_if<0>(&state_);
  }
  T&& value() && { return std::move(value()); }

  // REQUIRES: !ok()
  const E& error() const {
    TS_CHECK(!ok(), "error() of a Result that holds a value");
    return *std::get_if<1>(&state_);
  }

 private:
  std::variant<T, E> state_;
};

struct Ok {};
template <class E = Error>
using StatusOr = Result<Ok, E>;
using Status = StatusOr<>;

// An error whose message is the parts one behind the other.
template <class... Parts>
Status Broken(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return Error{text.str()};
}

}  // namespace tokenspeed
