// SPDX-License-Identifier: MIT
// `_scheduler`: the core as a Python module, for tests, simulation and notebooks. Columns are the
// bytes of the wire. The stub is scheduler/_scheduler.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fsm/diagram.h"
#include "module/stats.h"
#include "plan/scheduler.h"
#include "record/replay.h"
#include "wire/codec.h"

namespace py = pybind11;

namespace tokenspeed {
namespace {

// Bad input of the caller; `tokenspeed_core.scheduler._scheduler.SchedulerError` in Python.
struct SchedulerError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class T>
std::vector<T> ReadColumn(const std::string& bytes, const char* name) {
  if (bytes.size() % sizeof(T) != 0) {
    throw SchedulerError(std::string(name) + " of " + std::to_string(bytes.size()) +
                         " bytes is no column of " + std::to_string(sizeof(T)) + "-byte values");
  }
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

Hash128 ReadHash(const std::string& bytes, const char* name) {
  if (bytes.size() != 16) {
    throw SchedulerError(std::string(name) + " has " + std::to_string(bytes.size()) +
                         " bytes; give 16");
  }
  return Hash128::From(wire::AsBytes(bytes));
}

bool ReadEviction(const std::string& name) {
  auto by_reuse = plan::EvictsByReuse(name);
  if (!by_reuse.ok()) throw SchedulerError(by_reuse.error().message);
  return by_reuse.value();
}

py::bytes ToBytes(const Hash128& hash) {
  return {reinterpret_cast<const char*>(hash.bytes.data()), hash.bytes.size()};
}

void Require(const Status& status) {
  if (!status.ok()) throw SchedulerError(status.error().message);
}

class Core {
 public:
  explicit Core(const plan::Limits& limits) {
    Require(limits.Validate());
    scheduler_.emplace(limits);
  }

  plan::Scheduler& scheduler() { return *scheduler_; }

  using RejectionTuple = std::tuple<int64_t, uint64_t, int, std::string>;
  std::vector<RejectionTuple> rejections;  // late ones, until they are taken
  using ReportTuple = std::tuple<int64_t, uint64_t, int, int, int, int, int, bool>;
  std::vector<ReportTuple> reports;  // likewise

  using GroupTuple = std::tuple<int, int, int, int>;  // kind, tokens, span, share
  void BeginEpoch(int64_t epoch, int num_blocks, int block_size, int host_blocks, int max_drafts,
                  const std::vector<GroupTuple>& groups) {
    if (scheduler_->in_epoch()) throw SchedulerError("an epoch runs; end it first");
    if (epoch <= epoch_.value) {
      throw SchedulerError("epoch " + std::to_string(epoch) + " after " +
                           std::to_string(epoch_.value) + "; epochs ascend");
    }
    std::vector<kv::GroupSpec> specs;
    for (const auto& [kind, tokens, span, share] : groups) {
      specs.push_back({static_cast<kv::GroupKind>(kind), tokens, span, share});
    }
    const plan::EpochShape shape{.num_blocks = num_blocks,
                                 .block_size = block_size,
                                 .host_blocks = host_blocks,
                                 .max_drafts = max_drafts,
                                 .groups = std::move(specs)};
    Require(shape.Validate());
    epoch_ = Epoch{epoch};
    digest_ = wire::FirstDigest(epoch_);
    scheduler_->BeginEpoch(epoch_, shape);
  }

  std::optional<py::bytes> Plan(int64_t time_ns) {
    if (!PlanInto(frame_, time_ns)) return std::nullopt;
    return py::bytes(frame_);
  }

  py::bytes digest() const { return ToBytes(digest_); }

 private:
  bool PlanInto(std::string& frame, int64_t time_ns) {
    const plan::StepPlan* plan = scheduler_->Plan(time_ns);
    if (plan == nullptr) return false;
    wire::EncodePlan(*plan, frame);
    digest_ = wire::NextDigest(digest_, wire::AsBytes(frame));
    step_ = plan->step;
    sampled_ = plan->Sampling();
    return true;
  }

  std::optional<plan::Scheduler> scheduler_;
  Epoch epoch_;
  StepId step_;
  int sampled_ = 0;
  Hash128 digest_;
  std::string frame_;
};

using EventTuple = std::tuple<int64_t, uint64_t, Token, std::optional<float>, int, int>;

std::vector<EventTuple> TakeEvents(Core& core) {
  for (const plan::LateRejection& late : core.scheduler().late_rejections()) {
    core.rejections.emplace_back(late.name.client.value, late.name.id,
                                 static_cast<int>(late.rejection.code), late.rejection.message);
  }
  std::vector<EventTuple> events;
  for (const plan::TokenEvent& event : core.scheduler().events()) {
    events.emplace_back(event.name.client.value, event.name.id, event.token,
                        event.has_logprob ? std::optional(event.logprob) : std::nullopt,
                        static_cast<int>(event.reason), event.cached_tokens);
  }
  for (const plan::MissReport& report : core.scheduler().reports()) {
    core.reports.emplace_back(report.name.client.value, report.name.id, report.fresh,
                              report.evicted, report.salted, report.diverged, report.diverged_at,
                              report.volatile_prefix);
  }
  core.scheduler().ClearEvents();
  return events;
}

// (kind, hash, parent, tokens)
using CacheTuple = std::tuple<int, py::bytes, py::bytes, std::vector<Token>>;

std::vector<CacheTuple> CacheEvents(std::vector<kv::CacheLog::Event> events) {
  std::vector<CacheTuple> rows;
  for (kv::CacheLog::Event& event : events) {
    rows.emplace_back(static_cast<int>(event.kind), ToBytes(event.key.hash),
                      ToBytes(event.key.parent), std::move(event.tokens));
  }
  return rows;
}

}  // namespace
}  // namespace tokenspeed

namespace tokenspeed {
void BindSimulation(pybind11::module_& m);
}

PYBIND11_MODULE(_scheduler, m) {
  using namespace tokenspeed;
  m.doc() = "The scheduler core: the same code as the tokenspeed-scheduler process.";
  py::register_exception<SchedulerError>(m, "SchedulerError", PyExc_ValueError);

  BindSimulation(m);

  py::class_<Core>(m, "Scheduler")
      .def(py::init([](int max_slots, int max_step_tokens, int max_model_len, int vocab_size,
                       int max_waiting, int depth, int max_prefill_tokens, bool prefix_caching,
                       const std::string& hash_key, const std::string& eviction,
                       int64_t transfer_ms, double decode_stretch, int64_t ageing_ns) {
             plan::Limits limits;
             limits.hash_key = ReadHash(hash_key, "hash_key");
             limits.max_slots = max_slots;
             limits.max_step_tokens = max_step_tokens;
             limits.max_model_len = max_model_len;
             limits.max_waiting = max_waiting;
             limits.vocab_size = vocab_size;
             limits.depth = depth;
             limits.max_prefill_tokens = max_prefill_tokens;
             limits.prefix_caching = prefix_caching;
             limits.evict_by_reuse = ReadEviction(eviction);
             limits.transfer_ms = transfer_ms;
             limits.decode_stretch = decode_stretch;
             limits.ageing = ageing_ns;
             return std::make_unique<Core>(limits);
           }),
           py::kw_only(), py::arg("max_slots"), py::arg("max_step_tokens"),
           py::arg("max_model_len"), py::arg("vocab_size"), py::arg("max_waiting") = 1024,
           py::arg("depth") = 2, py::arg("max_prefill_tokens") = 0,
           py::arg("prefix_caching") = true, py::arg("hash_key") = py::bytes(std::string(16, '\0')),
           py::arg("eviction") = "reuse", py::arg("transfer_ms") = 10'000,
           py::arg("decode_stretch") = 1.5, py::arg("ageing_ns") = 10'000'000'000)
      .def("begin_epoch", &Core::BeginEpoch, py::arg("epoch"), py::arg("num_blocks"),
           py::arg("block_size"), py::arg("host_blocks") = 0, py::arg("max_drafts") = 0,
           py::arg("groups") = std::vector<Core::GroupTuple>())
      .def("end_epoch", [](Core& core) { core.scheduler().EndEpoch(); })
      .def(
          "submit",
          [](Core& core, int64_t client, uint64_t request_id, const std::string& prompt,
             int64_t max_tokens, float temperature, int64_t top_k, float top_p, uint64_t seed,
             bool logprobs, const std::string& stop_ids, int64_t priority, const std::string& salt,
             int64_t time_ns, const std::string& session, int64_t retain_ns, int64_t deadline_ns,
             const std::string& shaping) -> std::optional<std::tuple<int, std::string>> {
            StatusOr<plan::Rejection> taken = core.scheduler().Submit(
                {.name = {ClientId{client}, request_id},
                 .time = time_ns,
                 .prompt = ReadColumn<Token>(prompt, "prompt"),
                 .max_tokens = max_tokens,
                 .sampling = {temperature, top_k, top_p, seed, logprobs, shaping},
                 .stop_ids = ReadColumn<Token>(stop_ids, "stop_ids"),
                 .priority = priority,
                 .salt = salt,
                 .session = session,
                 .retain = retain_ns,
                 .deadline = deadline_ns});
            if (taken.ok()) return std::nullopt;
            return std::tuple(static_cast<int>(taken.error().code), taken.error().message);
          },
          py::arg("client"), py::arg("request_id"), py::arg("prompt"), py::arg("max_tokens"),
          py::kw_only(), py::arg("temperature") = 0.0f, py::arg("top_k") = 0,
          py::arg("top_p") = 1.0f, py::arg("seed") = 0, py::arg("logprobs") = false,
          py::arg("stop_ids") = py::bytes(), py::arg("priority") = 0, py::arg("salt") = py::bytes(),
          py::arg("time_ns") = 0, py::arg("session") = "", py::arg("retain_ns") = 0,
          py::arg("deadline_ns") = 0, py::arg("shaping") = py::bytes())
      .def(
          "hint",
          [](Core& core, const std::string& session, int64_t action, int64_t time_ns,
             int64_t ttl_ns, const std::string& salt) {
            core.scheduler().Hint(salt, session, action, time_ns, ttl_ns);
          },
          py::arg("session"), py::arg("action"), py::kw_only(), py::arg("time_ns") = 0,
          py::arg("ttl_ns") = 0, py::arg("salt") = py::bytes())
      .def(
          "abort",
          [](Core& core, int64_t client, uint64_t request_id, int64_t kept) {
            core.scheduler().Abort({ClientId{client}, request_id}, kept);
          },
          py::arg("client"), py::arg("request_id"), py::arg("kept") = -1)
      .def(
          "abort_client",
          [](Core& core, int64_t client) { core.scheduler().AbortClient(ClientId{client}); },
          py::arg("client"))
      .def("drain", [](Core& core) { core.scheduler().Drain(); })
      .def("plan", &Core::Plan, py::arg("time_ns") = 0)
      .def_property_readonly("digest", &Core::digest)
      .def(
          "advance",
          [](Core& core, int64_t step, const std::string& tokens, const std::string& logprobs,
             int64_t time_ns, const std::string& counts) {
            const auto ids = ReadColumn<Token>(tokens, "tokens");
            const auto values = ReadColumn<float>(logprobs, "logprobs");
            const auto of_rows = ReadColumn<int32_t>(counts, "counts");
            Require(core.scheduler().Advance(StepId{step}, ids, values, time_ns, of_rows));
          },
          py::arg("step"), py::arg("tokens"), py::arg("logprobs") = py::bytes(),
          py::arg("time_ns") = 0, py::arg("counts") = py::bytes())
      .def(
          "transferred",
          [](Core& core, int32_t ticket, bool ok, int64_t time_ns) {
            return core.scheduler().Transferred(TicketId{ticket}, ok, time_ns);
          },
          py::arg("ticket"), py::arg("ok"), py::arg("time_ns") = 0)
      .def(
          "prefetch",
          [](Core& core, const std::string& tokens, const std::string& salt) {
            core.scheduler().Prefetch(ReadColumn<Token>(tokens, "tokens"), salt);
          },
          py::arg("tokens"), py::arg("salt") = py::bytes())
      .def(
          "demote",
          [](Core& core, const std::string& tokens, const std::string& salt) {
            core.scheduler().Demote(ReadColumn<Token>(tokens, "tokens"), salt);
          },
          py::arg("tokens"), py::arg("salt") = py::bytes())
      .def("take_events", &TakeEvents)
      .def("take_rejections", [](Core& core) { return std::exchange(core.rejections, {}); })
      .def("take_reports", [](Core& core) { return std::exchange(core.reports, {}); })
      .def("log_cache", [](Core& core) { core.scheduler().cache_log().Enable(); })
      .def("take_cache_log",
           [](Core& core) { return CacheEvents(core.scheduler().cache_log().Take()); })
      .def("cached_blocks",
           [](Core& core) { return CacheEvents(core.scheduler().cache_log().Snapshot()); })
      .def("stats", [](Core& core) { return StatsOf(core.scheduler()); })
      .def("check", [](Core& core) { Require(core.scheduler().Verify()); });

  using record::Played;
  py::class_<Played>(m, "Played")
      .def_readonly("index", &Played::index)
      .def_readonly("event", &Played::event)
      .def_readonly("outcome", &Played::outcome)
      .def_property_readonly("step", [](const Played& played) { return played.step.value; })
      .def_readonly("replayed", &Played::replayed)
      .def_readonly("settled", &Played::settled)
      .def_readonly("same", &Played::same);
  py::class_<record::Replay>(m, "Replay")
      .def(py::init([](const std::string& path) {
             auto replay = record::Replay::Open(path);
             if (!replay.ok()) throw SchedulerError(replay.error().message);
             return std::move(replay).value();
           }),
           py::arg("path"))
      .def("next",
           [](record::Replay& replay) -> std::optional<Played> {
             auto played = replay.Next();
             if (!played.ok()) throw SchedulerError(played.error().message);
             return std::move(played).value();
           })
      .def_property_readonly("closed", &record::Replay::closed)
      .def("stats", [](const record::Replay& replay) { return StatsOf(replay.core()); })
      .def("check", [](const record::Replay& replay) { Require(replay.core().Verify()); });

  m.def(
      "diagram",
      [](const std::string& format) {
        if (format == "mermaid") return fsm::Diagram(fsm::DiagramFormat::kMermaid);
        if (format == "dot") return fsm::Diagram(fsm::DiagramFormat::kDot);
        throw SchedulerError("there is no diagram format " + format + "; give mermaid or dot");
      },
      py::arg("format"));
  m.def(
      "siphash128",
      [](const std::string& key, const std::string& data) {
        return ToBytes(SipHash128(ReadHash(key, "key"), wire::AsBytes(data)));
      },
      py::arg("key"), py::arg("data"));
  m.def(
      "reencode",
      [](const std::string& frame) {
        auto bytes = wire::Reencode(wire::AsBytes(frame));
        if (!bytes.ok()) throw SchedulerError(bytes.error().message);
        return py::bytes(bytes.value());
      },
      py::arg("frame"));
  m.def(
      "accepts_from_frontend",
      [](const std::string& frame) { return wire::DecodeFromFrontend(wire::AsBytes(frame)).ok(); },
      py::arg("frame"));
  m.def(
      "accepts_from_worker",
      [](const std::string& frame) { return wire::DecodeFromWorker(wire::AsBytes(frame)).ok(); },
      py::arg("frame"));
}
