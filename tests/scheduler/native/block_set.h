// SPDX-License-Identifier: MIT
// A set of small numbers that is emptied and filled again without allocating.
#pragma once

#include <cstdint>
#include <vector>

namespace tokenspeed {

class BlockSet {
 public:
  // Of 0 to size - 1; others throw std::out_of_range.
  explicit BlockSet(size_t size) : has_(size) {}

  bool Contains(int32_t block) const { return has_.at(static_cast<size_t>(block)) != 0; }
  const std::vector<int32_t>& members() const { return members_; }
  // False if it was there.
  bool Insert(int32_t block) {
    uint8_t& has = has_.at(static_cast<size_t>(block));
    if (has != 0) return false;
    has = 1;
    members_.push_back(block);
    return true;
  }
  void Clear() {
    for (const int32_t block : members_) has_[static_cast<size_t>(block)] = 0;
    members_.clear();
  }

 private:
  std::vector<uint8_t> has_;
  std::vector<int32_t> members_;
};

}  // namespace tokenspeed
