# SPDX-License-Identifier: MIT
"""Prometheus series of one API process: what clients felt, and what the scheduler reports."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..ipc.messages import Stats
from ..stage_clock import StageClock
from .capped_counter import CappedCounter
from .metric_aliases import MetricAliases
from .request_record import RequestRecord

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKENS = tuple(2**power for power in range(21))
_PREFIX = "tokenspeed_"

_GAUGES = {
    "num_requests_running": ("running", "Requests that take part in steps."),
    "num_requests_waiting": ("waiting", "Requests in the scheduler's queue."),
    "kv_blocks_total": ("total_blocks", "KV blocks of the engine."),
    "kv_blocks_free": ("free_blocks", "KV blocks that hold nothing."),
    "kv_blocks_cached": ("cached_blocks", "KV blocks kept for reuse and evictable."),
    "kv_blocks_active": ("active_blocks", "KV blocks held by requests."),
    "host_blocks_total": ("host_blocks", "KV blocks of the host tier."),
    "host_blocks_free": ("host_free_blocks", "KV blocks of the host tier that hold nothing."),
    "kv_blocks_retained": ("retained_blocks", "Cached KV blocks that a hint asks to keep."),
    "sessions": ("sessions", "Conversations that the engine remembers."),
    "in_flight_steps": ("in_flight_steps", "Steps planned and not yet retired."),
    "engine_epoch": ("epoch", "Worker group generation; grows when workers restart."),
}
_COUNTERS = {
    "engine_steps": ("steps", "Steps retired."),
    "prefix_cache_queries": ("prompt_tokens", "Prompt tokens looked up in the prefix cache."),
    "prefix_cache_hits": ("cached_tokens", "Prompt tokens served from the prefix cache."),
    "prefix_cache_missed_new": ("missed_new", "Prompt tokens never seen before."),
    "prefix_cache_missed_evicted": (
        "missed_evicted",
        "Prompt tokens seen, evicted since.",
    ),
    "prefix_cache_missed_salted": ("missed_salted", "Prompt tokens cached under another salt."),
    "prefix_cache_missed_diverged": ("missed_diverged", "Prompt tokens behind a changed one."),
    "engine_generation_tokens": ("generated_tokens", "Tokens generated for all frontends."),
    "num_preemptions": ("preemptions", "Requests that lost their blocks to others."),
    "stored_blocks": ("stored_blocks", "KV blocks moved to the host tier."),
    "loaded_blocks": ("loaded_blocks", "KV blocks moved back from the host tier."),
    "failed_transfers": ("failed_transfers", "Copies that failed or took too long."),
    "engine_requests_finished": ("finished", "Requests finished for all frontends."),
    "engine_requests_rejected": ("rejected", "Requests not admitted, for all frontends."),
    "dropped_frames": ("dropped_frames", "Malformed, late or foreign frames dropped."),
}
# What the scheduler reports, to every API process alike; all other series are a process's own.
ENGINE_SERIES = frozenset({*_GAUGES, *_COUNTERS, "kv_cache_usage_perc", "scheduler_seconds"})


class Metrics:
    """The series of one process; `page()` is what `/metrics` returns."""

    def __init__(self, model: str, stats: Callable[[], Stats | None], stages: StageClock) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_StatsCollector(stats))
        self._registry.register(_StageCollector(stages))
        self._aliases = CollectorRegistry(auto_describe=False)
        self._aliases.register(MetricAliases(self._registry, _PREFIX, model))
        self._model = model

        def histogram(name: str, help: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            labels = ("model_name", "cache")
            return Histogram(_PREFIX + name, help, labels, buckets=buckets, registry=self._registry)

        def counter(name: str, help: str, *labels: str) -> CappedCounter:
            made = Counter(_PREFIX + name, help, ["model_name", *labels], registry=self._registry)
            return CappedCounter(made, model)

        self._first_token = histogram("time_to_first_token_seconds", "Arrival to first token.")
        self._first_answer = histogram(
            "time_to_first_answer_token_seconds",
            "Arrival to the first text or call behind the reasoning, of streams.",
        )
        self._between = histogram("inter_token_latency_seconds", "Between tokens of a stream.")
        self._per_token = histogram(
            "request_time_per_output_token_seconds", "First to last token, per token."
        )
        self._whole = histogram("e2e_request_latency_seconds", "Arrival to last token.")
        self._queue = histogram("request_queue_time_seconds", "Waiting for a slot.")
        self._prefill = histogram("request_prefill_time_seconds", "Slot to first token.")
        self._decode = histogram("request_decode_time_seconds", "First to last token.")
        self._prompts = histogram("request_prompt_tokens", "Tokens of prompts.", _TOKENS)
        self._cached = histogram("request_cached_tokens", "Cached tokens of prompts.", _TOKENS)
        self._uncached = histogram("request_uncached_tokens", "Computed prompt tokens.", _TOKENS)
        self._outputs = histogram("request_generation_tokens", "Tokens of answers.", _TOKENS)
        self._prompt = counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self._generated = counter("generation_tokens", "Tokens given to clients.")
        self._volatile = counter(
            "volatile_prefix_requests", "Requests whose session's prefix changes again and again."
        )
        self._success = counter("request_success", "Requests by how they ended.", "finished_reason")
        self._failed = counter("request_failure", "Requests refused or failed.", "status", "code")
        self._ignored = counter("ignored_request_fields", "Fields without effect.", "field")

    def page(self) -> bytes:
        """Return all series in Prometheus' text format, the best known under vLLM's names too."""
        return generate_latest(self._registry) + generate_latest(self._aliases)

    def follow(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Tell a count that is kept elsewhere."""
        self._registry.register(_FollowedCount(_PREFIX + name, help, read))

    def failed(self, status: int, code: str | None) -> None:
        """Count a request that was refused or that failed."""
        self._failed.add(1, str(status), code or "")

    def ignored(self, field: str) -> None:
        """Count a request field that has no effect; `field` is from a fixed list or "other"."""
        self._ignored.add(1, field)

    def tokens(self, record: RequestRecord, new: int, before: float | None) -> None:
        """Count tokens that came; `before` is when the last ones did, None for the first."""
        assert record.last_token is not None
        self._generated.add(new)
        if before is not None:
            self._observe(self._between, record, (record.last_token - before) / new)
            return
        self._observe(self._first_token, record, record.since_start(record.first_token))
        self._observe(self._queue, record, record.queue_s)
        self._observe(self._prefill, record, record.prefill_s)
        self._prompt.add(record.prompt_tokens)
        self._observe(self._prompts, record, record.prompt_tokens)
        self._observe(self._cached, record, record.cached_tokens)
        self._observe(self._uncached, record, record.prompt_tokens - record.cached_tokens)
        if record.report is not None and record.report.volatile_prefix:
            self._volatile.add(1)

    def answered(self, record: RequestRecord) -> None:
        """Time the first answer token of a stream."""
        self._observe(self._first_answer, record, record.since_start(record.first_answer))

    def ended(self, record: RequestRecord) -> None:
        """Time and count a request that is over."""
        if record.outcome in ("refused", "failed"):
            return
        self._success.add(1, record.outcome)
        if record.outcome == "abort":
            return
        self._observe(self._whole, record, record.since_start(record.ended))
        self._observe(self._decode, record, record.decode_s)
        self._observe(self._outputs, record, record.completion_tokens)
        if record.decode_s is not None and record.completion_tokens > 1:
            per_token = record.decode_s / (record.completion_tokens - 1)
            self._observe(self._per_token, record, per_token)

    def _observe(self, series: Histogram, record: RequestRecord, value: float | None) -> None:
        if value is not None:
            series.labels(self._model, record.cache).observe(value)


