// SPDX-License-Identifier: MIT
// The part of libzmq's C interface that we use, declared from its manual and filled at start from
// the shared library that `--libzmq` names, or by the linker in a distributor's build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/result.h"

namespace tokenspeed::net {

inline constexpr int kZmqPublisher = 1;
inline constexpr int kZmqRouter = 6;
inline constexpr int kZmqLinger = 17;
inline constexpr int kZmqMaxMessageSize = 22;
inline constexpr int kZmqSendHighWater = 23;
inline constexpr int kZmqReceiveHighWater = 24;
inline constexpr int kZmqRouterMandatory = 33;
inline constexpr int kZmqCurveServer = 47;
inline constexpr int kZmqCurveSecretKey = 49;
inline constexpr int kZmqHeartbeatInterval = 75;
inline constexpr int kZmqHeartbeatTimeout = 77;
inline constexpr int kZmqDontWait = 1;
inline constexpr int kZmqSendMore = 2;
inline constexpr short kZmqPollIn = 1;

struct alignas(8) ZmqMessage {
  unsigned char opaque[64];
};

struct ZmqPollItem {
  void* socket;
  int fd;
  short events;
  short revents;
};

struct ZmqLibrary {
  void* (*ctx_new)();
  int (*ctx_shutdown)(void* context);
  int (*ctx_term)(void* context);
  void* (*socket)(void* context, int type);
  int (*close)(void* socket);
  int (*bind)(void* socket, const char* endpoint);
  int (*setsockopt)(void* socket, int option, const void* value, size_t size);
  int (*send)(void* socket, const void* data, size_t size, int flags);
  int (*msg_init)(ZmqMessage* message);
  int (*msg_recv)(ZmqMessage* message, void* socket, int flags);
  void* (*msg_data)(ZmqMessage* message);
  size_t (*msg_size)(const ZmqMessage* message);
  int (*msg_more)(const ZmqMessage* message);
  int (*msg_close)(ZmqMessage* message);
  int (*poll)(ZmqPollItem* items, int count, long timeout_ms);
  int (*last_errno)();
  const char* (*strerror)(int error);
  void (*version)(int* major, int* minor, int* patch);

  std::string LastError() const { return strerror(last_errno()); }
};

// Opens the library; an empty path means `libzmq.so.5` of the system. A linked build ignores it.
Result<ZmqLibrary> LoadZmq(const std::string& path);

}  // namespace tokenspeed::net
