// SPDX-License-Identifier: MIT
#include "kv/eviction_queue.h"

#include <algorithm>
#include <ostream>
#include <utility>

#include "base/check.h"
#include "kv/retention.h"

namespace tokenspeed::kv {
namespace {

// Visits of its owner, one after the other, that did not use a block. More than one: between two
// prompts of one branch a session may ask something short beside it.
constexpr uint32_t kGivenUp = 3;

}  // namespace

EvictionQueue::EvictionQueue(Retention& retention, int num_blocks, int ghosts,
                             std::function<void(int)> shed)
    : retention_(retention), shed_(std::move(shed)), nodes_(static_cast<size_t>(num_blocks)) {
  retention_.Attach(this, ghosts);
}

EvictionQueue::~EvictionQueue() { retention_.Detach(this); }

int EvictionQueue::SlotOf(const Node& n) const {
  return retention_.is_open(n.owner) ? n.owner.slot : 0;
}

int EvictionQueue::ListOf(const Node& n) const {
  const int slot = SlotOf(n);
  return slot > 0 && retention_.visits(n.owner) - n.visit >= kGivenUp ? 0 : slot;
}

void EvictionQueue::Claim(BlockId id, OwnerId owner) {
  Node& n = node(id);
  if (n.owner == owner) return;
  TS_CHECK(!n.cached, "claim of block " << id.value << ", which is cached");
  n.other = std::exchange(n.owner, owner);
}

void EvictionQueue::Indexed(BlockId id, std::optional<BlockId> parent) {
  Node& n = node(id);
  n.indexed = true;
  n.owner = n.other = OwnerId{};
  n.parent = kNone;
  if (!parent || *parent == id) return;
  Node& before = node(*parent);
  n.parent = *parent;
  n.parent_life = before.life;
  ++before.children;
  if (before.list >= 0) Delist(*parent);
}

void EvictionQueue::Unindexed(BlockId id) {
  Node& n = node(id);
  if (!n.indexed) return;
  // The block before it may be a leaf now. It joins the list first: mostly they are one owner's,
  // whose list never runs empty so, and whose place in the heap stays.
  const BlockId parent = std::exchange(n.parent, kNone);
  const bool known = parent != kNone && node(parent).life == n.parent_life;
  if (known && --node(parent).children == 0 && !Succeed(id, parent)) Settle(parent);
  if (n.cached) Taken(id);
  n.indexed = false;
  n.children = 0;  // they cannot be found through it, and know by its life
  ++n.life;
  n.owner = n.other = OwnerId{};
}

void EvictionQueue::Cached(BlockId id) {
  Node& n = node(id);
  TS_CHECK(n.indexed && !n.cached, "block " << id.value << " is cached twice, or lost");
  n.cached = true;
  n.visit = SlotOf(n) > 0 ? retention_.visits(n.owner) : 0;
  ++leaves(SlotOf(n)).cached;
  Settle(id);
}

void EvictionQueue::Taken(BlockId id) {
  Node& n = node(id);
  TS_CHECK(n.cached, "block " << id.value << " is not cached");
  if (n.list >= 0) Delist(id);
  --leaves_[static_cast<size_t>(SlotOf(n))].cached;  // Cached made room for it
  n.cached = false;
}

// The parent takes the place of its owner's only leaf. False: it is another's, or not a leaf.
bool EvictionQueue::Succeed(BlockId id, BlockId parent) {
  Node& n = node(id);
  Node& before = node(parent);
  if (n.list < 0 || !before.cached || ListOf(before) != n.list) return false;
  Leaves& list = leaves_[static_cast<size_t>(n.list)];
  if (list.first != list.last) return false;
  list.first = list.last = parent;
  before.next = before.previous = kNone;
  before.list = std::exchange(n.list, -1);
  return true;
}

// A cached block without children is a leaf.
void EvictionQueue::Settle(BlockId id) {
  const Node& n = node(id);
  if (n.cached && n.children == 0 && n.list < 0) Enlist(id);
}

void EvictionQueue::Enlist(BlockId id) {
  Node& n = node(id);
  const int slot = ListOf(n);
  Leaves& list = leaves(slot);
  n.list = slot;
  n.next = kNone;
  n.previous = list.last;
  (list.last == kNone ? list.first : node(list.last).next) = id;
  list.last = id;
  if (list.first == id) owners_.Set(slot, slot > 0 ? retention_.rank(n.owner) : Rank{});
}

void EvictionQueue::Delist(BlockId id) {
  Node& n = node(id);
  const int slot = std::exchange(n.list, -1);
  Leaves& list = leaves(slot);
  (n.previous == kNone ? list.first : node(n.previous).next) = n.next;
  (n.next == kNone ? list.last : node(n.next).previous) = n.previous;
  LeaveIfBare(slot);
}

bool EvictionQueue::is_open(OwnerId owner) const { return retention_.is_open(owner); }

void EvictionQueue::LeaveIfBare(int slot) {
  const Leaves& list = leaves(slot);
  if (list.first == kNone && list.resting == 0) owners_.Erase(slot);
}

void EvictionQueue::Rested(OwnerId owner, int blocks) {
  leaves(owner.slot).resting = blocks;
  if (blocks > 0) {
    owners_.Set(owner.slot, retention_.rank(owner));
  } else {
    LeaveIfBare(owner.slot);
  }
}

void EvictionQueue::Shed(int slot) {
  shed_(slot);
  --leaves(slot).resting;
  LeaveIfBare(slot);
}

std::optional<BlockId> EvictionQueue::Victim() {
  while (!owners_.empty()) {
    const BlockId id = leaves(owners_.top()).first;
    if (id == kNone) {
      Shed(owners_.top());
      continue;
    }
    Node& n = node(id);
    // Each turn gives the leaf to an owner of higher rank, so this ends.
    if (n.other == n.owner || !(owners_.top_key() < retention_.rank(n.other))) return id;
    Taken(id);
    std::swap(n.owner, n.other);
    Cached(id);
  }
  return std::nullopt;
}

int EvictionQueue::retained() const {
  int count = 0;
  for (size_t slot = 1; slot < leaves_.size(); ++slot) {
    if (!retention_.retained(static_cast<int>(slot))) continue;
    count += leaves_[slot].cached + leaves_[slot].resting;
  }
  return count;
}

void EvictionQueue::Rerank(int slot, const Rank& rank) {
  if (owners_.contains(slot)) owners_.Set(slot, rank);
}

void EvictionQueue::Visited(int slot) {
  if (static_cast<size_t>(slot) >= leaves_.size()) return;
  // One leaf for each branch that the owner still goes on from: few.
  for (BlockId id = leaves(slot).first; id != kNone;) {
    const BlockId next = node(id).next;
    if (ListOf(node(id)) != slot) {
      Delist(id);
      Enlist(id);
    }
    id = next;
  }
}

void EvictionQueue::Disown(int slot) {
  if (static_cast<size_t>(slot) >= leaves_.size()) return;
  while (leaves(slot).resting > 0) Shed(slot);
  leaves(0).cached += std::exchange(leaves(slot).cached, 0);
  while (leaves(slot).first != kNone) {
    const BlockId id = leaves(slot).first;
    Delist(id);
    Enlist(id);
  }
}

void EvictionQueue::Describe(std::ostream& out) const {
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& n = nodes_[i];
    const int other = retention_.is_open(n.other) ? n.other.slot : 0;
    const uint32_t missed = SlotOf(n) > 0 ? retention_.visits(n.owner) - n.visit : 0;
    if (n.indexed) out << i << " of " << SlotOf(n) << '/' << other << " missed " << missed << ' ';
  }
  std::vector<int> slots;
  for (size_t slot = 0; slot < leaves_.size(); ++slot) {
    if (owners_.contains(static_cast<int>(slot))) slots.push_back(static_cast<int>(slot));
  }
  std::ranges::sort(slots, {}, [this](int slot) { return owners_.key(slot); });
  for (const int slot : slots) {
    const Leaves& list = leaves_[static_cast<size_t>(slot)];
    out << "\nowner " << slot << " rests " << list.resting << " leaves";
    for (BlockId id = list.first; id != kNone; id = node(id).next) out << ' ' << id.value;
  }
  out << '\n';
}

