// SPDX-License-Identifier: MIT
#include "simulate/cache_replay.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <queue>
#include <unordered_set>

#include "base/check.h"
#include "kv/block_pool.h"
#include "kv/block_table.h"
#include "plan/session.h"

namespace tokenspeed::simulate {
namespace {

// When each request runs: a function of the trace and the pool alone.
struct Visit {
  size_t conversation;
  size_t row;
  TimeNs begin;
  TimeNs end;
  TimeNs next = kNever;  // when the conversation's next one begins
};

int64_t Held(const Trace& trace, const TraceRow& row) {
  return (int64_t{row.input} + row.output + trace.block_tokens - 1) / trace.block_tokens;
}

// Each conversation waits for its pause; requests begin in order of arrival while the blocks of
// those that run leave room.
std::vector<Visit> Schedule(const Trace& trace, const CacheSetting& setting) {
  struct Moment {
    TimeNs time;
    int64_t order;
    bool arrives;
    size_t conversation, row;
    bool operator>(const Moment& other) const {
      return std::pair(time, order) > std::pair(other.time, other.order);
    }
  };
  std::priority_queue<Moment, std::vector<Moment>, std::greater<>> moments;
  int64_t order = 0;
  size_t next = 0;
  const auto start = [&](TimeNs now) {
    if (next < trace.conversations.size()) moments.push({now, order++, true, next++, 0});
  };
  for (int i = 0; i < setting.sessions; ++i) start(0);
  std::vector<Visit> visits;
  std::deque<Moment> waiting;
  int64_t held = 0;
  while (!moments.empty()) {
    const Moment moment = moments.top();
    moments.pop();
    const auto& rows = trace.conversations[moment.conversation].rows;
    if (moment.arrives) {
      waiting.push_back(moment);
    } else {
      held -= Held(trace, rows[moment.row]);
      if (moment.row + 1 == rows.size()) {
        start(moment.time);
      } else {
        const double pause = std::min(rows[moment.row + 1].pause, setting.longest_pause);
        moments.push(
            {moment.time + Nanoseconds(pause), order++, true, moment.conversation, moment.row + 1});
      }
    }
    while (!waiting.empty()) {
      const Moment& head = waiting.front();
      const TraceRow& row = trace.conversations[head.conversation].rows[head.row];
      const int64_t blocks = Held(trace, row);
      if (held > 0 && held + blocks > setting.pool_blocks) break;
      held += blocks;
      const TimeNs end = moment.time + Nanoseconds(row.service);
      visits.push_back({head.conversation, head.row, moment.time, end});
      moments.push({end, order++, false, head.conversation, head.row});
      waiting.pop_front();
    }
  }
  std::vector<TimeNs> begins(trace.conversations.size(), kNever);
  for (size_t i = visits.size(); i-- > 0;) {
    visits[i].next = std::exchange(begins[visits[i].conversation], visits[i].begin);
  }
  return visits;
}

class CacheReplay {
 public:
  CacheReplay(const Trace& trace, const CacheSetting& setting)
      : trace_(trace),
        setting_(setting),
        sessions_(retention_, size_t{1} << 17),
        pool_(static_cast<int>(setting.pool_blocks) + 1, 1, true,
              setting.policy == CacheSetting::Policy::kLru ? nullptr : &retention_) {
    for (size_t i = 0; i < trace.conversations.size(); ++i) {
      names_.emplace_back(trace.conversations[i], i);
    }
  }

  CacheScore Run() {
    const std::vector<Visit> visits = Schedule(trace_, setting_);
    std::map<std::pair<TimeNs, size_t>, size_t> ends;  // of those that run
    for (size_t i = 0; i < visits.size(); ++i) {
      while (!ends.empty() && ends.begin()->first.first <= visits[i].begin) {
        End(visits[ends.begin()->second]);
        ends.erase(ends.begin());
      }
      Begin(visits[i]);
      ends.emplace(std::pair(visits[i].end, i), i);
    }
    for (const auto& [key, i] : ends) End(visits[i]);
    const Status status = pool_.Verify();
    TS_CHECK(status.ok(), "the pool is broken after a replay");
    return score_;
  }

 private:
  struct Running {
    kv::BlockTable table;
    plan::Session* session = nullptr;
  };

  static std::vector<Token> Content(const Hash128& name) {
    return {static_cast<Token>(name.low() & 0x7FFFFFFF)};
  }

