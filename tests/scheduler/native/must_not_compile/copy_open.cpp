// SPDX-License-Identifier: MIT
// EXPECTED: deleted
#include "kv/block_pool.h"

using namespace tokenspeed::kv;

void Case(OpenBlock block) {
#ifdef MISTAKE
  OpenBlock copy = block;
#else
  OpenBlock moved = std::move(block);
#endif
}
