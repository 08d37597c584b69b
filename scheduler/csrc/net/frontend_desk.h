// SPDX-License-Identifier: MIT
// The frontends: who they are, what they ask, and what they are told. A frontend that cannot be
// reached any more takes its requests with it.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "net/router.h"
#include "net/session.h"
#include "plan/details.h"
#include "record/recorded_scheduler.h"

namespace tokenspeed::net {

class FrontendDesk {
 public:
  // Prompts of a frontend that are kept for those which go on from them, about half a megabyte
  // each for 128k tokens.
  static constexpr int64_t kKeptPrompts = 64;

  FrontendDesk(Router& router, record::RecordedScheduler& scheduler, Session& session)
      : router_(router), scheduler_(scheduler), session_(session) {}

  void Handle(const Router::Incoming& message, const wire::Welcome& welcome);
  // Keeps what a step's rows told their frontends for the next SendEvents; call before Advance.
  void TakeDetails(StepId step, const plan::Details& details);
  // Delivers what happened since the last call: one TokenDeltas a frontend.
  void SendEvents(StepId step);
  void SendWelcome(const wire::Welcome& welcome);
  void SendStats(const wire::Stats& stats);
  // What a frontend has asked to trace since the last call.
  std::optional<wire::Profile> TakeProfile() { return std::exchange(profile_, std::nullopt); }
  // Aborts the requests of frontends that the router found unreachable.
  void DropLost();

 private:
  struct KeptPrompt {
    uint64_t id = 0;
    std::vector<Token> tokens;
  };
  struct Frontend {
    ClientId client;
    std::string name;
    bool is_remote = false;
    wire::TokenDeltas deltas;
    bool wants_logprobs = false;
    std::vector<KeptPrompt> kept;
  };

  template <class Message>
  void Send(const Identity& to, const Message& message);
  void Greet(const Identity& from, const wire::Hello& hello, const wire::Welcome& welcome);
  // Makes a prompt whole, and keeps it, as the frontend asks; nothing if it names what is not
  // there.
  std::optional<plan::PromptOrigin> Complete(Frontend& frontend, wire::Submit& submit);
  void TakeSubmit(const Identity& from, Frontend& frontend, wire::Submit submit,
                  const plan::PromptOrigin& origin);

  Router& router_;
  record::RecordedScheduler& scheduler_;
  Session& session_;
  ClientId last_client_;
  uint64_t last_prompt_ = 0;  // id of one that is kept
  std::map<Identity, Frontend> frontends_;
  std::map<ClientId, Identity> identities_;
  std::optional<wire::Profile> profile_;
  int64_t step_began_ns_ = 0;  // of the step whose details came last
  int64_t step_ended_ns_ = 0;
  std::string buffer_;
};

}  // namespace tokenspeed::net
