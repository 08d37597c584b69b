// SPDX-License-Identifier: MIT
#include "base/stack_dump.h"

#include <unistd.h>

#include <csignal>
#include <string_view>

#if __has_include(<execinfo.h>)
#include <execinfo.h>
#endif

namespace tokenspeed {
namespace {

// Only what a signal handler may call.
void Write(std::string_view text) {
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text.data(), text.size());
}

void Dump(int) {
#if __has_include(<execinfo.h>)
  Write("stack of the scheduler:\n");
  void* frames[64];
  backtrace_symbols_fd(frames, backtrace(frames, 64), STDERR_FILENO);
#else
  Write("this C library cannot tell the stack of the scheduler\n");
#endif
}

}  // namespace

void DumpStackOnSignal() {
#if __has_include(<execinfo.h>)
  // The first call loads the unwinder, which a handler must not.
  void* frame[1];
  backtrace(frame, 1);
#endif
  struct sigaction action = {};
  action.sa_handler = Dump;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR2, &action, nullptr);
}

}  // namespace tokenspeed
