// SPDX-License-Identifier: MIT
// Runs a trial in a child process, so that an abort or a sanitizer report is a result, and makes a
// failing input smaller while it still fails.
#pragma once

#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace tokenspeed {

// A counter that a child writes and its parent reads.
inline volatile uint64_t* SharedCounter() {
  void* memory =
      mmap(nullptr, sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<volatile uint64_t*>(memory);
}

// Whether `trial` ends normally, returns true and takes no more than `limit_s` seconds of CPU;
// `quiet` hides what it prints.
inline bool Survives(const std::function<bool()>& trial, bool quiet, int limit_s = 2) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    const itimerval limit{.it_interval = {}, .it_value = {.tv_sec = limit_s, .tv_usec = 0}};
    setitimer(ITIMER_PROF, &limit, nullptr);  // its signal ends the child
    if (quiet && std::freopen("/dev/null", "w", stderr) == nullptr) std::_Exit(3);
    std::_Exit(trial() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// Leaves out ever smaller runs of elements as long as the rest still fails.
template <class T>
std::vector<T> Shrink(std::vector<T> failing,
                      const std::function<bool(const std::vector<T>&)>& passes) {
  for (size_t run = failing.size() / 2; run > 0; run /= 2) {
    for (size_t at = 0; at + run <= failing.size();) {
      std::vector<T> shorter(failing.begin(), failing.begin() + static_cast<std::ptrdiff_t>(at));
      shorter.insert(shorter.end(), failing.begin() + static_cast<std::ptrdiff_t>(at + run),
                     failing.end());
      if (Survives([&] { return passes(shorter); }, true)) {
        at += run;
      } else {
        failing = std::move(shorter);
      }
    }
  }
  return failing;
}

// A small generator with the same numbers everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t Next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ * 0x2545F4914F6CDD1Dull >> 16;
  }
  uint64_t Below(uint64_t bound) { return Next() % bound; }

 private:
  uint64_t state_;
};

}  // namespace tokenspeed
