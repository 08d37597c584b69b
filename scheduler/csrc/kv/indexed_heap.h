// SPDX-License-Identifier: MIT
// A binary heap over small integers whose keys may change: the least key on top, O(log n) a change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tokenspeed::kv {

template <class Key>
class IndexedHeap {
 public:
  bool empty() const { return heap_.empty(); }
  size_t size() const { return heap_.size(); }
  bool contains(int item) const {
    return static_cast<size_t>(item) < place_.size() && place_[static_cast<size_t>(item)] >= 0;
  }
  // REQUIRES: not empty.
  int top() const { return heap_.front().item; }
  const Key& top_key() const { return heap_.front().key; }
  // REQUIRES: contains(item).
  const Key& key(int item) const { return heap_[Place(item)].key; }

  void Set(int item, const Key& key) {
    if (static_cast<size_t>(item) >= place_.size())
      place_.resize(static_cast<size_t>(item) + 1, -1);
    if (!contains(item)) {
      place_[static_cast<size_t>(item)] = static_cast<int32_t>(heap_.size());
      heap_.push_back({key, item});
    }
    Fill(Place(item), {key, item});
  }

  void Erase(int item) {
    if (!contains(item)) return;
    const size_t hole = Place(item);
    place_[static_cast<size_t>(item)] = -1;
    const Entry last = heap_.back();
    heap_.pop_back();
    if (hole < heap_.size()) Fill(hole, last);
  }

 private:
  struct Entry {
    Key key;
    int item;
  };
  // REQUIRES: contains(item).
  size_t Place(int item) const { return static_cast<size_t>(place_[static_cast<size_t>(item)]); }
  void Put(size_t at, const Entry& entry) {
    heap_[at] = entry;
    place_[static_cast<size_t>(entry.item)] = static_cast<int32_t>(at);
  }
  // Moves the hole up or down to where the entry may stand, and puts it there.
  void Fill(size_t hole, const Entry& entry) {
    for (size_t parent; hole > 0 && entry.key < heap_[parent = (hole - 1) / 2].key; hole = parent) {
      Put(hole, heap_[parent]);
    }
    for (size_t child; (child = 2 * hole + 1) < heap_.size(); hole = child) {
      if (child + 1 < heap_.size() && heap_[child + 1].key < heap_[child].key) ++child;
      if (!(heap_[child].key < entry.key)) break;
      Put(hole, heap_[child]);
    }
    Put(hole, entry);
  }

  std::vector<Entry> heap_;
  std::vector<int32_t> place_;
};

}  // namespace tokenspeed::kv
