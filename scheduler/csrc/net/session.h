// SPDX-License-Identifier: MIT
// What every connection must show, the log, and the clock: the edge of the process.
#pragma once

#include <cctype>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>

#include "base/ids.h"
#include "plan/request.h"
#include "wire/codec.h"

namespace tokenspeed::net {

inline TimeNs Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// One line on stderr per notable event; never one per step. Peers' text cannot break the line.
inline void Log(std::string text) {
  for (char& c : text) {
    if (std::iscntrl(static_cast<unsigned char>(c))) c = ' ';
  }
  std::fprintf(stderr, "tokenspeed-scheduler: %s\n", text.c_str());
}

// In time that does not depend on where they differ.
inline bool IsSame(const std::string& shown, const std::string& secret) {
  unsigned difference = shown.size() == secret.size() ? 0 : 1;
  for (size_t i = 0; i < secret.size(); ++i) {
    const char other = i < shown.size() ? shown[i] : '\0';
    difference |= static_cast<unsigned char>(secret[i] ^ other);
  }
  return difference == 0;
}

struct Session {
  std::string token;
  std::string remote_token;  // of frontends on other machines; empty: there are none
  int64_t dropped_frames = 0;

  // Counts a frame that could not be used; logs the 1st, 2nd, 4th, 8th ...
  void Drop(const std::string& why) {
    ++dropped_frames;
    if ((dropped_frames & (dropped_frames - 1)) == 0) {
      Log("dropped a frame (" + std::to_string(dropped_frames) + " so far): " + why);
    }
  }

  bool IsRemote(const wire::Hello& hello) const {
    return !remote_token.empty() && IsSame(hello.token.bytes, remote_token);
  }

  // Why this Hello is turned away, if it is.
  std::optional<plan::Rejection> Refuse(const wire::Hello& hello, int64_t role) const {
    if (!IsSame(hello.token.bytes, token) && !(role == 0 && IsRemote(hello))) {
      return plan::Rejection{plan::RefusalCode::kToken, "the session token is not this run's"};
    }
    if (hello.version != wire::kVersion) {
      return plan::Rejection{plan::RefusalCode::kVersion,
                             "wire version " + std::to_string(hello.version) + " met version " +
                                 std::to_string(wire::kVersion) + "; install the same release"};
    }
    if (hello.role != role) {
      return plan::Rejection{plan::RefusalCode::kMalformed,
                             "role " + std::to_string(hello.role) + " does not belong here"};
    }
    return std::nullopt;
  }
};

}  // namespace tokenspeed::net
