// SPDX-License-Identifier: MIT
// A worker without a model, as tests/scheduler/simulated_worker.py: cells keep the token that was
// written, and a sampled token is a function of the history as read from the blocks. Requests of
// different seeds must not read each other's cells: tests give each salt a seed of its own. Copies
// to and from the host tier move the cells, some when they start and some as late as they may.
#pragma once

#include <algorithm>
#include <iterator>
#include <map>
#include <ostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model_groups.h"
#include "plan/step_plan.h"

namespace tokenspeed {

// What follows a history whose tokens were folded into `hash`.
inline Token SampleAfter(uint64_t hash, int vocab) {
  return static_cast<Token>((hash >> 20) % static_cast<uint64_t>(vocab));
}

class ModelWorker {
 public:
  ModelWorker(const plan::EpochShape& shape, int vocab)
      : width_(shape.block_size),
        vocab_(vocab),
        groups_(shape),
        cells_(static_cast<size_t>(groups_.num_blocks(0) * width_), -1),
        writers_(cells_.size()),
        host_(static_cast<size_t>(groups_.num_blocks(0, true) * width_), -1),
        host_writers_(host_.size()) {}

  const std::string& error() const { return error_.empty() ? groups_.error() : error_; }
  int max_step_tokens() const { return largest_; }
  // Blocks that the last step read or wrote, and those that it began to write.
  const BlockSet& touched() const { return groups_.touched(); }
  const BlockSet& begun() const { return groups_.begun(); }

  // Tokens of each sampling row of the last step.
  const std::vector<int32_t>& counts() const { return counts_; }
  // Tickets that were started and not ended, oldest first.
  std::vector<int32_t> tickets() const {
    std::vector<int32_t> open;
    for (const auto& [ticket, copy] : copies_) open.push_back(ticket);
    return open;
  }

  // The copy is over; a failed one leaves garbage.
  // REQUIRES: the ticket is open.
  void End(int32_t ticket, bool ok) {
    Copy& copy = copies_.at(ticket);
    if (ok) {
      Move(copy);
    } else {
      std::vector<Token>& to = copy.is_load ? cells_ : host_;
      for (const auto& [group, source, target] : copy.blocks) {
        if (group == 0) std::fill_n(to.begin() + target * width_, width_, -1);
        if (group > 0) groups_.Lose(group, target, copy.is_load);
      }
    }
    copies_.erase(ticket);
  }

  // Applies a plan and returns the sampled tokens; error() tells what the plan did wrong.
  std::vector<Token> Apply(const plan::StepPlan& plan) {
    RepeatRows(plan);
    for (const int32_t slot : plan.removed_slots) {
      former_[slot] = At(slot).tables;
      if (slots_.erase(slot) == 0) Fail("removes an unknown slot", slot);
    }
    for (size_t i = 0; i < plan.added_slots.size(); ++i) {
      Slot slot(plan.added_context[i]);
      slot.seed = plan.added_seed[i];
      const bool fresh = slots_.emplace(plan.added_slots[i], std::move(slot)).second;
      if (!fresh) Fail("adds a slot that is there", plan.added_slots[i]);
    }
    Keep(plan);
    for (size_t i = 0; i < plan.block_slots.size(); ++i) {
      const int group = plan.block_groups[i];
      if (group < 0 || group >= groups_.size()) {
        Fail("block group", group);
        continue;
      }
      Slot& slot = At(plan.block_slots[i]);
      groups_.Append(slot.tables, group, plan.block_ids[i]);
      if (group == 0) slot.blocks.push_back(plan.block_ids[i]);
    }
    for (size_t i = 0; i < plan.prefix_slots.size(); ++i) {
      At(plan.prefix_slots[i]).group = plan.prefix_groups[i];
      At(plan.prefix_slots[i]).group_blocks = static_cast<size_t>(plan.prefix_blocks[i]);
    }
    CheckGroups();
    groups_.BeginStep();
    groups_.Copy(plan);
    Start(plan.store_tickets, plan.store_groups, plan.store_sources, plan.store_targets, false);
    Start(plan.load_tickets, plan.load_groups, plan.load_sources, plan.load_targets, true);
    for (size_t i = 0; i < plan.wait_slots.size(); ++i) {
      At(plan.wait_slots[i]).waits.push_back(plan.wait_tickets[i]);
    }
    Write(plan);
    counts_.clear();
    std::vector<Token> tokens;
    for (size_t i = 0; i < rows_.size(); ++i) {
      if ((row_flags_[i] & plan::kRowSamples) == 0) continue;
      Slot& slot = At(rows_[i]);
      const bool drafts = row_flags_[i] & plan::kRowDrafts;
      counts_.push_back(drafts ? Verify(slot, row_tokens_[i], tokens) : 1);
      if (drafts) continue;
      slot.last = Sample(slot);
      tokens.push_back(slot.last);
    }
    return tokens;
  }

