# SPDX-License-Identifier: MIT
"""What an operator sees of the whole engine with a thin model: series, log, traces, KV events."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.frontend.conftest import thin_engine
from tests.frontend.otlp_receiver import OtlpReceiver
from tests.scheduler.kv_index import KvIndex
from tokenspeed_core.ipc.kv_events import KvSubscriber
from tokenspeed_core.launch import Engine

MODEL = "smollm2"
PATIENCE_S = 120.0
LONG = "The quick brown fox jumps over the lazy dog. " * 40


@attrs.frozen
class Observed:
    engine: Engine
    log: Path
    receiver: OtlpReceiver

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return httpx.post(
            self.engine.url + path, json={"model": MODEL, **body}, headers=headers, timeout=60
        )

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        page = httpx.get(f"{self.engine.url}/metrics").text
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples().get((f"tokenspeed_{name}", tuple(sorted(labels.items()))), 0.0)

    def lines(self, request_id: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line.get("id") == request_id]


@pytest.fixture(scope="module")
def observed(thin_smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    with OtlpReceiver() as receiver:
        settings = {
            "served_model_name": MODEL,
            "request_log": str(folder / "requests.jsonl"),
            "otlp_endpoint": receiver.url,
            "kv_events": f"ipc://{folder}/kv",
        }
        with thin_engine(thin_smollm2, **settings) as engine:
            yield Observed(engine, folder / "requests.jsonl", receiver)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_times_are_split_cold_and_warm(observed: Observed) -> None:
    body = {"prompt": LONG, "max_tokens": 4}
    for _ in range(2):
        assert observed.post("/v1/completions", body).status_code == 200
    for cache in ("cold", "warm"):
        labels = {"model_name": MODEL, "cache": cache}
        for name in (
            "time_to_first_token_seconds",
            "request_queue_time_seconds",
            "request_prefill_time_seconds",
            "request_decode_time_seconds",
            "request_time_per_output_token_seconds",
            "e2e_request_latency_seconds",
            "request_prompt_tokens",
            "request_uncached_tokens",
            "request_generation_tokens",
        ):
            assert observed.value(f"{name}_count", **labels) == 1, (name, cache)
        assert observed.value("inter_token_latency_seconds_count", **labels) >= 1

    def total(name: str, cache: str) -> float:
        return observed.value(f"{name}_sum", model_name=MODEL, cache=cache)

    tokens = total("request_prompt_tokens", "warm")
    assert total("request_cached_tokens", "warm") > 0.9 * tokens
    assert total("request_cached_tokens", "cold") == 0
    assert total("request_uncached_tokens", "cold") == total("request_prompt_tokens", "cold")
    # the parts are the whole, but for what the API process does
    parts = total("request_queue_time_seconds", "cold") + total(
        "request_prefill_time_seconds", "cold"
    )
    assert 0 < parts <= total("time_to_first_token_seconds", "cold")
    shown = {name for name, _ in observed.samples() if name.startswith("vllm:request_")}
    assert {"vllm:request_queue_time_seconds_count", "vllm:request_prompt_tokens_sum"} <= shown


def test_stages_and_gaps_are_counted(observed: Observed) -> None:
    stages = ("parse", "render", "tokenise", "detokenise", "write")

    def spent() -> list[float]:
        return [observed.value("stage_cpu_seconds_total", stage=stage) for stage in stages]

    before = spent()
    messages = [{"role": "user", "content": LONG}]
    body = {"messages": messages, "max_tokens": 8, "stream": True}
    assert observed.post("/v1/chat/completions", body).text.endswith("data: [DONE]\n\n")
    after = spent()
    assert all(new > old for new, old in zip(after, before, strict=True)), (before, after)
    assert observed.value(
        "time_to_first_answer_token_seconds_count", model_name=MODEL, cache="cold"
    )
    assert observed.value("step_gap_seconds_total") >= 0
    assert observed.value("scheduler_seconds_total") > 0


def test_the_log_has_a_line_for_each_choice_and_no_text(observed: Observed) -> None:
    secret = "swordfish " * 20
    answer = observed.post(
        "/v1/completions",
        {"prompt": secret, "max_tokens": 3, "n": 2, "session_id": "s-1"},
        **{"x-request-id": "logged-1"},
    )
    assert answer.headers["x-request-id"] == "logged-1"
    lines = until(lambda: len(found := observed.lines("logged-1")) == 2 and found)
    for line in lines:
        assert (line["route"], line["session"], line["status"]) == ("/v1/completions", "s-1", 200)
        assert line["outcome"] in ("length", "stop")
        assert line["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
        assert sum(line["missed"][why] for why in ("new", "evicted", "salted", "diverged")) == (
            line["prompt_tokens"] - line["cached_tokens"]
        )
        spent = line["prepare_ms"] + line["queue_ms"] + line["prefill_ms"]
        assert spent == pytest.approx(line["ttft_ms"], abs=0.01)
        assert line["ttft_ms"] + line["decode_ms"] <= line["e2e_ms"] + 0.01
        assert 0 < line["first_step"] <= line["last_step"]
    assert {line["choice"] for line in lines} == {0, 1}
    assert "swordfish" not in observed.log.read_text()


def test_the_log_tells_what_was_refused_and_who_left(observed: Observed) -> None:
    refused = observed.post("/v1/completions", {"prompt": "x", "n": 0}, **{"x-request-id": "bad"})
    assert refused.status_code == 400
    line = until(lambda: observed.lines("bad"))[0]
    assert (line["outcome"], line["status"], line["code"]) == ("refused", 400, "invalid_parameter")
    assert line["ttft_ms"] is None
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 500, "stream": True, "ignore_eos": True}
    url = f"{observed.engine.url}/v1/completions"
    headers = {"x-request-id": "left"}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as stream:
        next(stream.iter_lines())
    line = until(lambda: observed.lines("left"))[0]
    assert line["outcome"] == "abort"
    assert 0 < line["completion_tokens"] < 500


def test_a_trace_goes_from_the_clients_span_to_the_steps(observed: Observed) -> None:
    trace_id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    observed.post(
        "/v1/completions",
        {"prompt": "Hello, " + LONG, "max_tokens": 5},
        traceparent=f"00-{trace_id}-{parent}-01",
    )
    spans = until(lambda: len(found := observed.receiver.of(trace_id)) == 10 and found)
    named = {span.name: span for span in spans if span.name != "step"}
    whole = named["POST /v1/completions"]
    assert whole.parent_span_id.hex() == parent
    order = [named[name] for name in ("prepare", "queue", "prefill", "decode")]
    assert all(span.parent_span_id == whole.span_id for span in order)
    for before, after in itertools.pairwise(order):
        assert before.start_time_unix_nano <= before.end_time_unix_nano
        assert abs(before.end_time_unix_nano - after.start_time_unix_nano) < 2000  # rounding
    assert whole.start_time_unix_nano <= order[0].start_time_unix_nano
    assert order[-1].end_time_unix_nano <= whole.end_time_unix_nano
    assert abs(whole.start_time_unix_nano / 1e9 - time.time()) < PATIENCE_S
    steps = {
        attribute.key: attribute.value.int_value for span in order for attribute in span.attributes
    }
    assert 0 < steps["tokenspeed.first_step"] <= steps["tokenspeed.last_step"]
    worked = [span for span in spans if span.name == "step"]
    assert [span.parent_span_id for span in worked] == [
        named["prefill"].span_id,
        *[named["decode"].span_id] * 4,
    ]
    numbers = [span.attributes[0].value.int_value for span in worked]
    assert numbers == sorted(numbers)  # steps that retire together are told as the last of them
    assert steps["tokenspeed.first_step"] <= numbers[0]
    assert numbers[-1] == steps["tokenspeed.last_step"]
    for before, after in itertools.pairwise(worked):
        assert before.start_time_unix_nano < before.end_time_unix_nano
        assert before.start_time_unix_nano <= after.start_time_unix_nano
    assert named["queue"].start_time_unix_nano <= worked[0].start_time_unix_nano
    assert worked[-1].end_time_unix_nano <= named["decode"].end_time_unix_nano + 2000


async def test_kv_events_foretell_what_is_cached(observed: Observed) -> None:
    index = KvIndex()
    async with KvSubscriber(observed.engine.config.kv_events) as source:
        batches = aiter(source)

        async def follow(prompt: list[int]) -> int:
            async with asyncio.timeout(PATIENCE_S):
                while (cached := index.cached(prompt, 16)) < len(prompt) // 16 * 16:
                    index.apply(await anext(batches))
            return cached

        prompt = list(range(1000, 1100))
        body = {"prompt": prompt, "max_tokens": 1}
        await asyncio.to_thread(observed.post, "/v1/completions", body)
        foretold = await follow(prompt)
        answer = await asyncio.to_thread(observed.post, "/v1/completions", body)
    assert foretold == 96
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == foretold


def test_profiles_are_refused_unless_they_are_allowed(observed: Observed) -> None:
    for path in ("/start_profile", "/stop_profile"):
        refused = observed.post(path, {})
        assert refused.status_code == 403
        assert "--profiling" in refused.json()["error"]["message"]
