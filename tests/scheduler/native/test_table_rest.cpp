// SPDX-License-Identifier: MIT
// Tables at rest: what a session's last request held, whole until it comes back or memory is short.
#include <vector>

#include "expect.h"
#include "kv/block_pool.h"
#include "kv/retention.h"

namespace tokenspeed::kv {
namespace {

constexpr int kWidth = 4;
constexpr TimeNs kSecond = 1'000'000'000;

ChainKey Key(int hash) {
  ChainKey key;
  key.hash.bytes[0] = static_cast<std::byte>(hash);
  if (hash % 10 > 1) key.parent.bytes[0] = static_cast<std::byte>(hash - 1);
  return key;
}

std::vector<Token> Content(int hash) { return std::vector<Token>(kWidth, hash); }

struct World {
  Retention retention;
  BlockPool pool;
  TimeNs now = 1;

  explicit World(int blocks) : pool(blocks + 1, kWidth, true, &retention) {}

  // An owner comes with the chain first, first + 1, ...
  std::vector<SealedBlock> Come(OwnerId owner, int first, int count) {
    retention.Tick(now += kSecond);
    retention.Arrived(owner, now, count);
    std::vector<SealedBlock> blocks;
    for (int hash = first; hash < first + count; ++hash) {
      auto found = pool.Find(Key(hash), Content(hash));
      if (!found) {
        OpenBlock open = *pool.Allocate();
        open.Fill(kWidth);
        found = std::move(open).Seal(Key(hash), Content(hash));
      }
      pool.Claim(found->id(), owner);
      blocks.push_back(std::move(*found));
    }
    return blocks;
  }
  uint64_t Go(OwnerId owner, std::vector<SealedBlock> blocks) {
    const auto count = std::ssize(blocks);
    const uint64_t rest = pool.Rest(owner, std::move(blocks));
    retention.Left(owner, now, {.blocks = count});
    EXPECT(pool.Verify().ok());
    return rest;
  }
  std::vector<SealedBlock> Back(OwnerId owner, uint64_t rest, int most) {
    std::vector<SealedBlock> blocks = pool.Wake(owner, rest, most);
    EXPECT(pool.Verify().ok());
    return blocks;
  }
  bool Has(int hash) const {
    return pool.Peek(Key(hash), Content(hash)) != BlockPool::Presence::kAbsent;
  }
  // Hands out and takes back so many blocks: as many evictions if nothing is free.
  void Press(int blocks) {
    std::vector<OpenBlock> taken;
    for (int i = 0; i < blocks; ++i) taken.push_back(*pool.Allocate());
    EXPECT(pool.Verify().ok());
  }
};

void ATableIsTakenUpWhole() {
  World world(8);
  const OwnerId owner = world.retention.Open();
  const uint64_t rest = world.Go(owner, world.Come(owner, 11, 5));
  EXPECT(world.pool.counts().cached == 5 && world.pool.available() == 8);
  EXPECT(world.Back(owner, rest + 1, 5).empty());
  const auto blocks = world.Back(owner, rest, 5);
  EXPECT(blocks.size() == 5 && world.pool.counts().shared == 5 && world.pool.available() == 3);
  EXPECT(blocks[4].key().hash == Key(15).hash);
  EXPECT(world.Back(owner, rest, 5).empty());
}

void WhatThePromptDoesNotShareIsCached() {
  World world(8);
  const OwnerId owner = world.retention.Open();
  const uint64_t rest = world.Go(owner, world.Come(owner, 11, 5));
  EXPECT(world.Back(owner, rest, 2).size() == 2);
  EXPECT(world.Has(15) && world.pool.counts().cached == 5);
}

void EvictionTakesTheTailBlockByBlock() {
  World world(8);
  const OwnerId owner = world.retention.Open();
  const uint64_t rest = world.Go(owner, world.Come(owner, 11, 5));
  world.Press(3);
  EXPECT(world.Has(15));
  world.Press(5);
  EXPECT(!world.Has(15) && !world.Has(14) && world.Has(13));
  EXPECT(world.Back(owner, rest, 5).size() == 3);
}

void TheOwnerThatIsWorthLessGoesFirst() {
  World world(8);
  const OwnerId first = world.retention.Open();
  const OwnerId second = world.retention.Open();
  const uint64_t kept = world.Go(first, world.Come(first, 11, 4));
  const uint64_t lost = world.Go(second, world.Come(second, 21, 4));
  world.retention.Demote(second);
  world.Press(3);
  EXPECT(world.Back(first, kept, 4).size() == 4);
  EXPECT(world.Back(second, lost, 4).size() == 1);
}

void OthersFindItsBlocks() {
  World world(8);
  const OwnerId owner = world.retention.Open();
  const OwnerId other = world.retention.Open();
  const uint64_t rest = world.Go(owner, world.Come(owner, 11, 4));
  auto shared = world.Come(other, 11, 3);
  EXPECT(world.pool.counts().shared == 3 && world.pool.available() == 5);
  EXPECT(world.pool.users(shared[0].id()) == 1 && world.pool.holders(shared[0].id()) == 2);
  world.Press(5);  // what is held stays
  EXPECT(world.Has(13) && !world.Has(14));
  const uint64_t others = world.Go(other, std::move(shared));
  EXPECT(world.pool.counts().cached == 3 && world.pool.available() == 8);
  // Each has its own table, or what is left of it.
  EXPECT(world.Back(other, others, 3).size() == 3);
  EXPECT(world.Back(owner, rest, 4).size() <= 3);
}

void ItsBlocksWaitForTheStepsInFlight() {
  World world(4);
  const OwnerId owner = world.retention.Open();
  auto blocks = world.Come(owner, 11, 3);
  world.pool.Planned(StepId{1});
  const uint64_t rest = world.Go(owner, std::move(blocks));
  EXPECT(world.pool.counts().retiring == 3 && world.pool.available() == 1);
  auto again = world.Back(owner, rest, 3);
  EXPECT(again.size() == 3 && world.pool.counts().shared == 3);
  world.pool.Planned(StepId{2});
  world.retention.Arrived(owner, world.now, 3);
  world.Go(owner, std::move(again));
  world.pool.Retired(StepId{1});
  EXPECT(world.pool.available() == 1);
  world.pool.Retired(StepId{2});
  EXPECT(world.pool.available() == 4 && world.pool.Verify().ok());
  world.Press(4);
  EXPECT(!world.Has(11));
}

void AReaderInFlightKeepsABlockFromGoing() {
  World world(3);
  const OwnerId owner = world.retention.Open();
  const OwnerId other = world.retention.Open();
  world.Go(owner, world.Come(owner, 11, 3));
  auto shared = world.Come(other, 11, 3);
  world.pool.Planned(StepId{1});
  while (!shared.empty()) shared.pop_back();
  EXPECT(world.pool.available() == 0 && !world.pool.Allocate());
  EXPECT(world.pool.Verify().ok());
  world.pool.Retired(StepId{1});
  EXPECT(world.pool.available() == 3 && world.pool.Verify().ok());
  world.Press(3);
}

void AForgottenBlockEndsTheTable() {
  World world(8);
  const OwnerId owner = world.retention.Open();
  const OwnerId other = world.retention.Open();
  const uint64_t rest = world.Go(owner, world.Come(owner, 11, 5));
  auto shared = world.Come(other, 11, 3);
  shared[2].Forget();
  EXPECT(world.Back(owner, rest, 5).size() == 2);
  while (!shared.empty()) shared.pop_back();
  EXPECT(world.pool.Verify().ok());
}

void AnOwnerHasOneTableAtRest() {
  World world(8);
  const OwnerId owner = world.retention.Open();
  const uint64_t first = world.Go(owner, world.Come(owner, 11, 3));
  const uint64_t second = world.Go(owner, world.Come(owner, 21, 3));
  EXPECT(world.Back(owner, first, 3).empty());
  EXPECT(world.Has(11) && world.Back(owner, second, 3).size() == 3);
}

void AnOwnerThatIsClosedHasNone() {
  World world(4);
  const OwnerId owner = world.retention.Open();
  auto blocks = world.Come(owner, 11, 2);
  world.pool.Planned(StepId{1});
  world.Go(owner, std::move(blocks));
  world.retention.Close(owner);  // while a step reads it
  const OwnerId next = world.retention.Open();
  world.pool.Retired(StepId{1});
  EXPECT(world.pool.Verify().ok() && world.retention.Verify().ok());
  world.Go(next, world.Come(next, 21, 2));
  world.retention.Close(next);
  EXPECT(world.pool.Verify().ok() && world.pool.available() == 4);
  world.Press(4);
}

}  // namespace
}  // namespace tokenspeed::kv

int main() {
  using namespace tokenspeed::kv;
  ATableIsTakenUpWhole();
  WhatThePromptDoesNotShareIsCached();
  EvictionTakesTheTailBlockByBlock();
  TheOwnerThatIsWorthLessGoesFirst();
  OthersFindItsBlocks();
  ItsBlocksWaitForTheStepsInFlight();
  AReaderInFlightKeepsABlockFromGoing();
  AForgottenBlockEndsTheTable();
  AnOwnerHasOneTableAtRest();
  AnOwnerThatIsClosedHasNone();
}
