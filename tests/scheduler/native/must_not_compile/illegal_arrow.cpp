// SPDX-License-Identifier: MIT
// EXPECTED: no matching function for call to .On
#include "fsm/transitions.h"

using namespace tokenspeed;

void Case(fsm::Waiting state) {
#ifdef MISTAKE
  On(std::move(state), fsm::Preempt{});
#else
  (void)On(std::move(state), fsm::Admit{SlotId{0}});
#endif
}
