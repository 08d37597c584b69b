// SPDX-License-Identifier: MIT
// The caches of the block groups behind the first, for ModelWorker: windows and other full groups
// keep tokens, a state is a fold of all tokens before it. All groups lie in one memory: who begins
// to write a parent spoils what other groups had in it. What a row reads must be what its own
// history says, and nothing outside of a window is ever looked at. The host tier is one memory,
// too.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "block_set.h"
#include "plan/epoch_shape.h"
#include "plan/step_plan.h"

namespace tokenspeed {

inline uint64_t Fold(uint64_t hash, Token token) {
  return (hash ^ static_cast<uint64_t>(token + 1)) * 0x100000001B3ull + 0x9E3779B9u;
}

class ModelGroups {
 public:
  // One slot's tables, by group.
  using Tables = std::vector<std::vector<int32_t>>;

  explicit ModelGroups(const plan::EpochShape& shape) : specs_(shape.groups) {
    if (specs_.empty()) specs_.push_back({.tokens = shape.block_size});
    for (const kv::GroupSpec& spec : specs_) {
      const auto blocks = static_cast<size_t>(shape.num_blocks * spec.share);
      const bool state = spec.kind == kv::GroupKind::kState;
      const auto host_blocks = static_cast<size_t>(shape.host_blocks * spec.share);
      const auto tokens = static_cast<size_t>(spec.tokens);
      stores_.push_back(state ? Store{{}, std::vector<State>(blocks)}
                              : Store{std::vector<Cell>(blocks * tokens), {}});
      host_.push_back(state ? Store{{}, std::vector<State>(host_blocks)}
                            : Store{std::vector<Cell>(host_blocks * tokens), {}});
      first_names_.push_back(names_);
      names_ += static_cast<int32_t>(blocks);
    }
    touched_ = begun_ = BlockSet(static_cast<size_t>(names_));
  }

  const std::string& error() const { return error_; }
  int size() const { return static_cast<int>(specs_.size()); }
  int num_blocks(int group, bool host = false) const {
    const Store& store = (host ? host_ : stores_)[static_cast<size_t>(group)];
    const auto tokens = static_cast<size_t>(spec(group).tokens);
    return static_cast<int>(IsState(group) ? store.states.size() : store.cells.size() / tokens);
  }
  int share(int group) const { return spec(group).share; }
  bool IsState(int group) const { return spec(group).kind == kv::GroupKind::kState; }
  // What the last step touched, and began to write: names that differ between groups.
  const BlockSet& touched() const { return touched_; }
  const BlockSet& begun() const { return begun_; }

  void BeginStep() {
    touched_.Clear();
    begun_.Clear();
    written_.clear();
  }
  // No two rows of the step wrote one place.
  void EndWrites() {
    std::ranges::sort(written_);
    const auto twice = std::ranges::adjacent_find(written_);
    if (twice != written_.end()) Fail("two rows write in group", twice->first);
  }

  void Append(Tables& tables, int group, int32_t block) {
    tables.resize(specs_.size());
    const bool hole = block == 0 && spec(group).kind == kv::GroupKind::kWindow;
    if (!hole && (block < spec(group).share || block >= num_blocks(group))) Fail("block", block);
    tables[static_cast<size_t>(group)].push_back(block);
  }

  // All sources are read before a target is written.
  void Copy(const plan::StepPlan& plan) {
    std::vector<State> values;
    for (size_t i = 0; i < plan.copy_groups.size(); ++i) {
      const int group = plan.copy_groups[i];
      if (group < 0 || group >= size() || !IsState(group)) return Fail("copy of group", group);
      values.push_back(StateOf(group, plan.copy_sources[i]));
      if (values.back().tokens < 0) Fail("copies a state that is not there", plan.copy_sources[i]);
      Touch(group, plan.copy_sources[i]);
    }
    for (size_t i = 0; i < plan.copy_groups.size(); ++i) {
      const int group = plan.copy_groups[i];
      Begin(group, plan.copy_targets[i]);
      written_.emplace_back(group, plan.copy_targets[i]);
      StateOf(group, plan.copy_targets[i]) = values[i];
      Touch(group, plan.copy_targets[i]);
    }
  }