Status EvictionQueue::Verify() const {
  std::vector<int> children(nodes_.size());
  std::vector<int> cached(leaves_.size());
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& n = nodes_[i];
    if (n.cached && !n.indexed) return Broken("block ", i, " is cached and not findable");
    if (n.cached) ++cached[static_cast<size_t>(SlotOf(n))];
    if ((n.list >= 0) != (n.cached && n.children == 0)) return Broken("block ", i, " is no leaf");
    if (n.list >= 0 && n.list != ListOf(n)) return Broken("block ", i, " is in another's list");
    if (n.indexed && n.parent != kNone && node(n.parent).life == n.parent_life) {
      ++children[static_cast<size_t>(n.parent.value)];
    }
  }
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (children[i] != nodes_[i].children) {
      return Broken("block ", i, " has ", children[i], " continuations, counted ",
                    nodes_[i].children);
    }
  }
  for (size_t slot = 0; slot < leaves_.size(); ++slot) {
    const Leaves& list = leaves_[slot];
    if (cached[slot] != list.cached) return Error{"cached blocks of an owner are miscounted"};
    const bool some = list.first != kNone || list.resting > 0;
    if (some != owners_.contains(static_cast<int>(slot))) {
      return Error{"an owner with leaves is not in the heap"};
    }
    for (BlockId id = list.first; id != kNone; id = node(id).next) {
      if (node(id).list != static_cast<int>(slot)) return Error{"a list of leaves is torn"};
      if (owners_.key(static_cast<int>(slot)) !=
          (slot > 0 ? retention_.rank(node(id).owner) : Rank{})) {
        return Error{"an owner has an old rank"};
      }
    }
  }
  return Ok{};
}

}  // namespace tokenspeed::kv
