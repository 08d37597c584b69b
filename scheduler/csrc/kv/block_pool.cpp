// SPDX-License-Identifier: MIT
#include "kv/block_pool.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace tokenspeed::kv {

namespace {

bool SameTokens(std::span<const Token> own, std::span<const Token> tokens) {
  return own.size() == tokens.size() &&
         std::memcmp(own.data(), tokens.data(), own.size_bytes()) == 0;
}

}  // namespace

BlockPool::BlockPool(int num_blocks, int block_size, bool findable, ParentPool* parents, int share)
    : num_blocks_(num_blocks),
      block_size_(block_size),
      findable_(findable),
      parents_(parents),
      share_(share),
      nodes_(static_cast<size_t>(num_blocks) + kLists),
      uses_(static_cast<size_t>(num_blocks)),
      contents_(findable ? static_cast<size_t>(num_blocks) * static_cast<size_t>(block_size) : 0),
      index_(findable ? num_blocks : 0),
      evicted_(findable ? 4 * num_blocks : 0),
      lives_(static_cast<size_t>(num_blocks)) {
  TS_CHECK(num_blocks >= 2 && block_size >= 1, num_blocks << " blocks of " << block_size);
  for (int list = 0; list < kLists; ++list) {
    const BlockId end = sentinel(static_cast<List>(list));
    node(end).next = node(end).previous = end;
  }
  counts_[static_cast<size_t>(Place::kFree)] = num_blocks - share;
}

BlockPool::BlockPool(int num_blocks, int block_size, bool findable, Retention* retention)
    : BlockPool(num_blocks, block_size, findable, nullptr, 1) {
  for (int id = 1; id < num_blocks; ++id) PushBack(kFreeList, BlockId{id});
  if (findable && retention != nullptr) {
    eviction_.emplace(*retention, num_blocks, num_blocks - 1, [this](int slot) { Shed(slot); });
  }
}

BlockPool::BlockPool(ParentPool& parents, int share, int block_size, bool findable,
                     Retention* retention)
    : BlockPool((parents.total() + 1) * share, block_size, findable, &parents, share) {
  group_ = parents.Add(this);
  // The first group speaks for all: what comes back is learnt from its blocks.
  if (findable && retention != nullptr) {
    eviction_.emplace(*retention, num_blocks_, group_ == 0 ? num_blocks_ - share_ : 0, nullptr);
  }
}

std::span<Token> BlockPool::content(BlockId id) {
  return std::span(contents_).subspan(static_cast<size_t>(id.value) * block_size_, block_size_);
}

std::span<const Token> BlockPool::content(BlockId id) const {
  return std::span(contents_).subspan(static_cast<size_t>(id.value) * block_size_, block_size_);
}

BlockCounts BlockPool::counts() const {
  return {.total = num_blocks_ - share_,
          .free = count(Place::kFree),
          .open = count(Place::kOpen),
          .shared = count(Place::kShared),
          .retiring = count(Place::kRetiring),
          .cached = count(Place::kCached) + count(Place::kResting)};
}

void BlockPool::Move(BlockId id, Place to) {
  Use& u = use(id);
  --counts_[static_cast<size_t>(u.place)];
  ++counts_[static_cast<size_t>(to)];
  u.place = to;
}

void BlockPool::PushBack(List list, BlockId id) {
  const BlockId end = sentinel(list);
  const BlockId last = node(end).previous;
  node(id).previous = last;
  node(id).next = end;
  node(last).next = id;
  node(end).previous = id;
}

void BlockPool::PushFront(List list, BlockId id) {
  const BlockId end = sentinel(list);
  const BlockId first = node(end).next;
  node(id).previous = end;
  node(id).next = first;
  node(first).previous = id;
  node(end).next = id;
}

void BlockPool::Unlink(BlockId id) {
  Node& n = node(id);
  node(n.previous).next = n.next;
  node(n.next).previous = n.previous;
}

BlockPool::~BlockPool() {
  Watch(nullptr);
  GiveUpRests();
}

void BlockPool::Watch(CacheLog* log) {
  if (log_ != nullptr) log_->End();
  log_ = log;
  if (log_ != nullptr) log_->Begin(this);
}

void BlockPool::Index(BlockId id, std::optional<BlockId> before) {
  if (!findable_) return;
  Node& n = node(id);
  use(id).indexed = index_.Insert(n.key.hash, id);
  if (!use(id).indexed) return;
  ++lives_[static_cast<size_t>(id.value)];
  if (log_ != nullptr) log_->Stored(n.key, content(id));
  if (!eviction_) return;
  // Mostly the block before it is the one that is found by the parent's hash.
  const bool found = before && use(*before).indexed;
  eviction_->Indexed(id, found ? before : index_.Find(n.key.parent));
}