  // Writes down what decides the future; of a ticket, whether it moves at once.
  void Describe(std::ostream& out) const {
    for (const Token token : cells_) out << ' ' << token;
    for (const auto& [id, slot] : slots_) {
      out << "\nslot " << id << ' ' << slot.context << ' ' << slot.reached << ' ' << slot.last;
      ModelGroups::Describe(out, slot.tables);
      for (const int32_t ticket : slot.waits) {
        const auto copy = copies_.find(ticket);
        out << " waits " << (copy == copies_.end() ? -1 : std::distance(copies_.begin(), copy));
      }
    }
    for (const Token token : host_) out << ' ' << token;
    for (const auto& [ticket, copy] : copies_) {
      out << "\ncopy " << ticket % 2 << copy.is_load << copy.moved;
      for (const auto& [group, source, target] : copy.blocks) {
        out << ' ' << group << ':' << source << '>' << target;
      }
    }
    groups_.Describe(out);
    out << "\nrows";
    for (const int32_t row : rows_) out << ' ' << row;
    for (const auto& [id, tables] : former_) ModelGroups::Describe(out << "\nlast " << id, tables);
    out << '\n';
  }

 private:
  struct Slot {
    explicit Slot(int tokens = 0) : context(tokens) {}
    int context;
    int reached = 0;  // positions that were written, drafts too
    uint64_t seed = 0;
    std::vector<int32_t> blocks;  // of the first group
    ModelGroups::Tables tables;
    Token last = -1;
    int32_t group = -1;
    size_t group_blocks = 0;
    std::vector<int32_t> waits;
  };
  struct Copy {
    bool is_load = false;
    bool moved = false;
    struct Block {
      int32_t group;
      int32_t source;
      int32_t target;
    };
    std::vector<Block> blocks;
  };

  // The rows of the plan with those that it repeats.
  void RepeatRows(const plan::StepPlan& plan) {
    const auto count = static_cast<size_t>(plan.repeated_rows);
    if (count > rows_.size()) Fail("repeats rows", plan.repeated_rows);
    rows_.resize(count);
    rows_.insert(rows_.end(), plan.rows.begin(), plan.rows.end());
    row_tokens_.assign(count, 1);
    row_tokens_.insert(row_tokens_.end(), plan.row_tokens.begin(), plan.row_tokens.end());
    row_flags_.assign(count, plan::kRowSamples);
    row_flags_.insert(row_flags_.end(), plan.row_flags.begin(), plan.row_flags.end());
  }

  // Tables of added slots begin as the slots' last ones did.
  void Keep(const plan::StepPlan& plan) {
    for (size_t i = 0; i < plan.kept_slots.size(); ++i) {
      const int group = plan.kept_groups[i];
      const auto count = static_cast<size_t>(plan.kept_blocks[i]);
      Slot& slot = At(plan.kept_slots[i]);
      const ModelGroups::Tables& last = former_[plan.kept_slots[i]];
      const bool added = std::ranges::count(plan.added_slots, plan.kept_slots[i]) == 1;
      if (!added) Fail("keeps blocks of a slot that was not added", plan.kept_slots[i]);
      if (group < 0 || group >= groups_.size() || groups_.IsState(group)) {
        return Fail("keeps blocks of group", group);
      }
      const auto place = static_cast<size_t>(group);
      if (place >= last.size() || count == 0 || count > last[place].size()) {
        return Fail("keeps more than there was: blocks", plan.kept_blocks[i]);
      }
      for (const int32_t block : std::span(last[place]).first(count)) {
        groups_.Append(slot.tables, group, block);
        if (group == 0) slot.blocks.push_back(block);
      }
    }
  }

