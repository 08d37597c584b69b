// SPDX-License-Identifier: MIT
// EXPECTED: no member named .Share
#include "kv/block_pool.h"

using namespace tokenspeed::kv;

SealedBlock Case(OpenBlock& block, const SealedBlock& sealed) {
#ifdef MISTAKE
  return block.Share();
#else
  (void)block;
  return sealed.Share();
#endif
}