void BlockPool::Unindex(BlockId id) {
  if (!use(id).indexed) return;
  index_.Erase(node(id).key.hash);
  use(id).indexed = false;
  ++lives_[static_cast<size_t>(id.value)];
  if (log_ != nullptr) log_->Removed(node(id).key);
  if (eviction_) eviction_->Unindexed(id);
}

std::optional<OpenBlock> BlockPool::Allocate() {
  if (first(kFreeList) == sentinel(kFreeList)) EvictSome();
  const BlockId id = first(kFreeList);
  if (id == sentinel(kFreeList)) return std::nullopt;
  Unlink(id);
  return Open(id);
}

void BlockPool::EvictSome() {
  const int most = std::clamp(num_blocks_ / kSmallPart, 1, kEvictedAtOnce);
  for (int evicted = 0; evicted < most; ++evicted) {
    const auto victim = eviction_ ? eviction_->Victim() : std::nullopt;
    if (evicted == 0) {
      // A table that gave up its tail for it may have had what nobody finds.
      if (first(kFreeList) != sentinel(kFreeList)) return;
    } else if (!victim) {
      return;  // what is left has continuations that somebody holds
    }
    const BlockId id = victim.value_or(first(kCachedList));
    if (id == sentinel(kCachedList)) return;
    // What stands before it is likely to be next, and on its way from memory: ask for the one
    // before that.
    std::optional<BlockId> next = eviction_ ? eviction_->parent(id) : std::nullopt;
    const Hash128 hash = next ? node(*next).key.parent : Hash128{};
    if (next) next = eviction_->parent(*next);
    Evict(id);
    if (next) PrefetchVictim(*next, hash);
  }
}

void BlockPool::PrefetchSealing(const Hash128& hash, BlockId id, BlockId before) const {
  index_.Prefetch(hash);
  __builtin_prefetch(&node(id), 1);
  __builtin_prefetch(content(id).data(), 1);
  if (!eviction_) return;
  eviction_->Prefetch(id);
  eviction_->Prefetch(before);
}

void BlockPool::PrefetchVictim(BlockId id, const Hash128& hash) const {
  __builtin_prefetch(&node(id), 1);
  __builtin_prefetch(content(id).data(), 1);
  index_.Prefetch(hash);
  evicted_.Prefetch(hash);
  if (const std::optional<BlockId> before = eviction_->parent(id)) eviction_->Prefetch(*before);
}

OpenBlock BlockPool::Open(BlockId id) {
  Node& n = node(id);
  TS_CHECK(use(id).holders == 0 && n.fence <= retired_,
           "block " << id.value << " with " << use(id).holders << " holders, fence "
                    << n.fence.value << ", retired " << retired_.value);
  use(id).holders = 1;
  n.sealed = false;
  Move(id, Place::kOpen);
  return OpenBlock(this, id);
}

std::optional<BlockPool::Candidate> BlockPool::NextVictim() {
  if (!eviction_) return std::nullopt;
  const std::optional<BlockId> id = eviction_->Victim();
  if (!id) return std::nullopt;
  return Candidate{*id, ParentOf(*id), eviction_->victim_rank()};
}

void BlockPool::Evict(BlockId id) {
  evicted_.Insert(node(id).key.hash);
  Unindex(id);
  Unlink(id);
  Move(id, Place::kFree);
  if (parents_ != nullptr) {
    parents_->Evicted(ParentOf(id));
  } else {
    PushBack(kFreeList, id);
  }
}

void BlockPool::EvictParent(int parent) {
  for (int i = parent * share_; i < (parent + 1) * share_; ++i) {
    if (use(BlockId{i}).place == Place::kCached) Evict(BlockId{i});
  }
}

void BlockPool::Seal(BlockId id, const ChainKey& key, std::span<const Token> tokens,
                     std::optional<BlockId> before) {
  Close(id, key, tokens);
  Index(id, before);
}

void BlockPool::Receive(BlockId id, const ChainKey& key, std::span<const Token> tokens) {
  Close(id, key, tokens);
  node(id).written = StepId{std::numeric_limits<int64_t>::max()};
}

void BlockPool::Close(BlockId id, const ChainKey& key, std::span<const Token> tokens) {
  Node& n = node(id);
  TS_CHECK(use(id).place == Place::kOpen && use(id).holders == 1,
           "sealed block " << id.value << " in place " << static_cast<int>(use(id).place));
  n.sealed = true;
  n.key = key;
  Move(id, Place::kShared);
  if (findable_) std::copy(tokens.begin(), tokens.end(), content(id).begin());
}

void BlockPool::Received(BlockId id, bool ok) {
  Node& n = node(id);
  n.written = StepId{};
  if (ok) Index(id, std::nullopt);
}

std::optional<BlockId> BlockPool::Lookup(const ChainKey& key, std::span<const Token> tokens) const {
  if (!findable_) return std::nullopt;
  const std::optional<BlockId> id = index_.Find(key.hash);
  if (!id) return std::nullopt;
  // A hash is a hint: the content and the chain before it decide.
  const std::span<const Token> own = content(*id);
  if (node(*id).key.parent != key.parent || !SameTokens(own, tokens)) return std::nullopt;
  return id;
}

