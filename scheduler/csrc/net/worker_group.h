// SPDX-License-Identifier: MIT
// The workers of one epoch. The epoch begins when every rank is in with matching shapes, and ends
// for all of them when one is lost, fails or disagrees; the next begins with a new set of Hellos.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "net/frontend_desk.h"
#include "net/router.h"
#include "net/session.h"
#include "net/step_trace.h"
#include "plan/step_quorum.h"
#include "plan/ticket_quorum.h"
#include "record/recorded_scheduler.h"

namespace tokenspeed::net {

class WorkerGroup {
 public:
  WorkerGroup(Router& router, record::RecordedScheduler& scheduler, FrontendDesk& frontends,
              Session& session, int num_ranks)
      : router_(router),
        scheduler_(scheduler),
        frontends_(frontends),
        session_(session),
        workers_(static_cast<size_t>(num_ranks)),
        quorum_(num_ranks),
        tickets_(num_ranks) {}

  void Handle(const Router::Incoming& message);
  // Plans and sends steps until the pipeline is full or nothing is left to do.
  void SendPlans();
  void SendHeartbeats();
  void SendShutdown(const std::string& reason);
  // Begins a trace of all processes, or, without a directory, ends it.
  void Profile(const std::string& directory);
  // Ends the epoch if the router found one of its workers unreachable.
  void DropLost();

  wire::Welcome MakeWelcome() const;
  StepId retired() const { return retired_; }
  Epoch epoch() const { return epoch_; }
  TimeNs plan_time() const { return plan_time_; }
  // In which requests ran and no step was in flight.
  TimeNs gap_time() const { return gap_time_; }

 private:
  struct Worker {
    Identity identity;
    std::string name;
    int64_t num_blocks = 0;
    int64_t block_size = 0;
    std::string program_hash;
    int64_t host_blocks = 0;
    int64_t max_drafts = 0;
    std::vector<kv::GroupSpec> groups;
  };

  template <class Message>
  void Send(const Identity& to, const Message& message);
  void Greet(const Identity& from, const wire::Hello& hello);
  std::optional<plan::Rejection> Misfit(const wire::Hello& hello) const;
  void TakeResult(int rank, wire::StepResult result);
  void TakeAck(int rank, const wire::StepAck& ack);
  void TakeTransfers(int rank, const wire::Transfers& transfers);
  void RetireSteps();
  void BeginEpoch();
  // The group cannot go on: tells the others to exit and forgets everybody.
  void EndEpoch(const std::string& why);
  std::optional<int> RankOf(const Identity& identity) const;

  Router& router_;
  record::RecordedScheduler& scheduler_;
  FrontendDesk& frontends_;
  Session& session_;
  std::vector<std::optional<Worker>> workers_;  // by rank
  plan::StepQuorum quorum_;
  plan::TicketQuorum tickets_;
  Epoch epoch_;  // the current one, or the last
  StepId retired_;
  Hash128 digest_;
  int num_blocks_ = 0;
  int block_size_ = 0;
  TimeNs plan_time_ = 0;
  TimeNs gap_time_ = 0;
  TimeNs drained_ = 0;  // since when requests run and no step is in flight; 0: not now
  std::optional<StepTrace> trace_;
  std::string buffer_;
};

}  // namespace tokenspeed::net
