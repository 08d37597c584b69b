// SPDX-License-Identifier: MIT
#include "wire/codec.h"

#include <bit>
#include <limits>
#include <msgpack.hpp>

namespace tokenspeed::wire {
namespace {

struct Sink {
  std::string& bytes;
  void write(const char* data, size_t size) { bytes.append(data, size); }
};

class Writer {
 public:
  explicit Writer(std::string& out) : sink_{out}, packer_(sink_) {}

  void Array(size_t size) { packer_.pack_array(static_cast<uint32_t>(size)); }
  void operator()(int64_t value) { packer_.pack_int64(value); }
  void operator()(uint64_t value) { packer_.pack_uint64(value); }
  void operator()(bool value) { value ? packer_.pack_true() : packer_.pack_false(); }
  void operator()(double value) { packer_.pack_double(value); }
  void operator()(const std::string& value) {
    packer_.pack_str(static_cast<uint32_t>(value.size()));
    packer_.pack_str_body(value.data(), static_cast<uint32_t>(value.size()));
  }
  void operator()(const Blob& value) { Binary(value.bytes.data(), value.bytes.size()); }
  template <class T>
  void operator()(const Column<T>& column) {
    Binary(reinterpret_cast<const char*>(column.data()), column.size() * sizeof(T));
  }
  void operator()(const Sampling& value) {
    size_t count = 0;
    Sampling::ForEachField(value, [&](const auto&) { ++count; });
    Array(count);
    Sampling::ForEachField(value, [&](const auto& field) { (*this)(field); });
  }

 private:
  void Binary(const char* data, size_t size) {
    packer_.pack_bin(static_cast<uint32_t>(size));
    if (size > 0) packer_.pack_bin_body(data, static_cast<uint32_t>(size));
  }

  Sink sink_;
  msgpack::packer<Sink> packer_;
};

// Fills the fields of a struct in order; the first misfit stops it.
class Reader {
 public:
  Reader(const Fields& fields, const Field* at, int count, int required)
      : fields_(fields), at_(at), count_(count), required_(required) {}

  template <class T>
  void operator()(T& value) {
    const int index = index_++;
    if (!error_.empty()) return;
    if (index < count_) {
      if (!Take(at_[index], value))
        error_ = "field " + std::to_string(index) + " is of another type or too long";
    } else if (index < required_) {
      error_ = "field " + std::to_string(index) + " is missing";
    }
  }
  const std::string& error() const { return error_; }

 private:
  using Kind = Field::Kind;

  static bool Take(const Field& field, int64_t& value) {
    if (field.kind == Kind::kNegative) {
      value = static_cast<int64_t>(field.value);
      return true;
    }
    if (field.kind != Kind::kUnsigned ||
        field.value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return false;
    }
    value = static_cast<int64_t>(field.value);
    return true;
  }
  static bool Take(const Field& field, uint64_t& value) {
    value = field.value;
    return field.kind == Kind::kUnsigned;
  }
  static bool Take(const Field& field, bool& value) {
    value = field.value != 0;
    return field.kind == Kind::kBool;
  }
  static bool Take(const Field& field, double& value) {
    if (field.kind == Kind::kUnsigned) value = static_cast<double>(field.value);
    if (field.kind == Kind::kNegative)
      value = static_cast<double>(static_cast<int64_t>(field.value));
    if (field.kind == Kind::kFloat) value = std::bit_cast<double>(field.value);
    return field.kind == Kind::kUnsigned || field.kind == Kind::kNegative ||
           field.kind == Kind::kFloat;
  }
  static bool Take(const Field& field, std::string& value) {
    if (field.kind != Kind::kString || field.size > kMaxStringBytes) return false;
    value.assign(reinterpret_cast<const char*>(field.data), field.size);
    return true;
  }
  static bool Take(const Field& field, Blob& value) {
    if (field.kind != Kind::kBinary || field.size > kMaxBlobBytes) return false;
    value.bytes.assign(reinterpret_cast<const char*>(field.data), field.size);
    return true;
  }
  template <class T>
  static bool Take(const Field& field, Column<T>& value) {
    if (field.kind != Kind::kBinary || field.size % sizeof(T) != 0) return false;
    const size_t count = field.size / sizeof(T);
    value.reserve(count + count / 8);  // a long prompt's answer comes behind it without a move
    value.resize(count);
    if (!value.empty()) std::memcpy(value.data(), field.data, field.size);
    return true;
  }
  bool Take(const Field& field, Sampling& value) {
    const auto there = static_cast<uint64_t>(fields_.inner_count);
    if (field.kind != Kind::kArray || field.value + field.size > there) return false;
    Reader inner(fields_, fields_.inner.data() + field.value, static_cast<int>(field.size),
                 Sampling::kRequired);
    Sampling::ForEachField(value, [&](auto& part) { inner(part); });
    return inner.error().empty();
  }

