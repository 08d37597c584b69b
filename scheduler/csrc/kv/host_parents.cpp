// SPDX-License-Identifier: MIT
#include "kv/host_parents.h"

#include <ostream>

#include "base/check.h"
#include "kv/host_pool.h"

namespace tokenspeed::kv {

HostParents::HostParents(int num_parents) : groups_(static_cast<size_t>(num_parents), -1) {
  TS_CHECK(num_parents >= 1, num_parents << " parents of the host tier");
  for (int parent = num_parents - 1; parent >= 0; --parent) unbound_.push_back(parent);
}

int HostParents::Add(HostPool* pool) {
  pools_.push_back(pool);
  return static_cast<int>(pools_.size()) - 1;
}

std::optional<int> HostParents::Take(int group) {
  if (unbound_.empty()) return std::nullopt;
  const int parent = unbound_.back();
  unbound_.pop_back();
  groups_[static_cast<size_t>(parent)] = group;
  return parent;
}

void HostParents::Unbind(int parent) {
  groups_[static_cast<size_t>(parent)] = -1;
  unbound_.push_back(parent);
}

HostPool* HostParents::ColderThan(const HostPool* own, uint64_t used) const {
  HostPool* coldest = nullptr;
  for (HostPool* pool : pools_) {
    const std::optional<uint64_t> theirs = pool == own ? std::nullopt : pool->coldest_used();
    if (!theirs || *theirs >= used) continue;
    used = *theirs;
    coldest = pool;
  }
  return coldest;
}

Status HostParents::Verify() const {
  int unbound = 0;
  std::vector<int> listed(groups_.size());
  for (const int parent : unbound_) ++listed[static_cast<size_t>(parent)];
  for (int parent = 0; parent < total(); ++parent) {
    const int32_t own = groups_[static_cast<size_t>(parent)];
    unbound += own < 0;
    if (own < 0 && listed[static_cast<size_t>(parent)] != 1) {
      return Broken("host parent ", parent, " is of no group and not unbound");
    }
    for (size_t group = 0; group < pools_.size(); ++group) {
      const bool used = pools_[group]->used(parent) > 0;
      if (used == (own == static_cast<int32_t>(group))) continue;
      return Broken("host parent ", parent, " of group ", own, used ? " holds" : " lacks",
                    " blocks of group ", group);
    }
  }
  if (unbound != this->unbound()) return Broken(unbound, " host parents are unbound");
  return Ok{};
}

void HostParents::Describe(std::ostream& out) const {
  out << "unbound";
  for (const int parent : unbound_) out << ' ' << parent;
  out << '\n';
}

}  // namespace tokenspeed::kv
