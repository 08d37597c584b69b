// SPDX-License-Identifier: MIT
// EXPECT and EXPECT_DEATH: all that the C++ tests need.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#define EXPECT(condition)                                                            \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                  \
    }                                                                                \
  } while (false)

// The statement must end the process by a CHECK.
#define EXPECT_DEATH(statement)                                                         \
  do {                                                                                  \
    const pid_t child_ = fork();                                                        \
    if (child_ == 0) {                                                                  \
      std::freopen("/dev/null", "w", stderr) == nullptr ? std::_Exit(3) : void();       \
      statement;                                                                        \
      std::_Exit(0);                                                                    \
    }                                                                                   \
    int status_ = 0;                                                                    \
    waitpid(child_, &status_, 0);                                                       \
    if (!WIFSIGNALED(status_) || WTERMSIG(status_) != SIGABRT) {                        \
      std::fprintf(stderr, "%s:%d: did not die: %s\n", __FILE__, __LINE__, #statement); \
      std::exit(1);                                                                     \
    }                                                                                   \
  } while (false)
