// SPDX-License-Identifier: MIT
// EXPECTED: no member named .Seal
#include "kv/block_pool.h"

using namespace tokenspeed;

kv::SealedBlock Case(kv::OpenBlock block, std::span<const Token> tokens) {
#ifdef MISTAKE
  return std::move(block).Seal({}, tokens).Seal({}, tokens);
#else
  return std::move(block).Seal({}, tokens);
#endif
}
