# SPDX-License-Identifier: MIT
"""The request log and the labels of series, in the face of full disks and hostile names."""

import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.server.capped_counter import MAX_SERIES, CappedCounter
from tokenspeed_core.server.request_log import RequestLog
from tokenspeed_core.server.request_record import Arrival, RequestRecord
from tokenspeed_core.server.sinks import Sinks


def record(ids: list[int], text: str) -> RequestRecord:
    arrival = Arrival("id", "/v1/completions", "", "", 1.0, 2.0)
    made = RequestRecord(arrival, prompt_ids=ids, text=[text], outcome="stop")
    made.ended = 3.0
    return made


def test_texts_are_there_if_they_are_asked_for(codec: TextCodec, tmp_path: Path) -> None:
    ids = codec.tokenizer.encode("A secret prompt", add_special=False)
    for log_texts in (False, True):
        file = tmp_path / f"{log_texts}.jsonl"
        sinks = Sinks.of(EngineConfig(request_log=str(file), log_texts=log_texts), codec.table)
        assert sinks.keeps_text == log_texts
        assert sinks.log is not None
        sinks.log(record(ids, "and its answer"))
        sinks.close()
        (line,) = file.read_text().splitlines()
        entry = json.loads(line)
        assert entry["e2e_ms"] == 1000
        if not log_texts:
            assert "prompt" not in entry
            assert "secret" not in line
            assert "answer" not in line
        else:
            assert (entry["prompt"], entry["text"]) == ("A secret prompt", "and its answer")


def test_nothing_is_told_that_is_not_asked_for(codec: TextCodec, tmp_path: Path) -> None:
    quiet = Sinks.of(EngineConfig(), codec.table)
    assert (quiet.log, quiet.tracing) == (None, None)
    file, nobody = tmp_path / "log", "http://127.0.0.1:9/v1/traces"
    asked = Sinks.of(EngineConfig(request_log=str(file), otlp_endpoint=nobody), codec.table)
    assert asked.log is not None
    assert asked.tracing is not None
    asked.close()
    assert file.exists()


def test_a_full_disk_costs_lines_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    log = RequestLog("/dev/full")
    for _ in range(5):
        log(record([1], ""))
    log.close()
    assert log.dropped == 5
    assert "lost 4 lines" in caplog.text


def samples(registry: CollectorRegistry) -> dict[str, float]:
    page = generate_latest(registry).decode()
    return {
        sample.labels["tenant"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "requests_total"
    }


def test_labels_are_escaped_and_bounded() -> None:
    registry = CollectorRegistry()
    counter = Counter("requests", "of tenants", ["model_name", "tenant"], registry=registry)
    capped = CappedCounter(counter, 'a "model"\nwith\\names')
    hostile = ['"} 1\nfake_total{x="y', "back\\slash", "new\nline", "ünïcode", ""]
    for name in hostile:
        capped.add(1, name)
    found = samples(registry)
    assert {name: found[name] for name in hostile} == dict.fromkeys(hostile, 1.0)
    for number in range(10_000):
        capped.add(1, f"tenant {number}")
    found = samples(registry)
    assert len(found) == MAX_SERIES + 1
    assert found["other"] == 10_000 - (MAX_SERIES - len(hostile))
    capped.add(1, "x" * 100_000)
    assert max(map(len, samples(registry))) < 200
