// SPDX-License-Identifier: MIT
#include "net/cache_feed.h"

#include <sys/stat.h>

#include <chrono>
#include <msgpack.hpp>

#include "base/check.h"
#include "net/session.h"

namespace tokenspeed::net {
namespace {

using Event = kv::CacheLog::Event;

constexpr int kFeedHighWater = 100'000;
constexpr uint64_t kEnd = ~uint64_t{0};
constexpr size_t kSequenceBytes = 8;

std::chrono::nanoseconds WallClock() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::system_clock::now().time_since_epoch());
}

std::string BigEndian(uint64_t value) {
  std::string bytes(kSequenceBytes, '\0');
  for (size_t i = kSequenceBytes; i-- > 0; value >>= 8) bytes[i] = static_cast<char>(value & 255);
  return bytes;
}

uint64_t FromBigEndian(std::string_view bytes) {
  uint64_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<unsigned char>(byte);
  return value;
}

// The events from `first` that are one: blocks that continue each other, or removals.
size_t RunOf(const std::vector<Event>& events, size_t first) {
  size_t end = first + 1;
  while (end < events.size() && events[end].kind == events[first].kind &&
         (events[end].kind == Event::Kind::kRemoved ||
          (events[end].kind == Event::Kind::kStored &&
           events[end].key.parent == events[end - 1].key.hash))) {
    ++end;
  }
  return end;
}

}  // namespace

CacheFeed::CacheFeed(const ZmqLibrary& zmq, void* context, kv::CacheLog& log, Config config)
    : zmq_(zmq),
      context_(context),
      log_(log),
      config_(std::move(config)),
      next_(static_cast<uint64_t>(WallClock().count())) {
  if (enabled()) log_.Enable();
}

CacheFeed::~CacheFeed() {
  for (void* socket : {publisher_, replay_}) {
    if (socket != nullptr) zmq_.close(socket);
  }
}

void* CacheFeed::Open(int type) {
  void* socket = zmq_.socket(context_, type);
  TS_CHECK(socket != nullptr, "zmq_socket: " << zmq_.LastError());
  const int linger = 0;
  zmq_.setsockopt(socket, kZmqLinger, &linger, sizeof(linger));
  zmq_.setsockopt(socket, kZmqSendHighWater, &kFeedHighWater, sizeof(kFeedHighWater));
  return socket;
}

Status CacheFeed::Bind() {
  if (!enabled()) return Ok{};
  publisher_ = Open(kZmqPublisher);
  replay_ = Open(kZmqRouter);
  const int64_t most = 4096;  // of a frame; those of a CURVE handshake are the longest
  zmq_.setsockopt(replay_, kZmqMaxMessageSize, &most, sizeof(most));
  if (!config_.curve_secret.empty()) {
    const int yes = 1;
    for (void* socket : {publisher_, replay_}) {
      if (zmq_.setsockopt(socket, kZmqCurveServer, &yes, sizeof(yes)) != 0 ||
          zmq_.setsockopt(socket, kZmqCurveSecretKey, config_.curve_secret.c_str(),
                          config_.curve_secret.size() + 1) != 0) {
        return Error{"kv_events: the CURVE key is refused (" + zmq_.LastError() +
                     "); give the 40 characters of a secret key, and a libzmq with CURVE"};
      }
    }
  }
  // What is told are prompts: for the owner of the process alone.
  const mode_t before = umask(0077);
  const char* failed = nullptr;
  if (zmq_.bind(publisher_, config_.endpoint.c_str()) != 0) {
    failed = config_.endpoint.c_str();
  } else if (zmq_.bind(replay_, config_.replay_endpoint.c_str()) != 0) {
    failed = config_.replay_endpoint.c_str();
  }
  umask(before);
  if (failed != nullptr) {
    return Error{std::string("kv_events: cannot bind ") + failed + ": " + zmq_.LastError() +
                 "; give a free endpoint, such as ipc:///run/user/1000/kv"};
  }
  Log("KV events at " + config_.endpoint + ", replay at " + config_.replay_endpoint);
  return Ok{};
}

void CacheFeed::Send(void* socket, std::string_view frame, bool more) {
  const int flags = kZmqDontWait | (more ? kZmqSendMore : 0);
  zmq_.send(socket, frame.data(), frame.size(), flags);
}

