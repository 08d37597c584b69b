// SPDX-License-Identifier: MIT
#include "net/frontend_desk.h"

#include <algorithm>
#include <utility>

namespace tokenspeed::net {
namespace {

constexpr size_t kMaxStopIds = 4096;
constexpr int64_t kMaxHoldMs = int64_t{24} * 3600 * 1000;  // longer ones hold no longer

}  // namespace

template <class Message>
void FrontendDesk::Send(const Identity& to, const Message& message) {
  wire::Encode(message, buffer_);
  router_.Send(to, buffer_);
}

void FrontendDesk::Handle(const Router::Incoming& message, const wire::Welcome& welcome) {
  auto decoded = message.whole ? wire::DecodeFromFrontend(wire::AsBytes(message.frame))
                               : Result<wire::FromFrontend>(Error{"a message of several frames"});
  const auto known = frontends_.find(message.from);
  if (!decoded.ok()) {
    session_.Drop("frontend: " + decoded.error().message);
    if (known != frontends_.end()) {
      Send(message.from, wire::Refused{static_cast<int64_t>(plan::RefusalCode::kMalformed),
                                       decoded.error().message});
    }
    return;
  }
  wire::FromFrontend& any = decoded.value();
  if (auto* hello = std::get_if<wire::Hello>(&any)) return Greet(message.from, *hello, welcome);
  if (known == frontends_.end()) return Send(message.from, wire::HelloRequired{});
  Frontend& frontend = known->second;
  if (auto* submit = std::get_if<wire::Submit>(&any)) {
    // What it believes of this connection is wrong: it starts anew, and loses nothing by that.
    const auto origin = Complete(frontend, *submit);
    if (!origin) return Send(message.from, wire::HelloRequired{});
    TakeSubmit(message.from, frontend, std::move(*submit), *origin);
  } else if (const auto* abort = std::get_if<wire::Abort>(&any)) {
    scheduler_.Abort({frontend.client, abort->request_id}, abort->kept);
  } else if (const auto* hint = std::get_if<wire::SessionHint>(&any)) {
    scheduler_.Hint(hint->salt.bytes, hint->session, hint->action, Now(),
                    std::clamp<int64_t>(hint->ttl_ms, 0, kMaxHoldMs) * kMillisecond);
  } else if (auto* profile = std::get_if<wire::Profile>(&any)) {
    // It names a folder here, which is not for other machines to say.
    if (frontend.is_remote) return session_.Drop("frontend: a remote one asked for a profile");
    profile_ = std::move(*profile);
  }
}

void FrontendDesk::Greet(const Identity& from, const wire::Hello& hello,
                         const wire::Welcome& welcome) {
  if (auto refusal = session_.Refuse(hello, 0)) {
    Log("refused frontend " + hello.name + ": " + refusal->message);
    Send(from, wire::Refused{static_cast<int64_t>(refusal->code), refusal->message});
    return;
  }
  // A second Hello on a connection starts it anew.
  if (const auto known = frontends_.find(from); known != frontends_.end()) {
    scheduler_.AbortClient(known->second.client);
    identities_.erase(known->second.client);
    frontends_.erase(known);
  }
  last_client_ = ClientId{last_client_.value + 1};
  frontends_[from] = {.client = last_client_,
                      .name = hello.name,
                      .is_remote = session_.IsRemote(hello),
                      .deltas = {},
                      .kept = {}};
  identities_[last_client_] = from;
  Log("frontend " + hello.name + " joined");
  Send(from, welcome);
}

std::optional<plan::PromptOrigin> FrontendDesk::Complete(Frontend& frontend, wire::Submit& submit) {
  if (submit.keep == 0 && submit.kept_tokens == 0) return plan::PromptOrigin{};
  if (submit.keep < 1 || submit.keep > kKeptPrompts) return std::nullopt;
  frontend.kept.resize(kKeptPrompts);
  KeptPrompt& kept = frontend.kept[static_cast<size_t>(submit.keep - 1)];
  if (submit.kept_tokens < 0 || submit.kept_tokens > std::ssize(kept.tokens)) return std::nullopt;
  if (submit.kept_tokens + std::ssize(submit.prompt) > scheduler_.limits().max_model_len) {
    return std::nullopt;
  }
  kept.tokens.resize(static_cast<size_t>(submit.kept_tokens));
  kept.tokens.insert(kept.tokens.end(), submit.prompt.begin(), submit.prompt.end());
  // Its answer comes behind it.
  submit.prompt.reserve(kept.tokens.size() + kept.tokens.size() / 8);
  submit.prompt.assign(kept.tokens.begin(), kept.tokens.end());
  const uint64_t extends = std::exchange(kept.id, ++last_prompt_);
  return plan::PromptOrigin{
      .id = kept.id, .extends = extends, .shared = static_cast<int32_t>(submit.kept_tokens)};
}

void FrontendDesk::TakeSubmit(const Identity& from, Frontend& frontend, wire::Submit submit,
                              const plan::PromptOrigin& origin) {
  plan::Submission submission{
      .name = {frontend.client, submit.request_id},
      .time = Now(),
      .prompt = std::move(submit.prompt),
      .origin = origin,
      .max_tokens = submit.max_tokens,
      .sampling = {.temperature = static_cast<float>(submit.sampling.temperature),
                   .top_k = submit.sampling.top_k,
                   .top_p = static_cast<float>(submit.sampling.top_p),
                   .seed = submit.sampling.seed,
                   .logprobs = submit.sampling.logprobs,
                   .shaping =
                       std::string(submit.sampling.shaping.begin(), submit.sampling.shaping.end())},
      .stop_ids = std::move(submit.stop_ids),
      .priority = submit.priority,
      .salt = std::move(submit.salt.bytes),
      .session = std::move(submit.session),
      .retain = std::clamp<int64_t>(submit.retain_ms, 0, kMaxHoldMs) * kMillisecond};
  if (submit.deadline_ms > 0) {
    submission.deadline = submission.time + std::min(submit.deadline_ms, kMaxHoldMs) * kMillisecond;
  }
  const size_t stops = submission.stop_ids.size();
  StatusOr<plan::Rejection> taken =
      stops <= kMaxStopIds
          ? scheduler_.Submit(std::move(submission))
          : StatusOr<plan::Rejection>(plan::Rejection{
                plan::RefusalCode::kParameter, std::to_string(stops) + " stop ids; at most " +
                                                   std::to_string(kMaxStopIds) + " are allowed"});
  if (taken.ok()) return;
  Send(from, wire::Rejected{submit.request_id, static_cast<int64_t>(taken.error().code),
                            taken.error().message});
}

void FrontendDesk::TakeDetails(StepId step, const plan::Details& details) {
  step_began_ns_ = details.began_ns;
  step_ended_ns_ = details.ended_ns;
  auto bytes = details.bytes.begin();
  for (size_t i = 0; i < details.slots.size(); ++i) {
    const auto begin = std::exchange(bytes, bytes + details.sizes[i]);
    const auto name = scheduler_.NameOf(SlotId{details.slots[i]}, step);
    if (!name) continue;  // it has ended
    const auto identity = identities_.find(name->client);
    if (identity == identities_.end()) continue;
    wire::TokenDeltas& deltas = frontends_.at(identity->second).deltas;
    deltas.detail_ids.push_back(name->id);
    deltas.detail_bytes.push_back(details.sizes[i]);
    deltas.details.insert(deltas.details.end(), begin, bytes);
  }
}

void FrontendDesk::SendEvents(StepId step) {
  for (const plan::LateRejection& late : scheduler_.late_rejections()) {
    const auto identity = identities_.find(late.name.client);
    if (identity == identities_.end()) continue;
    Send(identity->second, wire::Rejected{late.name.id, static_cast<int64_t>(late.rejection.code),
                                          late.rejection.message});
  }
  ClientId last;
  Frontend* frontend = nullptr;
  for (const plan::TokenEvent& event : scheduler_.events()) {
    if (event.name.client != last) {
      last = event.name.client;
      const auto identity = identities_.find(last);
      frontend = identity == identities_.end() ? nullptr : &frontends_.at(identity->second);
    }
    if (frontend == nullptr) continue;  // it is gone, and these are the ends of its requests
    wire::TokenDeltas& deltas = frontend->deltas;
    deltas.request_ids.push_back(event.name.id);
    deltas.counts.push_back(event.token >= 0 ? 1 : 0);
    if (event.token >= 0) {
      deltas.tokens.push_back(event.token);
      deltas.logprobs.push_back(event.logprob);
      frontend->wants_logprobs |= event.has_logprob;
    }
    deltas.finish_reasons.push_back(static_cast<uint8_t>(event.reason));
    deltas.cached_tokens.push_back(event.cached_tokens);
  }
  for (const plan::MissReport& report : scheduler_.reports()) {
    const auto identity = identities_.find(report.name.client);
    if (identity == identities_.end()) continue;
    wire::TokenDeltas& deltas = frontends_.at(identity->second).deltas;
    deltas.report_ids.push_back(report.name.id);
    deltas.report_host.push_back(report.host);
    deltas.report_new.push_back(report.fresh);
    deltas.report_evicted.push_back(report.evicted);
    deltas.report_salted.push_back(report.salted);
    deltas.report_diverged.push_back(report.diverged);
    deltas.report_diverged_at.push_back(report.diverged_at);
    deltas.report_volatile.push_back(report.volatile_prefix ? 1 : 0);
    deltas.report_queued_us.push_back(
        static_cast<int32_t>(std::min<TimeNs>(report.queued / 1000, INT32_MAX)));
    deltas.report_first_step.push_back(report.first_step.value);
  }
  scheduler_.ClearEvents();
  for (auto& [identity, each] : frontends_) {
    if (each.deltas.request_ids.empty() && each.deltas.detail_ids.empty()) continue;
    each.deltas.step = step.value;
    each.deltas.step_began_ns = step_began_ns_;
    each.deltas.step_ended_ns = step_ended_ns_;
    if (!each.wants_logprobs) each.deltas.logprobs.clear();
    Send(identity, each.deltas);
    each.deltas = {};
    each.wants_logprobs = false;
  }
}

void FrontendDesk::SendWelcome(const wire::Welcome& welcome) {
  for (const auto& [identity, frontend] : frontends_) Send(identity, welcome);
}

void FrontendDesk::SendStats(const wire::Stats& stats) {
  for (const auto& [identity, frontend] : frontends_) {
    // Who does not read gets no more heartbeats behind the messages that wait.
    if (!router_.has_backlog(identity)) Send(identity, stats);
  }
}

void FrontendDesk::DropLost() {
  for (const Identity& identity : router_.TakeLost()) {
    router_.Forget(identity);
    const auto known = frontends_.find(identity);
    if (known == frontends_.end()) continue;
    Log("frontend " + known->second.name + " is gone; its requests are aborted");
    const ClientId client = known->second.client;
    identities_.erase(client);
    frontends_.erase(known);
    scheduler_.AbortClient(client);
  }
}

}  // namespace tokenspeed::net
