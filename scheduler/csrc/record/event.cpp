// SPDX-License-Identifier: MIT
#include "record/event.h"

#include <array>
#include <cstring>
#include <limits>
#include <sstream>
#include <type_traits>
#include <utility>

namespace tokenspeed::record {
namespace {

// Calls visit(field) for every field, in order. The bindings name every member of a struct, so one
// that is added and not recorded does not compile.
template <class Event, class Visit>
void ForEachField(Event& event, Visit visit) {
  using T = std::remove_const_t<Event>;
  if constexpr (std::is_same_v<T, Submit>) {
    auto& [name, time, prompt, origin, max_tokens, sampling, stop_ids, priority, salt, session,
           retain, deadline] = event.submission;
    auto& [id, extends, shared] = origin;
    auto& [temperature, top_k, top_p, seed, logprobs, shaping] = sampling;
    visit(name.client.value), visit(name.id), visit(time), visit(prompt), visit(max_tokens);
    visit(id), visit(extends), visit(shared);
    visit(temperature), visit(top_k), visit(top_p), visit(seed), visit(logprobs);
    visit(shaping);
    visit(stop_ids), visit(priority), visit(salt);
    visit(session), visit(retain), visit(deadline);
  } else if constexpr (std::is_same_v<T, plan::Limits>) {
    auto& [hash_key, max_slots, max_step_tokens, max_model_len, max_waiting, vocab_size, depth,
           max_prefill_tokens, prefix_caching, evict_by_reuse, transfer_ms, decode_stretch,
           ageing] = event;
    visit(hash_key.bytes), visit(max_slots), visit(max_step_tokens), visit(max_model_len),
        visit(max_waiting);
    visit(vocab_size), visit(depth), visit(max_prefill_tokens), visit(prefix_caching);
    visit(evict_by_reuse), visit(transfer_ms), visit(decode_stretch), visit(ageing);
  } else if constexpr (std::is_same_v<T, Abort>) {
    visit(event.name.client.value), visit(event.name.id), visit(event.kept);
  } else if constexpr (std::is_same_v<T, AbortClient>) {
    visit(event.client.value);
  } else if constexpr (std::is_same_v<T, BeginEpoch>) {
    auto& [num_blocks, block_size, host_blocks, max_drafts, groups] = event.shape;
    visit(event.epoch.value), visit(num_blocks), visit(block_size), visit(host_blocks);
    visit(max_drafts), visit(groups);
  } else if constexpr (std::is_same_v<T, Plan>) {
    visit(event.now);
  } else if constexpr (std::is_same_v<T, Advance>) {
    visit(event.step.value), visit(event.tokens), visit(event.logprobs), visit(event.now);
    visit(event.counts);
  } else if constexpr (std::is_same_v<T, Hint>) {
    visit(event.salt), visit(event.session), visit(event.action), visit(event.now);
    visit(event.ttl);
  } else if constexpr (std::is_same_v<T, Transferred>) {
    visit(event.ticket.value), visit(event.ok), visit(event.now);
  } else if constexpr (std::is_same_v<T, Prefetch> || std::is_same_v<T, Demote>) {
    visit(event.tokens), visit(event.salt);
  } else {
    static_assert(std::is_empty_v<T>, "an event whose fields are not visited");
  }
}

class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) { out_.clear(); }

  template <class T>
    requires std::is_arithmetic_v<T>
  void operator()(const T& value) {
    Append(&value, sizeof(value));
  }
  void operator()(const std::array<std::byte, 16>& bytes) { Append(bytes.data(), bytes.size()); }
  template <class Container>
    requires requires(const Container& c) { c.data(); }
  void operator()(const Container& values) {
    (*this)(static_cast<uint32_t>(values.size()));
    Append(values.data(), values.size() * sizeof(values[0]));
  }

 private:
  void Append(const void* data, size_t size) {
    if (size > 0) out_.append(static_cast<const char*>(data), size);
  }
  std::string& out_;
};

class Reader {
 public:
  explicit Reader(Bytes bytes) : rest_(bytes) {}

