// SPDX-License-Identifier: MIT
// The core's counters as a Python dictionary.
#pragma once

#include <pybind11/pybind11.h>

#include "plan/scheduler.h"

namespace tokenspeed {

namespace py = pybind11;

inline py::dict StatsOf(const plan::Scheduler& scheduler) {
  const plan::Counters& counters = scheduler.counters();
  const kv::BlockCounts blocks = scheduler.blocks();
  py::dict stats;
  stats["running"] = scheduler.running();
  stats["waiting"] = scheduler.waiting();
  stats["in_flight"] = scheduler.in_flight();
  stats["total_blocks"] = blocks.total;
  stats["free_blocks"] = blocks.free;
  stats["open_blocks"] = blocks.open;
  stats["shared_blocks"] = blocks.shared;
  stats["retiring_blocks"] = blocks.retiring;
  stats["cached_blocks"] = blocks.cached;
  const kv::HostCounts host = scheduler.host_blocks();
  stats["host_blocks"] = host.total;
  stats["host_free_blocks"] = host.free;
  stats["host_written_blocks"] = host.written;
  stats["stored_blocks"] = counters.stored_blocks;
  stats["loaded_blocks"] = counters.loaded_blocks;
  stats["failed_transfers"] = counters.failed_transfers;
  stats["steps"] = counters.steps;
  stats["prompt_tokens"] = counters.prompt_tokens;
  stats["cached_tokens"] = counters.cached_tokens;
  stats["generated_tokens"] = counters.generated_tokens;
  stats["missed_new"] = counters.missed_new;
  stats["missed_evicted"] = counters.missed_evicted;
  stats["missed_salted"] = counters.missed_salted;
  stats["missed_diverged"] = counters.missed_diverged;
  stats["preemptions"] = counters.preemptions;
  stats["recomputed_tokens"] = counters.recomputed_tokens;
  stats["finished"] = counters.finished;
  stats["rejected"] = counters.rejected;
  stats["overrun_tokens"] = counters.overrun_tokens;
  stats["drafted_tokens"] = counters.drafted_tokens;
  stats["accepted_tokens"] = counters.accepted_tokens;
  stats["sessions"] = scheduler.sessions();
  stats["retained_blocks"] = scheduler.retained_blocks();
  return stats;
}

}  // namespace tokenspeed
