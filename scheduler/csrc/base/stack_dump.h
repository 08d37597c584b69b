// SPDX-License-Identifier: MIT
// What the process does at this moment, for whoever is about to kill it because it hangs.
#pragma once

namespace tokenspeed {

// From now on SIGUSR2 writes the main thread's stack to stderr; `addr2line -e` reads its offsets.
// Without <execinfo.h> it writes that it cannot.
void DumpStackOnSignal();

}  // namespace tokenspeed
