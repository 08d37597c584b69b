// SPDX-License-Identifier: MIT
// Block handles, the pool and the prefix index.
#include <csignal>
#include <vector>

#include "expect.h"
#include "kv/block_pool.h"
#include "kv/block_table.h"
#include "kv/hash_chain.h"

namespace tokenspeed::kv {
namespace {

constexpr int kWidth = 4;

std::vector<Token> Content(int first) { return {first, first + 1, first + 2, first + 3}; }

ChainKey Key(int hash, int parent) {
  ChainKey key;
  key.hash.bytes[0] = static_cast<std::byte>(hash);
  key.parent.bytes[0] = static_cast<std::byte>(parent);
  return key;
}

SealedBlock SealNew(BlockPool& pool, const ChainKey& key, const std::vector<Token>& tokens) {
  OpenBlock open = *pool.Allocate();
  open.Fill(kWidth);
  return std::move(open).Seal(key, tokens);
}

void ScratchIsNeverHandedOut() {
  BlockPool pool(3, kWidth, true);
  std::vector<OpenBlock> all;
  while (auto block = pool.Allocate()) all.push_back(std::move(*block));
  EXPECT(all.size() == 2);
  for (const OpenBlock& block : all) EXPECT(block.id().value == 1 || block.id().value == 2);
  EXPECT(pool.counts().open == 2 && pool.available() == 0);
}

void DestructorsGiveBlocksBack() {
  BlockPool pool(4, kWidth, true);
  {
    BlockTable table;
    table.Append(SealNew(pool, Key(1, 0), Content(10)));
    table.Append(*pool.Allocate());
    EXPECT(pool.counts().shared == 1 && pool.counts().open == 1);
    BlockTable moved = std::move(table);
    EXPECT(moved.size() == 2 && pool.counts().shared == 1);
  }
  EXPECT(pool.counts().cached == 1 && pool.counts().free == 2);
  EXPECT(pool.Verify().ok());
}

void ReleasedBlocksWaitForTheStepsInFlight() {
  BlockPool pool(3, kWidth, true);
  {
    OpenBlock open = *pool.Allocate();
    SealedBlock sealed = SealNew(pool, Key(1, 0), Content(10));
    pool.Planned(StepId{1});
    pool.Planned(StepId{2});
  }
  EXPECT(pool.counts().retiring == 2 && !pool.Allocate().has_value());
  pool.Retired(StepId{1});
  EXPECT(pool.counts().retiring == 2);
  {
    // A sealed block can be found meanwhile: its readers come behind its writer.
    const auto found = pool.Find(Key(1, 0), Content(10));
    EXPECT(found.has_value() && pool.counts().retiring == 1);
  }
  pool.Retired(StepId{2});
  EXPECT(pool.counts().free == 1 && pool.counts().cached == 1);
  EXPECT(pool.Verify().ok());
}

void MarksTellABlockFromThoseBehindIt() {
  BlockPool pool(3, kWidth, true);
  std::vector<BlockMark> marks;
  {
    BlockTable table;
    table.Append(SealNew(pool, Key(1, 0), Content(10)));
    table.Append(SealNew(pool, Key(2, 1), Content(14)));
    for (int i = 0; i < table.sealed(); ++i) marks.push_back(pool.Mark(table.at(i)));
  }
  {
    std::vector<SealedBlock> blocks;
    pool.Retake(marks, blocks);
    EXPECT(blocks.size() == 2 && blocks[1].id() == marks[1].id && pool.counts().shared == 2);
    BlockTable table;
    table.Append(std::move(blocks));
    EXPECT(table.sealed() == 2);
  }
  {
    // The same key and content in the same place again is another block.
    OpenBlock evicted = *pool.Allocate();
    EXPECT(evicted.id() == marks[1].id);
    evicted.Fill(kWidth);
    const SealedBlock again = std::move(evicted).Seal(Key(2, 1), Content(14));
    std::vector<SealedBlock> blocks;
    pool.Retake(marks, blocks);
    EXPECT(blocks.size() == 1 && blocks[0].id() == marks[0].id);
  }
  const OpenBlock open = *pool.Allocate();
  const BlockMark unfound = pool.Mark(open.id());
  std::vector<SealedBlock> none;
  pool.Retake({&unfound, 1}, none);
  EXPECT(none.empty());
}

void ContentAndChainDecideNotTheHash() {
  BlockPool pool(4, kWidth, true);
  const SealedBlock block = SealNew(pool, Key(1, 0), Content(10));
  EXPECT(pool.Find(Key(1, 0), Content(10))->id() == block.id());
  EXPECT(!pool.Find(Key(1, 0), Content(11)));  // a collision of the hash
  EXPECT(!pool.Find(Key(1, 9), Content(10)));  // the same tokens behind another history
  EXPECT(!pool.Find(Key(2, 0), Content(10)));
}

void TheColdestCachedBlockIsEvicted() {
  BlockPool pool(4, kWidth, true);
  {
    SealedBlock a = SealNew(pool, Key(1, 0), Content(10));
  }
  {
    SealedBlock b = SealNew(pool, Key(2, 0), Content(20));
  }
  {
    SealedBlock c = SealNew(pool, Key(3, 0), Content(30));
  }
  EXPECT(pool.counts().cached == 3);
  {
    const auto touched = pool.Find(Key(1, 0), Content(10));
  }
  const auto fresh = pool.Allocate();
  EXPECT(fresh.has_value());
  EXPECT(pool.Find(Key(1, 0), Content(10)).has_value());
  EXPECT(!pool.Find(Key(2, 0), Content(20)).has_value());
  EXPECT(pool.Verify().ok());
}

void TheSecondBlockOfOneContentIsNotFindable() {
  BlockPool pool(4, kWidth, true);
  {
    SealedBlock twin = SealNew(pool, Key(1, 0), Content(10));
  }
  const SealedBlock first = *pool.Find(Key(1, 0), Content(10));
  {
    const SealedBlock second = SealNew(pool, Key(1, 0), Content(10));
  }
  EXPECT(pool.counts().free == 2 && pool.counts().shared == 1);
  EXPECT(pool.Find(Key(1, 0), Content(10))->id() == first.id());
}

void ForgottenBlocksAreNotFound() {
  BlockPool pool(3, kWidth, true);
  {
    SealedBlock block = SealNew(pool, Key(1, 0), Content(10));
    block.Forget();
  }
  EXPECT(!pool.Find(Key(1, 0), Content(10)) && pool.counts().free == 2);
}

void MovedFromHandlesAreDead() {
  BlockPool pool(4, kWidth, true);
  OpenBlock open = *pool.Allocate();
  open.Fill(kWidth);
  SealedBlock sealed = std::move(open).Seal(Key(1, 0), Content(10));
  EXPECT_DEATH(open.Fill(1));
  EXPECT_DEATH((void)std::move(open).Seal(Key(1, 0), Content(10)));
  const SealedBlock other = std::move(sealed);
  EXPECT_DEATH((void)sealed.Share());
}

void HandlesRefuseTooMuchAndTooLittle() {
  BlockPool pool(4, kWidth, true);
  OpenBlock open = *pool.Allocate();
  open.Fill(3);
  EXPECT_DEATH(open.Fill(2));
  EXPECT_DEATH((void)std::move(open).Seal(Key(1, 0), Content(10)));
}

void UnorderedReadersWaitForTheWriter() {
  BlockPool pool(4, kWidth, true);
  pool.Planned(StepId{1});
  const SealedBlock block = SealNew(pool, Key(1, 0), Content(10));  // step 2 writes it
  EXPECT(!block.Retire(pool.retired()));
  pool.Planned(StepId{2});
  EXPECT(!block.Retire(pool.Retired(StepId{1})));
  const RetiredStep early = pool.retired();
  pool.Planned(StepId{3});
  const RetiredStep proof = pool.Retired(StepId{2});
  EXPECT(!block.Retire(early));
  EXPECT(block.Retire(proof)->id() == block.id());
  EXPECT(pool.Verify().ok());
}

void LentBlocksStayUntilTheirTicketIsDone() {
  BlockPool pool(3, kWidth, true);
  Tickets tickets;
  const TicketId ticket = tickets.Issue();
  std::optional<TransferringBlock> source;
  {
    const SealedBlock block = SealNew(pool, Key(1, 0), Content(10));
    pool.Planned(StepId{1});
    source.emplace(std::move(*block.Retire(pool.Retired(StepId{1}))).Lend(ticket));
  }
  EXPECT(pool.counts().shared == 1 && pool.available() == 1);
  EXPECT(!tickets.Complete(TicketId{2}, true));
  const std::optional<Completion> done = tickets.Complete(ticket, true);
  EXPECT(done && !tickets.Complete(ticket, true) && tickets.open() == 0);
  std::move(*source).Finish(*done);
  EXPECT(pool.counts().cached == 1 && pool.Verify().ok());
}

void ReceivedBlocksAreFoundWhenTheirCopySucceeded() {
  for (const bool ok : {true, false}) {
    BlockPool pool(3, kWidth, true);
    Tickets tickets;
    const TicketId ticket = tickets.Issue();
    pool.Planned(StepId{1});
    const RetiredStep proof = pool.Retired(StepId{1});
    std::optional<Delivery> delivery =
        std::move(*pool.Allocate()).Receive(ticket, Key(1, 0), Content(10));
    EXPECT(!pool.Find(Key(1, 0), Content(10)) && !delivery->block.Retire(proof));
    std::move(delivery->transfer).Finish(*tickets.Complete(ticket, ok));
    EXPECT(pool.Find(Key(1, 0), Content(10)).has_value() == ok);
    EXPECT(pool.counts().shared == 1);
    delivery.reset();
    EXPECT(pool.counts().cached == (ok ? 1 : 0) && pool.available() == 2 && pool.Verify().ok());
  }
}

void ATransferIsNotDroppedNorEndedByAnotherTicket() {
  BlockPool pool(3, kWidth, true);
  Tickets tickets;
  const TicketId ticket = tickets.Issue();
  const TicketId other = tickets.Issue();
  Delivery delivery = std::move(*pool.Allocate()).Receive(ticket, Key(1, 0), Content(10));
  EXPECT_DEATH({ const TransferringBlock dropped = std::move(delivery.transfer); });
  EXPECT_DEATH(std::move(delivery.transfer).Finish(*tickets.Complete(other, true)));
  std::move(delivery.transfer).Finish(*tickets.Complete(ticket, true));
  EXPECT_DEATH(std::move(delivery.transfer).Finish(*tickets.Complete(other, true)));
}

void IndexSurvivesManyInsertsAndErases() {
  PrefixIndex index(64);
  std::vector<bool> there(256);
  uint32_t random = 1;
  for (int i = 0; i < 100'000; ++i) {
    random = random * 1664525u + 1013904223u;
    const int name = static_cast<int>(random >> 24);
    Hash128 hash;  // few home positions: long runs, many holes to close
    hash.bytes[0] = static_cast<std::byte>(name % 8);
    hash.bytes[9] = static_cast<std::byte>(name);
    if (there[static_cast<size_t>(name)]) {
      EXPECT(index.Find(hash) == BlockId{name});
      EXPECT(!index.Insert(hash, BlockId{1}));
      index.Erase(hash);
      there[static_cast<size_t>(name)] = false;
    } else if (index.size() < 64) {
      EXPECT(!index.Find(hash));
      EXPECT(index.Insert(hash, BlockId{name}));
      there[static_cast<size_t>(name)] = true;
    }
  }
}

void TwoChainsGrowAtOnceAsEachAlone() {
  const std::vector<Token> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<Token> others = {8, 7, 6, 5, 4, 3, 2, 1};
  HashChain one({}, "", kWidth);
  HashChain other({}, "salt", kWidth);
  for (int block = 0; block < 2; ++block) {
    HashChain::ExtendBoth(one, tokens, other, others);
    EXPECT(one.known() == block + 1 && other.known() == block + 1);
    EXPECT(one.Known(block) == HashChain({}, "", kWidth).At(block, tokens).hash);
    EXPECT(other.Known(block) == HashChain({}, "salt", kWidth).At(block, others).hash);
  }
}

void ChainsDependOnKeySaltAndAllThatCameBefore() {
  const std::vector<Token> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
  Hash128 other_key;
  other_key.bytes[3] = std::byte{1};
  HashChain plain({}, "", kWidth), again({}, "", kWidth);
  EXPECT(plain.At(1, tokens).hash == again.At(1, tokens).hash);
  EXPECT(plain.At(1, tokens).parent == plain.At(0, tokens).hash);
  EXPECT(HashChain({}, "salt", kWidth).At(1, tokens).hash != plain.At(1, tokens).hash);
  EXPECT(HashChain(other_key, "", kWidth).At(1, tokens).hash != plain.At(1, tokens).hash);
  std::vector<Token> changed = tokens;
  changed[0] = 9;
  EXPECT(HashChain({}, "", kWidth).At(1, changed).hash != plain.At(1, tokens).hash);
  EXPECT_DEATH(plain.At(2, tokens));
}

}  // namespace
}  // namespace tokenspeed::kv

int main() {
  using namespace tokenspeed::kv;
  ScratchIsNeverHandedOut();
  DestructorsGiveBlocksBack();
  ReleasedBlocksWaitForTheStepsInFlight();
  MarksTellABlockFromThoseBehindIt();
  ContentAndChainDecideNotTheHash();
  TheColdestCachedBlockIsEvicted();
  TheSecondBlockOfOneContentIsNotFindable();
  ForgottenBlocksAreNotFound();
  MovedFromHandlesAreDead();
  HandlesRefuseTooMuchAndTooLittle();
  UnorderedReadersWaitForTheWriter();
  LentBlocksStayUntilTheirTicketIsDone();
  ReceivedBlocksAreFoundWhenTheirCopySucceeded();
  ATransferIsNotDroppedNorEndedByAnotherTicket();
  IndexSurvivesManyInsertsAndErases();
  ChainsDependOnKeySaltAndAllThatCameBefore();
  TwoChainsGrowAtOnceAsEachAlone();
  return 0;
}
