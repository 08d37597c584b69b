# SPDX-License-Identifier: MIT
"""Thousands of nearly right requests to a real engine: all are answered, none harms it."""

import http.client
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import save_tiny_llama
from tests.frontend.mutations import MutatedRequest, mutated
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.launch import Engine

PATIENCE_S = 120.0
CLIENTS = 24
CANARY = {"prompt": "Hi there", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
ERRORS = {400, 404, 408, 413, 429, 431}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, codec: TextCodec) -> Path:
    """A tiny random model with the vocabulary and chat template of SmolLM2."""
    path = save_tiny_llama(
        tmp_path_factory.mktemp("words"),
        vocab_size=codec.tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        tie_word_embeddings=True,
    )
    codec.tokenizer.backend.save(str(path / "tokenizer.json"))
    special = codec.tokenizer.special_text()
    settings = {**special, "chat_template": codec.tokenizer.chat_template}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="t") as parent:
        config = EngineConfig(
            model=str(model), port=0, num_blocks=512, max_model_len=64, threads=1, run_dir=parent
        )
        with Engine.start(config, serve_http=True) as engine:
            engine.wait_ready(PATIENCE_S)
            yield engine


def why_wrong(status: int, answer: bytes) -> str:
    """Return what is wrong with an answer, empty if it is an answer or a refusal with a reason."""
    if status == 200:
        return "" if answer else "an empty answer"
    if status not in ERRORS:
        return f"status {status}: {answer[:500]!r}"
    error = json.loads(answer).get("error")
    return "" if error and error["message"] else f"no reason: {answer[:500]!r}"


def send_all(config: EngineConfig, requests: Iterator[MutatedRequest]) -> Counter[int]:
    """Send from several clients at a time; now and then one leaves before its answer is there."""
    lock = threading.Lock()

    def one_client(number: int) -> Counter[int]:
        draw = random.Random(number)
        statuses: Counter[int] = Counter()
        connection = http.client.HTTPConnection(config.host, config.port, timeout=PATIENCE_S)
        while True:
            with lock:
                request = next(requests, None)
            if request is None:
                connection.close()
                return statuses
            connection.request("POST", request.path, request.body, request.headers)
            if draw.random() < 0.02:
                time.sleep(draw.uniform(0, 0.01))
                connection.close()  # the next request opens it again
                continue
            answer = connection.getresponse()
            wrong = why_wrong(answer.status, answer.read())
            assert not wrong, f"{wrong}\nto {request.path} {request.body[:2000]!r}"
            statuses[answer.status] += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(one_client, range(CLIENTS)), Counter())


def gauges(engine: Engine) -> dict[str, float]:
    page = httpx.get(f"{engine.url}/metrics").text
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("tokenspeed_")]
    return {name: float(value) for name, value in lines}


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(
    "count", [10_000, pytest.param(1_000_000, marks=pytest.mark.soak)], ids=["ten-thousand", "long"]
)
def test_nearly_right_requests_harm_nobody(engine: Engine, count: int) -> None:
    draw = random.Random(count)
    requests = (mutated(draw, engine.config.model_name) for _ in range(count))
    before = engine.pids()
    canary = {"model": engine.config.model_name, **CANARY}
    with httpx.Client(base_url=engine.url, timeout=PATIENCE_S) as client:
        quiet = client.post("/v1/completions", json=canary).json()["choices"]
        statuses = send_all(engine.config, requests)
        assert client.post("/v1/completions", json=canary).json()["choices"] == quiet
    assert engine.pids() == before
    assert statuses[200] > count // 20
    assert statuses[400] > count // 4
    print(f"{count} requests: {dict(statuses)}")
    deadline = time.monotonic() + PATIENCE_S
    while (now := gauges(engine))["tokenspeed_kv_blocks_active"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kept = now["tokenspeed_kv_blocks_free"] + now["tokenspeed_kv_blocks_cached"]
    assert kept == now["tokenspeed_kv_blocks_total"]
