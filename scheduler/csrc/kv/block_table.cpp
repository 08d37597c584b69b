// SPDX-License-Identifier: MIT
#include "kv/block_table.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"

namespace tokenspeed::kv {

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  std::swap(sealed_, other.sealed_);
  std::swap(open_, other.open_);
  std::swap(closed_, other.closed_);
  return *this;
}

BlockId BlockTable::at(int i) const {
  const size_t index = static_cast<size_t>(i);
  if (index < sealed_.size()) return sealed_[index].id();
  return open_[closed_ + index - sealed_.size()].id();
}

void BlockTable::Append(SealedBlock block) {
  TS_CHECK(open() == 0, "sealed block " << block.id().value << " behind an open one");
  sealed_.push_back(std::move(block));
}

void BlockTable::Append(std::vector<SealedBlock> blocks) {
  TS_CHECK(open() == 0, blocks.size() << " sealed blocks behind an open one");
  if (sealed_.empty() && blocks.capacity() >= sealed_.capacity()) return sealed_.swap(blocks);
  std::ranges::move(blocks, std::back_inserter(sealed_));
}

void BlockTable::Fill(int tokens, int ahead, int block_size) {
  for (OpenBlock& block : std::span(open_).subspan(closed_)) {
    const int room = block_size - block.filled();
    const int part = std::min(tokens, room);
    const int drafts = std::min(ahead, room - part);
    if (part + drafts == 0) continue;
    block.Fill(part);
    tokens -= part;
    ahead -= drafts;
  }
  TS_CHECK(tokens == 0 && ahead == 0, tokens << " tokens and " << ahead << " drafts have no block");
}

void BlockTable::Accept(int tokens, int block_size) {
  for (OpenBlock& block : std::span(open_).subspan(closed_)) {
    if (tokens == 0) return;
    const int part = std::min(tokens, block_size - block.filled());
    block.Accept(part);
    tokens -= part;
  }
  TS_CHECK(tokens == 0, tokens << " accepted tokens have no block");
}

int BlockTable::filled() const {
  int filled = 0;
  for (const OpenBlock& block : std::span(open_).subspan(closed_)) filled += block.filled();
  return filled;
}

void BlockTable::Seal(const ChainKey& key, std::span<const Token> tokens) {
  TS_CHECK(open() > 0, "no open block to seal");
  const auto before = sealed_.empty() ? std::nullopt : std::optional(sealed_.back().id());
  sealed_.push_back(std::move(open_[closed_++]).Seal(key, tokens, before));
  if (open() > 0) return;
  open_.clear();
  closed_ = 0;
}

void BlockTable::DropFront(int blocks) {
  TS_CHECK(blocks <= sealed(), blocks << " of " << sealed() << " sealed blocks dropped");
  sealed_.erase(sealed_.begin(), sealed_.begin() + blocks);
}

void BlockTable::Clear() {
  while (!open_.empty()) open_.pop_back();
  closed_ = 0;
  while (!sealed_.empty()) sealed_.pop_back();
}

void BlockTable::Forget() {
  for (SealedBlock& block : sealed_) block.Forget();
}

void BlockTable::Describe(std::ostream& out) const {
  for (int i = 0; i < size(); ++i) out << ' ' << at(i).value;
  out << " sealed " << sealed() << " filled " << filled();
}

}  // namespace tokenspeed::kv
