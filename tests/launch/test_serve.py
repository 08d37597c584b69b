# SPDX-License-Identifier: MIT
"""`serve` in the foreground: faults under HTTP streams, and its ends."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

PATIENCE_S = 120.0
SCRIPT = """
import json, sys
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.launch import serve
sys.exit(serve(EngineConfig(**json.loads(sys.argv[1]))))
"""


@attrs.define
class Served:
    """A `serve` process, and where its children's directory and output are."""

    process: "subprocess.Popen[bytes]"
    parent: Path
    log: Path
    url: str = ""

    def until_ready(self) -> None:
        until(lambda: "ready in" in self.log.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        self.url = "http://" + self.log.read_text().partition(" on ")[2].split()[0]

    def children(self) -> dict[str, int]:
        """Process ids of what names the run directory, by what it is."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if f"{self.parent}/" in command:
                names = [name for name in ("scheduler", "worker", "server") if name in command]
                found[names[0]] = int(entry.parent.name)
        return found

    def complete(self) -> str:
        body = {"model": "tiny", "prompt": "One, two,", "max_tokens": 6, "temperature": 0}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False


@attrs.define
class Stream:
    """A streamed completion that is read on a thread."""

    url: str
    max_tokens: int
    events: list[str] = attrs.field(factory=list)
    error: Exception | None = None
    _thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        until(lambda: self.events)

    def _read(self) -> None:
        body = {"model": "tiny", "prompt": "Count:", "max_tokens": self.max_tokens}
        body |= {"stream": True, "temperature": 0, "ignore_eos": True}
        try:
            with httpx.stream(
                "POST", f"{self.url}/v1/completions", json=body, timeout=PATIENCE_S
            ) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        self.events.append(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the stream never ended"

    def choices(self) -> list[dict[str, Any]]:
        chunks = [json.loads(event) for event in self.events if event.startswith("{")]
        return [choice for chunk in chunks for choice in chunk.get("choices", [])]

    def finish_reasons(self) -> list[str]:
        return [choice["finish_reason"] for choice in self.choices() if choice["finish_reason"]]

    def text(self) -> str:
        return "".join(choice["text"] for choice in self.choices())


def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def start(parent: Path, log: Path, **settings: object) -> Served:
    config = {
        "max_model_len": 8192,
        "num_blocks": 600,
        "port": 0,
        "run_dir": str(parent),
        "served_model_name": "tiny",
        "drain_s": PATIENCE_S,
        **settings,
    }
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(config)], stderr=stderr
        )
    return Served(process, parent, log)


@pytest.fixture
def parent() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="t"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def serving(thin_smollm2: Path, parent: Path, tmp_path: Path) -> Iterator[Served]:
    served = start(parent, tmp_path / "log", model=str(thin_smollm2))
    try:
        served.until_ready()
        yield served
    finally:
        served.process.kill()
        served.process.wait()
        until(lambda: not served.children())


def test_each_part_dies_under_a_stream_and_comes_back(serving: Served) -> None:
    expected = serving.complete()
    for victim in ("worker", "scheduler", "server"):
        before = serving.children()
        assert set(before) == {"scheduler", "worker", "server"}
        stream = Stream(serving.url, 6000 if victim == "server" else 300)
        os.kill(before[victim], signal.SIGKILL)
        stream.join()
        if victim == "server":
            assert not stream.finish_reasons()
            assert stream.error is not None
        else:
            assert stream.error is None
            assert stream.finish_reasons() == ["length"]
            assert stream.events[-1] == "[DONE]"
        until(lambda: set(serving.children()) == {"scheduler", "worker", "server"})
        until(serving.is_ready)
        assert serving.complete() == expected
        after = serving.children()
        assert {name for name in before if before[name] != after[name]} == {victim}
    assert serving.log.read_text().count("was killed by SIGKILL") >= 3


def test_a_signal_drains_and_leaves_nothing(serving: Served) -> None:
    stream = Stream(serving.url, 30)
    serving.process.terminate()
    until(lambda: not serving.is_ready())
    stream.join()
    assert stream.error is None
    assert stream.finish_reasons() == ["length"]
    assert stream.events[-1] == "[DONE]"
    assert serving.process.wait(PATIENCE_S) == 0
    assert not serving.children()
    assert not list(serving.parent.iterdir())


def test_a_second_signal_does_not_wait(serving: Served) -> None:
    stream = Stream(serving.url, 6000)
    serving.process.send_signal(signal.SIGINT)
    until(lambda: "SIGINT" in serving.log.read_text())
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(PATIENCE_S) == 0
    stream.join()
    assert not stream.finish_reasons()
    assert not serving.children()
    assert not list(serving.parent.iterdir())


def test_a_stderr_that_nobody_reads_stalls_nothing(thin_smollm2: Path, parent: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {"model": str(thin_smollm2), "run_dir": str(parent), "port": port, "num_blocks": 300}
    settings |= {"max_model_len": 2048, "served_model_name": "tiny", "log_level": "debug"}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(settings)], stderr=writer, stdout=writer
    )
    os.close(writer)
    served = Served(process, parent, parent, f"http://127.0.0.1:{port}")
    try:
        until(served.is_ready)
        assert served.complete()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert not served.children()
        assert not list(parent.iterdir())
    finally:
        process.kill()
        os.close(reader)


def test_a_signal_while_weights_load_ends_cleanly(
    thin_smollm2: Path, parent: Path, tmp_path: Path
) -> None:
    served = start(parent, tmp_path / "log", model=str(thin_smollm2))
    until(lambda: "worker" in served.children())
    served.process.send_signal(signal.SIGHUP)
    assert served.process.wait(PATIENCE_S) == 0
    assert "error" not in served.log.read_text()
    assert not served.children()
    assert not list(parent.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "/no/such/model"}, ["/no/such/model"]),
        ({"model": ""}, ["no model"]),
        ({"tp": 3}, ["tp=3", "choose tp"]),
        ({"max_model_len": 10**6}, ["max_model_len"]),
        ({"num_blocks": 1}, ["cache"]),
        ({"run_dir": "/no/such/directory"}, ["/no/such/directory"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_start_is_one_line_and_a_code(
    thin_smollm2: Path, parent: Path, tmp_path: Path, settings: dict[str, object], words: list[str]
) -> None:
    served = start(parent, tmp_path / "log", **{"model": str(thin_smollm2), **settings})
    assert served.process.wait(PATIENCE_S) == 1
    errors = [line for line in served.log.read_text().splitlines() if "tokenspeed: error:" in line]
    assert len(errors) == 1
    assert all(word in errors[0] for word in words)
    assert not served.children()
    assert not list(parent.iterdir())
