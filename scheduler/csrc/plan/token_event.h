// SPDX-License-Identifier: MIT
// What frontends are told of their requests.
#pragma once

#include "base/ids.h"
#include "plan/request.h"

namespace tokenspeed::plan {

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
