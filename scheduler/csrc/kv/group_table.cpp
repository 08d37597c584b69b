// SPDX-License-Identifier: MIT
#include "kv/group_table.h"

#include <algorithm>

#include "base/check.h"

namespace tokenspeed::kv {
namespace {

SealedBlock Close(OpenBlock block, const ChainKey& key, std::span<const Token> tokens) {
  block.Fill(static_cast<int>(tokens.size()));
  return std::move(block).Seal(key, tokens);
}

}  // namespace

int SpanTable::FirstRead(int context) const {
  if (spec_.kind == GroupKind::kFull) return 0;
  return std::max(0, context + 1 - spec_.span) / spec_.tokens;
}

void SpanTable::Slide(int context) {
  const int out = std::min(FirstRead(context) - gone_, blocks_.sealed());
  if (out <= 0) return;
  blocks_.DropFront(out);
  gone_ += out;
}

void SpanTable::Describe(std::ostream& out) const {
  out << " group " << group_ << " gone " << gone_ << " announced " << announced << " has";
  blocks_.Describe(out);
}

void StateTable::Describe(std::ostream& out) const {
  out << " group " << group_ << " announced " << announced.value << " visited " << visited_
      << " latest " << latest_ << (due_ ? " due" : "") << " has";
  for (const OpenBlock& block : open_) out << ' ' << block.id().value;
  for (const Forked& fork : forks_)
    out << " fork " << fork.block.id().value << '@' << fork.boundary;
  if (origin_) out << " from " << origin_->id().value << (resumed_ ? " resumed" : "");
}

void StateTable::Resume(SealedBlock snapshot, int boundary) {
  origin_.emplace(std::move(snapshot));
  visited_ = latest_ = boundary;
}

void StateTable::Visit(int boundary) {
  visited_ = boundary;
  due_ = true;
}

void StateTable::Fork() {
  TS_CHECK(due_ && has_spare() && !resumes(), "a snapshot of group " << group_ << " has no block");
  due_ = false;
  forks_.push_back({visited_, std::move(open_.front())});
  open_.erase(open_.begin());
}

SealedBlock StateTable::SealOldest(const ChainKey& key, std::span<const Token> tokens) {
  TS_CHECK(!forks_.empty(), "group " << group_ << " has no snapshot to seal");
  OpenBlock block = std::move(forks_.front().block);
  latest_ = forks_.front().boundary;
  forks_.erase(forks_.begin());
  return Close(std::move(block), key, tokens);
}

SealedBlock StateTable::SealLive(const ChainKey& key, std::span<const Token> tokens, int boundary) {
  TS_CHECK(has_live() && !resumes(), "group " << group_ << " has no state to seal");
  OpenBlock block = std::move(open_.front());
  open_.erase(open_.begin());
  latest_ = boundary;
  return Close(std::move(block), key, tokens);
}

void StateTable::Clear() {
  open_.clear();
  forks_.clear();
  origin_.reset();
}

void GroupTables::Append(int group, OpenBlock block) {
  for (SpanTable& table : spans) {
    if (table.group() == group) return table.Append(std::move(block));
  }
  for (StateTable& table : states) {
    if (table.group() == group) return table.Append(std::move(block));
  }
  TS_CHECK(false, "a block of group " << group << ", which the request does not have");
}

void GroupTables::Resume(int group, SealedBlock block, int boundary) {
  for (SpanTable& table : spans) {
    if (table.group() == group) return table.Append(std::move(block));
  }
  for (StateTable& table : states) {
    if (table.group() == group) return table.Resume(std::move(block), boundary);
  }
  TS_CHECK(false, "a prefix of group " << group << ", which the request does not have");
}

}  // namespace tokenspeed::kv
