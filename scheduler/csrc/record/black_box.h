// SPDX-License-Identifier: MIT
// A file of bounded size that holds what happened to the core, and outlives the process.
//
// The file is reserved in full and mapped, so an event costs a copy into memory, a full disk is
// found at the start and not while serving, and what was written survives any end of the process,
// SIGKILL included. Behind a header page lie three segments:
//
//   head     everything from the start of the process until it is full: replayed exactly
//   tails    the latest events after that, each emptied in turn: shown, not replayed, for what the
//            core was when they begin is not known any more
//
// A record is written before the core sees the event and settled with the outcome after, so a crash
// leaves the event that the core died in. A box holds token ids: only its owner may read it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/siphash.h"
#include "plan/limits.h"
#include "record/event.h"

namespace tokenspeed::record {

struct RecordHead {
  uint32_t payload = 0;  // bytes of the event's fields behind it, padded to a multiple of 8
  uint16_t kind = 0;     // index of the event's alternative
  uint16_t settled = 0;  // the core returned, with `outcome`
  uint64_t index = 0;    // counts all events of the process: a gap is what was not kept
  Hash128 outcome;
};
static_assert(sizeof(RecordHead) == 32);

inline size_t RecordBytes(const RecordHead& head) {
  return sizeof(RecordHead) + (size_t{head.payload} + 7) / 8 * 8;
}

inline constexpr int kSegments = 3;  // the head and two tails

struct BoxHeader {
  char magic[8] = {};
  uint32_t format = 0;
  uint32_t closed = 0;  // the process ended by itself
  uint64_t sizes[kSegments] = {};
  uint64_t used[kSegments] = {};  // grows behind the bytes: readers see whole records only
  uint32_t latest = 0;            // segment that is written
  uint32_t limits_bytes = 0;
  // The encoded limits follow.
};

inline constexpr char kBoxMagic[] = "TSRECOR3";  // without its final zero
inline constexpr uint32_t kBoxFormat = 1;
inline constexpr size_t kBoxHeaderBytes = 4096;
inline constexpr int64_t kMinBoxBytes = 64 * 1024;
inline constexpr int kKeptBoxes = 3;

class BlackBox {
 public:
  // Creates the file with mode 0600. A box of a process that did not close it is kept as `path`.1,
  // older ones as .2 and .3.
  // Errors: the file cannot be made, the disk has no room, another process writes it, or `bytes` is
  // less than kMinBoxBytes.
  static Result<std::unique_ptr<BlackBox>> Create(const std::string& path, int64_t bytes,
                                                  const plan::Limits& limits);
  // Says that the process ended by itself.
  ~BlackBox();
  BlackBox(const BlackBox&) = delete;
  BlackBox& operator=(const BlackBox&) = delete;

  // Before the core sees it.
  void Write(const Event& event);
  // After; belongs to the latest Write.
  void Settle(const Hash128& outcome);

 private:
  BlackBox(int fd, std::byte* memory, size_t bytes);
  // The start of a segment.
  std::byte* Segment(uint32_t index) const;

  const int fd_;
  std::byte* const memory_;
  const size_t bytes_;
  BoxHeader& header_;
  uint64_t events_ = 0;
  RecordHead* latest_ = nullptr;
  std::string fields_;
};

}  // namespace tokenspeed::record
