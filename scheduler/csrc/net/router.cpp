// SPDX-License-Identifier: MIT
#include "net/router.h"

#include <cerrno>
#include <utility>

#include "base/check.h"
#include "wire/messages.h"

namespace tokenspeed::net {
namespace {

constexpr size_t kMaxKeptBytes = wire::kMaxFrameBytes;
constexpr size_t kMaxKeptMessages = 4096;
constexpr int kHighWater = 1000;
constexpr int kLingerMs = 1000;
constexpr int kHostUnreachable = EHOSTUNREACH;

}  // namespace

Router::Router(const ZmqLibrary& zmq, void* context)
    : zmq_(zmq), socket_(zmq.socket(context, kZmqRouter)) {
  TS_CHECK(socket_ != nullptr, "zmq_socket: " << zmq.LastError());
  const auto set = [&](int option, const void* value, size_t size) {
    const int done = zmq_.setsockopt(socket_, option, value, size);
    TS_CHECK(done == 0, "zmq_setsockopt " << option << ": " << zmq_.LastError());
  };
  const int yes = 1;
  // The bound on a frame applies before libzmq allocates it; a peer beyond it is cut off.
  const int64_t frame = static_cast<int64_t>(wire::kMaxFrameBytes);
  set(kZmqRouterMandatory, &yes, sizeof(yes));
  set(kZmqLinger, &kLingerMs, sizeof(kLingerMs));
  set(kZmqSendHighWater, &kHighWater, sizeof(kHighWater));
  set(kZmqReceiveHighWater, &kHighWater, sizeof(kHighWater));
  set(kZmqMaxMessageSize, &frame, sizeof(frame));
}

Router::~Router() { zmq_.close(socket_); }

Status Router::Bind(const std::string& endpoint) {
  if (zmq_.bind(socket_, endpoint.c_str()) == 0) return Ok{};
  return Error{"cannot bind " + endpoint + ": " + zmq_.LastError() +
               "; is another scheduler running there, or is the path longer than 107 bytes?"};
}

Status Router::BindEncrypted(const std::string& endpoint, const std::string& secret) {
  // The options of a socket hold for what it binds from then on.
  const int yes = 1;
  const int heartbeat_ms = 1000;  // a machine that is gone says no goodbye
  const int silence_ms = 5000;
  zmq_.setsockopt(socket_, kZmqHeartbeatInterval, &heartbeat_ms, sizeof(heartbeat_ms));
  zmq_.setsockopt(socket_, kZmqHeartbeatTimeout, &silence_ms, sizeof(silence_ms));
  if (zmq_.setsockopt(socket_, kZmqCurveServer, &yes, sizeof(yes)) != 0 ||
      zmq_.setsockopt(socket_, kZmqCurveSecretKey, secret.c_str(), secret.size() + 1) != 0) {
    return Error{"the CURVE key of " + endpoint + " is refused (" + zmq_.LastError() +
                 "); give the 40 characters of a secret key, and a libzmq with CURVE"};
  }
  if (zmq_.bind(socket_, endpoint.c_str()) == 0) return Ok{};
  return Error{"cannot bind " + endpoint + ": " + zmq_.LastError()};
}

bool Router::Receive(Incoming& message) {
  ZmqMessage part;
  zmq_.msg_init(&part);
  int parts = 0;
  for (bool more = true; more; ++parts) {
    const int got = zmq_.msg_recv(&part, socket_, kZmqDontWait);
    if (got < 0) {
      TS_CHECK(parts == 0, "zmq_msg_recv inside a message: " << zmq_.LastError());
      zmq_.msg_close(&part);
      return false;
    }
    const auto* data = static_cast<const char*>(zmq_.msg_data(&part));
    if (parts == 0) message.from.assign(data, zmq_.msg_size(&part));
    if (parts == 1) message.frame.assign(data, zmq_.msg_size(&part));
    more = zmq_.msg_more(&part) != 0;
  }
  zmq_.msg_close(&part);
  message.whole = parts == 2;
  return true;
}

Router::Sent Router::TrySend(const Identity& to, std::string_view first, std::string_view second) {
  // Only the address can be refused; the frames behind it belong to a message that was taken.
  if (zmq_.send(socket_, to.data(), to.size(), kZmqDontWait | kZmqSendMore) < 0) {
    const int error = zmq_.last_errno();
    if (error == kHostUnreachable) return Sent::kUnreachable;
    TS_CHECK(error == EAGAIN || error == EINTR, "zmq_send: " << zmq_.strerror(error));
    return Sent::kLater;
  }
  const int more = second.empty() ? 0 : kZmqSendMore;
  int done = zmq_.send(socket_, first.data(), first.size(), kZmqDontWait | more);
  if (done >= 0 && more) done = zmq_.send(socket_, second.data(), second.size(), kZmqDontWait);
  TS_CHECK(done >= 0, "zmq_send inside a message: " << zmq_.LastError());
  return Sent::kYes;
}

void Router::Send(const Identity& to, std::string_view first, std::string_view second) {
  const auto kept = backlog_.find(to);
  if (kept == backlog_.end()) {
    const Sent sent = TrySend(to, first, second);
    if (sent == Sent::kUnreachable) lost_.insert(to);
    if (sent != Sent::kLater) return;
  }
  Queue& queue = backlog_[to];
  queue.bytes += first.size() + second.size();
  queue.messages.push_back({std::string(first), std::string(second)});
  if (queue.bytes <= kMaxKeptBytes && queue.messages.size() <= kMaxKeptMessages) return;
  backlog_.erase(to);
  lost_.insert(to);
}

void Router::Flush() {
  for (auto at = backlog_.begin(); at != backlog_.end();) {
    auto& [to, queue] = *at;
    Sent sent = Sent::kYes;
    while (!queue.messages.empty()) {
      const Kept& kept = queue.messages.front();
      sent = TrySend(to, kept.first, kept.second);
      if (sent != Sent::kYes) break;
      queue.bytes -= kept.first.size() + kept.second.size();
      queue.messages.pop_front();
    }
    if (sent == Sent::kUnreachable) lost_.insert(to);
    at = sent == Sent::kLater ? std::next(at) : backlog_.erase(at);
  }
}

void Router::Forget(const Identity& peer) {
  backlog_.erase(peer);
  lost_.erase(peer);
}

}  // namespace tokenspeed::net
