// SPDX-License-Identifier: MIT
#include "simulate/trace.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace tokenspeed::simulate {
namespace {

uint64_t Mix(uint64_t x) {  // the finalizer of splitmix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

Hash128 NameOf(uint64_t kind, uint64_t key, uint64_t number) {
  const uint64_t low = Mix(Mix(key * 4 + kind + 0x9E3779B97F4A7C15ull) + number);
  const std::array<uint64_t, 2> words = {low, Mix(low ^ number)};
  Hash128 name;
  std::memcpy(name.bytes.data(), words.data(), sizeof(words));
  return name;
}

}  // namespace

void BlockNames::Advance(const TraceRow& row) {
  own_.resize(static_cast<size_t>(std::min({row.kept, row.blocks, size()})));
  while (size() < row.blocks) own_.push_back(next_++);
}

Hash128 BlockNames::At(int i) const {
  const auto number = static_cast<uint64_t>(i);
  if (i < conversation_->tool_blocks) return NameOf(1, conversation_->tool_key, number);
  if (i < conversation_->shared_blocks) return NameOf(2, conversation_->system_key, number);
  return NameOf(3, index_, own_[static_cast<size_t>(i)]);
}

}  // namespace tokenspeed::simulate
