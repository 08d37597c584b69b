// SPDX-License-Identifier: MIT
// Which request of a trace comes when: conversations begin in a closed loop or at random, and
// within each a request comes a pause after the answer to the one before.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "simulate/trace.h"

namespace tokenspeed::simulate {

struct Pace {
  int32_t sessions = 16;
  double rate = 0;
  uint64_t seed = 0;
  int64_t requests = 0;
  double longest_pause = 60;
};

// A conversation while it runs.
struct Live {
  Live(const Conversation& of, uint64_t number)
      : conversation(&of), index(number), names(of, number) {}
  const Conversation* conversation;
  uint64_t index;  // of its beginning; names what no other conversation shares
  size_t row = 0;
  BlockNames names;
  std::vector<Token> prompt;  // of the row

  const TraceRow& at() const { return conversation->rows[row]; }
  bool last() const { return row + 1 == conversation->rows.size(); }
};

class Workload {
 public:
  // `trace` outlives the workload and is not empty.
  Workload(const Trace& trace, const Pace& pace, int32_t vocab_size);

  // When the next request comes; nothing while all wait for answers, or at the end.
  std::optional<TimeNs> next() const;
  // The conversation whose request comes next, with its prompt.
  // REQUIRES: next() has a value.
  Live& Take();
  // Its request was answered: the next row comes a pause later.
  void Answered(Live& live, TimeNs now);
  // The conversation ends here, and is forgotten.
  void End(Live& live, TimeNs now);

  // Prompt tokens of the row that a cache without bounds would have, if it counts all taken
  // before.
  int32_t IdealTokens(const Live& live);

 private:
  struct Moment {
    TimeNs time;
    uint64_t order;
    Live* live;
    bool operator>(const Moment& other) const {
      return time != other.time ? time > other.time : order > other.order;
    }
  };

  void Begin(TimeNs now);
  void BeginAtRandom(TimeNs now);
  void Write(Live& live);

  const Trace& trace_;
  const Pace pace_;
  const uint32_t mask_;  // of a token
  uint64_t begun_ = 0;
  uint64_t order_ = 0;
  uint64_t random_;
  int64_t taken_ = 0;
  std::priority_queue<Moment, std::vector<Moment>, std::greater<>> moments_;
  std::unordered_map<uint64_t, std::unique_ptr<Live>> live_;
  std::unordered_map<uint64_t, int32_t> tools_seen_;    // blocks, by key
  std::unordered_map<uint64_t, int32_t> systems_seen_;  // likewise
};

}  // namespace tokenspeed::simulate
