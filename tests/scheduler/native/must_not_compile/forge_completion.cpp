// SPDX-License-Identifier: MIT
// EXPECTED: private
#include "kv/block_pool.h"

using namespace tokenspeed;

void Case(kv::TransferringBlock block, const kv::Completion& done) {
#ifdef MISTAKE
  (void)done;
  std::move(block).Finish(kv::Completion(block.ticket(), true));
#else
  std::move(block).Finish(done);
#endif
}