  // A copy between the tiers, of a group behind the first. Whether there is what it reads ...
  bool IsWritten(int group, int32_t block, bool host) const {
    const Store& store = (host ? host_ : stores_)[static_cast<size_t>(group)];
    if (IsState(group)) return store.states[static_cast<size_t>(block)].tokens >= 0;
    const auto cells = std::span(store.cells)
                           .subspan(static_cast<size_t>(block * spec(group).tokens),
                                    static_cast<size_t>(spec(group).tokens));
    return std::ranges::all_of(cells, [](const Cell& cell) { return cell.token >= 0; });
  }
  // ... it writes ...
  void Transfer(int group, int32_t source, int32_t target, bool is_load) {
    const auto place = static_cast<size_t>(group);
    const Store& from = (is_load ? host_ : stores_)[place];
    Store& to = (is_load ? stores_ : host_)[place];
    if (IsState(group)) {
      to.states[static_cast<size_t>(target)] = from.states[static_cast<size_t>(source)];
    } else {
      const int tokens = spec(group).tokens;
      std::copy_n(from.cells.begin() + source * tokens, tokens, to.cells.begin() + target * tokens);
    }
  }
  // ... or it failed.
  void Lose(int group, int32_t target, bool is_load) {
    Spoil((is_load ? stores_ : host_)[static_cast<size_t>(group)], group, target);
  }
  // The group takes the host block's parent: calls lost(block) for those of the first group.
  template <class Lost>
  void BeginHost(int group, int32_t block, Lost lost) {
    ForOthers(group, block, [&](int other, int32_t theirs) {
      Spoil(host_[static_cast<size_t>(other)], other, theirs);
      if (other == 0) lost(theirs);
    });
  }

  // The first group's block, which another class keeps.
  void BeginFirst(int32_t block) { Begin(0, block); }
  void BeginLoad(int group, int32_t block) { Begin(group, block); }
  void TouchFirst(int32_t block) { Touch(0, block); }

  // `again`: an earlier row had a draft at the position.
  void Write(const Tables& tables, uint64_t seed, int position, Token token, bool again) {
    for (int group = 1; group < size(); ++group) {
      if (IsState(group)) {
        State& state = LiveOf(tables, group);
        if (!error_.empty()) return;
        if (position == 0) {
          Begin(group, tables[static_cast<size_t>(group)].back());
          state = {.tokens = 0, .hash = 0, .seed = seed};
        }
        if (state.tokens != position) Fail("goes on from a state after tokens", state.tokens);
        state.hash = Fold(state.hash, token);
        ++state.tokens;
      } else {
        if (position % spec(group).tokens == 0 && !again) {
          Begin(group, BlockAt(tables, group, position));
        }
        const size_t cell = CellAt(tables, group, position);
        written_.emplace_back(group, static_cast<int64_t>(cell));
        stores_[static_cast<size_t>(group)].cells[cell] = {token, seed};
      }
    }
  }

  // The draft at the position was right.
  void Accept(const Tables& tables, uint64_t seed, int position, Token token) {
    for (int group = 1; group < size(); ++group) {
      if (IsState(group)) return Fail("drafts beside a state in group", group);
      stores_[static_cast<size_t>(group)].cells[CellAt(tables, group, position)] = {token, seed};
    }
  }

  // A row brought the slot from `begin` to `end` tokens; `history(position)` are its tokens.
  template <class History>
  void Check(const Tables& tables, uint64_t seed, int begin, int end, History history) {
    for (int group = 1; group < size(); ++group) {
      if (IsState(group)) {
        uint64_t hash = 0;
        for (int position = 0; position < end; ++position) hash = Fold(hash, history(position));
        const State& state = LiveOf(tables, group);
        if (state.hash != hash || state.tokens != end) Fail("state of another history after", end);
        if (state.seed != seed) Fail("state of another seed after", end);
        if (!error_.empty()) return;
        Touch(group, tables[static_cast<size_t>(group)].back());
        continue;
      }
      const bool window = spec(group).kind == kv::GroupKind::kWindow;
      const int first = window ? std::max(0, begin + 1 - spec(group).span) : 0;
      for (int position = first; position < end; ++position) {
        const Cell& cell =
            stores_[static_cast<size_t>(group)].cells[CellAt(tables, group, position)];
        if (cell.token != history(position))
          Fail("another token in its blocks, position", position);
        if (cell.seed != seed) Fail("a token of another seed, position", position);
        Touch(group, BlockAt(tables, group, position));
      }
    }
  }

