// SPDX-License-Identifier: MIT
// The arrows between the states of a request, one function each; diagram.h proves that they are
// its arrows and no others. `On(S&&, E)` consumes the state and returns the next one, `On(S&, E)`
// stays in it. There is no catch-all: a pair that is not here does not compile, and `Apply` returns
// it as an error where the state is known late.
#pragma once

#include <concepts>
#include <string>
#include <type_traits>
#include <utility>

#include "base/result.h"
#include "fsm/states.h"

namespace tokenspeed::fsm {

struct Admit {
  static constexpr const char* kName = "Admit";
  SlotId slot;
};
struct PrefixFound {  // the next blocks of the history are in the pool already
  static constexpr const char* kName = "PrefixFound";
  std::vector<kv::SealedBlock> blocks;
  int block_size;
};
struct BlockGranted {
  static constexpr const char* kName = "BlockGranted";
  kv::OpenBlock block;
  int group = 0;
};
struct ChunkPlanned {  // a step computes `tokens` more of the history
  static constexpr const char* kName = "ChunkPlanned";
  int tokens;
  int block_size;
};
struct PromptPlanned {  // a step computes the last `tokens` of the history and samples
  static constexpr const char* kName = "PromptPlanned";
  int tokens;
  int block_size;
};
struct RowsPlanned {  // as many steps sample up to `width` tokens each
  static constexpr const char* kName = "RowsPlanned";
  int rows;
  int width;
  int block_size;
};
struct RowsRetired {  // the oldest rows, planned with `width` each, brought `tokens` together
  static constexpr const char* kName = "RowsRetired";
  int rows;
  int width;
  int tokens;
  int block_size;
};
struct Preempt {
  static constexpr const char* kName = "Preempt";
};
struct Requeue {
  static constexpr const char* kName = "Requeue";
};
struct Finish {
  static constexpr const char* kName = "Finish";
  FinishReason reason;
};
struct Settle {  // nothing of it is in flight any more
  static constexpr const char* kName = "Settle";
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
void On(Decoding&, RowsPlanned);
void On(Decoding&, RowsRetired);
Preempted On(Decoding&&, Preempt);
Ending On(Decoding&&, Finish);

void On(Preempted&, RowsRetired);
Waiting On(Preempted&&, Requeue);
Ending On(Preempted&&, Finish);

void On(Ending&, RowsRetired);
Finished On(Ending&&, Settle);

template <class S, class E>
concept Moves = requires(S state, E event) { On(std::move(state), std::move(event)); };
template <class S, class E>
concept Stays = requires(S state, E event) { On(state, std::move(event)); };

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
          return Error{std::string("no arrow leaves ") + S::kName + " on " + E::kName};
        }
      },
      state);
}

}  // namespace tokenspeed::fsm
