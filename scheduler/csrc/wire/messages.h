// SPDX-License-Identifier: MIT
// Every struct that crosses a process boundary, as ipc/messages.py defines it: field for field, in
// wire order. `kRequired` fields have no default; a shorter array is malformed, a longer one is of
// a newer writer and its tail is ignored.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/step_plan.h"

namespace tokenspeed::wire {

inline constexpr int64_t kVersion = 2;
inline constexpr size_t kMaxFrameBytes = size_t{64} * 1024 * 1024;

// A short `bin`: token, hash, digest, salt.
struct Blob {
  std::string bytes;
  friend bool operator==(const Blob&, const Blob&) = default;
};

template <class T>
using Column = std::vector<T>;

#define TS_FIELDS(...)                             \
  template <class Self, class Visit>               \
  static void ForEachField(Self& s, Visit visit) { \
    __VA_ARGS__                                    \
  }

struct Hello {
  static constexpr int kTag = 1, kRequired = 4;
  int64_t version = kVersion;
  Blob token;
  int64_t role = 0;
  std::string name;
  int64_t rank = 0;
  int64_t num_ranks = 1;
  int64_t num_blocks = 0;
  int64_t block_size = 0;
  Blob program_hash;
  Column<uint8_t> group_kinds;
  Column<int32_t> group_tokens;
  Column<int32_t> group_spans;
  Column<int32_t> group_shares;
  int64_t host_blocks = 0;
  int64_t max_drafts = 0;
  TS_FIELDS(visit(s.version); visit(s.token); visit(s.role); visit(s.name); visit(s.rank);
            visit(s.num_ranks); visit(s.num_blocks); visit(s.block_size); visit(s.program_hash);
            visit(s.group_kinds); visit(s.group_tokens); visit(s.group_spans);
            visit(s.group_shares); visit(s.host_blocks); visit(s.max_drafts);)
};

struct Welcome {
  static constexpr int kTag = 2, kRequired = 7;
  int64_t version = kVersion;
  int64_t epoch = 0;
  bool ready = false;
  int64_t max_model_len = 0;
  int64_t vocab_size = 0;
  int64_t block_size = 0;
  int64_t num_blocks = 0;
  int64_t kept_prompts = 0;
  TS_FIELDS(visit(s.version); visit(s.epoch); visit(s.ready); visit(s.max_model_len);
            visit(s.vocab_size); visit(s.block_size); visit(s.num_blocks); visit(s.kept_prompts);)
};

struct Refused {
  static constexpr int kTag = 3, kRequired = 2;
  int64_t code = 0;
  std::string message;
  TS_FIELDS(visit(s.code); visit(s.message);)
};

struct Heartbeat {
  static constexpr int kTag = 4, kRequired = 1;
  int64_t time_ns = 0;
  TS_FIELDS(visit(s.time_ns);)
};

struct HelloRequired {
  static constexpr int kTag = 5, kRequired = 0;
  template <class Self, class Visit>
  static void ForEachField(Self&, Visit) {}
};

struct Shutdown {
  static constexpr int kTag = 6, kRequired = 1;
  std::string reason;
  TS_FIELDS(visit(s.reason);)
};

struct Sampling {
  static constexpr int kRequired = 0;
  double temperature = 0.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  uint64_t seed = 0;
  bool logprobs = false;
  Column<uint8_t> shaping;
  TS_FIELDS(visit(s.temperature); visit(s.top_k); visit(s.top_p); visit(s.seed); visit(s.logprobs);
            visit(s.shaping);)
};

struct Submit {
  static constexpr int kTag = 10, kRequired = 4;
  uint64_t request_id = 0;
  Column<int32_t> prompt;
  int64_t max_tokens = 0;
  Sampling sampling;
  Column<int32_t> stop_ids;
  int64_t priority = 0;
  Blob salt;
  std::string session;
  int64_t deadline_ms = 0;
  int64_t retain_ms = 0;
  int64_t keep = 0;
  int64_t kept_tokens = 0;
  TS_FIELDS(visit(s.request_id); visit(s.prompt); visit(s.max_tokens); visit(s.sampling);
            visit(s.stop_ids); visit(s.priority); visit(s.salt); visit(s.session);
            visit(s.deadline_ms); visit(s.retain_ms); visit(s.keep); visit(s.kept_tokens);)
};

struct Abort {
  static constexpr int kTag = 11, kRequired = 1;
  uint64_t request_id = 0;
  int64_t kept = -1;
  TS_FIELDS(visit(s.request_id); visit(s.kept);)
};

struct SessionHint {
  static constexpr int kTag = 12, kRequired = 2;
  std::string session;
  int64_t action = 0;
  int64_t ttl_ms = 0;
  Blob salt;
  TS_FIELDS(visit(s.session); visit(s.action); visit(s.ttl_ms); visit(s.salt);)
};

struct Profile {
  static constexpr int kTag = 13, kRequired = 1;
  std::string directory;
  TS_FIELDS(visit(s.directory);)
};

struct TokenDeltas {
  static constexpr int kTag = 20, kRequired = 7;
  int64_t step = 0;
  Column<uint64_t> request_ids;
  Column<int32_t> counts;
  Column<int32_t> tokens;
  Column<float> logprobs;
  Column<uint8_t> finish_reasons;
  Column<int32_t> cached_tokens;
  Column<uint64_t> report_ids;
  Column<int32_t> report_host;
  Column<int32_t> report_new;
  Column<int32_t> report_evicted;
  Column<int32_t> report_salted;
  Column<int32_t> report_diverged;
  Column<int32_t> report_diverged_at;
  Column<uint8_t> report_volatile;
  Column<int32_t> report_queued_us;
  Column<int64_t> report_first_step;
  Column<uint64_t> detail_ids;
  Column<int32_t> detail_bytes;
  Column<uint8_t> details;
  int64_t step_began_ns = 0;
  int64_t step_ended_ns = 0;
  TS_FIELDS(visit(s.step); visit(s.request_ids); visit(s.counts); visit(s.tokens);
            visit(s.logprobs); visit(s.finish_reasons); visit(s.cached_tokens); visit(s.report_ids);
            visit(s.report_host); visit(s.report_new); visit(s.report_evicted);
            visit(s.report_salted); visit(s.report_diverged); visit(s.report_diverged_at);
            visit(s.report_volatile); visit(s.report_queued_us); visit(s.report_first_step);
            visit(s.detail_ids); visit(s.detail_bytes); visit(s.details); visit(s.step_began_ns);
            visit(s.step_ended_ns);)
};

struct Rejected {
  static constexpr int kTag = 21, kRequired = 3;
  uint64_t request_id = 0;
  int64_t code = 0;
  std::string message;
  TS_FIELDS(visit(s.request_id); visit(s.code); visit(s.message);)
};

struct Stats {
  static constexpr int kTag = 22, kRequired = 20;
  int64_t time_ns = 0;
  int64_t epoch = 0;
  bool ready = false;
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t total_blocks = 0;
  int64_t free_blocks = 0;
  int64_t cached_blocks = 0;
  int64_t active_blocks = 0;
  int64_t steps = 0;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t preemptions = 0;
  int64_t finished = 0;
  int64_t rejected = 0;
  int64_t dropped_frames = 0;
  int64_t in_flight_steps = 0;
  int64_t oldest_step_age_ns = 0;
  int64_t plan_time_ns = 0;
  int64_t host_blocks = 0;
  int64_t host_free_blocks = 0;
  int64_t stored_blocks = 0;
  int64_t loaded_blocks = 0;
  int64_t failed_transfers = 0;
  int64_t sessions = 0;
  int64_t retained_blocks = 0;
  int64_t missed_new = 0;
  int64_t missed_evicted = 0;
  int64_t missed_salted = 0;
  int64_t missed_diverged = 0;
  int64_t drafted_tokens = 0;
  int64_t accepted_tokens = 0;
  int64_t gap_ns = 0;
  TS_FIELDS(visit(s.time_ns); visit(s.epoch); visit(s.ready); visit(s.running); visit(s.waiting);
            visit(s.total_blocks); visit(s.free_blocks); visit(s.cached_blocks);
            visit(s.active_blocks); visit(s.steps); visit(s.prompt_tokens); visit(s.cached_tokens);
            visit(s.generated_tokens); visit(s.preemptions); visit(s.finished); visit(s.rejected);
            visit(s.dropped_frames); visit(s.in_flight_steps); visit(s.oldest_step_age_ns);
            visit(s.plan_time_ns); visit(s.host_blocks); visit(s.host_free_blocks);
            visit(s.stored_blocks); visit(s.loaded_blocks); visit(s.failed_transfers);
            visit(s.sessions); visit(s.retained_blocks); visit(s.missed_new);
            visit(s.missed_evicted); visit(s.missed_salted); visit(s.missed_diverged);
            visit(s.drafted_tokens); visit(s.accepted_tokens); visit(s.gap_ns);)
};

// The planner fills this struct; on the wire its columns follow epoch and step.
struct StepPlan : plan::StepPlan {
  static constexpr int kTag = 30, kRequired = 2;
  template <class Self, class Visit>
  static void ForEachField(Self& s, Visit visit) {
    visit(s.epoch.value);
    visit(s.step.value);
    plan::StepPlan::ForEachColumn(s, visit);
    visit(s.repeated_rows);
  }
};

struct StepResult {
  static constexpr int kTag = 40, kRequired = 5;
  int64_t epoch = 0;
  int64_t step = 0;
  Blob digest;
  Column<int32_t> tokens;
  Column<float> logprobs;
  Column<int32_t> counts;
  Column<int32_t> detail_slots;
  Column<int32_t> detail_bytes;
  Column<uint8_t> details;
  int64_t began_ns = 0;
  int64_t ended_ns = 0;
  TS_FIELDS(visit(s.epoch); visit(s.step); visit(s.digest); visit(s.tokens); visit(s.logprobs);
            visit(s.counts); visit(s.detail_slots); visit(s.detail_bytes); visit(s.details);
            visit(s.began_ns); visit(s.ended_ns);)
};

struct StepAck {
  static constexpr int kTag = 41, kRequired = 4;
  int64_t epoch = 0;
  int64_t step = 0;
  Blob digest;
  Blob token_hash;
  TS_FIELDS(visit(s.epoch); visit(s.step); visit(s.digest); visit(s.token_hash);)
};

struct WorkerFailed {
  static constexpr int kTag = 42, kRequired = 4;
  int64_t rank = 0;
  int64_t epoch = 0;
  int64_t step = 0;
  std::string message;
  TS_FIELDS(visit(s.rank); visit(s.epoch); visit(s.step); visit(s.message);)
};

struct Transfers {
  static constexpr int kTag = 43, kRequired = 4;
  int64_t rank = 0;
  int64_t epoch = 0;
  Column<int32_t> tickets;
  Column<uint8_t> ok;
  TS_FIELDS(visit(s.rank); visit(s.epoch); visit(s.tickets); visit(s.ok);)
};

struct SchedulerConfig {
  static constexpr int kTag = 50, kRequired = 11;
  int64_t version = kVersion;
  Blob token;
  Blob hash_key;
  std::string frontend_endpoint;
  std::string worker_endpoint;
  int64_t num_ranks = 1;
  int64_t max_slots = 0;
  int64_t max_step_tokens = 0;
  int64_t max_model_len = 0;
  int64_t max_waiting = 0;
  int64_t vocab_size = 0;
  int64_t depth = 2;
  bool prefix_caching = true;
  int64_t heartbeat_ms = 250;
  int64_t parent_pid = 0;
  int64_t max_prefill_tokens = 0;
  std::string eviction = "reuse";
  double decode_stretch = 1.5;
  int64_t ageing_ms = 10'000;
  std::string record_path;
  int64_t record_bytes = int64_t{50} * 1024 * 1024;
  int64_t transfer_ms = 10'000;
  std::string kv_events;
  std::string kv_replay;
  std::string kv_topic;
  std::string kv_curve_secret;
  std::string frontend_tcp;
  std::string frontend_curve_secret;
  Blob frontend_tcp_token;
  TS_FIELDS(visit(s.version); visit(s.token); visit(s.hash_key); visit(s.frontend_endpoint);
            visit(s.worker_endpoint); visit(s.num_ranks); visit(s.max_slots);
            visit(s.max_step_tokens); visit(s.max_model_len); visit(s.max_waiting);
            visit(s.vocab_size); visit(s.depth); visit(s.prefix_caching); visit(s.heartbeat_ms);
            visit(s.parent_pid); visit(s.max_prefill_tokens); visit(s.eviction);
            visit(s.decode_stretch); visit(s.ageing_ms); visit(s.record_path);
            visit(s.record_bytes); visit(s.transfer_ms); visit(s.kv_events); visit(s.kv_replay);
            visit(s.kv_topic); visit(s.kv_curve_secret); visit(s.frontend_tcp);
            visit(s.frontend_curve_secret); visit(s.frontend_tcp_token);)
};

#undef TS_FIELDS

}  // namespace tokenspeed::wire
