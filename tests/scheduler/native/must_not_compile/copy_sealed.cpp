// SPDX-License-Identifier: MIT
// EXPECTED: deleted
#include "kv/block_pool.h"

using namespace tokenspeed::kv;

void Case(const SealedBlock& block) {
#ifdef MISTAKE
  SealedBlock copy = block;
#else
  SealedBlock copy = block.Share();
#endif
}
