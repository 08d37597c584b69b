// SPDX-License-Identifier: MIT
// One step for every rank, as deltas; columns and their meaning as in ipc/messages.py StepPlan.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/ids.h"

namespace tokenspeed::plan {

inline constexpr uint8_t kRowHasTokens = 1;
inline constexpr uint8_t kRowSamples = 2;
inline constexpr uint8_t kRowDrafts = 4;

struct StepPlan {
  Epoch epoch;
  StepId step;
  std::vector<int32_t> removed_slots;
  std::vector<int32_t> added_slots;
  std::vector<int32_t> added_context;
  std::vector<float> added_temperature;
  std::vector<int32_t> added_top_k;
  std::vector<float> added_top_p;
  std::vector<uint64_t> added_seed;
  std::vector<uint8_t> added_logprobs;
  std::vector<int32_t> block_slots;
  std::vector<int32_t> block_groups;
  std::vector<int32_t> block_ids;
  std::vector<int32_t> copy_groups;
  std::vector<int32_t> copy_sources;
  std::vector<int32_t> copy_targets;
  std::vector<int32_t> prefix_slots;
  std::vector<int32_t> prefix_groups;
  std::vector<int32_t> prefix_blocks;
  std::vector<int32_t> rows;
  std::vector<int32_t> row_tokens;
  std::vector<uint8_t> row_flags;
  std::vector<int32_t> prompt_tokens;
  std::vector<int32_t> store_tickets;
  std::vector<int32_t> store_groups;
  std::vector<int32_t> store_sources;
  std::vector<int32_t> store_targets;
  std::vector<int32_t> load_tickets;
  std::vector<int32_t> load_groups;
  std::vector<int32_t> load_sources;
  std::vector<int32_t> load_targets;
  std::vector<int32_t> wait_slots;
  std::vector<int32_t> wait_tickets;
  std::vector<int32_t> added_shaping_bytes;
  std::vector<uint8_t> added_shaping;
  std::vector<int32_t> added_output_counts;
  std::vector<int32_t> added_outputs;
  std::vector<int32_t> kept_slots;
  std::vector<int32_t> kept_groups;
  std::vector<int32_t> kept_blocks;
  int64_t repeated_rows = 0;

  // Calls visit(column) for every column in wire order.
  template <class Self, class Visit>
  static void ForEachColumn(Self& plan, Visit visit) {
    visit(plan.removed_slots);
    visit(plan.added_slots);
    visit(plan.added_context);
    visit(plan.added_temperature);
    visit(plan.added_top_k);
    visit(plan.added_top_p);
    visit(plan.added_seed);
    visit(plan.added_logprobs);
    visit(plan.block_slots);
    visit(plan.block_groups);
    visit(plan.block_ids);
    visit(plan.copy_groups);
    visit(plan.copy_sources);
    visit(plan.copy_targets);
    visit(plan.prefix_slots);
    visit(plan.prefix_groups);
    visit(plan.prefix_blocks);
    visit(plan.rows);
    visit(plan.row_tokens);
    visit(plan.row_flags);
    visit(plan.prompt_tokens);
    visit(plan.store_tickets);
    visit(plan.store_groups);
    visit(plan.store_sources);
    visit(plan.store_targets);
    visit(plan.load_tickets);
    visit(plan.load_groups);
    visit(plan.load_sources);
    visit(plan.load_targets);
    visit(plan.wait_slots);
    visit(plan.wait_tickets);
    visit(plan.added_shaping_bytes);
    visit(plan.added_shaping);
    visit(plan.added_output_counts);
    visit(plan.added_outputs);
    visit(plan.kept_slots);
    visit(plan.kept_groups);
    visit(plan.kept_blocks);
  }

  // Empties the columns and keeps their memory.
  void Clear() {
    ForEachColumn(*this, [](auto& column) { column.clear(); });
    repeated_rows = 0;
  }
  // Rows that sample.
  int Sampling() const {
    const auto samples = [](uint8_t flags) { return (flags & kRowSamples) != 0; };
    return static_cast<int>(repeated_rows + std::ranges::count_if(row_flags, samples));
  }
};

}  // namespace tokenspeed::plan
