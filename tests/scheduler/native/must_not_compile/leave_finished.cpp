// SPDX-License-Identifier: MIT
// EXPECTED: no matching function for call to .On
#include "fsm/transitions.h"

using namespace tokenspeed::fsm;

FinishReason Case(Finished state) {
#ifdef MISTAKE
  return On(std::move(state), Finish{FinishReason::kStop}).reason;
#else
  return state.reason;
#endif
}