  void Describe(std::ostream& out) const {
    for (const Store& store : stores_) {
      for (const Cell& cell : store.cells) out << ' ' << cell.token;
      for (const State& state : store.states) out << ' ' << state.tokens << ':' << state.hash;
    }
  }
  static void Describe(std::ostream& out, const Tables& tables) {
    for (const auto& table : tables) {
      for (const int32_t block : table) out << ' ' << block;
      out << " |";
    }
  }

 private:
  struct Cell {
    Token token = -1;
    uint64_t seed = 0;
  };
  struct State {
    int tokens = -1;
    uint64_t hash = 0;
    uint64_t seed = 0;
  };
  struct Store {
    std::vector<Cell> cells;
    std::vector<State> states;
  };

  const kv::GroupSpec& spec(int group) const { return specs_[static_cast<size_t>(group)]; }

  void Fail(const char* what, int64_t value) {
    if (error_.empty()) error_ = std::string("plan: ") + what + " " + std::to_string(value);
  }

  State& StateOf(int group, int32_t block) {
    if (block < spec(group).share || block >= num_blocks(group)) {
      Fail("state block", block);
      block = 0;
    }
    return stores_[static_cast<size_t>(group)].states[static_cast<size_t>(block)];
  }
  State& LiveOf(const Tables& tables, int group) {
    const bool there =
        tables.size() > static_cast<size_t>(group) && !tables[static_cast<size_t>(group)].empty();
    if (!there) Fail("a row without a state in group", group);
    return StateOf(group, there ? tables[static_cast<size_t>(group)].back() : 0);
  }
  int32_t BlockAt(const Tables& tables, int group, int position) {
    const auto index = static_cast<size_t>(position / spec(group).tokens);
    const bool there = static_cast<size_t>(group) < tables.size() &&
                       index < tables[static_cast<size_t>(group)].size();
    const int32_t block = there ? tables[static_cast<size_t>(group)][index] : 0;
    if (block == 0) Fail("no block in a group for position", position);
    return block;
  }
  size_t CellAt(const Tables& tables, int group, int position) {
    const int tokens = spec(group).tokens;
    return static_cast<size_t>(BlockAt(tables, group, position) * tokens + position % tokens);
  }

  int32_t Name(int group, int32_t block) const {
    return first_names_[static_cast<size_t>(group)] + block;
  }
  // Its memory is that of other groups' blocks, too.
  void Touch(int group, int32_t block) {
    if (!touched_.Insert(Name(group, block))) return;
    ForOthers(group, block,
              [this](int other, int32_t theirs) { touched_.Insert(Name(other, theirs)); });
  }
  void Begin(int group, int32_t block) {
    begun_.Insert(Name(group, block));
    ForOthers(group, block, [this](int other, int32_t theirs) {
      Spoil(stores_[static_cast<size_t>(other)], other, theirs);
    });
  }
  void Spoil(Store& store, int group, int32_t block) const {
    if (IsState(group)) {
      store.states[static_cast<size_t>(block)] = {};
    } else {
      const int tokens = spec(group).tokens;
      std::fill_n(store.cells.begin() + block * tokens, tokens, Cell{});
    }
  }
  template <class Visit>
  void ForOthers(int group, int32_t block, Visit visit) {
    const int parent = block / spec(group).share;
    for (int other = 0; other < size(); ++other) {
      if (other == group) continue;
      const int share = spec(other).share;
      for (int32_t theirs = parent * share; theirs < (parent + 1) * share; ++theirs) {
        visit(other, theirs);
      }
    }
  }

  std::vector<kv::GroupSpec> specs_;
  std::vector<Store> stores_;  // that of the first group is not used, but for its size
  std::vector<Store> host_;    // ... likewise
  std::vector<int32_t> first_names_;  // by group
  int32_t names_ = 0;
  BlockSet touched_{0};
  BlockSet begun_{0};
  std::vector<std::pair<int, int64_t>> written_;  // group, and cell or block
  std::string error_;
};

}  // namespace tokenspeed
