// SPDX-License-Identifier: MIT
// What frontends are told of their requests.
#pragma once

#include "base/ids.h"
#include "plan/request.h"

namespace tokenspeed::plan {

// What workers report of a row in place of a token.
inline constexpr Token kNotFinite = -1;    // its logits were not finite
inline constexpr Token kNoneAllowed = -2;  // they were, and its request allows none of the tokens

// REQUIRES: token < 0
inline fsm::FinishReason WhyNone(Token token) {
  return token == kNotFinite ? fsm::FinishReason::kNumeric : fsm::FinishReason::kNoToken;
}

// What happened to a request: a token, an end, or both.
struct TokenEvent {
  RequestName name;
  Token token = -1;  // -1: none
  float logprob = 0.0f;
  bool has_logprob = false;
  fsm::FinishReason reason = fsm::FinishReason::kNone;
  int32_t cached_tokens = 0;
};

// A queued request that turned out to be impossible.
struct LateRejection {
  RequestName name;
  Rejection rejection;
};

}  // namespace tokenspeed::plan