std::string CacheFeed::Encode(const std::vector<Event>& events) const {
  msgpack::sbuffer bytes;
  msgpack::packer pack(bytes);
  uint32_t count = 0;
  for (size_t at = 0; at < events.size(); at = RunOf(events, at)) ++count;
  pack.pack_array(3);
  pack.pack_double(static_cast<double>(WallClock().count()) / 1e9);
  pack.pack_array(count);
  for (size_t at = 0, end = 0; at < events.size(); at = end) {
    end = RunOf(events, at);
    const auto hashes = [&] {
      pack.pack_array(static_cast<uint32_t>(end - at));
      for (size_t i = at; i < end; ++i) pack.pack_uint64(events[i].key.hash.low());
    };
    switch (events[at].kind) {
      case Event::Kind::kStored: {
        pack.pack_array(8);
        pack.pack(std::string("BlockStored"));
        hashes();
        const Hash128& parent = events[at].key.parent;
        parent == config_.root ? pack.pack_nil() : pack.pack_uint64(parent.low());
        const size_t size = events[at].tokens.size();
        pack.pack_array(static_cast<uint32_t>(size * (end - at)));
        for (size_t i = at; i < end; ++i) {
          for (const Token token : events[i].tokens) pack.pack_int32(token);
        }
        pack.pack_uint64(size);
        pack.pack_nil();
        pack.pack(std::string("GPU"));
        pack.pack_nil();
        break;
      }
      case Event::Kind::kRemoved:
        pack.pack_array(3);
        pack.pack(std::string("BlockRemoved"));
        hashes();
        pack.pack(std::string("GPU"));
        break;
      case Event::Kind::kCleared:
        pack.pack_array(1);
        pack.pack(std::string("AllBlocksCleared"));
        break;
    }
  }
  pack.pack_int32(0);
  return {bytes.data(), bytes.size()};
}

void CacheFeed::Publish() {
  if (!enabled()) return;
  std::vector<Event> events = log_.Take();
  // The first batch parts this process from a former one.
  if (kept_.empty() && kept_bytes_ == 0) events.insert(events.begin(), Event{});
  if (events.empty()) return;
  std::string payload = Encode(events);
  Send(publisher_, config_.topic, true);
  Send(publisher_, BigEndian(next_), true);
  Send(publisher_, payload, false);
  kept_bytes_ += payload.size();
  kept_.emplace_back(next_++, std::move(payload));
  while (kept_bytes_ > kMostBytes && kept_.size() > 1) {
    kept_bytes_ -= kept_.front().second.size();
    kept_.pop_front();
  }
}

void CacheFeed::Replay(std::string_view client, uint64_t from) {
  const auto answer = [&](uint64_t sequence, std::string_view payload) {
    Send(replay_, client, true);
    Send(replay_, "", true);
    Send(replay_, BigEndian(sequence), true);
    Send(replay_, payload, false);
  };
  if (!kept_.empty() && from < kept_.front().first) {
    Publish();  // so that the snapshot is what the latest sequence stands for
    std::vector<Event> everything = log_.Snapshot();
    everything.insert(everything.begin(), Event{});
    answer(next_ - 1, Encode(everything));
  } else {
    for (const auto& [sequence, payload] : kept_) {
      if (sequence >= from) answer(sequence, payload);
    }
  }
  answer(kEnd, "");
}

void CacheFeed::ServeReplays() {
  if (!enabled()) return;
  ZmqMessage part;
  zmq_.msg_init(&part);
  while (zmq_.msg_recv(&part, replay_, kZmqDontWait) >= 0) {
    const auto text = [&] {
      return std::string_view(static_cast<const char*>(zmq_.msg_data(&part)), zmq_.msg_size(&part));
    };
    const std::string client(text());
    std::string last;  // behind the empty frame that REQ sockets send
    int parts = 1;
    for (; zmq_.msg_more(&part) != 0 && zmq_.msg_recv(&part, replay_, kZmqDontWait) >= 0; ++parts) {
      last = text();
    }
    if (parts <= 3 && last.size() == kSequenceBytes) Replay(client, FromBigEndian(last));
  }
  zmq_.msg_close(&part);
}

}  // namespace tokenspeed::net
