// SPDX-License-Identifier: MIT
// A reader outside of the workers' order takes RetiredBlocks; a sealed one may still be written.
// EXPECTED: could not convert|no viable conversion
#include "kv/block_pool.h"

using namespace tokenspeed;

kv::TransferringBlock StoreOnHost(kv::RetiredBlock block) {
  return std::move(block).Lend(TicketId{1});
}

std::optional<kv::TransferringBlock> Case(kv::BlockPool& pool, const kv::SealedBlock& block) {
#ifdef MISTAKE
  (void)pool;
  return StoreOnHost(block.Share());
#else
  auto retired = block.Retire(pool.retired());
  if (!retired) return std::nullopt;
  return StoreOnHost(std::move(*retired));
#endif
}
