// SPDX-License-Identifier: MIT
// A binary heap over small integers whose keys may change: the least key on top, O(log n) a change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace tokenspeed::kv {

template <class Key>
class IndexedHeap {
 public:
  bool empty() const { return heap_.empty(); }
  size_t size() const { return heap_.size(); }
  bool contains(int item) const { return Place(item) >= 0; }
  // REQUIRES: not empty.
  int top() const { return heap_.front().item; }
  const Key& top_key() const { return heap_.front().key; }
  // REQUIRES: contains(item).
  const Key& key(int item) const { return heap_[static_cast<size_t>(Place(item))].key; }

  void Set(int item, const Key& key) {
    if (static_cast<size_t>(item) >= place_.size())
      place_.resize(static_cast<size_t>(item) + 1, -1);
    int at = Place(item);
    if (at < 0) {
      at = static_cast<int>(heap_.size());
      heap_.push_back({key, item});
      place_[static_cast<size_t>(item)] = at;
    } else {
      heap_[static_cast<size_t>(at)].key = key;
    }
    Down(Up(at));
  }

  void Erase(int item) {
    const int at = Place(item);
    if (at < 0) return;
    const int last = static_cast<int>(heap_.size()) - 1;
    if (at != last) Swap(at, last);
    heap_.pop_back();
    place_[static_cast<size_t>(item)] = -1;
    if (at != last) Down(Up(at));
  }

 private:
  struct Entry {
    Key key;
    int item;
  };
  Entry& at(int i) { return heap_[static_cast<size_t>(i)]; }
  int Place(int item) const {
    return static_cast<size_t>(item) < place_.size() ? place_[static_cast<size_t>(item)] : -1;
  }
  void Swap(int a, int b) {
    std::swap(at(a), at(b));
    place_[static_cast<size_t>(at(a).item)] = a;
    place_[static_cast<size_t>(at(b).item)] = b;
  }
  int Up(int i) {
    for (; i > 0 && at(i).key < at((i - 1) / 2).key; i = (i - 1) / 2) Swap(i, (i - 1) / 2);
    return i;
  }
  void Down(int i) {
    const int size = static_cast<int>(heap_.size());
    for (int child; (child = 2 * i + 1) < size; i = child) {
      if (child + 1 < size && at(child + 1).key < at(child).key) ++child;
      if (!(at(child).key < at(i).key)) return;
      Swap(i, child);
    }
  }

  std::vector<Entry> heap_;
  std::vector<int32_t> place_;
};

}  // namespace tokenspeed::kv
