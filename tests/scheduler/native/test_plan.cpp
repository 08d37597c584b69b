// SPDX-License-Identifier: MIT
// What tests/scheduler/*.py does not reach: the quorums of steps and of transfers, limits, and what
// is believed of prompts.
#include <csignal>

#include "expect.h"
#include "plan/limits.h"
#include "plan/miss.h"
#include "plan/step_quorum.h"
#include "plan/ticket_quorum.h"

namespace tokenspeed::plan {
namespace {

void TheQuorumTakesEachReportOnce() {
  using Verdict = StepQuorum::Verdict;
  StepQuorum quorum(2);
  quorum.Reset(Epoch{1});
  const Hash128 digest = SipHash128({}, {});
  const std::vector<Token> tokens = {3, 4};
  const Hash128 hash = SipHash128(digest, std::as_bytes(std::span(tokens)));
  quorum.Planned(StepId{1}, digest);
  EXPECT(quorum.Ack(0, Epoch{2}, StepId{1}, digest, hash) == Verdict::kIgnored);
  EXPECT(quorum.Ack(0, Epoch{1}, StepId{2}, digest, hash) == Verdict::kIgnored);
  EXPECT(quorum.Ack(0, Epoch{1}, StepId{1}, Hash128{}, hash) == Verdict::kIgnored);
  EXPECT(quorum.Ack(0, Epoch{1}, StepId{1}, digest, hash) == Verdict::kTaken);
  EXPECT(quorum.Ack(0, Epoch{1}, StepId{1}, digest, hash) == Verdict::kIgnored);
  EXPECT(quorum.Result(Epoch{1}, StepId{1}, digest, tokens, {}) == Verdict::kTaken);
  EXPECT(quorum.Result(Epoch{1}, StepId{1}, digest, tokens, {}) == Verdict::kIgnored);
  EXPECT(!quorum.Pop().value().has_value());  // rank 1 has not acked
  EXPECT(quorum.Ack(1, Epoch{1}, StepId{1}, digest, hash) == Verdict::kTaken);
  EXPECT(quorum.Pop().value()->tokens == tokens);
  EXPECT(!quorum.Pop().value().has_value());
  quorum.Planned(StepId{2}, digest);
  EXPECT(quorum.Result(Epoch{1}, StepId{2}, digest, tokens, {}) == Verdict::kTaken);
  EXPECT(quorum.Ack(0, Epoch{1}, StepId{2}, digest, hash) == Verdict::kTaken);
  EXPECT(quorum.Ack(1, Epoch{1}, StepId{2}, digest, Hash128{}) == Verdict::kTaken);
  EXPECT(!quorum.Pop().ok());  // rank 1 sampled something else
}

void ATicketIsDoneWhenEveryRankHasIt() {
  using Verdict = TicketQuorum::Verdict;
  TicketQuorum quorum(2);
  quorum.Reset(Epoch{3});
  StepPlan plan;
  plan.store_tickets = {1, 1, 2};
  plan.load_tickets = {3};
  quorum.Planned(plan);
  EXPECT(quorum.Report(0, Epoch{2}, 1, true) == Verdict::kIgnored);
  EXPECT(quorum.Report(0, Epoch{3}, 4, true) == Verdict::kIgnored);
  EXPECT(quorum.Report(0, Epoch{3}, 1, true) == Verdict::kTaken);
  EXPECT(quorum.Report(0, Epoch{3}, 1, false) == Verdict::kIgnored);
  EXPECT(quorum.Report(1, Epoch{3}, 1, true) == Verdict::kDone);
  EXPECT(quorum.Report(1, Epoch{3}, 1, true) == Verdict::kIgnored);
  EXPECT(quorum.Report(1, Epoch{3}, 3, false) == Verdict::kTaken);
  EXPECT(quorum.Report(0, Epoch{3}, 3, true) == Verdict::kFailed);  // one rank lacks it
  quorum.Reset(Epoch{4});
  EXPECT(quorum.Report(0, Epoch{4}, 2, true) == Verdict::kIgnored);
}

void LimitsNameWhatIsWrong() {
  Limits limits;
  limits.max_slots = 4;
  limits.max_step_tokens = 8;
  limits.max_model_len = 100;
  limits.max_waiting = 1;
  limits.vocab_size = 10;
  EXPECT(limits.Validate().ok());
  limits.max_step_tokens = 3;
  EXPECT(limits.Validate().error().message.find("max_step_tokens is 3") == 0);
  limits.max_step_tokens = 8;
  limits.depth = 0;
  EXPECT(limits.Validate().error().message.find("depth is 0") == 0);
}

// What is said to be the same is not looked at: only so can it be told that it was believed.
void AKnownPrefixIsOfTheNamedPromptOnly() {
  PromptHistory history;
  const ClientId client{1};
  history.Remember(client, "session", "", {1, 2, 3, 4, 5}, std::nullopt, 7);
  const std::vector<Token> prompt = {9, 9, 3, 4, 5, 6};
  const auto common = [&](std::string_view salt, uint64_t extends, int32_t shared) {
    const PromptOrigin origin{.extends = extends, .shared = shared};
    return history.Compare(client, "session", salt, prompt, origin).tokens;
  };
  EXPECT(common("", 7, 2) == 5);
  EXPECT(common("", 7, 100) == 5);  // no more than there are
  EXPECT(common("", 7, 1) == 1);
  EXPECT(common("", 8, 2) == 0 && common("", 0, 2) == 0 && common("other", 7, 2) == 0);
  history.Remember(client, "session", "", {1, 2, 3}, std::nullopt);  // a prompt without an id
  EXPECT(common("", 7, 2) == 0 && common("", 0, 2) == 0);
}

}  // namespace
}  // namespace tokenspeed::plan

int main() {
  tokenspeed::plan::TheQuorumTakesEachReportOnce();
  tokenspeed::plan::ATicketIsDoneWhenEveryRankHasIt();
  tokenspeed::plan::LimitsNameWhatIsWrong();
  tokenspeed::plan::AKnownPrefixIsOfTheNamedPromptOnly();
  return 0;
}
