// SPDX-License-Identifier: MIT
// The copy writes the block that receives: nobody holds an open handle of it.
// EXPECTED: no member named .Fill
#include "kv/block_pool.h"

using namespace tokenspeed;

kv::Delivery Case(kv::OpenBlock block, std::span<const Token> tokens) {
  kv::Delivery delivery = std::move(block).Receive(TicketId{1}, {}, tokens);
#ifdef MISTAKE
  delivery.transfer.Fill(1);
#endif
  return delivery;
}
