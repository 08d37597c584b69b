// SPDX-License-Identifier: MIT
// Sealing consumes: in place it would leave a writable handle of a sealed block behind.
// EXPECTED: as 'this' argument discards qualifiers|expects an rvalue|qualified
#include "kv/block_pool.h"

using namespace tokenspeed;

kv::SealedBlock Case(kv::OpenBlock& block, std::span<const Token> tokens) {
#ifdef MISTAKE
  return block.Seal({}, tokens);
#else
  return std::move(block).Seal({}, tokens);
#endif
}