  const Fields& fields_;
  const Field* at_;
  const int count_;
  const int required_;
  int index_ = 0;
  std::string error_;
};

template <class Message>
void EncodeAs(const auto& message, std::string& out) {
  out.clear();
  size_t count = 1;
  Message::ForEachField(message, [&](const auto&) { ++count; });
  Writer write(out);
  write.Array(count);
  write(int64_t{Message::kTag});
  Message::ForEachField(message, [&](const auto& field) { write(field); });
}

}  // namespace

template <class Message>
void Encode(const Message& message, std::string& out) {
  EncodeAs<Message>(message, out);
}

void EncodePlan(const plan::StepPlan& plan, std::string& out) { EncodeAs<StepPlan>(plan, out); }

template <class Message>
Result<Message> FromFields(const Fields& fields) {
  Message message;
  Reader read(fields, fields.outer.data() + 1, fields.outer_count - 1, Message::kRequired);
  Message::ForEachField(message, [&](auto& field) { read(field); });
  if (!read.error().empty()) {
    return Error{"message with tag " + std::to_string(Message::kTag) + ": " + read.error()};
  }
  return message;
}

#define TS_MESSAGE(Message)                           \
  template void Encode(const Message&, std::string&); \
  template Result<Message> FromFields(const Fields&);
TS_MESSAGE(Hello)
TS_MESSAGE(Welcome)
TS_MESSAGE(Refused)
TS_MESSAGE(Heartbeat)
TS_MESSAGE(HelloRequired)
TS_MESSAGE(Shutdown)
TS_MESSAGE(Submit)
TS_MESSAGE(Abort)
TS_MESSAGE(SessionHint)
TS_MESSAGE(Profile)
TS_MESSAGE(TokenDeltas)
TS_MESSAGE(Rejected)
TS_MESSAGE(Stats)
TS_MESSAGE(StepPlan)
TS_MESSAGE(StepResult)
TS_MESSAGE(StepAck)
TS_MESSAGE(WorkerFailed)
TS_MESSAGE(Transfers)
TS_MESSAGE(SchedulerConfig)
#undef TS_MESSAGE

Result<FromFrontend> DecodeFromFrontend(Bytes frame) {
  return DecodeOneOf<Hello, Heartbeat, Submit, Abort, SessionHint, Profile>(frame);
}

Result<FromWorker> DecodeFromWorker(Bytes frame) {
  return DecodeOneOf<Hello, Heartbeat, StepResult, StepAck, WorkerFailed, Transfers>(frame);
}

Result<SchedulerConfig> DecodeConfig(Bytes frame) {
  auto config = DecodeOneOf<SchedulerConfig>(frame);
  if (!config.ok()) return Error(config.error());
  return std::get<SchedulerConfig>(std::move(config).value());
}

Result<std::string> Reencode(Bytes frame) {
  auto message = DecodeOneOf<Hello, Welcome, Refused, Heartbeat, HelloRequired, Shutdown, Submit,
                             Abort, SessionHint, Profile, TokenDeltas, Rejected, Stats, StepPlan,
                             StepResult, StepAck, WorkerFailed, Transfers, SchedulerConfig>(frame);
  if (!message.ok()) return Error(message.error());
  std::string out;
  std::visit([&](const auto& known) { Encode(known, out); }, message.value());
  return out;
}

Hash128 FirstDigest(Epoch epoch) {
  Hash128 digest;
  std::memcpy(digest.bytes.data(), &epoch.value, sizeof(epoch.value));
  return digest;
}

}  // namespace tokenspeed::wire
