// SPDX-License-Identifier: MIT
// Nobody but the pool makes an InFlightBlock, so nobody else can bring one to its free list.
// EXPECTED: private
#include "kv/block_pool.h"

using namespace tokenspeed;

StepId Case(const kv::InFlightBlock& block) {
#ifdef MISTAKE
  return kv::InFlightBlock(BlockId{1}, StepId{0}).fence();
#else
  return block.fence();
#endif
}
