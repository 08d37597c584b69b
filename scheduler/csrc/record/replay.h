// SPDX-License-Identifier: MIT
// A black box, played again into a fresh core: the same events must have the same outcomes, plans
// bit for bit.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "plan/scheduler.h"
#include "record/black_box.h"

namespace tokenspeed::record {

struct Played {
  uint64_t index = 0;  // of the event in its process
  std::string event;   // as Describe says
  std::string outcome;
  StepId step;           // of the plan that came of it, 0: none
  bool replayed = true;  // false in the tail, which is only shown
  bool settled = true;   // the recorded process came out of this event
  bool same = true;      // the outcome is the recorded one, as far as there is one
};

class Replay {
 public:
  // Errors: the file cannot be read, is no box, or is of another release.
  static Result<Replay> Open(const std::string& path);

  // Plays the next event; nothing at the end. Errors: a record that cannot be read.
  Result<std::optional<Played>> Next();

  bool closed() const { return closed_; }
  const plan::Scheduler& core() const { return *core_; }

 private:
  Replay() = default;
  Played Play(Event event, const RecordHead& head);

  std::string bytes_;
  struct Range {
    size_t begin, end;
  };
  std::vector<Range> segments_;  // in order of time; the first is the head
  size_t segment_ = 0;
  size_t at_ = 0;
  bool closed_ = false;
  uint64_t next_index_ = 0;
  Hash128 digest_;
  std::string frame_;
  std::unique_ptr<plan::Scheduler> core_;
};

}  // namespace tokenspeed::record
