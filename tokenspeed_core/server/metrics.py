# SPDX-License-Identifier: MIT
"""Prometheus series of one API process: what clients felt, and what the scheduler reports."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..completion import TextDelta
from ..ipc.messages import Stats
from .metric_aliases import MetricAliases

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
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


class Metrics:
    """The series of one process; `page()` is what `/metrics` returns."""

    def __init__(self, model: str, stats: Callable[[], Stats | None]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_StatsCollector(stats))
        self._aliases = CollectorRegistry(auto_describe=False)
        self._aliases.register(MetricAliases(self._registry, _PREFIX, model))
        labels = ["model_name"]

        def histogram(name: str, help: str) -> Histogram:
            made = Histogram(
                _PREFIX + name, help, labels, buckets=_SECONDS, registry=self._registry
            )
            return made.labels(model)

        def counter(name: str, help: str, *more: str) -> Counter:
            return Counter(_PREFIX + name, help, labels + list(more), registry=self._registry)

        self._first_token = histogram("time_to_first_token_seconds", "Body read to first token.")
        self._first_by_cache = Histogram(
            _PREFIX + "time_to_first_token_by_cache_seconds",
            "Body read to first token, warm where most of the prompt was cached.",
            [*labels, "cache"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._between = histogram("inter_token_latency_seconds", "Between tokens of a stream.")
        self._whole = histogram("e2e_request_latency_seconds", "Body read to last token.")
        self._prompt = counter("prompt_tokens", "Prompt tokens of admitted requests.").labels(model)
        self._generated = counter("generation_tokens", "Tokens given to clients.").labels(model)
        self._success = counter("request_success", "Requests by how they ended.", "finished_reason")
        self._failed = counter("request_failure", "Requests refused or failed.", "status", "code")
        self._ignored = counter("ignored_request_fields", "Fields without effect.", "field")
        self._model = model

    def page(self) -> bytes:
        """Return all series in Prometheus' text format, the best known under vLLM's names too."""
        return generate_latest(self._registry) + generate_latest(self._aliases)

    def failed(self, status: int, code: str | None) -> None:
        """Count a request that was refused or that failed."""
        self._failed.labels(self._model, str(status), code or "").inc()

    def ignored(self, field: str) -> None:
        """Count a request field that has no effect; `field` is from a fixed list or "other"."""
        self._ignored.labels(self._model, field).inc()

    async def observed(
        self, deltas: AsyncIterator[TextDelta], started: float
    ) -> AsyncGenerator[TextDelta, None]:
        """Pass a request's deltas through, timing them from `started` (time.perf_counter)."""
        last = started
        tokens = 0
        try:
            async for delta in deltas:
                new = delta.usage.completion_tokens - tokens
                now = time.perf_counter()
                if tokens == 0 and new:
                    self._prompt.inc(delta.usage.prompt_tokens)
                    self._first_token.observe(now - started)
                    is_warm = 2 * delta.usage.cached_tokens > delta.usage.prompt_tokens
                    cache = "warm" if is_warm else "cold"
                    self._first_by_cache.labels(self._model, cache).observe(now - started)
                elif new:
                    self._between.observe((now - last) / new)
                if new:
                    last, tokens = now, delta.usage.completion_tokens
                    self._generated.inc(new)
                if delta.finish_reason is not None:
                    self._success.labels(self._model, delta.finish_reason).inc()
                    self._whole.observe(now - started)
                yield delta
        except GeneratorExit:
            self._success.labels(self._model, "abort").inc()
            raise
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]


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
