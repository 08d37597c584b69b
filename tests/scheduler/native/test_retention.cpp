// SPDX-License-Identifier: MIT
// What is kept, for whom and how long: the return model, owners, the eviction queue, sessions.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "expect.h"
#include "kv/block_pool.h"
#include "kv/indexed_heap.h"
#include "kv/retention.h"
#include "plan/session.h"

namespace tokenspeed::kv {
namespace {

constexpr int kWidth = 4;
constexpr TimeNs kSecond = 1'000'000'000;

// A chain of blocks whose hashes are `branch`, counted from `first`.
struct Chain {
  std::vector<SealedBlock> blocks;
  ~Chain() {
    while (!blocks.empty()) blocks.pop_back();  // the tail first, as a table does
  }
};

ChainKey Key(int hash, int parent) {
  ChainKey key;
  std::memcpy(key.hash.bytes.data(), &hash, sizeof(hash));
  std::memcpy(key.parent.bytes.data(), &parent, sizeof(parent));
  return key;
}

void Extend(BlockPool& pool, Chain& chain, int hash, int parent, OwnerId owner) {
  const std::vector<Token> content(kWidth, hash);
  if (auto hit = pool.Find(Key(hash, parent), content)) {
    chain.blocks.push_back(std::move(*hit));
  } else {
    OpenBlock open = *pool.Allocate();
    open.Fill(kWidth);
    chain.blocks.push_back(std::move(open).Seal(Key(hash, parent), content));
  }
  pool.Claim(chain.blocks.back().id(), owner);
}

// One visit of an owner whose context is `first`, `first` + 1, ... behind `parent`.
void Visit(BlockPool& pool, Retention& retention, OwnerId owner, TimeNs at, int first, int count,
           int parent = 0) {
  retention.Arrived(owner, at, count);
  {
    Chain chain;
    if (parent > 0) Extend(pool, chain, parent, 0, owner);
    for (int i = 0; i < count; ++i) {
      Extend(pool, chain, first + i, i == 0 ? parent : first + i - 1, owner);
    }
  }
  retention.Left(owner, at, {.blocks = count});
  EXPECT(pool.Verify().ok());
  EXPECT(retention.Verify().ok());
}

bool Holds(const BlockPool& pool, int hash, int parent) {
  return pool.Peek(Key(hash, parent), std::vector<Token>(kWidth, hash)) !=
         BlockPool::Presence::kAbsent;
}

// Takes a block and gives it back unsealed: one eviction if nothing is free.
void EvictOne(BlockPool& pool) {
  std::vector<OpenBlock> taken;
  while (pool.counts().free > 0) taken.push_back(*pool.Allocate());
  EXPECT(pool.Allocate().has_value());
  taken.clear();
  EXPECT(pool.Verify().ok());
}

void BinsTileTime() {
  for (int bin = 0; bin < kIdleBins; ++bin) {
    EXPECT(IdleBinOf(IdleBinStart(bin)) == bin);
    if (bin > 0) EXPECT(IdleBinOf(std::nextafter(IdleBinStart(bin), 0.0)) == bin - 1);
  }
  EXPECT(IdleBinOf(1e9) == kIdleBins - 1);
}

void TheModelLearnsHowLongAClassStaysAway() {
  ReturnModel model;
  Signs quick{};
  quick[kPrefixSign] = 1;
  Signs slow{};
  slow[kPrefixSign] = 2;
  for (int i = 0; i < 300; ++i) {
    model.Stayed(quick, 0), model.Stayed(quick, 1), model.Returned(quick, 2, 0.1);
    const int late = IdleBinOf(300);
    for (int bin = 0; bin < late; ++bin) model.Stayed(slow, bin);
    model.Returned(slow, late, 1);
  }
  EXPECT(model.Worth(quick)[0] > 10 * model.Worth(slow)[0]);
  // Who stays away longer than ever is not expected soon; who is due is.
  EXPECT(model.Worth(slow)[static_cast<size_t>(IdleBinOf(290))] > 2 * model.Worth(slow)[0]);
}

// Before anything is learnt the rate in a bin is 1 / (2 begin + 10): that is summed up here
// plainly.
void WorthIsTheBestRateOverAllHorizons() {
  const WorthCurve worth = ReturnModel().Worth(Signs{});
  for (int bin = 0; bin < kIdleBins; ++bin) {
    double best = 0, away = 1, held = 0;
    for (int end = bin + 1; end <= kIdleBins; ++end) {
      const double begin = IdleBinStart(end - 1), rate = 1 / (2 * begin + 10);
      const double stay = std::exp(-rate * (IdleBinStart(end) - begin));
      held += away * (1 - stay) / rate;
      away *= stay;
      const bool long_enough = IdleBinStart(end) - IdleBinStart(bin) >= 4;
      if (long_enough || end == kIdleBins) best = std::max(best, (1 - away) / held);
    }
    EXPECT(std::abs(worth[static_cast<size_t>(bin)] - best) < 1e-5 * best);
  }
}

void AToolCallIsExpectedSoonerThanAPerson() {
  const ReturnModel model;
  Signs tool{}, unknown{}, human{};
  tool[kOutlookSign] = static_cast<uint8_t>(Outlook::kToolCall);
  human[kOutlookSign] = static_cast<uint8_t>(Outlook::kHuman);
  EXPECT(model.Worth(tool)[0] > model.Worth(unknown)[0]);
  EXPECT(model.Worth(unknown)[0] > model.Worth(human)[0]);
}

void TailsGoFirstAndSharedHeadsLast() {
  Retention retention;
  BlockPool pool(8, kWidth, true, &retention);
  const OwnerId a = retention.Open(), b = retention.Open();
  Visit(pool, retention, a, kSecond, 10, 3, 1);      // 1 10 11 12
  Visit(pool, retention, b, 2 * kSecond, 20, 3, 1);  // 1 20 21 22
  EXPECT(pool.counts().cached == 7);
  retention.Demote(a);
  for (const int gone : {12, 11, 10}) {
    EXPECT(Holds(pool, gone, gone == 10 ? 1 : gone - 1));
    EvictOne(pool);
    EXPECT(!Holds(pool, gone, gone == 10 ? 1 : gone - 1));
    EXPECT(Holds(pool, 1, 0) && Holds(pool, 22, 21));
    OpenBlock keep = *pool.Allocate();  // so that the next eviction is one
    (void)keep;
  }
}

void ALargePoolEvictsSomeAtOnce() {
  Retention retention;
  BlockPool pool(3 * 2048, kWidth, true, &retention);
  const OwnerId older = retention.Open();
  const OwnerId newer = retention.Open();
  const int half = (pool.num_blocks() - 1) / 2;
  Visit(pool, retention, older, 1 * kSecond, 1, half);
  Visit(pool, retention, newer, 2 * kSecond, half + 1, pool.num_blocks() - 1 - half);
  EXPECT(pool.counts().free == 0);
  EvictOne(pool);
  EXPECT(pool.counts().free == 3);
  EXPECT(Holds(pool, half - 3, half - 4));
  for (int gone = half - 2; gone <= half; ++gone) EXPECT(!Holds(pool, gone, gone - 1));
  EXPECT(Holds(pool, pool.num_blocks() - 1, pool.num_blocks() - 2));
  EvictOne(pool);  // those that are free first
  EXPECT(pool.counts().free == 6 && !Holds(pool, half - 3, half - 4));
}

void ABranchThatWasGivenUpGoesFirst() {
  Retention retention;
  BlockPool pool(8, kWidth, true, &retention);
  const OwnerId a = retention.Open(), b = retention.Open();
  Visit(pool, retention, b, kSecond, 30, 2);         // 30 31
  Visit(pool, retention, a, 2 * kSecond, 10, 2, 1);  // 1 10 11
  Visit(pool, retention, a, 3 * kSecond, 20, 2, 1);  // 1 20 21, beside it
  for (int i = 4; i < 9; ++i) Visit(pool, retention, a, i * kSecond, 10, 2, 1);
  retention.Retain(a, 100 * kSecond);  // also where its owner is wanted most
  std::vector<OpenBlock> taken;
  for (const int gone : {21, 20}) {
    EXPECT(Holds(pool, gone, gone == 20 ? 1 : 20));
    taken.push_back(*pool.Allocate());
    EXPECT(!Holds(pool, gone, gone == 20 ? 1 : 20));
    EXPECT(Holds(pool, 11, 10) && Holds(pool, 31, 30));
    EXPECT(pool.Verify().ok());
  }
  taken.push_back(*pool.Allocate());
  EXPECT(!Holds(pool, 31, 30) && Holds(pool, 11, 10));
}

void HintsMoveAnOwnerAndNeverPin() {
  Retention retention;
  BlockPool pool(5, kWidth, true, &retention);
  const OwnerId kept = retention.Open(), plain = retention.Open(), demoted = retention.Open();
  Visit(pool, retention, kept, kSecond, 10, 1);
  Visit(pool, retention, plain, kSecond, 20, 1);
  Visit(pool, retention, demoted, kSecond, 30, 2);
  retention.Retain(kept, 100 * kSecond);
  retention.Demote(demoted);
  EXPECT(pool.retained() == 1);
  std::vector<OpenBlock> taken;
  taken.push_back(*pool.Allocate());
  EXPECT(!Holds(pool, 31, 30) && Holds(pool, 30, 0));
  taken.push_back(*pool.Allocate());
  EXPECT(!Holds(pool, 30, 0) && Holds(pool, 20, 0));
  taken.push_back(*pool.Allocate());
  EXPECT(!Holds(pool, 20, 0) && Holds(pool, 10, 0));
  taken.push_back(*pool.Allocate());  // retained, but a request comes first
  EXPECT(!Holds(pool, 10, 0) && !pool.Allocate().has_value());
  EXPECT(pool.Verify().ok());
}

void RetentionEnds() {
  Retention retention;
  BlockPool pool(4, kWidth, true, &retention);
  const OwnerId a = retention.Open();
  Visit(pool, retention, a, kSecond, 10, 2);
  retention.Retain(a, 10 * kSecond);
  EXPECT(retention.rank(a).tier == Rank::kRetained && pool.retained() == 2);
  retention.Tick(10 * kSecond - 1);
  EXPECT(retention.rank(a).tier == Rank::kRetained);
  retention.Tick(10 * kSecond);
  EXPECT(retention.rank(a).tier == Rank::kIdle && pool.retained() == 0);
}

void AClosedOwnersBlocksGoFirst() {
  Retention retention;
  BlockPool pool(4, kWidth, true, &retention);
  const OwnerId a = retention.Open(), b = retention.Open();
  Visit(pool, retention, a, kSecond, 10, 1);
  Visit(pool, retention, b, 2 * kSecond, 20, 2);
  retention.Close(b);
  EXPECT(pool.Verify().ok() && !retention.is_open(b));
  const OwnerId c = retention.Open();  // takes b's place, and none of its blocks
  EXPECT(c.slot == b.slot && pool.Verify().ok());
  EvictOne(pool);
  EXPECT(!Holds(pool, 21, 20) && Holds(pool, 10, 0));
}

void LastUseDecidesWhileWorthLoses() {
  // Owners whose signs promise much and never keep it, and others that return late and always.
  Retention retention;
  BlockPool pool(9, kWidth, true, &retention);
  EXPECT(retention.by_worth());
  std::vector<OwnerId> owners;
  for (int i = 0; i < 4; ++i) owners.push_back(retention.Open());
  TimeNs now = kSecond;
  for (int round = 0; round < 400; ++round) {
    for (size_t i = 0; i < owners.size(); ++i) {
      Visit(pool, retention, owners[i], now += 20 * kSecond, 10 + static_cast<int>(i) * 10, 2);
    }
  }
  // Whatever it chose on the way, four owners of two blocks fit into eight.
  for (size_t i = 0; i < owners.size(); ++i) {
    EXPECT(Holds(pool, 11 + static_cast<int>(i) * 10, 10 + static_cast<int>(i) * 10));
  }
}

void ALoopLargerThanThePoolKeepsAPart() {
  // Least recently used finds nothing here.
  Retention retention;
  BlockPool pool(9, kWidth, true, &retention);
  std::vector<OwnerId> owners;
  for (int i = 0; i < 6; ++i) owners.push_back(retention.Open());
  TimeNs now = kSecond;
  int hits = 0;
  for (int round = 0; round < 200; ++round) {
    for (size_t i = 0; i < owners.size(); ++i) {
      const int first = 10 + static_cast<int>(i) * 10;
      if (round >= 100) hits += Holds(pool, first, 0) + Holds(pool, first + 1, first);
      Visit(pool, retention, owners[i], now += 10 * kSecond, first, 2);
    }
  }
  EXPECT(hits > 100 * 6 * 2 / 4);  // at best 3 of 5 others' places: 60%
}

void HeapKeepsTheLeastOnTop() {
  IndexedHeap<int> heap;
  uint32_t random = 1;
  std::vector<std::optional<int>> keys(50);
  for (int i = 0; i < 5000; ++i) {
    random = random * 1664525 + 1013904223;
    const int item = static_cast<int>(random >> 8) % 50;
    const int key = static_cast<int>(random >> 16) % 1000;
    if (random % 3 == 0) {
      heap.Erase(item);
      keys[static_cast<size_t>(item)].reset();
    } else {
      heap.Set(item, key);
      keys[static_cast<size_t>(item)] = key;
    }
    std::optional<int> least;
    for (const auto& each : keys) {
      if (each && (!least || *each < *least)) least = each;
    }
    EXPECT(heap.empty() == !least.has_value());
    if (least) EXPECT(heap.top_key() == *least && keys[static_cast<size_t>(heap.top())] == least);
  }
}

}  // namespace
}  // namespace tokenspeed::kv

