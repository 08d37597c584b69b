// SPDX-License-Identifier: MIT
// EXPECTED: private
#include "kv/block_pool.h"

using namespace tokenspeed;

std::optional<kv::OpenBlock> Case(kv::BlockPool& pool) {
#ifdef MISTAKE
  return kv::OpenBlock(&pool, BlockId{3});
#else
  return pool.Allocate();
#endif
}
