# SPDX-License-Identifier: MIT
"""Thousands of nearly right requests to a real engine: all are answered, none harms it."""

import contextlib
import http.client
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.conftest import save_tiny_llama
from tests.engine.embedders import save_tiny_embedder
from tests.frontend.conftest import thin_engine
from tests.frontend.mutations import FITTING, GOOD, SCHEMAS, MutatedRequest, mutated
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.launch import Engine
from tokenspeed_core.server.app import bodies
from tokenspeed_core.server.request_body import parse

PATIENCE_S = 120.0
NUM_WORDS = 4096
CLIENTS = 24
CANARY = {"prompt": "Hi there", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
EMBEDDINGS = "/v1/embeddings"
ERRORS = {400, 404, 408, 409, 413, 429, 431}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, codec: TextCodec) -> Path:
    """A tiny random model with the chat template of SmolLM2 and its first words.

    A twelfth of the vocabulary: most of a step's time would be the sorting of it for each row.
    """
    path = save_tiny_llama(
        tmp_path_factory.mktemp("words"),
        vocab_size=NUM_WORDS,
        hidden_size=32,
        num_hidden_layers=1,
        tie_word_embeddings=True,
    )
    tokenizer = json.loads(codec.tokenizer.backend.to_str())
    words = {word: id for word, id in tokenizer["model"]["vocab"].items() if id < NUM_WORDS}
    merges = [
        pair for pair in tokenizer["model"]["merges"] if {*pair, "".join(pair)} <= words.keys()
    ]
    tokenizer["model"] |= {"vocab": words, "merges": merges}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = codec.tokenizer.special_text()
    settings = {**special, "chat_template": codec.tokenizer.chat_template}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@contextlib.contextmanager
def served(model: Path) -> Iterator[Engine]:
    # a line for each refusal would be half of the work
    settings = {"max_model_len": 80, "log_level": "error"}
    with (
        tempfile.TemporaryDirectory(prefix="t") as parent,
        thin_engine(model, run_dir=parent, **settings) as engine,
    ):
        yield engine


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    with served(model) as engine:
        yield engine


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("embedder")
    save_tiny_embedder(path)
    with served(path) as engine:
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
    statuses = harm_nobody(engine, "/v1/completions", CANARY, count, list(GOOD))
    assert statuses[200] > count // 20
    assert statuses[400] > count // 4


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(
    "count", [1_000, pytest.param(100_000, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_nearly_right_requests_harm_no_embedder(embedder: Engine, count: int) -> None:
    paths = [EMBEDDINGS] * len(GOOD) + list(GOOD)  # the others are mostly refused
    statuses = harm_nobody(embedder, EMBEDDINGS, {"input": "Hi there"}, count, paths)
    assert statuses[200] > count // 20
    assert statuses[400] > count // 4


def harm_nobody(
    engine: Engine, path: str, canary: dict[str, Any], count: int, paths: Sequence[str]
) -> Counter[int]:
    """Send mutated requests to `paths`; return how many got each status.

    No process dies, a good request to `path` gets the same answer before and after, and no KV block
    is lost.
    """
    draw = random.Random(count)
    requests = (mutated(draw, engine.config.model_name, paths) for _ in range(count))
    before = engine.pids()
    canary = {"model": engine.config.model_name, **canary}
    answer = "data" if path == EMBEDDINGS else "choices"
    with httpx.Client(base_url=engine.url, timeout=PATIENCE_S) as client:
        quiet = client.post(path, json=canary).json()[answer]
        statuses = send_all(engine.config, requests)
        assert client.post(path, json=canary).json()[answer] == quiet
    assert engine.pids() == before
    print(f"{count} requests: {dict(statuses)}")
    deadline = time.monotonic() + PATIENCE_S
    while (now := gauges(engine))["tokenspeed_kv_blocks_active"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kept = now["tokenspeed_kv_blocks_free"] + now["tokenspeed_kv_blocks_cached"]
    assert kept == now["tokenspeed_kv_blocks_total"]
    return statuses


def test_every_field_of_every_route_is_mutated() -> None:
    routes = bodies(None)  # type: ignore[arg-type]
    assert {path: route.fields for path, route in routes.items()} == {
        **SCHEMAS,
        "/abort_request": SCHEMAS["/abort"],
    }
    assert GOOD.keys() == SCHEMAS.keys()
    fields = {name for kind in SCHEMAS.values() for name in kind.__struct_fields__}
    assert FITTING.keys() <= fields
    for path, bodies_of_path in GOOD.items():  # the good ones are what they are called
        for body in bodies_of_path:
            parse(json.dumps({"model": "m", **body}).encode(), SCHEMAS[path], lambda _: None)
    draw = random.Random(10_000)
    values: dict[tuple[str, str], set[str]] = {}
    for _ in range(10_000):
        request = mutated(draw, "m", list(GOOD))
        try:
            body = json.loads(request.body)
        except (ValueError, RecursionError):
            continue  # damaged bytes, or nested too deeply
        for name, value in body.items() if isinstance(body, dict) else ():
            values.setdefault((request.path, name), set()).add(repr(value))
    for path, kind in SCHEMAS.items():
        for name in kind.__struct_fields__:
            assert len(values.get((path, name), ())) >= 3, (path, name)


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(
    "count", [25, pytest.param(1_000, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_requests_of_our_openapi_document_are_answered_as_it_says(
    engine: Engine, count: int
) -> None:
    before = engine.pids()
    document = httpx.get(f"{engine.url}/openapi.json").json()
    operations = [
        each.ok() for each in schemathesis.openapi.from_dict(document).get_all_operations()
    ]
    assert len(operations) >= 25
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        for operation in operations:

            @settings(
                max_examples=count,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy() | operation.as_strategy(GenerationMode.NEGATIVE))
            def one(case: schemathesis.Case) -> None:
                if isinstance(case.body, dict) and "model" in case.body:
                    case.body["model"] = engine.config.model_name
                answer = case.call(base_url=engine.url, session=session, timeout=PATIENCE_S)
                assert answer.status_code in {200, 401, 403, 405, *ERRORS}, answer.content[:500]
                statuses[answer.status_code] += 1

            one()
    assert engine.pids() == before
    assert statuses[200] > count
    assert statuses[400] > count
    print(f"{sum(statuses.values())} requests to {len(operations)} operations: {dict(statuses)}")
