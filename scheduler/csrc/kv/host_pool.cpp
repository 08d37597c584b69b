// SPDX-License-Identifier: MIT
#include "kv/host_pool.h"

#include <algorithm>
#include <limits>
#include <ostream>

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

HostPool::HostPool(HostParents& parents, int share, int block_size)
    : parents_(parents),
      share_(share),
      group_(parents.Add(this)),
      num_blocks_(parents.total() * share),
      block_size_(block_size),
      evictable_{num_blocks_},
      spare_{num_blocks_ + 1},
      nodes_(static_cast<size_t>(num_blocks_) + 2),
      used_(static_cast<size_t>(parents.total())),
      contents_(static_cast<size_t>(num_blocks_) * static_cast<size_t>(block_size)),
      index_(num_blocks_) {
  TS_CHECK(share >= 1 && block_size >= 1, share << " host blocks of " << block_size);
  for (const HostBlockId end : {evictable_, spare_}) node(end).next = node(end).previous = end;
  counts_.total = counts_.free = num_blocks_;
}

std::span<Token> HostPool::content(HostBlockId id) {
  return std::span(contents_).subspan(static_cast<size_t>(id.value) * block_size_, block_size_);
}

std::span<const Token> HostPool::content(HostBlockId id) const {
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
}

void HostPool::Unlink(HostBlockId id) {
  const Node& n = node(id);
  node(n.previous).next = n.next;
  node(n.next).previous = n.previous;
}

void HostPool::Unlist(HostBlockId id) {
  if (std::exchange(node(id).listed, false)) Unlink(id);
}

void HostPool::List(HostBlockId id, bool coldest) {
  Node& n = node(id);
  if (n.listed || n.place != Place::kResident || n.holders > 0 || n.followers > 0) return;
  const HostBlockId first = node(evictable_).next;
  n.used = coldest && first != evictable_ ? node(first).used : parents_.Now();
  Link(id, coldest ? first : evictable_);
  n.listed = true;
}

std::optional<uint64_t> HostPool::coldest_used() const {
  const HostBlockId coldest = node(evictable_).next;
  if (coldest == evictable_) return std::nullopt;
  return node(coldest).used;
}

void HostPool::Bind() {
  const std::optional<int> parent = parents_.Take(group_);
  if (!parent) return;
  for (int i = 0; i < share_; ++i) Link(HostBlockId{*parent * share_ + i}, spare_);
}

bool HostPool::Vacate() {
  const int first = ParentOf(node(evictable_).next) * share_;
  for (int i = first; i < first + share_; ++i) {
    if (node(HostBlockId{i}).holders > 0) return false;
  }
  for (int i = first; i < first + share_; ++i) {
    if (node(HostBlockId{i}).place == Place::kResident) Unindex(HostBlockId{i});
  }
  return true;
}

