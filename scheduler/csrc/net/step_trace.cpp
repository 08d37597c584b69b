// SPDX-License-Identifier: MIT
#include "net/step_trace.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <numeric>

namespace tokenspeed::net {

void StepTrace::Add(const Event& event) {
  if (events_.size() < kMostEvents) {
    events_.push_back(event);
  } else {
    ++dropped_;
  }
}

void StepTrace::Planned(const plan::StepPlan& plan, TimeNs start, TimeNs end) {
  const auto repeated = static_cast<int32_t>(plan.repeated_rows);
  const int32_t rows = repeated + static_cast<int32_t>(plan.rows.size());
  const int32_t tokens = std::accumulate(plan.row_tokens.begin(), plan.row_tokens.end(), repeated);
  if (planned_ == StepId{} || plan.step <= planned_) {  // the first, also of a later epoch
    planned_ = plan.step;
    advanced_ = StepId{plan.step.value - 1};
  }
  Add({Event::Kind::kPlan, plan.step, start, end - start, rows, tokens});
  Add({Event::Kind::kBegin, plan.step, end, 0, rows, tokens});
}

void StepTrace::Advanced(StepId last, TimeNs start, TimeNs end) {
  if (planned_ == StepId{} || last <= advanced_) return;
  Add({Event::Kind::kResult, last, start, end - start, 0, 0});
  for (StepId step{advanced_.value + 1}; step <= last; step = StepId{step.value + 1}) {
    Add({Event::Kind::kEnd, step, start, 0, 0, 0});
  }
  advanced_ = last;
}

Status StepTrace::Write() const {
  const std::string path = directory_ + "/scheduler.json";
  const std::string partial = path + ".part";
  std::FILE* file = std::fopen(partial.c_str(), "we");
  if (file == nullptr) return Error{"cannot write " + partial + ": " + std::strerror(errno)};
  const int pid = static_cast<int>(getpid());
  std::fprintf(file, "{\"droppedEvents\":%lld,\"traceEvents\":[\n",
               static_cast<long long>(dropped_));
  std::fprintf(file,
               "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%d,\"tid\":0,"
               "\"args\":{\"name\":\"scheduler\"}}",
               pid);
  for (const Event& event : events_) {
    const auto step = static_cast<long long>(event.step.value);
    const double start = static_cast<double>(event.start) / 1e3;  // microseconds
    const double duration = static_cast<double>(event.duration) / 1e3;
    if (event.kind == Event::Kind::kPlan || event.kind == Event::Kind::kResult) {
      const bool is_plan = event.kind == Event::Kind::kPlan;
      std::fprintf(file,
                   ",\n{\"ph\":\"X\",\"cat\":\"scheduler\",\"name\":\"%s\",\"pid\":%d,\"tid\":1,"
                   "\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"step\":%lld,\"rows\":%d,\"tokens\":%d}}",
                   is_plan ? "plan" : "result", pid, start, duration, step, event.rows,
                   event.tokens);
    } else {
      const bool begins = event.kind == Event::Kind::kBegin;
      std::fprintf(file,
                   ",\n{\"ph\":\"%s\",\"cat\":\"step\",\"id\":%lld,\"name\":\"step in flight\","
                   "\"pid\":%d,\"tid\":2,\"ts\":%.3f,\"args\":{\"step\":%lld}}",
                   begins ? "b" : "e", step, pid, start, step);
    }
  }
  std::fputs("\n]}\n", file);
  const bool failed = std::ferror(file) != 0;
  if (std::fclose(file) != 0 || failed || std::rename(partial.c_str(), path.c_str()) != 0) {
    return Error{"cannot write " + path + ": " + std::strerror(errno)};
  }
  return Ok{};
}

}  // namespace tokenspeed::net