std::optional<SealedBlock> BlockPool::Find(const ChainKey& key, std::span<const Token> tokens) {
  const std::optional<BlockId> id = Lookup(key, tokens);
  if (!id) return std::nullopt;
  Share(*id);
  return SealedBlock(this, *id);
}

std::optional<SealedBlock> BlockPool::Hold(BlockId id, const Hash128& hash) {
  if (!use(id).indexed || node(id).key.hash != hash) return std::nullopt;
  Share(id);
  return SealedBlock(this, id);
}

void BlockPool::Retake(std::span<const BlockMark> marks, std::vector<SealedBlock>& blocks) {
  for (const BlockMark& mark : marks) {
    if (mark.life % 2 == 0 || lives_[static_cast<size_t>(mark.id.value)] != mark.life) return;
    Share(mark.id);
    blocks.push_back(SealedBlock(this, mark.id));
  }
}

BlockPool::Presence BlockPool::Peek(const ChainKey& key, std::span<const Token> tokens) const {
  const std::optional<BlockId> id = Lookup(key, tokens);
  if (!id) return Presence::kAbsent;
  const Place place = use(*id).place;
  const bool held = place != Place::kCached && place != Place::kResting;
  return held ? Presence::kHeld : Presence::kUnheld;
}

void BlockPool::Share(BlockId id) {
  Use& u = use(id);
  ++u.holders;
  if (u.place == Place::kShared) return;
  TS_CHECK(node(id).sealed && u.holders == u.resting + 1 && u.place != Place::kFree,
           "shared block " << id.value << " in place " << static_cast<int>(u.place));
  if (u.place != Place::kResting) Unlink(id);
  if (u.place == Place::kCached) {
    if (eviction_) eviction_->Taken(id);
    if (parents_ != nullptr) parents_->Held(ParentOf(id));
  }
  Move(id, Place::kShared);
}

void BlockPool::Release(BlockId id) {
  Use& u = use(id);
  TS_CHECK(u.holders > u.resting, "released block " << id.value << ", which nobody holds");
  if (--u.holders == u.resting) Idle(id);
}

void BlockPool::Idle(BlockId id) {
  InFlightBlock block(id, planned_);
  if (planned_ > retired_) {
    Defer(std::move(block));
  } else {
    Free(std::move(block), retired());
  }
}

void BlockPool::Defer(InFlightBlock block) {
  node(block.id()).fence = block.fence();
  Move(block.id(), Place::kRetiring);
  PushBack(kRetiringList, block.id());
}

void BlockPool::Free(InFlightBlock block, const RetiredStep& proof) {
  const BlockId id = block.id();
  TS_CHECK(block.fence() <= proof.step(), "freed block " << id.value << " behind step "
                                                         << block.fence().value << ", retired "
                                                         << proof.step().value);
  if (use(id).holders > 0) {
    Move(id, Place::kResting);
    ++releases_;
    return;
  }
  const bool keep = use(id).indexed;
  Move(id, keep ? Place::kCached : Place::kFree);
  if (keep) {
    PushBack(kCachedList, id);
    if (eviction_) eviction_->Cached(id);
  } else if (parents_ == nullptr) {
    PushFront(kFreeList, id);
  }
  if (parents_ != nullptr) parents_->Left(ParentOf(id), keep);
  ++releases_;
}

void BlockPool::Planned(StepId step) {
  TS_CHECK(step > planned_, "planned step " << step.value << " after " << planned_.value);
  const BlockCounts c = counts();
  TS_CHECK(c.free + c.open + c.shared + c.retiring + c.cached == c.total,
           c.free << " free, " << c.open << " open, " << c.shared << " shared, " << c.retiring
                  << " retiring, " << c.cached << " cached of " << c.total << " blocks");
  planned_ = step;
}

RetiredStep BlockPool::Retired(StepId step) {
  TS_CHECK(step <= planned_ && step > retired_, "retired step "
                                                    << step.value << ", planned " << planned_.value
                                                    << ", last retired " << retired_.value);
  retired_ = step;
  const BlockId end = sentinel(kRetiringList);
  for (BlockId id = node(end).next; id != end && node(id).fence <= step; id = node(end).next) {
    Unlink(id);
    Free(InFlightBlock(id, node(id).fence), retired());
  }
  while (!retreats_.empty() && retreats_.front().fence <= step) {
    const auto [owner, rest, fence] = retreats_.front();
    retreats_.pop_front();
    const Resting& table = rests_[static_cast<size_t>(owner.slot)];
    if (table.rest != rest) continue;
    if (eviction_->is_open(owner)) {
      eviction_->Rested(owner, static_cast<int>(table.blocks.size()));
    } else {
      GiveUpRest(owner);
    }
  }
  return retired();
}

}  // namespace tokenspeed::kv