class _FollowedCount(Collector):
    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        self._name, self._help, self._read = name, help, read

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._help, value=self._read())


class _StageCollector(Collector):
    """Reads this process's CPU time by stage at scrape time."""

    def __init__(self, stages: StageClock) -> None:
        self._stages = stages

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            _PREFIX + "stage_cpu_seconds", "CPU time of this process.", labels=["stage"]
        )
        for stage, seconds in sorted(self._stages.seconds().items()):
            family.add_metric([stage], seconds)
        yield family


class _StatsCollector(Collector):
    """Reads the scheduler's last report at scrape time."""

    def __init__(self, stats: Callable[[], Stats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        if stats is None:
            return
        for name, (field, help) in _GAUGES.items():
            yield GaugeMetricFamily(_PREFIX + name, help, value=getattr(stats, field))
        for name, (field, help) in _COUNTERS.items():
            yield CounterMetricFamily(_PREFIX + name, help, value=getattr(stats, field))
        usable = max(1, stats.total_blocks)
        used = GaugeMetricFamily(
            _PREFIX + "kv_cache_usage_perc",
            "Share of KV blocks held by requests.",
            value=stats.active_blocks / usable,
        )
        yield used
        planning = CounterMetricFamily(
            _PREFIX + "scheduler_seconds",
            "Time the scheduler spent on plans and results.",
            value=stats.plan_time_ns / 1e9,
        )
        yield planning
        yield CounterMetricFamily(
            _PREFIX + "step_gap_seconds",
            "Time in which requests ran and no step was in flight.",
            value=stats.gap_ns / 1e9,
        )
