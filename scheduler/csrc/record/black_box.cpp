// SPDX-License-Identifier: MIT
#include "record/black_box.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

#include "base/check.h"

namespace tokenspeed::record {
namespace {

Error Trouble(const std::string& path, const char* what, int error) {
  return Error{path + ": " + what + ": " + std::strerror(error)};
}

// The box of a process that crashed makes place for the new one.
void KeepCrashed(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  BoxHeader header;
  const bool crashed = read(fd, &header, sizeof(header)) == sizeof(header) &&
                       std::memcmp(header.magic, kBoxMagic, sizeof(header.magic)) == 0 &&
                       header.closed == 0 && header.used[0] > 0 &&
                       flock(fd, LOCK_EX | LOCK_NB) == 0;
  close(fd);
  if (!crashed) return;
  for (int age = kKeptBoxes; age > 1; --age) {
    std::rename((path + "." + std::to_string(age - 1)).c_str(),
                (path + "." + std::to_string(age)).c_str());
  }
  std::rename(path.c_str(), (path + ".1").c_str());
}

}  // namespace

Result<std::unique_ptr<BlackBox>> BlackBox::Create(const std::string& path, int64_t bytes,
                                                   const plan::Limits& limits) {
  if (bytes < kMinBoxBytes) {
    return Error{"a record of " + std::to_string(bytes) + " bytes; give at least " +
                 std::to_string(kMinBoxBytes)};
  }
  std::string encoded;
  EncodeLimits(limits, encoded);
  TS_CHECK(sizeof(BoxHeader) + encoded.size() <= kBoxHeaderBytes, "limits of " << encoded.size());

  KeepCrashed(path);
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return Trouble(path, "cannot be made", errno);
  const auto fail = [&](const char* what, int error) {
    close(fd);
    return Trouble(path, what, error);
  };
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) return fail("another process records into it", errno);
  if (fchmod(fd, 0600) != 0) return fail("cannot be made private", errno);
  if (ftruncate(fd, 0) != 0) return fail("cannot be emptied", errno);
  if (const int error = posix_fallocate(fd, 0, bytes); error != 0) {
    unlink(path.c_str());
    return fail("has no room", error);
  }
  void* memory =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return fail("cannot be mapped", errno);

  auto* start = static_cast<std::byte*>(memory);
  auto& header = *new (start) BoxHeader;
  const uint64_t tail = (static_cast<uint64_t>(bytes) - kBoxHeaderBytes) / 32 * 8;
  header.sizes[0] = 2 * tail;  // exact replay is worth more
  header.sizes[1] = header.sizes[2] = tail;
  header.limits_bytes = static_cast<uint32_t>(encoded.size());
  std::memcpy(start + sizeof(BoxHeader), encoded.data(), encoded.size());
  header.format = kBoxFormat;
  std::memcpy(header.magic, kBoxMagic, sizeof(header.magic));
  return std::unique_ptr<BlackBox>(new BlackBox(fd, start, static_cast<size_t>(bytes)));
}

BlackBox::BlackBox(int fd, std::byte* memory, size_t bytes)
    : fd_(fd), memory_(memory), bytes_(bytes), header_(*reinterpret_cast<BoxHeader*>(memory)) {}

BlackBox::~BlackBox() {
  header_.closed = 1;
  munmap(memory_, bytes_);
  close(fd_);
}

std::byte* BlackBox::Segment(uint32_t index) const {
  std::byte* start = memory_ + kBoxHeaderBytes;
  for (uint32_t i = 0; i < index; ++i) start += header_.sizes[i];
  return start;
}

void BlackBox::Write(const Event& event) {
  EncodeEvent(event, fields_);
  const RecordHead head{.payload = static_cast<uint32_t>(fields_.size()),
                        .kind = static_cast<uint16_t>(event.index()),
                        .index = events_++,
                        .outcome = {}};
  latest_ = nullptr;
  const size_t size = RecordBytes(head);
  if (header_.used[header_.latest] + size > header_.sizes[header_.latest]) {
    // The head is left for good, the tails take turns.
    header_.latest = header_.latest == 1 ? 2 : 1;
    header_.used[header_.latest] = 0;
    if (size > header_.sizes[header_.latest]) return;
  }
  uint64_t& used = header_.used[header_.latest];
  std::byte* const place = Segment(header_.latest) + used;
  latest_ = new (place) RecordHead(head);
  std::memcpy(place + sizeof(head), fields_.data(), fields_.size());
  std::atomic_ref<uint64_t>(used).store(used + size, std::memory_order_release);
}

void BlackBox::Settle(const Hash128& outcome) {
  if (latest_ == nullptr) return;
  latest_->outcome = outcome;
  std::atomic_ref<uint16_t>(latest_->settled).store(1, std::memory_order_release);
}

}  // namespace tokenspeed::record
