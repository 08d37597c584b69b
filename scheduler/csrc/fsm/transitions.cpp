// SPDX-License-Identifier: MIT
#include "fsm/transitions.h"

#include "base/check.h"

namespace tokenspeed::fsm {
namespace {

void Append(auto& state, BlockGranted event) {
  if (event.group == 0) {
    state.table.Append(std::move(event.block));
  } else {
    state.groups.Append(event.group, std::move(event.block));
  }
}

}  // namespace

Prefilling On(Waiting&&, Admit event) { return {.slot = event.slot, .table = {}, .groups = {}}; }

Finished On(Waiting&&, Finish event) { return {event.reason}; }

void On(Prefilling& state, PrefixFound event) {
  TS_CHECK(state.context == state.table.size() * event.block_size,
           "prefix found at " << state.context << " tokens in " << state.table.size()
                              << " blocks of " << event.block_size);
  state.context += static_cast<int>(event.blocks.size()) * event.block_size;
  state.table.Append(std::move(event.blocks));
}

void On(Prefilling& state, BlockGranted event) { Append(state, std::move(event)); }

void On(Prefilling& state, ChunkPlanned event) {
  state.table.Fill(event.tokens, 0, event.block_size);
  state.groups.Fill(event.tokens);
  state.context += event.tokens;
}

Decoding On(Prefilling&& state, PromptPlanned event) {
  state.table.Fill(event.tokens, 0, event.block_size);
  state.groups.Fill(event.tokens);
  Decoding next{.slot = state.slot,
                .table = std::move(state.table),
                .context = state.context + event.tokens,
                .overlap = {},
                .groups = std::move(state.groups)};
  next.overlap.Planned(1, 1);
  return next;
}

Preempted On(Prefilling&& state, Preempt) {
  state.table.Clear();
  return {};
}

Finished On(Prefilling&& state, Finish event) {
  state.table.Clear();
  return {event.reason};
}

void On(Decoding& state, BlockGranted event) { Append(state, std::move(event)); }

void On(Decoding& state, RowsPlanned event) {
  const int ahead = state.ceiling() - state.context + event.rows * (event.width - 1);
  state.table.Fill(event.rows, ahead, event.block_size);
  state.groups.Fill(event.rows, ahead);
  state.context += event.rows;
  state.overlap.Planned(event.rows, event.width);
}

void On(Decoding& state, RowsRetired event) {
  const int accepted = event.tokens - event.rows;
  state.table.Accept(accepted, event.block_size);
  state.groups.Accept(accepted);
  state.context += accepted;
  state.overlap.Retired(event.rows, event.width);
}

Preempted On(Decoding&& state, Preempt) {
  state.table.Clear();
  return {state.overlap};
}

Ending On(Decoding&& state, Finish event) {
  state.table.Clear();
  return {event.reason, state.overlap};
}

void On(Preempted& state, RowsRetired event) { state.overlap.Retired(event.rows, event.width); }

Waiting On(Preempted&& state, Requeue) {
  TS_CHECK(state.overlap.empty(), "requeued with " << state.overlap.rows() << " rows in flight");
  return {};
}

Ending On(Preempted&& state, Finish event) { return {event.reason, state.overlap}; }

void On(Ending& state, RowsRetired event) { state.overlap.Retired(event.rows, event.width); }

Finished On(Ending&& state, Settle) {
  TS_CHECK(state.overlap.empty(), "settled with " << state.overlap.rows() << " rows in flight");
  return {state.reason};
}

}  // namespace tokenspeed::fsm
