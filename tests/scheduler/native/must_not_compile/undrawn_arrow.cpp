// SPDX-License-Identifier: MIT
// EXPECTED: a function On is no arrow of the diagram
#include "fsm/transitions.h"

#ifdef MISTAKE
namespace tokenspeed::fsm {
Waiting On(Finished&&, Requeue);
}
#include "fsm/diagram.h"
#else
#include "fsm/diagram.h"
#endif
