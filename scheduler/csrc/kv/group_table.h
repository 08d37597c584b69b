// SPDX-License-Identifier: MIT
// The blocks of one running request in the groups behind the first (whose blocks are a BlockTable).
//
//   SpanTable   of a full or a window group: the blocks of all tokens, or of the last `span`
//   StateTable  of a state group: the live state, and the snapshots that are being made of it
//
// A snapshot is made by leaving the live block as it is and going on in a copy: the step that plans
// the copy reads a block that nobody writes any more. It is sealed when its tokens are known.
#pragma once

#include <optional>
#include <ostream>
#include <vector>

#include "kv/block_table.h"
#include "kv/group.h"

namespace tokenspeed::kv {

class SpanTable {
 public:
  SpanTable(int group, const GroupSpec& spec) : group_(group), spec_(spec) {}

  int group() const { return group_; }
  const GroupSpec& spec() const { return spec_; }
  // Blocks that it has, and those before them that slid out of the window or were never held.
  const BlockTable& blocks() const { return blocks_; }
  int gone() const { return gone_; }
  // Tokens from the first on for which there is room.
  int reach() const { return (gone_ + blocks_.size()) * spec_.tokens; }
  // Tokens that are in it, gone ones included.
  int context() const { return (gone_ + blocks_.sealed()) * spec_.tokens + blocks_.filled(); }
  // The first block that a query at position `context` reads.
  int FirstRead(int context) const;

  // The first `blocks` are not needed.
  // REQUIRES: it is empty.
  void Skip(int blocks) { gone_ = blocks; }
  void Append(SealedBlock block) { blocks_.Append(std::move(block)); }
  void Append(OpenBlock block) { blocks_.Append(std::move(block)); }
  // As those of BlockTable.
  void Fill(int tokens, int ahead) { blocks_.Fill(tokens, ahead, spec_.tokens); }
  void Accept(int tokens) { blocks_.Accept(tokens, spec_.tokens); }
  // The first block that is not sealed, counted from the first token.
  int next_seal() const { return gone_ + blocks_.sealed(); }
  void Seal(const ChainKey& key, std::span<const Token> tokens) { blocks_.Seal(key, tokens); }
  // REQUIRES: one was sealed.
  BlockId last_sealed() const { return blocks_.at(blocks_.sealed() - 1); }
  // Gives up the sealed blocks that no query at `context` or behind it reads.
  // REQUIRES: every planned query stands before `context`.
  void Slide(int context);

  void Describe(std::ostream& out) const;

  int announced = 0;  // entries that the workers know, gone ones included

 private:
  int group_;
  GroupSpec spec_;
  BlockTable blocks_;
  int gone_ = 0;
};

class StateTable {
 public:
  StateTable(int group, const GroupSpec& spec) : group_(group), spec_(spec) {}

  int group() const { return group_; }
  const GroupSpec& spec() const { return spec_; }
  bool has_live() const { return !open_.empty(); }
  // Whether there is a block for a copy of the live state.
  bool has_spare() const { return open_.size() > 1; }
  // REQUIRES: has_live()
  BlockId live() const { return open_.front().id(); }
  void Append(OpenBlock block) { open_.push_back(std::move(block)); }

  // The live state is to begin as a copy of this snapshot, that after `boundary` tokens.
  void Resume(SealedBlock snapshot, int boundary);
  // The boundary of the latest snapshot that it took or gave; 0: none.
  int latest() const { return latest_; }
  // That copy is not planned yet.
  bool resumes() const { return origin_.has_value() && !resumed_; }
  // REQUIRES: resumes()
  BlockId origin() const { return origin_->id(); }
  void Resumed() { resumed_ = true; }
  // What earlier plans copied is not needed any more.
  void Settle() {
    if (resumed_) origin_.reset();
  }

  // The latest place where a snapshot was looked for; it is due until the live state is forked.
  int visited() const { return visited_; }
  bool due() const { return due_; }
  void Visit(int boundary);
  // The live state, that after visited() tokens, is a snapshot from now on: a spare one goes on.
  // REQUIRES: due(), has_spare()
  void Fork();
  // Seals the oldest snapshot if its tokens are known and hands it out.
  // REQUIRES: `tokens` are those of the block that ends with it.
  int oldest() const { return forks_.empty() ? 0 : forks_.front().boundary; }
  SealedBlock SealOldest(const ChainKey& key, std::span<const Token> tokens);
  // The live state itself becomes the snapshot after `boundary` tokens: nobody goes on from it.
  // REQUIRES: has_live()
  SealedBlock SealLive(const ChainKey& key, std::span<const Token> tokens, int boundary);
  // Gives up everything.
  void Clear();

  // Calls visit(block) for each handle.
  template <class Visit>
  void ForEachHeld(Visit visit) const {
    for (const OpenBlock& block : open_) visit(block.id());
    for (const Forked& fork : forks_) visit(fork.block.id());
    if (origin_) visit(origin_->id());
  }
  int open() const { return static_cast<int>(open_.size() + forks_.size()); }
  void Describe(std::ostream& out) const;

  BlockId announced;  // what the workers take for the live state

 private:
  struct Forked {
    int boundary;
    OpenBlock block;
  };

  int group_;
  GroupSpec spec_;
  std::vector<OpenBlock> open_;  // the live one, then spare ones
  std::vector<Forked> forks_;    // oldest first
  std::optional<SealedBlock> origin_;
  bool resumed_ = false;
  int visited_ = 0;
  int latest_ = 0;
  bool due_ = false;
};

// Nothing where the epoch has one group.
struct GroupTables {
  std::vector<SpanTable> spans;
  std::vector<StateTable> states;

  void Append(int group, OpenBlock block);
  // A block of a prefix that ends at `boundary`, behind the group's earlier ones.
  void Resume(int group, SealedBlock block, int boundary);
  // The step that is being planned writes the next `tokens` positions and drafts to up to `ahead`
  // more. A state takes no drafts: it is written in place.
  void Fill(int tokens, int ahead = 0) {
    for (SpanTable& table : spans) table.Fill(tokens, ahead);
  }
  // The drafts in the next `tokens` positions are accepted.
  void Accept(int tokens) {
    for (SpanTable& table : spans) table.Accept(tokens);
  }
};

}  // namespace tokenspeed::kv
