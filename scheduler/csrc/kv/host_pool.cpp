// SPDX-License-Identifier: MIT
#include "kv/host_pool.h"

#include <algorithm>

#include "base/check.h"

namespace tokenspeed::kv {

OpenHostBlock::~OpenHostBlock() {
  if (pool_ != nullptr) pool_->Free(id_);
}

void OpenHostBlock::Seal() && {
  TS_CHECK(pool_ != nullptr, "seal of a moved-from host block");
  std::exchange(pool_, nullptr)->Written(id_);
}

HostBlock::~HostBlock() {
  if (pool_ != nullptr) pool_->Release(id_);
}

const ChainKey& HostBlock::key() const {
  TS_CHECK(pool_ != nullptr, "key of a moved-from host block");
  return pool_->node(id_).key;
}

std::span<const Token> HostBlock::tokens() const {
  TS_CHECK(pool_ != nullptr, "content of a moved-from host block");
  return pool_->content(id_);
}

void HostBlock::Forget() {
  TS_CHECK(pool_ != nullptr, "forget of a moved-from host block");
  pool_->Unindex(id_);
}

HostPool::HostPool(int num_blocks, int block_size)
    : num_blocks_(num_blocks),
      block_size_(block_size),
      evictable_{num_blocks},
      nodes_(static_cast<size_t>(num_blocks) + 1),
      contents_(static_cast<size_t>(num_blocks) * static_cast<size_t>(block_size)),
      index_(num_blocks) {
  TS_CHECK(num_blocks >= 1 && block_size >= 1, num_blocks << " host blocks of " << block_size);
  node(evictable_).next = node(evictable_).previous = evictable_;
  for (int id = num_blocks - 1; id >= 0; --id) free_.push_back(HostBlockId{id});
  counts_.total = counts_.free = num_blocks;
}

std::span<Token> HostPool::content(HostBlockId id) {
  return std::span(contents_).subspan(static_cast<size_t>(id.value) * block_size_, block_size_);
}

HostPool::Node* HostPool::NodeOf(const Hash128& hash) {
  const std::optional<BlockId> id = index_.Find(hash);
  return id ? &node(HostBlockId{id->value}) : nullptr;
}

void HostPool::Link(HostBlockId id, HostBlockId before) {
  const HostBlockId last = node(before).previous;
  node(id).previous = last;
  node(id).next = before;
  node(last).next = id;
  node(before).previous = id;
  node(id).listed = true;
}

void HostPool::Unlist(HostBlockId id) {
  Node& n = node(id);
  if (!n.listed) return;
  node(n.previous).next = n.next;
  node(n.next).previous = n.previous;
  n.listed = false;
}

void HostPool::List(HostBlockId id, bool coldest) {
  const Node& n = node(id);
  if (n.listed || n.place != Place::kResident || n.holders > 0 || n.followers > 0) return;
  Link(id, coldest ? node(evictable_).next : evictable_);
}

void HostPool::Follow(const ChainKey& key) {
  Node* parent = NodeOf(key.parent);
  if (parent == nullptr) {
    ++orphans_[key.parent.low()];
    return;
  }
  if (++parent->followers == 1) Unlist(HostBlockId{static_cast<int32_t>(parent - nodes_.data())});
}

void HostPool::Unfollow(const ChainKey& key) {
  if (Node* parent = NodeOf(key.parent)) {
    TS_CHECK(parent->followers > 0, "a host block lost a follower that it did not have");
    if (--parent->followers == 0) {
      // What ends a chain now goes before every other chain is touched.
      List(HostBlockId{static_cast<int32_t>(parent - nodes_.data())}, true);
    }
    return;
  }
  const auto orphan = orphans_.find(key.parent.low());
  TS_CHECK(orphan != orphans_.end(), "a host block followed nothing");
  if (--orphan->second == 0) orphans_.erase(orphan);
}

std::optional<OpenHostBlock> HostPool::Allocate(const ChainKey& key,
                                                std::span<const Token> tokens) {
  if (Has(key.hash)) return std::nullopt;
  if (free_.empty()) {
    const HostBlockId coldest = node(evictable_).next;
    if (coldest == evictable_ || node(coldest).key.hash == key.parent) return std::nullopt;
    Unindex(coldest);
  }
  const HostBlockId id = free_.back();
  free_.pop_back();
  Node& n = node(id);
  n.place = Place::kWritten;
  n.holders = 1;
  n.key = key;
  n.followers = 0;
  n.forgotten = false;
  --counts_.free;
  ++counts_.written;
  std::ranges::copy(tokens, content(id).begin());
  index_.Insert(key.hash, BlockId{id.value});
  if (const auto orphan = orphans_.find(key.hash.low()); orphan != orphans_.end()) {
    n.followers = orphan->second;
    orphans_.erase(orphan);
  }
  Follow(key);
  return OpenHostBlock(this, id);
}

std::optional<HostBlock> HostPool::Find(const ChainKey& key, std::span<const Token> tokens) {
  const std::optional<BlockId> found = index_.Find(key.hash);
  if (!found) return std::nullopt;
  const HostBlockId id{found->value};
  Node& n = node(id);
  // A hash is a hint: the content and the chain before it decide.
  if (n.place != Place::kResident || n.key.parent != key.parent ||
      !std::ranges::equal(content(id), tokens)) {
    return std::nullopt;
  }
  Unlist(id);
  ++n.holders;
  return HostBlock(this, id);
}

void HostPool::Touch(const Hash128& hash) {
  const std::optional<BlockId> found = index_.Find(hash);
  if (!found) return;
  const HostBlockId id{found->value};
  Unlist(id);
  List(id, false);
}

void HostPool::Forget(const Hash128& hash) {
  if (const std::optional<BlockId> found = index_.Find(hash)) Unindex(HostBlockId{found->value});
}

// Takes the block out of the index, and frees it if nobody holds it.
void HostPool::Unindex(HostBlockId id) {
  Node& n = node(id);
  if (n.forgotten) return;
  n.forgotten = true;
  Unlist(id);
  index_.Erase(n.key.hash);
  if (n.followers > 0) orphans_[n.key.hash.low()] += std::exchange(n.followers, 0);
  Unfollow(n.key);
  if (n.holders == 0) Free(id);
}

void HostPool::Free(HostBlockId id) {
  Node& n = node(id);
  n.holders = 0;
  if (!n.forgotten) return Unindex(id);  // which comes back here
  --(n.place == Place::kWritten ? counts_.written : counts_.resident);
  ++counts_.free;
  n.place = Place::kFree;
  free_.push_back(id);
}

void HostPool::Written(HostBlockId id) {
  Node& n = node(id);
  TS_CHECK(n.place == Place::kWritten && n.holders == 1,
           "host block " << id.value << " was sealed in place " << static_cast<int>(n.place));
  if (n.forgotten) return Free(id);
  n.place = Place::kResident;
  n.holders = 0;
  --counts_.written;
  ++counts_.resident;
  List(id, false);
}

void HostPool::Release(HostBlockId id) {
  Node& n = node(id);
  TS_CHECK(n.holders > 0, "released host block " << id.value << ", which nobody holds");
  if (--n.holders > 0) return;
  if (n.forgotten) return Free(id);
  List(id, false);
}

Status HostPool::Verify() const {
  int places[3] = {};
  int indexed = 0;
  int listed = 0;
  std::unordered_map<uint64_t, int> followers;
  for (int i = 0; i < num_blocks_; ++i) {
    const Node& n = node(HostBlockId{i});
    ++places[static_cast<int>(n.place)];
    if (n.place == Place::kFree || n.forgotten) continue;
    ++indexed;
    ++followers[n.key.parent.low()];
    if (index_.Find(n.key.hash) != BlockId{i}) {
      return Broken("host block ", i, " is not where the index says");
    }
  }
  if (indexed != index_.size()) {
    return Broken(indexed, " host blocks, ", index_.size(), " in the index");
  }
  const int counted[3] = {counts_.free, counts_.written, counts_.resident};
  for (int place = 0; place < 3; ++place) {
    if (places[place] != counted[place]) {
      return Broken("place ", place, " has ", places[place], " host blocks, counted ",
                    counted[place]);
    }
  }
  for (int i = 0; i < num_blocks_; ++i) {
    const Node& n = node(HostBlockId{i});
    if (n.place == Place::kFree || n.forgotten) {
      if (n.listed) return Broken("host block ", i, " is free or forgotten, and evictable");
      if (n.place == Place::kFree && n.holders > 0)
        return Broken("free host block ", i, " is held");
      continue;
    }
    const auto found = followers.find(n.key.hash.low());
    const int expected = found == followers.end() ? 0 : found->second;
    if (n.followers != expected) {
      return Broken("host block ", i, " has ", expected, " followers, counted ", n.followers);
    }
    const bool evictable = n.place == Place::kResident && n.holders == 0 && expected == 0;
    if (n.listed != evictable) return Broken("host block ", i, " is wrongly (not) evictable");
    listed += n.listed;
    if (found != followers.end()) followers.erase(found);
  }
  for (const auto& [hash, count] : orphans_) {
    const auto found = followers.find(hash);
    if (found == followers.end() || found->second != count) return Broken("orphans are miscounted");
    followers.erase(found);
  }
  if (!followers.empty()) return Broken(followers.size(), " lost host blocks are not counted");
  for (HostBlockId id = node(evictable_).next; id != evictable_; id = node(id).next) {
    if (--listed < 0 || node(node(id).next).previous != id) return Broken("a torn host list");
  }
  if (listed != 0) return Broken(listed, " evictable host blocks are not in the list");
  return Ok{};
}

}  // namespace tokenspeed::kv
