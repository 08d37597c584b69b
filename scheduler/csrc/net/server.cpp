// SPDX-License-Identifier: MIT
#include "net/server.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "net/cache_feed.h"
#include "net/frontend_desk.h"
#include "net/worker_group.h"

namespace tokenspeed::net {
namespace {

constexpr int kMessagesPerTurn = 256;  // of one socket, so that the other is not starved
constexpr int kBacklogPollMs = 2;

// A file descriptor of ours.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

class Context {
 public:
  explicit Context(const ZmqLibrary& zmq) : zmq_(zmq), context_(zmq.ctx_new()) {}
  // Waits until lingering messages are out.
  ~Context() { zmq_.ctx_term(context_); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  void* get() const { return context_; }

 private:
  const ZmqLibrary& zmq_;
  void* context_;
};

// Signals are read from the poll loop. Blocks them for this thread and all that it starts.
int OpenSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

class Server {
 public:
  Server(const ZmqLibrary& zmq, const wire::SchedulerConfig& config, const plan::Limits& limits,
         std::unique_ptr<record::BlackBox> box)
      : zmq_(zmq),
        heartbeat_(config.heartbeat_ms * kMillisecond),
        parent_(config.parent_pid),
        signals_(OpenSignals()),
        parent_fd_(parent_ > 0 ? static_cast<int>(syscall(SYS_pidfd_open, parent_, 0)) : -1),
        session_{.token = config.token.bytes, .remote_token = config.frontend_tcp_token.bytes},
        scheduler_(limits, std::move(box)),
        context_(zmq),
        frontend_router_(zmq, context_.get()),
        worker_router_(zmq, context_.get()),
        frontends_(frontend_router_, scheduler_, session_),
        workers_(worker_router_, scheduler_, frontends_, session_,
                 static_cast<int>(config.num_ranks)),
        feed_(zmq, context_.get(), scheduler_.cache_log(),
              {.endpoint = config.kv_events,
               .replay_endpoint = config.kv_replay,
               .topic = config.kv_topic,
               .curve_secret = config.kv_curve_secret,
               .root = SipHash128(limits.hash_key, {})}) {}

  Status Bind(const wire::SchedulerConfig& config) {
    Status bound = frontend_router_.Bind(config.frontend_endpoint);
    if (bound.ok()) bound = worker_router_.Bind(config.worker_endpoint);
    if (bound.ok() && !config.frontend_tcp.empty()) {
      bound = frontend_router_.BindEncrypted(config.frontend_tcp, config.frontend_curve_secret);
    }
    return bound.ok() ? feed_.Bind() : bound;
  }

  int Run() {
    if (ParentGone()) stop_ = "the launcher is gone";
    TimeNs next_beat = Now() + heartbeat_;
    while (stop_.empty()) {
      Wait(next_beat);
      Drain(worker_router_, [&](const auto& message) { workers_.Handle(message); });
      Drain(frontend_router_,
            [&](const auto& message) { frontends_.Handle(message, workers_.MakeWelcome()); });
      if (Now() >= next_beat) {
        Beat();
        next_beat = Now() + heartbeat_;
      }
      Settle();
      if (draining_ && Idle()) stop_ = "drained";
    }
    return Goodbye();
  }

 private:
  void Wait(TimeNs next_beat) {
    ZmqPollItem items[5] = {{worker_router_.handle(), 0, kZmqPollIn, 0},
                            {frontend_router_.handle(), 0, kZmqPollIn, 0},
                            {nullptr, signals_.get(), kZmqPollIn, 0}};
    int watched = 3;
    const int parent = parent_fd_.get() >= 0 ? watched++ : -1;
    if (parent >= 0) items[parent] = {nullptr, parent_fd_.get(), kZmqPollIn, 0};
    if (feed_.enabled()) items[watched++] = {feed_.replay_handle(), 0, kZmqPollIn, 0};
    const bool backlog = worker_router_.has_backlog() || frontend_router_.has_backlog();
    const TimeNs left = std::max<TimeNs>(0, next_beat - Now());
    long timeout = static_cast<long>((left + kMillisecond - 1) / kMillisecond);
    if (backlog) timeout = std::min<long>(timeout, kBacklogPollMs);
    const int ready = zmq_.poll(items, watched, timeout);
    TS_CHECK(ready >= 0 || zmq_.last_errno() == EINTR, "zmq_poll: " << zmq_.LastError());
    if (items[2].revents != 0) TakeSignal();
    if (parent >= 0 && items[parent].revents != 0) stop_ = "the launcher is gone";
  }

