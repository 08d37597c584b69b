// SPDX-License-Identifier: MIT
#include "kv/block.h"

#include "base/check.h"
#include "kv/block_pool.h"

namespace tokenspeed::kv {

OpenBlock::~OpenBlock() {
  if (pool_ != nullptr) pool_->Release(id_);
}

void OpenBlock::Fill(int tokens) {
  Accept(tokens);
  pool_->Fill(id_);
}

void OpenBlock::Accept(int tokens) {
  TS_CHECK(pool_ != nullptr, "fill of a moved-from block");
  TS_CHECK(tokens >= 0 && filled_ + tokens <= pool_->block_size(),
           "block " << id_.value << " holds " << filled_ << " of " << pool_->block_size()
                    << " tokens, cannot take " << tokens);
  filled_ += tokens;
}

SealedBlock OpenBlock::Seal(const ChainKey& key, std::span<const Token> tokens,
                            std::optional<BlockId> before) && {
  TS_CHECK(pool_ != nullptr, "seal of a moved-from block");
  TS_CHECK(filled_ == pool_->block_size() && tokens.size() == static_cast<size_t>(filled_),
           "block " << id_.value << " holds " << filled_ << " of " << pool_->block_size()
                    << " tokens, sealed with " << tokens.size());
  BlockPool* pool = std::exchange(pool_, nullptr);
  pool->Seal(id_, key, tokens, before);
  return SealedBlock(pool, id_);
}

Delivery OpenBlock::Receive(TicketId ticket, const ChainKey& key,
                            std::span<const Token> tokens) && {
  TS_CHECK(pool_ != nullptr, "receive into a moved-from block");
  TS_CHECK(filled_ == 0 && tokens.size() == static_cast<size_t>(pool_->block_size()),
           "block " << id_.value << " holds " << filled_ << " tokens, receives " << tokens.size());
  BlockPool* pool = std::exchange(pool_, nullptr);
  pool->Receive(id_, key, tokens);
  pool->Share(id_);
  return {.block = SealedBlock(pool, id_), .transfer = TransferringBlock(pool, id_, ticket, true)};
}

void SealedBlock::GiveUp() { pool_->Release(id_); }

const ChainKey& SealedBlock::key() const {
  TS_CHECK(pool_ != nullptr, "key of a moved-from block");
  return pool_->node(id_).key;
}

std::span<const Token> SealedBlock::tokens() const {
  TS_CHECK(pool_ != nullptr && pool_->findable(), "content of a block that keeps none");
  return pool_->content(id_);
}

SealedBlock SealedBlock::Share() const {
  TS_CHECK(pool_ != nullptr, "share of a moved-from block");
  pool_->Share(id_);
  return SealedBlock(pool_, id_);
}

std::optional<RetiredBlock> SealedBlock::Retire(const RetiredStep& proof) const {
  TS_CHECK(pool_ != nullptr, "retirement of a moved-from block");
  if (!pool_->IsRetired(id_, proof)) return std::nullopt;
  return RetiredBlock(Share());
}

void SealedBlock::Forget() {
  TS_CHECK(pool_ != nullptr, "forget of a moved-from block");
  pool_->Unindex(id_);
}

TransferringBlock RetiredBlock::Lend(TicketId ticket) && {
  TS_CHECK(block_.pool_ != nullptr, "lending of a moved-from block");
  BlockPool* pool = std::exchange(block_.pool_, nullptr);
  return TransferringBlock(pool, block_.id_, ticket, false);
}

TransferringBlock::~TransferringBlock() {
  TS_CHECK(pool_ == nullptr,
           "block " << id_.value << " is dropped while ticket " << ticket_.value << " copies it");
}

void TransferringBlock::Finish(const Completion& completion) && {
  TS_CHECK(pool_ != nullptr, "end of a moved-from transfer");
  TS_CHECK(completion.ticket() == ticket_, "block " << id_.value << " of ticket " << ticket_.value
                                                    << " is given back by ticket "
                                                    << completion.ticket().value);
  BlockPool* pool = std::exchange(pool_, nullptr);
  if (target_) pool->Received(id_, completion.ok());
  pool->Release(id_);
}

}  // namespace tokenspeed::kv
