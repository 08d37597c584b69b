// SPDX-License-Identifier: MIT
#include "wire/fields.h"

#include <bit>
#include <msgpack.hpp>
#include <string>

#include "wire/messages.h"

namespace tokenspeed::wire {
namespace {

// Called by the msgpack parser for each element; returning false ends the parse.
class FieldVisitor : public msgpack::null_visitor {
 public:
  FieldVisitor(size_t frame_bytes, Fields& fields) : frame_bytes_(frame_bytes), fields_(fields) {}

  bool visit_nil() { return Take(Kind::kOther); }
  bool visit_boolean(bool value) { return Take(Kind::kBool, value); }
  bool visit_positive_integer(uint64_t value) { return Take(Kind::kUnsigned, value); }
  bool visit_negative_integer(int64_t value) {
    return Take(Kind::kNegative, static_cast<uint64_t>(value));
  }
  bool visit_float32(float value) { return visit_float64(value); }
  bool visit_float64(double value) { return Take(Kind::kFloat, std::bit_cast<uint64_t>(value)); }
  bool visit_str(const char* data, uint32_t size) { return Take(Kind::kString, 0, data, size); }
  bool visit_bin(const char* data, uint32_t size) { return Take(Kind::kBinary, 0, data, size); }
  bool visit_ext(const char*, uint32_t) { return Take(Kind::kOther); }

  bool start_array(uint32_t count) {
    if (depth_ == 0) {
      is_array_ = true;
    } else {
      // An element takes a byte at least, so a larger count is a lie.
      const size_t kept = count <= frame_bytes_ ? count : 0;
      const auto first = static_cast<uint64_t>(fields_.inner_count);
      if (!Take(Kind::kArray, first, nullptr, kept)) return false;
    }
    return count <= frame_bytes_ && ++depth_ <= kMaxNesting;
  }
  bool end_array() {
    --depth_;
    return true;
  }
  bool start_map(uint32_t count) {
    if (depth_ == 0 || !Take(Kind::kOther)) return false;
    ++maps_;
    return count <= frame_bytes_ && ++depth_ <= kMaxNesting;
  }
  bool end_map() {
    --maps_;
    --depth_;
    return true;
  }
  void parse_error(size_t, size_t) {}
  void insufficient_bytes(size_t, size_t) {}

  bool is_array() const { return is_array_; }

 private:
  using Kind = Field::Kind;

  bool Take(Kind kind, uint64_t value = 0, const char* data = nullptr, size_t size = 0) {
    const Field field{kind, value, reinterpret_cast<const std::byte*>(data), size};
    if (depth_ == 0) return false;  // a bare value is no message
    if (maps_ > 0) return true;
    if (depth_ == 1 && fields_.outer_count < kMaxFields) {
      fields_.outer[static_cast<size_t>(fields_.outer_count++)] = field;
    } else if (depth_ == 2 && fields_.inner_count < kMaxFields) {
      fields_.inner[static_cast<size_t>(fields_.inner_count++)] = field;
    }
    return true;
  }

  const size_t frame_bytes_;
  Fields& fields_;
  int depth_ = 0;
  int maps_ = 0;
  bool is_array_ = false;
};

}  // namespace

Status ParseFields(Bytes frame, Fields& fields) {
  if (frame.size() > kMaxFrameBytes) {
    return Error{"frame of " + std::to_string(frame.size()) + " bytes is over the limit of " +
                 std::to_string(kMaxFrameBytes)};
  }
  fields.outer_count = fields.inner_count = 0;
  FieldVisitor visitor(frame.size(), fields);
  size_t end = 0;
  const char* data = reinterpret_cast<const char*>(frame.data());
  const bool parsed = !frame.empty() && msgpack::parse(data, frame.size(), end, visitor);
  if (!parsed || end != frame.size() || !visitor.is_array()) {
    return Error{"frame of " + std::to_string(frame.size()) + " bytes is no msgpack array"};
  }
  if (fields.outer_count == 0 || fields.outer[0].kind != Field::Kind::kUnsigned) {
    return Error{"frame of " + std::to_string(frame.size()) + " bytes has no tag"};
  }
  return Ok{};
}

}  // namespace tokenspeed::wire
