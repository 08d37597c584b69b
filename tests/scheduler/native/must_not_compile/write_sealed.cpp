// SPDX-License-Identifier: MIT
// EXPECTED: no member named .Fill
#include "kv/block_pool.h"

using namespace tokenspeed::kv;

void Case(SealedBlock& block) {
#ifdef MISTAKE
  block.Fill(1);
#else
  (void)block;
#endif
}