  void TakeSignal() {
    signalfd_siginfo info;
    while (read(signals_.get(), &info, sizeof(info)) == sizeof(info)) {
      if (draining_) {
        stop_ = "told to stop at once";
        return;
      }
      draining_ = true;
      scheduler_.Drain();
      Log("draining: " + std::to_string(scheduler_.live()) + " requests to finish");
    }
  }

  template <class Take>
  void Drain(Router& router, Take take) {
    for (int i = 0; i < kMessagesPerTurn && router.Receive(incoming_); ++i) take(incoming_);
  }

  // Workers are fed first, then frontends hear what happened.
  void Settle() {
    frontend_router_.Flush();
    worker_router_.Flush();
    if (const auto profile = frontends_.TakeProfile()) workers_.Profile(profile->directory);
    workers_.SendPlans();
    workers_.DropLost();
    frontends_.SendEvents(workers_.retired());
    frontends_.DropLost();
    scheduler_.ClearEvents();
    feed_.Publish();
    feed_.ServeReplays();
    if (announced_ready_ != scheduler_.in_epoch() || announced_epoch_ != workers_.epoch()) {
      announced_ready_ = scheduler_.in_epoch();
      announced_epoch_ = workers_.epoch();
      frontends_.SendWelcome(workers_.MakeWelcome());
    }
  }

  void Beat() {
    workers_.SendHeartbeats();
    workers_.DropLost();
    frontends_.SendStats(MakeStats());
    // Without pidfd (old kernels) a dead parent is seen here.
    if (parent_fd_.get() < 0 && ParentGone()) stop_ = "the launcher is gone";
  }

  bool ParentGone() const { return parent_ > 0 && kill(parent_, 0) != 0 && errno == ESRCH; }

  // Nothing that was accepted can still make progress.
  bool Idle() const {
    if (frontend_router_.has_backlog()) return false;
    return scheduler_.in_epoch() ? scheduler_.live() == 0 : true;
  }

  wire::Stats MakeStats() const {
    const plan::Counters& counters = scheduler_.counters();
    const kv::BlockCounts blocks = scheduler_.blocks();
    const TimeNs now = Now();
    const std::optional<TimeNs> oldest = scheduler_.oldest_planned();
    return {.time_ns = now,
            .epoch = workers_.epoch().value,
            .ready = scheduler_.in_epoch() && !draining_,
            .running = scheduler_.running(),
            .waiting = scheduler_.waiting(),
            .total_blocks = blocks.total,
            .free_blocks = blocks.free,
            .cached_blocks = blocks.cached,
            .active_blocks = blocks.open + blocks.shared + blocks.retiring,
            .steps = counters.steps,
            .prompt_tokens = counters.prompt_tokens,
            .cached_tokens = counters.cached_tokens,
            .generated_tokens = counters.generated_tokens,
            .preemptions = counters.preemptions,
            .finished = counters.finished,
            .rejected = counters.rejected,
            .dropped_frames = session_.dropped_frames,
            .in_flight_steps = scheduler_.in_flight(),
            .oldest_step_age_ns = oldest ? now - *oldest : 0,
            .plan_time_ns = workers_.plan_time(),
            .host_blocks = scheduler_.host_blocks().total,
            .host_free_blocks = scheduler_.host_blocks().free,
            .stored_blocks = counters.stored_blocks,
            .loaded_blocks = counters.loaded_blocks,
            .failed_transfers = counters.failed_transfers,
            .sessions = scheduler_.sessions(),
            .retained_blocks = scheduler_.retained_blocks(),
            .missed_new = counters.missed_new,
            .missed_evicted = counters.missed_evicted,
            .missed_salted = counters.missed_salted,
            .missed_diverged = counters.missed_diverged,
            .drafted_tokens = counters.drafted_tokens,
            .accepted_tokens = counters.accepted_tokens,
            .gap_ns = workers_.gap_time()};
  }

  int Goodbye() {
    Log("stopping: " + stop_);
    workers_.SendShutdown(stop_);
    scheduler_.EndEpoch();
    scheduler_.AbortAll();
    frontends_.SendEvents(workers_.retired());
    return 0;
  }

