# SPDX-License-Identifier: MIT
"""The gateway's gRPC service of two engines, and the real `smg` in front of them."""

import contextlib
import io
import shutil
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tokenizers

from tests.frontend.conftest import thin_engine
from tokenspeed_core.launch import Engine

grpc = pytest.importorskip("grpc", reason="no grpcio: pip install 'tokenspeed-core[smg]'")
protocol = pytest.importorskip(
    "smg_grpc_proto.generated.tokenspeed_scheduler_pb2",
    reason="no smg-grpc-proto: pip install 'tokenspeed-core[smg]'",
)
from smg_grpc_proto.generated import common_pb2  # noqa: E402
from smg_grpc_proto.generated.tokenspeed_scheduler_pb2_grpc import (  # noqa: E402
    TokenSpeedSchedulerStub,
)

MODEL = "smollm2"
PATIENCE_S = 180.0
STORIES = [
    f"Chapter {number}. " + f"{word} walked along the river and counted the boats. " * 30
    for number, word in enumerate(("Anna", "Boris", "Clara", "David", "Elena", "Fritz"))
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@contextlib.contextmanager
def serving(model: Path, folder: Path) -> Iterator[Engine]:
    settings = {"grpc_port": free_port(), "kv_events": f"ipc://{folder}/kv"}
    with thin_engine(model, served_model_name=MODEL, dtype="fp32", **settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def engine(thin_smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with serving(thin_smollm2, tmp_path_factory.mktemp("kv")) as engine:
        yield engine


@pytest.fixture(scope="module")
def engines(
    thin_smollm2: Path, engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Engine]]:
    if shutil.which("smg") is None:
        pytest.skip("no smg on this machine: pip install smg")
    with serving(thin_smollm2, tmp_path_factory.mktemp("kv")) as other:
        yield [engine, other]


@pytest.fixture(scope="module")
def stub(engine: Engine) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{engine.config.grpc_port}") as channel:
        grpc.channel_ready_future(channel).result(PATIENCE_S)
        yield TokenSpeedSchedulerStub(channel)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def ids_of(engine: Engine, text: str) -> list[int]:
    body = {"model": MODEL, "prompt": text}
    found: list[int] = httpx.post(f"{engine.url}/tokenize", json=body).json()["tokens"]
    return found


def asked(ids: list[int], name: str, **more: Any) -> Any:
    sampling = {"temperature": 0.0, "max_new_tokens": 12, **more.pop("sampling", {})}
    return protocol.GenerateRequest(
        request_id=name,
        tokenized=protocol.TokenizedInput(input_ids=ids),
        sampling_params=protocol.SamplingParams(**sampling),
        **more,
    )


def over_http(engine: Engine, prompt: str | list[int], **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0, **more}
    answer = httpx.post(f"{engine.url}/v1/completions", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_frames_carry_the_tokens_that_http_gives(engine: Engine, stub: Any) -> None:
    ids = ids_of(engine, "The capital of France is")
    expected = over_http(engine, ids, return_token_ids=True)["choices"][0]["token_ids"]
    frames = list(stub.Generate(asked(ids, "streamed", stream=True, return_logprob=True)))
    chunks = [frame.chunk for frame in frames if frame.HasField("chunk")]
    complete = frames[-1].complete
    assert [id for chunk in chunks for id in chunk.token_ids] == expected
    assert len(chunks) > 3
    assert all(len(c.output_logprobs.token_logprobs) == len(c.token_ids) for c in chunks)
    assert (complete.finish_reason, complete.prompt_tokens) == ("length", len(ids))
    assert complete.completion_tokens == 12
    (whole,) = stub.Generate(asked(ids, "whole", sampling={"n": 1}))
    assert list(whole.complete.output_ids) == expected
    several = list(stub.Generate(asked(ids, "several", sampling={"n": 3})))
    assert sorted(frame.complete.index for frame in several) == [0, 1, 2]


def test_stops_and_refusals(engine: Engine, stub: Any) -> None:
    ids = ids_of(engine, "One, two, three,")
    text = over_http(engine, ids)["choices"][0]["text"]
    word = text.split()[1]
    (stopped,) = stub.Generate(asked(ids, "stopped", sampling={"stop": [word]}))
    assert stopped.complete.finish_reason == "stop"
    assert stopped.complete.matched_stop_str == word
    for wrong, code in (
        ({"temperature": -1.0}, "INVALID_ARGUMENT"),
        ({"json_schema": "{}"}, "INVALID_ARGUMENT"),
        ({"stop": ["x"] * 100}, "INVALID_ARGUMENT"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Generate(asked(ids, "wrong", sampling=wrong)))
        assert refused.value.code().name == code
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Generate(asked([], "empty")))
    assert refused.value.code().name == "INVALID_ARGUMENT"


def gauge(engine: Engine, name: str) -> float:
    page = httpx.get(f"{engine.url}/metrics").text
    lines = [line.split() for line in page.splitlines() if line.startswith(f"tokenspeed_{name} ")]
    return float(lines[0][1])


def test_requests_are_aborted_by_name_and_by_leaving(engine: Engine, stub: Any) -> None:
    ids = ids_of(engine, "Count to a thousand: one,")
    endless = {"max_new_tokens": 1500, "ignore_eos": True}
    for end in ("abort", "leave"):
        call = stub.Generate(asked(ids, f"endless-{end}", stream=True, sampling=endless))
        next(call)
        if end == "abort":
            assert stub.Abort(protocol.AbortRequest(request_id="endless-abort")).success
        else:
            call.cancel()
        until(lambda: gauge(engine, "num_requests_running") == 0)
    assert stub.Abort(protocol.AbortRequest(request_id="never heard of")).success


def test_what_a_gateway_asks_first(engine: Engine, stub: Any) -> None:
    assert stub.HealthCheck(protocol.HealthCheckRequest()).healthy
    model = stub.GetModelInfo(protocol.GetModelInfoRequest())
    assert (model.served_model_name, model.max_context_length) == (MODEL, 2048)
    assert stub.GetServerInfo(protocol.GetServerInfoRequest()).max_total_num_tokens == 511 * 16
    (load,) = stub.GetLoads(protocol.GetLoadsRequest()).loads
    assert load.max_total_num_tokens == 511 * 16
    chunks = list(stub.GetTokenizer(common_pb2.GetTokenizerRequest()))
    archive = zipfile.ZipFile(io.BytesIO(b"".join(chunk.data for chunk in chunks)))
    assert len(chunks[-1].sha256) == 64
    told = tokenizers.Tokenizer.from_str(archive.read("tokenizer.json").decode())
    text = "Grüße, 世界! <|im_start|>user"
    assert told.encode(text, add_special_tokens=True).ids == ids_of(engine, text)


def test_kv_events_are_told(engine: Engine, stub: Any) -> None:
    prompt = list(range(2000, 2064))
    call = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(), timeout=PATIENCE_S)
    over_http(engine, prompt, max_tokens=1)
    seen: list[int] = []
    for batch in call:
        for event in batch.events:
            seen += [id for block in event.stored.blocks for id in block.token_ids]
        if all(id in seen for id in prompt[:48]):
            break
    call.cancel()


@contextlib.contextmanager
def smg(folder: Path, *workers: str) -> Iterator[httpx.Client]:
    """Run the gateway in front of workers until it answers, and to the end of the test."""
    executable = shutil.which("smg")
    assert executable is not None
    port, log = free_port(), folder / "smg.log"
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--policy", "cache_aware"]
    metrics = ["--prometheus-port", str(free_port())]
    command = [executable, "launch", *arguments, *metrics, "--worker-urls", *workers]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
            until(lambda: serves(client, process, log))
            yield client
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def gateway(
    engines: list[Engine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    workers = [f"grpc://127.0.0.1:{engine.config.grpc_port}" for engine in engines]
    with smg(tmp_path_factory.mktemp("grpc"), *workers) as client:
        yield client


def serves(client: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        return client.post("/v1/chat/completions", json=body).status_code == 200
    except httpx.TransportError:
        return False


def test_smg_chats_and_streams(engines: list[Engine], gateway: httpx.Client) -> None:
    url = f"{str(gateway.base_url).rstrip('/')}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0,
            "max_tokens": 20,
        }
        whole = client.chat.completions.create(**ask)
        text = whole.choices[0].message.content
        direct = httpx.post(
            f"{engines[0].url}/v1/chat/completions", json=ask, timeout=PATIENCE_S
        ).json()
        assert text == direct["choices"][0]["message"]["content"]
        assert whole.usage.prompt_tokens == direct["usage"]["prompt_tokens"]
        pieces = [
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(**ask, stream=True)
            if chunk.choices
        ]
        assert len(pieces) > 3
        assert "".join(pieces) == text


def test_smg_passes_aborts_on(engines: list[Engine], gateway: httpx.Client) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "max_tokens": 1500,
        "stream": True,
        "ignore_eos": True,
    }
    with gateway.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        until(lambda: sum(gauge(each, "num_requests_running") for each in engines) == 1)
    until(lambda: sum(gauge(each, "num_requests_running") for each in engines) == 0)


def test_smg_routes_by_our_kv_events(engines: list[Engine], gateway: httpx.Client) -> None:
    """Prompts that the gateway never saw are sent to the engine that has them."""
    for number, story in enumerate(STORIES):
        over_http(engines[number % 2], ids_of(engines[0], story), max_tokens=1)
    time.sleep(2)  # the gateway reads events in the background and shows no count of them
    before = [gauge(engine, "prefix_cache_hits_total") for engine in engines]
    cached = []
    for story in STORIES:
        body = {"model": MODEL, "prompt": story, "max_tokens": 1, "temperature": 0}
        answer = gateway.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"])
    assert min(cached) > 0.9, cached
    after = [gauge(engine, "prefix_cache_hits_total") for engine in engines]
    assert all(new > old for new, old in zip(after, before, strict=True))


def test_smg_in_front_of_http(engines: list[Engine], tmp_path: Path) -> None:
    with smg(tmp_path, *(engine.url for engine in engines)) as client:
        ask = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is the capital of Spain?"}],
            "temperature": 0,
            "max_tokens": 12,
        }
        texts = [
            httpx.post(f"{url}/v1/chat/completions", json=ask, timeout=PATIENCE_S).json()[
                "choices"
            ][0]["message"]["content"]
            for url in (engines[0].url, str(client.base_url).rstrip("/"))
        ]
        assert texts[0] == texts[1]
        with client.stream("POST", "/v1/chat/completions", json={**ask, "stream": True}) as answer:
            assert answer.status_code == 200
            assert list(answer.iter_lines())[-2:].count("data: [DONE]") == 1
