// SPDX-License-Identifier: MIT
// A bound ROUTER socket: whole messages in, whole messages out, each to one named peer.
// A message that a peer's queue cannot take now waits here, in order and bounded; a peer that lets
// too much pile up, or is not connected any more, is reported as lost. Nothing is dropped silently.
#pragma once

#include <deque>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "net/zmq_library.h"

namespace tokenspeed::net {

// The routing id that libzmq gave the connection; opaque.
using Identity = std::string;

class Router {
 public:
  // `zmq` and `context` outlive the socket.
  Router(const ZmqLibrary& zmq, void* context);
  ~Router();
  Router(const Router&) = delete;
  Router& operator=(const Router&) = delete;

  Status Bind(const std::string& endpoint);
  // Binds one more endpoint, whose peers must speak CURVE; earlier ones stay as they are. `secret`
  // is a secret key as 40 characters.
  Status BindEncrypted(const std::string& endpoint, const std::string& secret);

  struct Incoming {
    Identity from;
    std::string frame;
    bool whole = false;  // exactly one frame; others are not ours
  };
  // The next message that has arrived; false if there is none.
  bool Receive(Incoming& message);

  // Sends, or keeps for later. An unreachable peer goes to lost().
  void Send(const Identity& to, std::string_view first, std::string_view second = {});
  // Sends what was kept; call it when time has passed.
  void Flush();
  bool has_backlog() const { return !backlog_.empty(); }
  bool has_backlog(const Identity& to) const { return backlog_.contains(to); }
  // Drops what was kept for a peer that is forgotten.
  void Forget(const Identity& peer);

  // Peers found unreachable since the last call.
  std::set<Identity> TakeLost() { return std::exchange(lost_, {}); }
  void* handle() const { return socket_; }

 private:
  struct Kept {
    std::string first, second;
  };
  struct Queue {
    std::deque<Kept> messages;
    size_t bytes = 0;
  };
  enum class Sent { kYes, kLater, kUnreachable };
  Sent TrySend(const Identity& to, std::string_view first, std::string_view second);

  const ZmqLibrary& zmq_;
  void* socket_;
  std::map<Identity, Queue> backlog_;
  std::set<Identity> lost_;
};

}  // namespace tokenspeed::net