  const ZmqLibrary& zmq_;
  const TimeNs heartbeat_;
  const pid_t parent_;
  Descriptor signals_;
  Descriptor parent_fd_;
  Session session_;
  record::RecordedScheduler scheduler_;
  Context context_;  // closes behind its sockets
  Router frontend_router_;
  Router worker_router_;
  FrontendDesk frontends_;
  WorkerGroup workers_;
  CacheFeed feed_;
  Router::Incoming incoming_;
  bool draining_ = false;
  bool announced_ready_ = false;
  Epoch announced_epoch_;
  std::string stop_;
};

Result<plan::Limits> LimitsOf(const wire::SchedulerConfig& config) {
  const auto bad = [](const char* name, int64_t value, const char* fix) {
    return Error{std::string("config: ") + name + " is " + std::to_string(value) + "; " + fix};
  };
  if (config.version != wire::kVersion) {
    return bad("version", config.version, "the launcher and the scheduler must be of one release");
  }
  const auto token = static_cast<int64_t>(config.token.bytes.size());
  if (token != 16) return bad("length of token", token, "give 16 bytes");
  const auto key = static_cast<int64_t>(config.hash_key.bytes.size());
  if (key != 16) return bad("length of hash_key", key, "give 16 bytes");
  if (config.num_ranks < 1 || config.num_ranks > 4096) {
    return bad("num_ranks", config.num_ranks, "give 1 to 4096");
  }
  if (config.heartbeat_ms < 1 || config.heartbeat_ms > 60'000) {
    return bad("heartbeat_ms", config.heartbeat_ms, "give 1 to 60000");
  }
  plan::Limits limits;
  limits.hash_key = Hash128::From(wire::AsBytes(config.hash_key.bytes));
  limits.prefix_caching = config.prefix_caching;
  auto by_reuse = plan::EvictsByReuse(config.eviction);
  if (!by_reuse.ok()) return Error{"config: " + by_reuse.error().message};
  limits.evict_by_reuse = by_reuse.value();
  const auto narrow = [](int64_t value) {
    return static_cast<int32_t>(std::clamp<int64_t>(value, -1, INT32_MAX));
  };
  limits.max_slots = narrow(std::min<int64_t>(config.max_slots, 65536));
  limits.max_step_tokens = narrow(config.max_step_tokens);
  limits.max_model_len = narrow(config.max_model_len);
  limits.max_waiting = narrow(config.max_waiting);
  limits.vocab_size = narrow(config.vocab_size);
  limits.depth = narrow(config.depth);
  limits.max_prefill_tokens = narrow(config.max_prefill_tokens);
  limits.transfer_ms = config.transfer_ms;
  limits.decode_stretch = config.decode_stretch;
  if (config.ageing_ms < 1 || config.ageing_ms > INT32_MAX) {
    return bad("ageing_ms", config.ageing_ms, "give 1 to 2147483647");
  }
  limits.ageing = config.ageing_ms * kMillisecond;
  if (Status valid = limits.Validate(); !valid.ok())
    return Error{"config: " + valid.error().message};
  return limits;
}

// Null if nothing shall be recorded, or nothing can be: that is no reason not to serve.
std::unique_ptr<record::BlackBox> OpenBox(const wire::SchedulerConfig& config,
                                          const plan::Limits& limits) {
  if (config.record_path.empty()) return nullptr;
  auto box = record::BlackBox::Create(config.record_path, config.record_bytes, limits);
  if (box.ok()) return std::move(box).value();
  Log("not recording: " + box.error().message);
  return nullptr;
}

}  // namespace

Result<int> Serve(const ZmqLibrary& zmq, const wire::SchedulerConfig& config) {
  Result<plan::Limits> limits = LimitsOf(config);
  if (!limits.ok()) return Error(limits.error());
  Server server(zmq, config, limits.value(), OpenBox(config, limits.value()));
  if (Status bound = server.Bind(config); !bound.ok()) return Error(bound.error());
  int major = 0, minor = 0, patch = 0;
  zmq.version(&major, &minor, &patch);
  Log("listening for " + std::to_string(config.num_ranks) + " ranks (libzmq " +
      std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch) + ")");
  return server.Run();
}

}  // namespace tokenspeed::net
