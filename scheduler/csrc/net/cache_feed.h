// SPDX-License-Identifier: MIT
// Tells routers what the prefix cache holds, in the shape that vLLM's publisher made common:
//
//   PUB      [topic] [sequence, 8 bytes big-endian] [msgpack [time, [event ...], 0]]
//   replay   a ROUTER: [""] [first sequence wanted] is answered by [""] [sequence] [payload] for
//            each batch from there on, then [""] [eight bytes 255] [""]
//
// Events are arrays: ["BlockStored", hashes, parent or nil, tokens, block size, nil, "GPU", nil],
// ["BlockRemoved", hashes, "GPU"], ["AllBlocksCleared"]. Hashes are 64 bits. The parent of a first
// block is nil, or, with a cache salt, a hash that no block has.
// Sequences go on where a former process stopped, with a gap, and begin with AllBlocksCleared. Who
// asks for batches that are not kept any more gets one that clears everything and stores what there
// is, with the latest sequence.
#pragma once

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "kv/cache_log.h"
#include "net/zmq_library.h"

namespace tokenspeed::net {

class CacheFeed {
 public:
  // What this process is told of its feed; an empty `endpoint`: none.
  struct Config {
    std::string endpoint;
    std::string replay_endpoint;
    std::string topic;
    std::string curve_secret;  // 40 characters; empty: no encryption
    Hash128 root;              // the parent of first blocks without a salt
  };

  // `zmq`, `context` and `log` outlive the feed.
  CacheFeed(const ZmqLibrary& zmq, void* context, kv::CacheLog& log, Config config);
  ~CacheFeed();
  CacheFeed(const CacheFeed&) = delete;
  CacheFeed& operator=(const CacheFeed&) = delete;

  bool enabled() const { return !config_.endpoint.empty(); }
  Status Bind();
  // Sends what the log has taken in, as one batch.
  void Publish();
  // Answers who has asked for batches.
  void ServeReplays();
  void* replay_handle() const { return replay_; }

 private:
  static constexpr size_t kMostBytes = size_t{16} << 20;  // of kept batches
  void* Open(int type);
  void Send(void* socket, std::string_view frame, bool more);
  std::string Encode(const std::vector<kv::CacheLog::Event>& events) const;
  void Replay(std::string_view client, uint64_t from);

  const ZmqLibrary& zmq_;
  void* const context_;
  kv::CacheLog& log_;
  const Config config_;
  void* publisher_ = nullptr;
  void* replay_ = nullptr;
  uint64_t next_ = 0;  // sequence
  std::deque<std::pair<uint64_t, std::string>> kept_;
  size_t kept_bytes_ = 0;
};

}  // namespace tokenspeed::net