  template <class T>
    requires std::is_arithmetic_v<T>
  void operator()(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte = 0;
      (*this)(byte);
      value = byte != 0;
    } else {
      Take(&value, sizeof(value));
    }
  }
  void operator()(std::array<std::byte, 16>& bytes) { Take(bytes.data(), bytes.size()); }
  template <class Container>
    requires requires(Container& c) { c.data(); }
  void operator()(Container& values) {
    uint32_t count = 0;
    (*this)(count);
    if (count > rest_.size() / sizeof(values[0])) whole_ = false;
    if (!whole_) return;
    values.resize(count);
    Take(values.data(), count * sizeof(values[0]));
  }
  // Everything was there and nothing is left.
  bool whole() const { return whole_ && rest_.empty(); }

 private:
  void Take(void* data, size_t size) {
    if (size > rest_.size()) whole_ = false;
    if (!whole_ || size == 0) return;
    std::memcpy(data, rest_.data(), size);
    rest_ = rest_.subspan(size);
  }
  Bytes rest_;
  bool whole_ = true;
};

template <class T>
Result<T> Decode(Bytes bytes, const char* what) {
  T value{};
  Reader read(bytes);
  ForEachField(value, [&](auto& field) { read(field); });
  if (read.whole()) return value;
  return Error{std::string(what) + " of " + std::to_string(bytes.size()) +
               " bytes has other fields than this release records"};
}

struct Narrator {
  std::ostringstream text;

  void operator()(const Submit& event) {
    const plan::Submission& s = event.submission;
    Name(text << "submit", s.name)
        << ": " << s.prompt.size() << " tokens, at most " << s.max_tokens << " more";
    if (!s.salt.empty()) text << ", salted";
    if (!s.session.empty()) text << ", of a session";
  }
  void operator()(const Abort& event) {
    Name(text << "abort", event.name);
    if (event.kept >= 0) text << ", " << event.kept << " tokens kept";
  }
  void operator()(const AbortClient& event) { text << "abort client " << event.client.value; }
  void operator()(const AbortAll&) { text << "abort all"; }
  void operator()(const Drain&) { text << "drain"; }
  void operator()(const BeginEpoch& event) {
    const plan::EpochShape& shape = event.shape;
    text << "begin epoch " << event.epoch.value << ": " << shape.num_blocks << " blocks of "
         << shape.block_size << " tokens";
    if (shape.host_blocks > 0) text << ", " << shape.host_blocks << " host blocks";
    if (shape.max_drafts > 0) text << ", up to " << shape.max_drafts << " drafts";
    if (shape.grouped()) text << ", " << shape.groups.size() << " groups";
  }
  void operator()(const Hint& event) {
    text << "hint " << event.action << " at " << event.now << " ns";
  }
  void operator()(const EndEpoch&) { text << "end epoch"; }
  void operator()(const Plan& event) { text << "plan at " << event.now << " ns"; }
  void operator()(const Advance& event) {
    text << "advance step " << event.step.value << ": " << event.tokens.size() << " tokens";
  }
  void operator()(const Transferred& event) {
    text << "transfer " << event.ticket.value << (event.ok ? " done" : " failed");
  }
  void operator()(const Prefetch& event) {
    text << "prefetch " << event.tokens.size() << " tokens";
  }
  void operator()(const Demote& event) { text << "demote " << event.tokens.size() << " tokens"; }

 private:
  static std::ostream& Name(std::ostream& out, const RequestName& name) {
    return out << " request " << name.client.value << "/" << name.id;
  }
};

}  // namespace

void EncodeEvent(const Event& event, std::string& out) {
  Writer write(out);
  std::visit([&](const auto& each) { ForEachField(each, [&](const auto& f) { write(f); }); },
             event);
}

Result<Event> DecodeEvent(size_t kind, Bytes bytes) {
  Result<Event> event = Error{"event kind " + std::to_string(kind) + " is of another release"};
  const auto attempt = [&]<size_t I>(std::integral_constant<size_t, I>) {
    if (kind != I) return;
    auto decoded = Decode<std::variant_alternative_t<I, Event>>(bytes, "an event");
    event = decoded.ok() ? Result<Event>(Event(std::move(decoded).value()))
                         : Result<Event>(decoded.error());
  };
  [&]<size_t... I>(std::index_sequence<I...>) {
    (attempt(std::integral_constant<size_t, I>{}), ...);
  }(std::make_index_sequence<std::variant_size_v<Event>>{});
  return event;
}

void EncodeLimits(const plan::Limits& limits, std::string& out) {
  Writer write(out);
  ForEachField(limits, [&](const auto& field) { write(field); });
}

Result<plan::Limits> DecodeLimits(Bytes bytes) {
  return Decode<plan::Limits>(bytes, "a configuration");
}

std::string Describe(const Event& event) {
  Narrator narrator;
  std::visit([&](const auto& each) { narrator(each); }, event);
  return narrator.text.str();
}

}  // namespace tokenspeed::record
