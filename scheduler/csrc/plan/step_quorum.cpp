// SPDX-License-Identifier: MIT
#include "plan/step_quorum.h"

namespace tokenspeed::plan {

void StepQuorum::Reset(Epoch epoch) {
  epoch_ = epoch;
  pending_.clear();
}

void StepQuorum::Planned(StepId step, const Hash128& digest) {
  Pending& pending = pending_.emplace_back();
  pending.step = step;
  pending.digest = digest;
  pending.acks.resize(static_cast<size_t>(num_ranks_));
}

StepQuorum::Pending* StepQuorum::Find(Epoch epoch, StepId step, const Hash128& digest) {
  if (epoch != epoch_) return nullptr;
  for (Pending& pending : pending_) {
    if (pending.step == step) return pending.digest == digest ? &pending : nullptr;
  }
  return nullptr;
}

StepQuorum::Verdict StepQuorum::Result(Epoch epoch, StepId step, const Hash128& digest,
                                       std::vector<Token> tokens, std::vector<float> logprobs,
                                       std::vector<int32_t> counts, Details details) {
  Pending* pending = Find(epoch, step, digest);
  if (pending == nullptr || pending->has_result) return Verdict::kIgnored;
  pending->has_result = true;
  pending->tokens = std::move(tokens);
  pending->logprobs = std::move(logprobs);
  pending->counts = std::move(counts);
  pending->details = std::move(details);
  return Verdict::kTaken;
}

StepQuorum::Verdict StepQuorum::Ack(int rank, Epoch epoch, StepId step, const Hash128& digest,
                                    const Hash128& token_hash) {
  Pending* pending = Find(epoch, step, digest);
  if (pending == nullptr) return Verdict::kIgnored;
  std::optional<Hash128>& ack = pending->acks[static_cast<size_t>(rank)];
  if (ack) return Verdict::kIgnored;
  ack = token_hash;
  ++pending->acked;
  return Verdict::kTaken;
}

Result<std::optional<CompleteStep>> StepQuorum::Pop() {
  if (pending_.empty()) return std::optional<CompleteStep>();
  Pending& front = pending_.front();
  if (!front.has_result || front.acked < num_ranks_) return std::optional<CompleteStep>();
  const Hash128 hash = SipHash128(front.digest, std::as_bytes(std::span(front.tokens)));
  for (int rank = 0; rank < num_ranks_; ++rank) {
    if (*front.acks[static_cast<size_t>(rank)] == hash) continue;
    return Error{"rank " + std::to_string(rank) +
                 " sampled other tokens than rank 0 reports in step " +
                 std::to_string(front.step.value)};
  }
  CompleteStep complete{front.step, std::move(front.tokens), std::move(front.logprobs),
                        std::move(front.counts), std::move(front.details)};
  pending_.pop_front();
  return std::optional<CompleteStep>(std::move(complete));
}

}  // namespace tokenspeed::plan