  void Start(const std::vector<int32_t>& tickets, const std::vector<int32_t>& groups,
             const std::vector<int32_t>& sources, const std::vector<int32_t>& targets,
             bool is_load) {
    for (size_t i = 0; i < tickets.size(); ++i) {
      const int32_t group = groups[i];
      if (group < 0 || group >= groups_.size()) return Fail("copy of group", group);
      // Where the scratch parent ends.
      const auto first = [&](bool host) { return host ? 0 : groups_.share(group); };
      const auto bad = [&](int32_t block, bool host) {
        return block < first(host) || block >= groups_.num_blocks(group, host);
      };
      if (bad(sources[i], is_load)) return Fail("copy source", sources[i]);
      if (bad(targets[i], !is_load)) return Fail("copy target", targets[i]);
      for (const auto& [ticket, copy] : copies_) {
        for (const Copy::Block& other : copy.blocks) {
          if (other.group != group) continue;
          const bool same = copy.is_load == is_load;
          if (targets[i] == (same ? other.target : other.source)) {
            Fail("writes a block in transfer", ticket);
          }
          if (!same && sources[i] == other.target) Fail("reads a block in transfer", ticket);
        }
      }
      if (!IsWritten(group, sources[i], is_load)) {
        Fail("copies a block that was never written", sources[i]);
      }
      copies_[tickets[i]].is_load = is_load;
      copies_[tickets[i]].blocks.push_back({group, sources[i], targets[i]});
      if (is_load) {
        groups_.BeginLoad(group, targets[i]);
      } else {
        groups_.BeginHost(group, targets[i], [this](int32_t block) {
          std::fill_n(host_.begin() + block * width_, width_, -1);
        });
      }
    }
    for (auto& [ticket, copy] : copies_) {
      if (ticket % 2 == 1) Move(copy);
    }
  }

  bool IsWritten(int group, int32_t block, bool host) const {
    if (group > 0) return groups_.IsWritten(group, block, host);
    const auto cells =
        std::span(host ? host_ : cells_)
            .subspan(static_cast<size_t>(block * width_), static_cast<size_t>(width_));
    return std::ranges::all_of(cells, [](Token token) { return token >= 0; });
  }

  void Move(Copy& copy) {
    if (std::exchange(copy.moved, true)) return;
    const auto copy_block = [&](const Copy::Block& block, const auto& from, auto& to) {
      std::copy_n(from.begin() + block.source * width_, width_, to.begin() + block.target * width_);
    };
    for (const Copy::Block& block : copy.blocks) {
      if (block.group > 0) {
        groups_.Transfer(block.group, block.source, block.target, copy.is_load);
      } else if (copy.is_load) {
        copy_block(block, host_, cells_);
        copy_block(block, host_writers_, writers_);
      } else {
        copy_block(block, cells_, host_);
        copy_block(block, writers_, host_writers_);
      }
    }
  }

  // Before a row runs, the loads that it waits for are there.
  void Await(const Slot& slot, bool samples) {
    for (const int32_t ticket : slot.waits) {
      const auto copy = copies_.find(ticket);
      if (copy == copies_.end()) continue;
      if (samples) Fail("samples over a load that may fail", ticket);
      Move(copy->second);
    }
  }

  void Fail(const char* what, int64_t value) {
    if (error_.empty()) error_ = std::string("plan: ") + what + " " + std::to_string(value);
  }

  Slot& At(int32_t slot) {
    const auto found = slots_.find(slot);
    if (found != slots_.end()) return found->second;
    Fail("names an unknown slot", slot);
    return slots_[slot];
  }

  Token* Cell(const Slot& slot, int position) {
    const size_t index = static_cast<size_t>(position / width_);
    if (index >= slot.blocks.size()) {
      Fail("a token has no block, position", position);
      return &cells_[0];
    }
    return &cells_[static_cast<size_t>(slot.blocks[index] * width_ + position % width_)];
  }

  int32_t BlockAt(const Slot& slot, int position) {
    return static_cast<int32_t>((Cell(slot, position) - cells_.data()) / width_);
  }

  void CheckGroups() {
    std::map<int32_t, std::vector<int32_t>> leading;
    for (const auto& [id, slot] : slots_) {
      if (slot.group < 0) continue;
      if (slot.group_blocks == 0 || slot.group_blocks > slot.blocks.size()) {
        return Fail("prefix group of slot", id);
      }
      const std::vector<int32_t> mine(
          slot.blocks.begin(),
          slot.blocks.begin() + static_cast<std::ptrdiff_t>(slot.group_blocks));
      const auto [first, fresh] = leading.emplace(slot.group, mine);
      if (!fresh && first->second != mine) Fail("nothing is shared in prefix group", slot.group);
    }
  }

