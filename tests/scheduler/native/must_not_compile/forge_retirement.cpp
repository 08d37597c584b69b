// SPDX-License-Identifier: MIT
// EXPECTED: private
#include "kv/block_pool.h"

using namespace tokenspeed;

std::optional<kv::RetiredBlock> Case(kv::BlockPool& pool, const kv::SealedBlock& block) {
#ifdef MISTAKE
  (void)pool;
  return block.Retire(kv::RetiredStep(StepId{1000}));
#else
  return block.Retire(pool.retired());
#endif
}