namespace tokenspeed::plan {
namespace {

void SessionsAreNamedWithinTheirSalt() {
  kv::Retention retention;
  SessionTable table(retention, 10);
  Session& mine = table.Named("salt", "x");
  EXPECT(&table.Named("salt", "x") == &mine);
  EXPECT(table.Find("", "x") == nullptr && table.Find("sal", "tx") == nullptr);
  EXPECT(&table.Named("other", "x") != &mine);
  EXPECT(table.size() == 2 && table.Verify().ok());
}

void TheOldestIdleSessionIsForgotten() {
  kv::Retention retention;
  SessionTable table(retention, 3);
  Session& live = table.Named("", "live");
  table.Enter(live, 1, 0);
  for (int i = 0; i < 100'000; ++i) {
    Session& session = table.Named("", std::to_string(i));
    table.Enter(session, i, 0);
    table.Leave(session, i, {});
    EXPECT(table.size() <= 3);
  }
  EXPECT(table.Find("", "live") == &live && table.Find("", "99999") != nullptr);
  EXPECT(table.Find("", "99997") == nullptr && table.Verify().ok());
}

void AnEndedSessionIsGoneOnceItsRequestsAre() {
  kv::Retention retention;
  SessionTable table(retention, 10);
  Session& session = table.Named("", "x");
  table.Enter(session, 1, 0);
  table.Hint(&session, static_cast<int64_t>(SessionAction::kEnd), 2, 0);
  EXPECT(table.Find("", "x") == &session);
  table.Leave(session, 3, {});
  EXPECT(table.Find("", "x") == nullptr && table.size() == 0);
  table.Hint(table.Find("", "x"), static_cast<int64_t>(SessionAction::kEnd), 4, 0);
  table.Hint(&table.Named("", "y"), 99, 5, 0);  // unknown session, unknown action
  EXPECT(table.size() == 1 && table.Verify().ok());
}

}  // namespace
}  // namespace tokenspeed::plan

int main() {
  using namespace tokenspeed;
  kv::BinsTileTime();
  kv::TheModelLearnsHowLongAClassStaysAway();
  kv::WorthIsTheBestRateOverAllHorizons();
  kv::AToolCallIsExpectedSoonerThanAPerson();
  kv::TailsGoFirstAndSharedHeadsLast();
  kv::ALargePoolEvictsSomeAtOnce();
  kv::ABranchThatWasGivenUpGoesFirst();
  kv::HintsMoveAnOwnerAndNeverPin();
  kv::RetentionEnds();
  kv::AClosedOwnersBlocksGoFirst();
  kv::LastUseDecidesWhileWorthLoses();
  kv::ALoopLargerThanThePoolKeepsAPart();
  kv::HeapKeepsTheLeastOnTop();
  plan::SessionsAreNamedWithinTheirSalt();
  plan::TheOldestIdleSessionIsForgotten();
  plan::AnEndedSessionIsGoneOnceItsRequestsAre();
  std::printf("retention: all passed\n");
}
