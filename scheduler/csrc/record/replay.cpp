// SPDX-License-Identifier: MIT
#include "record/replay.h"

#include <cstring>
#include <fstream>
#include <sstream>

#include "record/recorded_scheduler.h"
#include "wire/codec.h"

namespace tokenspeed::record {
namespace {

std::string Summary(const plan::StepPlan& plan) {
  int64_t tokens = plan.repeated_rows;
  for (const int32_t row : plan.row_tokens) tokens += row;
  std::ostringstream text;
  text << "step " << plan.step.value << ": " << plan.repeated_rows + std::ssize(plan.rows)
       << " rows, " << tokens << " tokens";
  if (!plan.added_slots.empty()) text << ", " << plan.added_slots.size() << " slots added";
  if (!plan.removed_slots.empty()) text << ", " << plan.removed_slots.size() << " removed";
  if (!plan.block_ids.empty()) text << ", " << plan.block_ids.size() << " blocks";
  if (!plan.store_sources.empty()) text << ", " << plan.store_sources.size() << " stored";
  if (!plan.load_sources.empty()) text << ", " << plan.load_sources.size() << " loaded";
  return text.str();
}

}  // namespace

Result<Replay> Replay::Open(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Error{path + " cannot be read"};
  Replay replay;
  std::ostringstream content;
  content << file.rdbuf();
  replay.bytes_ = std::move(content).str();
  const std::string& bytes = replay.bytes_;
  BoxHeader header;
  const auto wrong = [&](const std::string& what) { return Error{path + " " + what}; };
  if (bytes.size() < kBoxHeaderBytes) return wrong("is too short for a black box");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (std::memcmp(header.magic, kBoxMagic, sizeof(header.magic)) != 0) {
    return wrong("is no black box of the scheduler");
  }
  if (header.format != kBoxFormat) {
    return wrong("has format " + std::to_string(header.format) + ", this release reads " +
                 std::to_string(kBoxFormat) + "; replay it with the release that wrote it");
  }
  replay.closed_ = header.closed != 0;
  size_t start = kBoxHeaderBytes;
  for (int i = 0; i < kSegments; ++i) {
    const size_t room = bytes.size() - start;
    if (header.sizes[i] > room || header.used[i] > header.sizes[i]) return wrong("is cut short");
    replay.segments_.push_back({start, start + header.used[i]});
    start += header.sizes[i];
  }
  // The tail that is being written holds the later events.
  if (header.latest == 1) std::swap(replay.segments_[1], replay.segments_[2]);
  replay.at_ = replay.segments_[0].begin;
  if (header.limits_bytes > kBoxHeaderBytes - sizeof(header)) return wrong("has broken limits");
  Result<plan::Limits> limits =
      DecodeLimits(wire::AsBytes(bytes).subspan(sizeof(header), header.limits_bytes));
  if (!limits.ok()) return wrong(": " + limits.error().message);
  if (Status valid = limits.value().Validate(); !valid.ok())
    return wrong(": " + valid.error().message);
  replay.core_ = std::make_unique<plan::Scheduler>(limits.value());
  return replay;
}

Result<std::optional<Played>> Replay::Next() {
  while (at_ == segments_[segment_].end) {
    if (segment_ + 1 == segments_.size()) return std::optional<Played>();
    at_ = segments_[++segment_].begin;
  }
  const size_t left = segments_[segment_].end - at_;
  RecordHead head;
  if (left < sizeof(head)) return Error{"half a record at byte " + std::to_string(at_)};
  std::memcpy(&head, bytes_.data() + at_, sizeof(head));
  if (RecordBytes(head) > left) {
    return Error{"half a record at byte " + std::to_string(at_)};
  }
  Result<Event> event =
      DecodeEvent(head.kind, wire::AsBytes(bytes_).subspan(at_ + sizeof(head), head.payload));
  if (!event.ok()) {
    return Error{"event " + std::to_string(head.index) + ": " + event.error().message};
  }
  at_ += RecordBytes(head);
  const auto* begin = std::get_if<record::BeginEpoch>(&event.value());
  if (begin != nullptr && (core_->in_epoch() || !begin->shape.Validate().ok())) {
    return Error{"event " + std::to_string(head.index) + ": " + Describe(event.value()) +
                 " is not possible here"};
  }
  Played played;
  if (head.index == next_index_ && segment_ == 0) {
    ++next_index_;
    played = Play(std::move(event).value(), head);
  } else {
    played.event = Describe(event.value());
    played.replayed = false;
  }
  played.index = head.index;
  played.settled = head.settled != 0;
  return std::optional(std::move(played));
}

Played Replay::Play(Event event, const RecordHead& head) {
  Played played;
  played.event = Describe(event);
  plan::Scheduler& core = *core_;
  Hash128 outcome;
  const auto tell = [&](const Status& status) {
    outcome = OutcomeOf(status);
    played.outcome = status.ok() ? "" : status.error().message;
  };
  if (auto* submit = std::get_if<record::Submit>(&event)) {
    const auto taken = core.Submit(std::move(submit->submission));
    outcome = OutcomeOf(taken);
    if (!taken.ok()) played.outcome = "refused: " + taken.error().message;
  } else if (const auto* abort = std::get_if<record::Abort>(&event)) {
    core.Abort(abort->name, abort->kept);
  } else if (const auto* client = std::get_if<record::AbortClient>(&event)) {
    core.AbortClient(client->client);
  } else if (std::holds_alternative<record::AbortAll>(event)) {
    core.AbortAll();
  } else if (const auto* hint = std::get_if<record::Hint>(&event)) {
    core.Hint(hint->salt, hint->session, hint->action, hint->now, hint->ttl);
  } else if (std::holds_alternative<record::Drain>(event)) {
    core.Drain();
  } else if (const auto* begin = std::get_if<record::BeginEpoch>(&event)) {
    digest_ = wire::FirstDigest(begin->epoch);
    core.BeginEpoch(begin->epoch, begin->shape);
  } else if (std::holds_alternative<record::EndEpoch>(event)) {
    core.EndEpoch();
  } else if (const auto* advance = std::get_if<record::Advance>(&event)) {
    tell(core.Advance(advance->step, advance->tokens, advance->logprobs, advance->now,
                      advance->counts));
  } else if (const auto* transferred = std::get_if<record::Transferred>(&event)) {
    core.Transferred(transferred->ticket, transferred->ok, transferred->now);
  } else if (const auto* prefetch = std::get_if<record::Prefetch>(&event)) {
    core.Prefetch(prefetch->tokens, prefetch->salt);
  } else if (const auto* demote = std::get_if<record::Demote>(&event)) {
    core.Demote(demote->tokens, demote->salt);
  } else if (const auto* planning = std::get_if<record::Plan>(&event)) {
    const plan::StepPlan* plan = core.Plan(planning->now);
    if (plan != nullptr) {
      wire::EncodePlan(*plan, frame_);
      outcome = digest_ = wire::NextDigest(digest_, wire::AsBytes(frame_));
      played.step = plan->step;
      played.outcome = Summary(*plan);
    }
  }
  core.ClearEvents();
  played.same = head.settled == 0 || outcome == head.outcome;
  return played;
}

}  // namespace tokenspeed::record
