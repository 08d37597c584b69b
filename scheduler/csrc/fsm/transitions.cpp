// SPDX-License-Identifier: MIT
#include "fsm/transitions.h"

#include "base/check.h"

namespace tokenspeed::fsm {

Prefilling On(Waiting&&, Admit event) { return {.slot = event.slot, .table = {}}; }

Finished On(Waiting&&, Finish event) { return {event.reason}; }

void On(Prefilling& state, PrefixFound event) {
  TS_CHECK(state.context == state.table.size() * event.block_size,
           "prefix found at " << state.context << " tokens in " << state.table.size()
                              << " blocks of " << event.block_size);
  state.table.Append(std::move(event.block));
  state.context += event.block_size;
}

void On(Prefilling& state, BlockGranted event) { state.table.Append(std::move(event.block)); }

void On(Prefilling& state, ChunkPlanned event) {
  state.table.Fill(event.tokens, event.block_size);
  state.context += event.tokens;
}

Decoding On(Prefilling&& state, PromptPlanned event) {
  state.table.Fill(event.tokens, event.block_size);
  return {.slot = state.slot,
          .table = std::move(state.table),
          .context = state.context + event.tokens,
          .in_flight = 1};
}

Preempted On(Prefilling&& state, Preempt) {
  state.table.Clear();
  return {.in_flight = 0};
}

Finished On(Prefilling&& state, Finish event) {
  state.table.Clear();
  return {event.reason};
}

void On(Decoding& state, BlockGranted event) { state.table.Append(std::move(event.block)); }

void On(Decoding& state, TokensPlanned event) {
  state.table.Fill(event.tokens, event.block_size);
  state.context += event.tokens;
  state.in_flight += event.tokens;
}

void On(Decoding& state, TokensKnown event) {
  TS_CHECK(state.in_flight >= event.tokens,
           event.tokens << " tokens arrived, " << state.in_flight << " were in flight");
  state.in_flight -= event.tokens;
}

Preempted On(Decoding&& state, Preempt) {
  state.table.Clear();
  return {.in_flight = state.in_flight};
}

Finished On(Decoding&& state, Finish event) {
  state.table.Clear();
  return {event.reason};
}

void On(Preempted& state, TokensKnown event) {
  TS_CHECK(state.in_flight >= event.tokens,
           event.tokens << " tokens arrived, " << state.in_flight << " were in flight");
  state.in_flight -= event.tokens;
}

Waiting On(Preempted&& state, Requeue) {
  TS_CHECK(state.in_flight == 0, "requeued with " << state.in_flight << " tokens in flight");
  return {};
}

Finished On(Preempted&&, Finish event) { return {event.reason}; }

}  // namespace tokenspeed::fsm