void HostPool::MakeSpare(const ChainKey& key) {
  const HostBlockId coldest = node(evictable_).next;
  const bool own = coldest != evictable_ && node(coldest).key.hash != key.parent;
  const uint64_t used = own ? node(coldest).used : std::numeric_limits<uint64_t>::max();
  HostPool* other = parents_.ColderThan(this, used);
  if (other != nullptr && other->Vacate()) return Bind();
  if (!own) return;
  Unindex(coldest);
  if (!has_spare()) Bind();  // its parent had no other block
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
  if (!has_spare()) Bind();
  if (!has_spare()) MakeSpare(key);
  if (!has_spare()) return std::nullopt;
  const HostBlockId id = node(spare_).next;
  Unlink(id);
  ++used_[static_cast<size_t>(ParentOf(id))];
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

std::optional<HostBlockId> HostPool::Lookup(const ChainKey& key,
                                            std::span<const Token> tokens) const {
  const std::optional<BlockId> found = index_.Find(key.hash);
  if (!found) return std::nullopt;
  const HostBlockId id{found->value};
  const Node& n = node(id);
  // A hash is a hint: the content and the chain before it decide.
  if (n.place != Place::kResident || n.key.parent != key.parent ||
      !std::ranges::equal(content(id), tokens)) {
    return std::nullopt;
  }
  return id;
}

std::optional<HostBlock> HostPool::Find(const ChainKey& key, std::span<const Token> tokens) {
  const std::optional<HostBlockId> id = Lookup(key, tokens);
  if (!id) return std::nullopt;
  Unlist(*id);
  ++node(*id).holders;
  return HostBlock(this, *id);
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
  const int parent = ParentOf(id);
  Link(id, node(spare_).next);
  if (--used_[static_cast<size_t>(parent)] > 0) return;
  for (int i = parent * share_; i < (parent + 1) * share_; ++i) Unlink(HostBlockId{i});
  parents_.Unbind(parent);
}

void HostPool::Written(HostBlockId id) {
  Node& n = node(id);
  TS_CHECK(n.place == Place::kWritten && n.holders == 1,
           "host block " << id.value << " was sealed in place " << static_cast<int>(n.place));
  if (n.forgotten) return Free(id);
  n.place = Place::kResident;
  n.holders = 0;
  n.used = parents_.Now();
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
  std::vector<int> followers(nodes_.size());
  std::vector<uint64_t> lost;           // what stood before a block and is not here, by hash
  std::vector<int> used(used_.size());  // by parent
  for (int i = 0, parent = 0, last = share_; i < num_blocks_; ++i) {
    const Node& n = node(HostBlockId{i});
    if (i == last) ++parent, last += share_;
    ++places[static_cast<int>(n.place)];
    used[static_cast<size_t>(parent)] += n.place != Place::kFree;
    if (n.place == Place::kFree || n.forgotten) continue;
    ++indexed;
    if (const std::optional<BlockId> before = index_.Find(n.key.parent)) {
      ++followers[static_cast<size_t>(before->value)];
    } else {
      lost.push_back(n.key.parent.low());
    }
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
    const int expected = followers[static_cast<size_t>(i)];
    if (n.followers != expected) {
      return Broken("host block ", i, " has ", expected, " followers, counted ", n.followers);
    }
    const bool evictable = n.place == Place::kResident && n.holders == 0 && expected == 0;
    if (n.listed != evictable) return Broken("host block ", i, " is wrongly (not) evictable");
    listed += n.listed;
  }
  std::ranges::sort(lost);
  size_t orphans = 0;
  for (const auto& [hash, count] : orphans_) {
    const auto same = std::ranges::equal_range(lost, hash);
    if (std::ssize(same) != count) return Broken("orphans are miscounted");
    orphans += same.size();
  }
  if (orphans != lost.size()) return Broken(lost.size(), " orphans, counted ", orphans);
  for (HostBlockId id = node(evictable_).next; id != evictable_; id = node(id).next) {
    if (--listed < 0 || node(node(id).next).previous != id) return Broken("a torn host list");
  }
  if (listed != 0) return Broken(listed, " evictable host blocks are not in the list");
  return VerifyParents(used);
}

Status HostPool::VerifyParents(std::span<const int> used) const {
  int spare = 0;
  for (size_t parent = 0; parent < used.size(); ++parent) {
    if (used[parent] != used_[parent]) {
      return Broken("host parent ", parent, " has ", used[parent], " used blocks, counted ",
                    used_[parent]);
    }
    if (used[parent] > 0) spare += share_ - used[parent];
  }
  for (HostBlockId id = node(spare_).next; id != spare_; id = node(id).next) {
    if (--spare < 0 || used_[static_cast<size_t>(ParentOf(id))] == 0 ||
        node(node(id).next).previous != id) {
      return Broken("the list of spare host blocks is torn at ", id.value);
    }
  }
  if (spare != 0) return Broken(spare, " spare host blocks are not in the list");
  return Ok{};
}

void HostPool::Describe(std::ostream& out) const {
  for (int i = 0; i < num_blocks_; ++i) {
    const Node& n = node(HostBlockId{i});
    out << "host block " << i << " place " << static_cast<int>(n.place);
    if (n.place != Place::kFree) {
      out << " holders " << n.holders << " forgotten " << n.forgotten << " key " << n.key.hash.low()
          << ' ' << n.key.parent.low();
    }
    out << '\n';
  }
  for (const HostBlockId end : {evictable_, spare_}) {
    out << "host list";
    for (HostBlockId id = node(end).next; id != end; id = node(id).next) out << ' ' << id.value;
    out << '\n';
  }
  parents_.Describe(out);
}

}  // namespace tokenspeed::kv
