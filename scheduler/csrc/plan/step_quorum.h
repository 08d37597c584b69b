// SPDX-License-Identifier: MIT
// Collects rank 0's result and every rank's ack of each step in flight. A step is complete when
// all of them are in; steps complete in order. Late, duplicate and foreign reports are refused.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/siphash.h"
#include "plan/details.h"

namespace tokenspeed::plan {

struct CompleteStep {
  StepId step;
  std::vector<Token> tokens;
  std::vector<float> logprobs;
  std::vector<int32_t> counts;
  Details details;
};

class StepQuorum {
 public:
  explicit StepQuorum(int num_ranks) : num_ranks_(num_ranks) {}

  // Forgets every step: a new epoch.
  void Reset(Epoch epoch);
  void Planned(StepId step, const Hash128& digest);

  // kIgnored: late, twice, of another epoch or of another plan; count it and go on.
  enum class Verdict { kTaken, kIgnored };
  Verdict Result(Epoch epoch, StepId step, const Hash128& digest, std::vector<Token> tokens,
                 std::vector<float> logprobs, std::vector<int32_t> counts = {},
                 Details details = {});
  Verdict Ack(int rank, Epoch epoch, StepId step, const Hash128& digest, const Hash128& token_hash);

  // The oldest step if it is complete, nothing if it is not; an error if ranks disagree about the
  // tokens: the epoch must end.
  tokenspeed::Result<std::optional<CompleteStep>> Pop();

 private:
  struct Pending {
    StepId step;
    Hash128 digest;
    bool has_result = false;
    std::vector<Token> tokens;
    std::vector<float> logprobs;
    std::vector<int32_t> counts;
    Details details;
    std::vector<std::optional<Hash128>> acks;
    int acked = 0;
  };
  Pending* Find(Epoch epoch, StepId step, const Hash128& digest);

  const int num_ranks_;
  Epoch epoch_;
  std::deque<Pending> pending_;
};

}  // namespace tokenspeed::plan
