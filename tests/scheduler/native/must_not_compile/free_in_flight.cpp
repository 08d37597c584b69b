// SPDX-License-Identifier: MIT
// A handle has no Free: leaving its scope makes an InFlightBlock, which only its fence frees.
// EXPECTED: no member named .Free
#include "kv/block_pool.h"

using namespace tokenspeed::kv;

void Case(OpenBlock block) {
#ifdef MISTAKE
  std::move(block).Free();
#else
  const OpenBlock dropped = std::move(block);
#endif
}
