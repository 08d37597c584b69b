# SPDX-License-Identifier: MIT
"""Our series under the names by which routers and dashboards know vLLM's."""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

PREFIX = "vllm:"
# what the llm-d scheduler and the usual dashboards read; the meanings are the same
ALIASED = frozenset(
    {
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "num_preemptions",
        "prompt_tokens",
        "generation_tokens",
        "request_success",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_time_per_output_token_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    }
)


class MetricAliases(Collector):
    """Tells the aliased series of another registry, each with the model's name."""

    def __init__(self, registry: CollectorRegistry, prefix: str, model: str) -> None:
        self._registry = registry
        self._prefix = prefix
        self._model = {"model_name": model}

    def collect(self) -> Iterator[Metric]:
        """Yield the renamed families."""
        for family in self._registry.collect():
            if family.name.removeprefix(self._prefix) not in ALIASED:
                continue
            renamed = Metric(self._renamed(family.name), family.documentation, family.type)
            for sample in family.samples:
                labels = {**self._model, **sample.labels}
                renamed.add_sample(self._renamed(sample.name), labels, sample.value)
            yield renamed

    def _renamed(self, name: str) -> str:
        return PREFIX + name.removeprefix(self._prefix)
