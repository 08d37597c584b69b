// SPDX-License-Identifier: MIT
// The blocks of the host tier: what is found, what is evicted, what a failed copy leaves behind.
#include <deque>
#include <optional>
#include <set>
#include <vector>

#include "expect.h"
#include "kv/host_pool.h"

namespace tokenspeed::kv {
namespace {

ChainKey Key(int hash, int parent) {
  ChainKey key;
  key.hash.bytes[0] = static_cast<std::byte>(hash);
  key.parent.bytes[0] = static_cast<std::byte>(parent);
  return key;
}

std::vector<Token> Content(int hash) { return {hash, hash + 1}; }

void Store(HostPool& pool, int hash, int parent) {
  auto block = pool.Allocate(Key(hash, parent), Content(hash));
  EXPECT(block.has_value());
  std::move(*block).Seal();
  EXPECT(pool.Verify().ok());
}

bool Has(const HostPool& pool, int hash) { return pool.Has(Key(hash, 0).hash); }

void ABlockIsFoundWhenItIsWritten() {
  HostParents parents(2);
  HostPool pool(parents, 1, 2);
  auto open = pool.Allocate(Key(1, 0), Content(1));
  EXPECT(open.has_value());
  EXPECT(!pool.Allocate(Key(1, 0), Content(1)));  // it is on its way
  EXPECT(!pool.Find(Key(1, 0), Content(1)));
  std::move(*open).Seal();
  EXPECT(pool.Find(Key(1, 0), Content(1)).has_value());
  EXPECT(!pool.Find(Key(1, 0), Content(2)));  // the hash alone proves nothing
  EXPECT(!pool.Find(Key(1, 3), Content(1)));
  EXPECT(pool.Verify().ok());
}

void AStoreThatIsGivenUpLeavesNothing() {
  HostParents parents(1);
  HostPool pool(parents, 1, 2);
  {
    const auto open = pool.Allocate(Key(1, 0), Content(1));
  }
  EXPECT(!Has(pool, 1));
  EXPECT(pool.counts().free == 1);
  Store(pool, 1, 0);
  EXPECT(Has(pool, 1));
}

void AChainIsTrimmedFromItsTail() {
  HostParents parents(4);
  HostPool pool(parents, 1, 2);
  Store(pool, 1, 0);
  Store(pool, 2, 1);
  Store(pool, 3, 2);
  Store(pool, 9, 0);  // another conversation, used last
  Store(pool, 10, 9);
  EXPECT(!Has(pool, 3) && Has(pool, 2) && Has(pool, 1) && Has(pool, 9));
  Store(pool, 11, 10);
  EXPECT(!Has(pool, 2) && Has(pool, 1));
  Store(pool, 12, 11);
  EXPECT(!Has(pool, 1));
  // A chain does not eat what it stands on.
  EXPECT(!pool.Allocate(Key(13, 12), Content(13)));
  EXPECT(Has(pool, 12));
}

void WhatWasTouchedStays() {
  HostParents parents(2);
  HostPool pool(parents, 1, 2);
  Store(pool, 1, 0);
  Store(pool, 2, 0);
  pool.Touch(Key(1, 0).hash);
  Store(pool, 3, 0);
  EXPECT(Has(pool, 1) && !Has(pool, 2));
}

void WhatALoadReadsIsNotEvicted() {
  HostParents parents(1);
  HostPool pool(parents, 1, 2);
  Store(pool, 1, 0);
  {
    const auto held = pool.Find(Key(1, 0), Content(1));
    EXPECT(held.has_value());
    EXPECT(!pool.Allocate(Key(2, 0), Content(2)));
    EXPECT(pool.Verify().ok());
  }
  Store(pool, 2, 0);
  EXPECT(!Has(pool, 1));
}

void ForgottenBlocksAreFreeOnceNobodyReadsThem() {
  HostParents parents(1);
  HostPool pool(parents, 1, 2);
  Store(pool, 1, 0);
  {
    auto held = pool.Find(Key(1, 0), Content(1));
    auto other = pool.Find(Key(1, 0), Content(1));
    held->Forget();
    EXPECT(!Has(pool, 1));
    EXPECT(pool.counts().free == 0);
    EXPECT(pool.Verify().ok());
  }
  EXPECT(pool.counts().free == 1);
  auto written = pool.Allocate(Key(1, 0), Content(1));
  pool.Forget(Key(1, 0).hash);  // while it is being written
  std::move(*written).Seal();
  EXPECT(!Has(pool, 1));
  EXPECT(pool.counts().free == 1);
  EXPECT(pool.Verify().ok());
}

void AHeadThatComesAfterItsTailIsKeptForIt() {
  HostParents parents(2);
  HostPool pool(parents, 1, 2);
  Store(pool, 2, 1);  // its head is not here
  Store(pool, 1, 0);
  Store(pool, 3, 0);
  EXPECT(Has(pool, 1) && !Has(pool, 2));  // the head had a follower: the tail went
}

void TheColdestGoesWhosesoeverItIs() {
  HostParents parents(2);
  HostPool small(parents, 2, 2);
  HostPool large(parents, 1, 2);
  Store(small, 1, 0);
  Store(large, 1, 0);
  Store(small, 2, 1);  // beside its first
  EXPECT(parents.unbound() == 0);
  small.Touch(Key(2, 0).hash);
  Store(large, 9, 0);  // its own is colder
  EXPECT(Has(small, 2) && Has(small, 1) && !Has(large, 1) && Has(large, 9));
  Store(large, 10, 0);  // now the other's is: a whole parent goes
  EXPECT(!Has(small, 2) && !Has(small, 1) && Has(large, 9) && Has(large, 10));
  EXPECT(parents.Verify().ok() && small.Verify().ok());
  Store(small, 3, 0);
  EXPECT(!Has(large, 9) && Has(large, 10) && Has(small, 3));
  EXPECT(parents.Verify().ok() && large.Verify().ok());
}

void AParentThatALoadReadsStays() {
  HostParents parents(2);
  HostPool small(parents, 2, 2);
  HostPool large(parents, 1, 2);
  Store(small, 1, 0);
  Store(small, 2, 0);
  Store(large, 1, 0);
  const auto held = small.Find(Key(1, 0), Content(1));
  Store(large, 2, 0);  // block 2 is coldest, but beside it one is read
  EXPECT(Has(small, 1) && Has(small, 2) && !Has(large, 1) && Has(large, 2));
  EXPECT(parents.Verify().ok());
}

void AParentIsNobodysWhenItsLastBlockIsForgotten() {
  HostParents parents(2);
  HostPool pool(parents, 2, 2);
  Store(pool, 1, 0);
  Store(pool, 2, 0);
  pool.Forget(Key(1, 0).hash);
  EXPECT(parents.unbound() == 1);
  pool.Forget(Key(2, 0).hash);
  EXPECT(parents.unbound() == 2);
  EXPECT(parents.Verify().ok() && pool.Verify().ok());
}

void RandomUseKeepsTheInvariants(const std::vector<int>& shares) {
  HostParents parents(12);
  std::deque<HostPool> pools;
  for (const int share : shares) pools.emplace_back(parents, share, 2);
  std::vector<OpenHostBlock> open;
  std::vector<HostBlock> held;
  uint64_t state = 7;
  const auto random = [&state](size_t bound) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<size_t>(state >> 33) % bound;
  };
  for (int i = 0; i < 20'000; ++i) {
    const int hash = 1 + static_cast<int>(random(40));
    const int parent = hash / 2;
    HostPool& pool = pools[random(pools.size())];
    switch (random(7)) {
      case 0:
      case 1:
        if (auto block = pool.Allocate(Key(hash, parent), Content(hash))) {
          open.push_back(std::move(*block));
        }
        break;
      case 2:
        if (auto block = pool.Find(Key(hash, parent), Content(hash))) {
          held.push_back(std::move(*block));
        }
        break;
      case 3:
        if (!open.empty()) {
          std::swap(open.back(), open[random(open.size())]);
          if (random(3) > 0) std::move(open.back()).Seal();
          open.pop_back();
        }
        break;
      case 4:
        if (!held.empty()) {
          std::swap(held.back(), held[random(held.size())]);
          if (random(4) == 0) held.back().Forget();
          held.pop_back();
        }
        break;
      case 5:
        pool.Touch(Key(hash, 0).hash);
        break;
      default:
        if (random(4) == 0) pool.Forget(Key(hash, 0).hash);
    }
    if (held.size() > 4) held.erase(held.begin());
    if (open.size() > 4) open.erase(open.begin());
    Status status = parents.Verify();
    for (const HostPool& each : pools) {
      if (status.ok()) status = each.Verify();
    }
    if (!status.ok()) std::fprintf(stderr, "%d: %s\n", i, status.error().message.c_str());
    EXPECT(status.ok());
  }
}

void HostBlocksMovedFromAreDead() {
  HostParents parents(1);
  HostPool pool(parents, 1, 2);
  auto block = pool.Allocate(Key(1, 0), Content(1));
  std::move(*block).Seal();
  EXPECT_DEATH(std::move(*block).Seal());
  auto held = pool.Find(Key(1, 0), Content(1));
  const HostBlock moved = std::move(*held);
  EXPECT_DEATH(held->Forget());
  EXPECT_DEATH(held->tokens());
}

}  // namespace
}  // namespace tokenspeed::kv

int main() {
  using namespace tokenspeed::kv;
  ABlockIsFoundWhenItIsWritten();
  AStoreThatIsGivenUpLeavesNothing();
  AChainIsTrimmedFromItsTail();
  WhatWasTouchedStays();
  WhatALoadReadsIsNotEvicted();
  ForgottenBlocksAreFreeOnceNobodyReadsThem();
  AHeadThatComesAfterItsTailIsKeptForIt();
  TheColdestGoesWhosesoeverItIs();
  AParentThatALoadReadsStays();
  AParentIsNobodysWhenItsLastBlockIsForgotten();
  RandomUseKeepsTheInvariants({1});
  RandomUseKeepsTheInvariants({3, 1, 2});
  HostBlocksMovedFromAreDead();
  return 0;
}
