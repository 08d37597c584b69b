// SPDX-License-Identifier: MIT
// Mistakes that the types refuse; CMakeLists.txt compiles this file once with each.
#include "fsm/transitions.h"
#include "kv/block_pool.h"

namespace tokenspeed {

void Correct(kv::BlockPool& pool, const kv::ChainKey& key, std::span<const Token> tokens) {
  kv::OpenBlock open = *pool.Allocate();
  open.Fill(pool.block_size());
  kv::SealedBlock sealed = std::move(open).Seal(key, tokens);
  kv::SealedBlock other = sealed.Share();
  fsm::Prefilling prefilling = On(fsm::Waiting{}, fsm::Admit{SlotId{0}});
  On(std::move(prefilling), fsm::Finish{fsm::FinishReason::kAbort});

#ifdef MISTAKE_write_sealed
  sealed.Fill(1);
#endif
#ifdef MISTAKE_share_open
  kv::OpenBlock mine = *pool.Allocate();
  mine.Share();
#endif
#ifdef MISTAKE_copy_open
  kv::OpenBlock mine = *pool.Allocate();
  kv::OpenBlock copy = mine;
#endif
#ifdef MISTAKE_copy_sealed
  kv::SealedBlock copy = sealed;
#endif
#ifdef MISTAKE_seal_in_place
  // Sealing consumes: without a move it would leave a writable handle of a sealed block behind.
  kv::OpenBlock mine = *pool.Allocate();
  mine.Seal(key, tokens);
#endif
#ifdef MISTAKE_make_open
  kv::OpenBlock mine(&pool, BlockId{3});
#endif
#ifdef MISTAKE_illegal_arrow
  On(fsm::Waiting{}, fsm::TokenKnown{});
#endif
#ifdef MISTAKE_leave_finished
  On(fsm::Finished{}, fsm::Finish{fsm::FinishReason::kStop});
#endif
}

}  // namespace tokenspeed
