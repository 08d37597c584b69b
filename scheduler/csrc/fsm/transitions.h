// SPDX-License-Identifier: MIT
// The arrows between the states of a request; this list is the diagram. `On(S&&, E)` consumes the
// state and returns the next one, `On(S&, E)` stays in it. There is no catch-all: a pair that is
// not here does not compile, and `Apply` returns it as an error where the state is known late.
#pragma once

#include <concepts>
#include <string>
#include <type_traits>
#include <utility>

#include "base/result.h"
#include "fsm/states.h"

namespace tokenspeed::fsm {

struct Admit {
  SlotId slot;
};
struct PrefixFound {  // the next block of the history is in the pool already
  kv::SealedBlock block;
  int block_size;
};
struct BlockGranted {
  kv::OpenBlock block;
};
struct ChunkPlanned {  // a step computes `tokens` more of the history
  int tokens;
  int block_size;
};
struct PromptPlanned {  // a step computes the last `tokens` of the history and samples
  int tokens;
  int block_size;
};
struct TokensPlanned {  // as many steps sample one token each
  int tokens;
  int block_size;
};
struct TokensKnown {  // as many sampled tokens came back from the workers
  int tokens;
};
struct Preempt {};
struct Requeue {};
struct Finish {
  FinishReason reason;
};

Prefilling On(Waiting&&, Admit);
Finished On(Waiting&&, Finish);

void On(Prefilling&, PrefixFound);
void On(Prefilling&, BlockGranted);
void On(Prefilling&, ChunkPlanned);
Decoding On(Prefilling&&, PromptPlanned);
Preempted On(Prefilling&&, Preempt);
Finished On(Prefilling&&, Finish);

void On(Decoding&, BlockGranted);
void On(Decoding&, TokensPlanned);
void On(Decoding&, TokensKnown);
Preempted On(Decoding&&, Preempt);
Finished On(Decoding&&, Finish);

void On(Preempted&, TokensKnown);
Waiting On(Preempted&&, Requeue);
Finished On(Preempted&&, Finish);

template <class S, class E>
concept Moves = requires(S state, E event) { On(std::move(state), std::move(event)); };
template <class S, class E>
concept Stays = requires(S state, E event) { On(state, std::move(event)); };
template <class S, class E>
concept Legal = Moves<S, E> || Stays<S, E>;

// Takes the arrow of `event` from whatever state this is.
template <class E>
Status Apply(State& state, E event) {
  return std::visit(
      [&]<class S>(S& current) -> Status {
        if constexpr (Stays<S, E>) {
          On(current, std::move(event));
          return Ok{};
        } else if constexpr (Moves<S, E>) {
          S leaving = std::move(current);
          state = On(std::move(leaving), std::move(event));
          return Ok{};
        } else {
          return Error{std::string("no arrow leaves ") + Name<S>() + " on this event"};
        }
      },
      state);
}

// The table, asserted: a change of the diagram shows up here.
static_assert(Legal<Waiting, Admit> && Legal<Waiting, Finish>);
static_assert(!Legal<Waiting, TokensKnown> && !Legal<Waiting, Preempt> && !Legal<Waiting, Requeue>);
static_assert(!Legal<Waiting, TokensPlanned> && !Legal<Waiting, BlockGranted>);
static_assert(!Legal<Prefilling, Admit> && !Legal<Prefilling, TokensPlanned>);
static_assert(!Legal<Prefilling, TokensKnown> && !Legal<Prefilling, Requeue>);
static_assert(!Legal<Decoding, Admit> && !Legal<Decoding, PrefixFound>);
static_assert(!Legal<Decoding, ChunkPlanned> && !Legal<Decoding, Requeue>);
static_assert(!Legal<Preempted, Admit> && !Legal<Preempted, BlockGranted>);
static_assert(!Legal<Preempted, TokensPlanned> && !Legal<Preempted, Preempt>);
static_assert(!Legal<Finished, Admit> && !Legal<Finished, Finish> && !Legal<Finished, TokensKnown>);
static_assert(!Legal<Finished, Requeue> && !Legal<Finished, Preempt>);

}  // namespace tokenspeed::fsm
