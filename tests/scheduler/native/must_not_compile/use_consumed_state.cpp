// SPDX-License-Identifier: MIT
// An arrow consumes its state: it does not take one that somebody still names.
// EXPECTED: cannot bind rvalue reference|no matching function
#include "fsm/transitions.h"

using namespace tokenspeed::fsm;

Finished Case(Waiting state) {
#ifdef MISTAKE
  return On(state, Finish{FinishReason::kAbort});
#else
  return On(std::move(state), Finish{FinishReason::kAbort});
#endif
}
