// SPDX-License-Identifier: MIT
// EXPECTED: no member named .Lend
#include "kv/block_pool.h"

using namespace tokenspeed;

kv::TransferringBlock Case(kv::SealedBlock sealed, kv::RetiredBlock retired) {
#ifdef MISTAKE
  (void)retired;
  return std::move(sealed).Lend(TicketId{1});
#else
  (void)sealed;
  return std::move(retired).Lend(TicketId{1});
#endif
}
