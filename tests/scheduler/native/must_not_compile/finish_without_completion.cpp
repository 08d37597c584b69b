// SPDX-License-Identifier: MIT
// EXPECTED: no matching|no viable|cannot convert|could not convert|no known conversion
#include "kv/block_pool.h"

using namespace tokenspeed;

void Case(kv::TransferringBlock block, kv::Tickets& tickets) {
#ifdef MISTAKE
  (void)tickets;
  std::move(block).Finish(block.ticket());
#else
  if (const auto done = tickets.Complete(block.ticket(), true)) std::move(block).Finish(*done);
#endif
}
