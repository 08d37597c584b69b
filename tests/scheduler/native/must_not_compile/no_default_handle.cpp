// SPDX-License-Identifier: MIT
// EXPECTED: no matching (function for call|constructor for initialization)
#include "kv/block_pool.h"

using namespace tokenspeed::kv;

void Case() {
#ifdef MISTAKE
  SealedBlock block;
#else
  std::optional<SealedBlock> block;
#endif
}