  // All rows write before any row reads.
  void Write(const plan::StepPlan& plan) {
    written_.clear();
    size_t at = 0;
    int total = 0;
    bool long_rows = false;
    for (size_t i = 0; i < rows_.size(); ++i) {
      Slot& slot = At(rows_[i]);
      Await(slot, row_flags_[i] & plan::kRowSamples);
      long_rows = long_rows || row_tokens_[i] > 1;
      if (long_rows && row_tokens_[i] == 1) Fail("a row of one token behind a long one", 1);
      const int context = slot.context;
      for (int k = 0; k < row_tokens_[i]; ++k, ++slot.context) {
        const bool given = row_flags_[i] & plan::kRowHasTokens;
        if (given && at >= plan.prompt_tokens.size()) return Fail("prompt tokens end at", at);
        Token* cell = Cell(slot, slot.context);
        written_.push_back(cell);
        // A draft that nobody accepted is any token.
        *cell = given ? plan.prompt_tokens[at++] : k == 0 ? slot.last : vocab_;
        if (*cell < 0) Fail("no last token in slot", rows_[i]);
        writers_[static_cast<size_t>(cell - cells_.data())] = slot.seed;
        // Drafts that were not accepted are written again: that begins nothing.
        const bool again = slot.context < slot.reached;
        if (slot.context % width_ == 0 && !again) {
          groups_.BeginFirst(BlockAt(slot, slot.context));
        }
        slot.reached = std::max(slot.reached, slot.context + 1);
        groups_.Write(slot.tables, slot.seed, slot.context, *cell, again);
      }
      for (int k = 0; k < slot.context; k += width_) groups_.TouchFirst(BlockAt(slot, k));
      total += row_tokens_[i];
      if (row_flags_[i] & plan::kRowDrafts) slot.context = context + 1;
    }
    CheckDistinct();
    groups_.EndWrites();
    for (size_t i = 0; i < rows_.size(); ++i) {
      const bool drafts = row_flags_[i] & plan::kRowDrafts;
      CheckTables(At(rows_[i]), drafts ? 1 : row_tokens_[i]);
    }
    if (at != plan.prompt_tokens.size())
      Fail("prompt tokens left over at", static_cast<int64_t>(at));
    if (rows_.empty() && plan.store_tickets.empty() && plan.load_tickets.empty()) {
      Fail("nothing to do in step", plan.step.value);
    }
    largest_ = std::max(largest_, total);
  }

  // No slot has two rows, no place was written twice.
  void CheckDistinct() {
    std::ranges::sort(written_);
    const auto cell = std::ranges::adjacent_find(written_);
    if (cell != written_.end()) Fail("two rows write block", (*cell - cells_.data()) / width_);
    sorted_rows_ = rows_;
    std::ranges::sort(sorted_rows_);
    const auto row = std::ranges::adjacent_find(sorted_rows_);
    if (row != sorted_rows_.end()) Fail("two rows of slot", *row);
  }

  // What the groups behind the first have of the slot's last tokens, and what those read.
  void CheckTables(const Slot& slot, int tokens) {
    groups_.Check(slot.tables, slot.seed, slot.context - tokens, slot.context,
                  [&](int position) { return *Cell(slot, position); });
  }

  // Accepts any number of the drafts: those were right, the others leave what nobody may read.
  int32_t Verify(Slot& slot, int width, std::vector<Token>& tokens) {
    int32_t count = 1;
    slot.last = Sample(slot);
    tokens.push_back(slot.last);
    const int accepted = 1 + (slot.context * 7 + slot.last) % width;
    for (; count < accepted; ++count) {
      *Cell(slot, slot.context) = slot.last;
      groups_.Accept(slot.tables, slot.seed, slot.context, slot.last);
      ++slot.context;
      slot.last = Sample(slot);
      tokens.push_back(slot.last);
    }
    CheckTables(slot, count);
    return count;
  }

  Token Sample(const Slot& slot) {
    uint64_t hash = 0;
    for (int position = 0; position < slot.context; ++position) {
      const Token* cell = Cell(slot, position);
      const Token token = *cell;
      if (writers_[static_cast<size_t>(cell - cells_.data())] != slot.seed) {
        Fail("reads what a request of another seed wrote, position", position);
      }
      if (token < 0) Fail("reads a position that was never written", position);
      hash = Fold(hash, token);
    }
    return SampleAfter(hash, vocab_);
  }

  int width_;
  int vocab_;
  ModelGroups groups_;
  std::vector<Token> cells_;
  std::vector<uint64_t> writers_;  // seed of the request that wrote the cell
  std::vector<Token> host_;
  std::vector<uint64_t> host_writers_;
  std::map<int32_t, Copy> copies_;
  std::map<int32_t, Slot> slots_;
  std::vector<int32_t> rows_;                      // of the last step
  std::vector<int32_t> row_tokens_;
  std::vector<uint8_t> row_flags_;
  std::vector<int32_t> sorted_rows_;
  std::vector<const Token*> written_;
  std::map<int32_t, ModelGroups::Tables> former_;  // of the slot's last request
  std::string error_;
  int largest_ = 0;
  std::vector<int32_t> counts_;
};

}  // namespace tokenspeed