  void Begin(const Visit& visit) {
    const TraceRow& row = trace_.conversations[visit.conversation].rows[visit.row];
    BlockNames& names = names_[visit.conversation];
    names.Advance(row);
    Running& running = running_[visit.conversation];
    std::vector<kv::ChainKey> keys(static_cast<size_t>(row.blocks));
    int ideal = 0;
    for (int i = 0; i < row.blocks; ++i) {
      kv::ChainKey& key = keys[static_cast<size_t>(i)];
      key.hash = names.At(i);
      if (i > 0) key.parent = keys[static_cast<size_t>(i) - 1].hash;
      if (!seen_.insert(key.hash.low()).second && ideal == i) ++ideal;
    }
    int hits = 0;
    for (; hits < row.blocks; ++hits) {
      const kv::ChainKey& key = keys[static_cast<size_t>(hits)];
      auto hit = pool_.Find(key, Content(key.hash));
      if (!hit) break;
      running.table.Append(std::move(*hit));
    }
    ++score_.requests;
    score_.prompt_tokens += row.input;
    score_.hit_tokens += int64_t{hits} * trace_.block_tokens;
    score_.ideal_tokens += int64_t{ideal} * trace_.block_tokens;
    score_.output_tokens += row.output;
    score_.long_recomputes += int64_t{ideal - hits} * trace_.block_tokens >= 4096;
    Enter(visit, running, row, keys, hits);
    for (int i = hits - 1; i >= 0; --i) {
      const BlockId id = running.table.at(i);
      if (pool_.owner(id) == running.session->owner) break;
      pool_.Claim(id, running.session->owner);
      running.session->borrowed = std::max(running.session->borrowed, i + 1);
    }
    const int64_t held = Held(trace_, row);
    std::vector<kv::OpenBlock> open;
    for (int64_t i = hits; i < held; ++i) {
      auto block = pool_.Allocate();
      if (!block) break;
      block->Fill(1);
      running.table.Append(std::move(*block));
    }
    for (int i = hits; i < row.blocks && running.table.open() > 0; ++i) {
      const kv::ChainKey& key = keys[static_cast<size_t>(i)];
      running.table.Seal(key, Content(key.hash));
      pool_.Claim(running.table.at(i), running.session->owner);
    }
  }

  void Enter(const Visit& visit, Running& running, const TraceRow& row,
             const std::vector<kv::ChainKey>& keys, int hits) {
    if (setting_.names) {
      running.session = &sessions_.Named("", std::to_string(visit.conversation));
    } else {
      for (int i = row.blocks - 1; i >= 0 && running.session == nullptr; --i) {
        running.session = sessions_.EndingWith(keys[static_cast<size_t>(i)].hash);
      }
      if (running.session == nullptr) running.session = &sessions_.Unnamed();
      running.session->borrowed = std::min(running.session->borrowed, hits);
    }
    sessions_.Enter(*running.session, visit.begin, row.blocks);
  }

  void End(const Visit& visit) {
    Running& running = running_[visit.conversation];
    const TraceRow& row = trace_.conversations[visit.conversation].rows[visit.row];
    plan::Session* session = running.session;
    const BlockNames& names = names_[visit.conversation];
    kv::Visit left{.blocks = std::max(0, row.blocks - session->borrowed),
                   .generated = row.output,
                   .prefix = 0};
    if (row.blocks > 0) left.prefix = static_cast<uint8_t>(names.At(0).low());
    sessions_.Leave(*session, visit.end, left);
    if (!setting_.names && row.blocks > 0) {
      sessions_.SetTip(*session, names.At(row.blocks - 1), row.blocks);
    }
    if (setting_.hints && row.stop > 0) {
      const auto action =
          row.stop == 1 ? plan::SessionAction::kToolCall : plan::SessionAction::kHuman;
      sessions_.Hint(session, static_cast<int64_t>(action), visit.end, 0);
    }
    if (setting_.policy == CacheSetting::Policy::kOracle) {
      retention_.Foretell(session->owner, visit.next);
    } else if (setting_.hints && visit.next == kNever) {
      sessions_.Hint(session, static_cast<int64_t>(plan::SessionAction::kEnd), visit.end, 0);
    }
    running_.erase(visit.conversation);
  }

  const Trace& trace_;
  const CacheSetting& setting_;
  kv::Retention retention_;
  plan::SessionTable sessions_;
  kv::BlockPool pool_;
  std::vector<BlockNames> names_;
  std::map<size_t, Running> running_;
  std::unordered_set<uint64_t> seen_;
  CacheScore score_;
};

}  // namespace

CacheScore ReplayCache(const Trace& trace, const CacheSetting& setting) {
  return CacheReplay(trace, setting).Run();
}

}  // namespace tokenspeed::simulate
