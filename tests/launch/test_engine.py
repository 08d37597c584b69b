# SPDX-License-Identifier: MIT
"""Engines of real processes with a tiny model, driven through the ZeroMQ client."""

import asyncio
import functools
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import save_tiny_llama
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.engine_watch import WatchLimits
from tokenspeed_core.ipc.messages import Sampling
from tokenspeed_core.launch import Engine, EngineError
from tokenspeed_core.scheduler._scheduler import Replay
from tokenspeed_core.sdk import Client, EngineLostError, RequestStream
from tokenspeed_core.served_model import PortInUseError
from tokenspeed_core.worker_event import Loading, Ready, WorkerEvent

PATIENCE_S = 120.0
PROMPT = list(range(1, 40))
LENGTH = 200  # tokens that take a moment
LONG = 8000  # tokens that take many seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(
        tmp_path_factory.mktemp("tiny"), vocab_size=96, max_position_embeddings=8192
    )


@pytest.fixture
def parent() -> Iterator[Path]:
    """A short path for run directories, which must be empty again when the test is over."""
    path = Path(tempfile.mkdtemp(prefix="t"))
    yield path
    shutil.rmtree(path)


def config(model: Path, parent: Path, **more: object) -> EngineConfig:
    settings = {"num_blocks": 600, "threads": 1, "run_dir": str(parent), **more}
    return EngineConfig(model=str(model), **settings)


def processes_of(path: Path) -> dict[int, str]:
    """Processes that name a run directory below `path` in their command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"{path}/" in command:
            found[int(entry.parent.name)] = command
    return found


def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def replaced(engine: Engine, before: dict[str, int], victims: set[str]) -> set[str]:
    """The processes that are others than before, once all victims are and everything runs.

    A stream may end first: a part that is woken to tell its stacks works until it is killed.
    """

    def is_whole() -> bool:
        now = engine.pids()
        return now.keys() == before.keys() and all(now[name] != before[name] for name in victims)

    until(is_whole)
    after = engine.pids()
    return {name for name in before if before[name] != after[name]}


async def answer(client: Client, max_tokens: int = 8) -> list[int]:
    tokens: list[int] = []
    async for delta in client.generate(PROMPT, max_tokens=max_tokens):
        tokens += delta.tokens
    return tokens


async def answer_when_ready(client: Client) -> list[int]:
    """Answer once the engine is back, however often it loses the request before."""
    while True:
        try:
            await client.ready(PATIENCE_S)
            return await answer(client)
        except EngineLostError:
            await asyncio.sleep(0.05)


async def read_on(stream: RequestStream) -> None:
    async for _ in stream:
        pass


async def drawn(client: Client, mishap: Callable[[], object] = lambda: None) -> list[list[int]]:
    """Two long answers at a time, one greedy and one drawn; the mishap comes in their midst."""
    draw = Sampling(temperature=1.0, seed=7)
    streams = [client.submit(PROMPT, max_tokens=LENGTH, sampling=how) for how in (None, draw)]
    begun = [await anext(stream) for stream in streams]
    mishap()
    rest = [[token async for delta in stream for token in delta.tokens] for stream in streams]
    return [first.tokens + more for first, more in zip(begun, rest, strict=True)]


async def lose_while_streaming(engine: Engine, client: Client, victim: str) -> None:
    """Kill a child under a stream, and check that the stream says so."""
    pid = engine.pids()[victim]
    stream = client.submit(PROMPT, max_tokens=LONG)
    await anext(stream)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineLostError):
        await read_on(stream)


@pytest.mark.parametrize("tp", [1, 2])
def test_streams_outlive_killed_and_stopped_workers_and_schedulers(
    model: Path, parent: Path, tp: int
) -> None:
    events: list[tuple[str, WorkerEvent]] = []

    def on_event(source: str, event: WorkerEvent) -> None:
        events.append((source, event))

    async def scenario(engine: Engine) -> None:
        async with Client(engine.run) as client:
            quiet = await drawn(client)
            assert [len(tokens) for tokens in quiet] == [LENGTH, LENGTH]
            assert quiet[0] != quiet[1]
            last = f"worker {tp - 1}"
            for victim, number in (
                (last, signal.SIGKILL),
                (last, signal.SIGSTOP),
                ("scheduler", signal.SIGKILL),
            ):
                before = engine.pids()
                strike = functools.partial(os.kill, before[victim], number)
                assert await drawn(client, strike) == quiet
                group = {name for name in before if name.split()[0] == victim.split()[0]}
                assert await asyncio.to_thread(replaced, engine, before, group) == group

    with Engine.start(config(model, parent, tp=tp), on_event=on_event) as engine:
        engine.wait_ready(PATIENCE_S)
        assert set(engine.pids()) == {"scheduler", *(f"worker {rank}" for rank in range(tp))}
        assert len(processes_of(parent)) == tp + 1
        asyncio.run(scenario(engine))
    ranks = {f"worker {rank}" for rank in range(tp)}
    assert {source for source, event in events if isinstance(event, Ready)} == ranks
    done = [event for _, event in events if isinstance(event, Loading)]
    assert any(event.done_bytes == event.total_bytes > 0 for event in done)
    assert not processes_of(parent)
    assert not list(parent.iterdir())


def test_an_aborted_request_does_not_come_back(model: Path, parent: Path) -> None:
    async def scenario(engine: Engine) -> None:
        async with Client(engine.run) as client:
            quiet = await drawn(client)
            stream = client.submit(PROMPT, max_tokens=LONG)
            await anext(stream)
            os.kill(engine.pids()["worker 0"], signal.SIGKILL)
            await asyncio.sleep(0.05)
            stream.abort()
            assert client.in_flight == 0
            assert await drawn(client) == quiet

    with Engine.start(config(model, parent)) as engine:
        engine.wait_ready(PATIENCE_S)
        asyncio.run(scenario(engine))


def test_a_killed_scheduler_leaves_its_black_box(model: Path, parent: Path, tmp_path: Path) -> None:
    box = tmp_path / "box"

    async def scenario(engine: Engine) -> None:
        async with Client(engine.run, resume_s=0) as client:
            await answer(client)
            await lose_while_streaming(engine, client, "scheduler")
            await answer_when_ready(client)

    with Engine.start(config(model, parent, record=str(box), record_bytes=2**20)) as engine:
        engine.wait_ready(PATIENCE_S)
        asyncio.run(scenario(engine))
    for path, closed in ((Path(f"{box}.1"), False), (box, True)):
        replay = Replay(str(path))
        plans = 0
        while (played := replay.next()) is not None:
            assert played.same, (played.index, played.event, played.outcome)
            plans += played.step > 0
        assert plans > 0
        assert replay.closed == closed


def test_an_engine_belongs_to_no_thread_and_stops_twice(model: Path, parent: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    engines: list[Engine] = []
    thread = threading.Thread(target=lambda: engines.append(Engine.start(config(model, parent))))
    thread.start()
    thread.join()
    engines[0].wait_ready(PATIENCE_S)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert oct(engines[0].run.path.stat().st_mode)[-3:] == "700"
    engines[0].stop()
    engines[0].stop()
    assert not list(parent.iterdir())
    assert engines[0].failure is None


def test_stopping_ends_what_still_runs(model: Path, parent: Path) -> None:
    async def scenario(engine: Engine) -> None:
        async with Client(engine.run) as client:
            stream = client.submit(PROMPT, max_tokens=LONG)
            await anext(stream)
            stopping = asyncio.create_task(asyncio.to_thread(engine.stop))
            with pytest.raises(EngineLostError):
                await read_on(stream)
            await stopping

    engine = Engine.start(config(model, parent))
    engine.wait_ready(PATIENCE_S)
    asyncio.run(scenario(engine))
    assert not processes_of(parent)
    assert not list(parent.iterdir())


def test_a_script_without_stderr_works(model: Path, parent: Path) -> None:
    code = SCRIPT.format(model=str(model), parent=str(parent), then="")
    command = [
        sys.executable,
        "-c",
        "import os, sys; os.close(2); os.execv(sys.argv[1], sys.argv[1:])",
    ]
    done = subprocess.run(
        [*command, sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout) == (0, b"ready\n")
    assert not list(parent.iterdir())


def test_waiting_for_an_engine_that_was_stopped_says_so(model: Path, parent: Path) -> None:
    engine = Engine.start(config(model, parent))
    with pytest.raises(EngineError, match="not ready within 0 s"):
        engine.wait_ready(0.0)
    engine.stop()
    with pytest.raises(EngineError, match="stopped before it was ready"):
        engine.wait_ready(PATIENCE_S)


SCRIPT = """
import os, sys, time
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.launch import Engine
engine = Engine.start(EngineConfig(model={model!r}, run_dir={parent!r}, num_blocks=600, threads=1))
engine.wait_ready(120)
print("ready", flush=True)
{then}
"""


def script(model: Path, parent: Path, then: str) -> "subprocess.Popen[str]":
    code = SCRIPT.format(model=str(model), parent=str(parent), then=then)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("then", "code"),
    [("", 0), ("raise SystemExit(5)", 5), ("os.fork() or sys.exit(); os.wait()", 0)],
    ids=["end", "exit", "fork"],
)
def test_a_script_that_ends_without_stopping_leaves_nothing(
    model: Path, parent: Path, then: str, code: int
) -> None:
    process = script(model, parent, then)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert out == "ready\n"
    assert process.returncode == code
    assert not processes_of(parent)
    assert not list(parent.iterdir())


def test_a_killed_launcher_takes_everything_along(model: Path, parent: Path) -> None:
    process = script(model, parent, "time.sleep(1000)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(processes_of(parent)) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: not processes_of(parent), 10)
    (abandoned,) = parent.iterdir()
    with Engine.start(config(model, parent)) as engine:
        assert list(parent.iterdir()) == [engine.run.path]
        assert not abandoned.exists()
        with Engine.start(config(model, parent)) as other:
            assert set(parent.iterdir()) == {engine.run.path, other.run.path}
    assert not list(parent.iterdir())


@pytest.mark.parametrize("victim", ["worker 0", "scheduler"])
def test_a_frozen_part_tells_its_stacks_and_is_replaced(
    model: Path, parent: Path, victim: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario(engine: Engine) -> None:
        async with Client(engine.run) as client:
            expected = await drawn(client)
            before = engine.pids()
            freeze = functools.partial(os.kill, before[victim], signal.SIGSTOP)
            assert await drawn(client, freeze) == expected
            assert await asyncio.to_thread(replaced, engine, before, {victim}) == {victim}

    limits = WatchLimits(silence_s=2.0, step_s=2.0, stopped_s=math.inf)
    with Engine.start(config(model, parent), limits=limits) as engine:
        engine.wait_ready(PATIENCE_S)
        asyncio.run(scenario(engine))
    said = capfd.readouterr().err
    assert {"scheduler": "stack of the scheduler", "worker 0": "in serve"}[victim] in said


def test_workers_that_froze_while_the_scheduler_died_are_replaced(
    model: Path, parent: Path
) -> None:
    async def scenario(engine: Engine) -> None:
        async with Client(engine.run) as client:
            expected = await drawn(client)
            before = engine.pids()

            def strike() -> None:
                os.kill(before["worker 0"], signal.SIGSTOP)
                os.kill(before["scheduler"], signal.SIGKILL)

            assert await drawn(client, strike) == expected
            both = {"scheduler", "worker 0"}
            assert await asyncio.to_thread(replaced, engine, before, both) == both

    limits = WatchLimits(step_s=2.0, stopped_s=math.inf)
    with Engine.start(config(model, parent), limits=limits) as engine:
        engine.wait_ready(PATIENCE_S)
        asyncio.run(scenario(engine))


def test_a_frozen_api_process_is_replaced(thin_smollm2: Path, parent: Path) -> None:
    settings = config(thin_smollm2, parent, port=0, max_model_len=512)
    with Engine.start(settings, serve_http=True, limits=WatchLimits(silence_s=3.0)) as engine:
        engine.wait_ready(PATIENCE_S)
        before = engine.pids()
        os.kill(before["api"], signal.SIGSTOP)
        assert replaced(engine, before, {"api"}) == {"api"}
        until(lambda: answers(f"{engine.url}/ready"))
        assert replaced(engine, before, {"api"}) == {"api"}


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_rank_count_that_does_not_divide_is_one_line(model: Path, parent: Path) -> None:
    engine = Engine.start(config(model, parent, tp=3))
    with pytest.raises(EngineError, match=r"worker \d: .*tp") as failed:
        engine.wait_ready(PATIENCE_S)
    assert "\n" not in str(failed.value)
    assert engine.wait(PATIENCE_S)
    assert not processes_of(parent)
    assert not list(parent.iterdir())
    engine.stop()


def test_damaged_weights_fail_before_any_process(model: Path, parent: Path) -> None:
    broken = parent / "m"
    shutil.copytree(model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors .* download it again"):
        Engine.start(config(broken, parent))
    assert [path.name for path in parent.iterdir()] == ["m"]


def test_a_worker_that_keeps_dying_ends_the_engine(model: Path, parent: Path) -> None:
    with Engine.start(config(model, parent)) as engine:
        engine.wait_ready(PATIENCE_S)
        seen: set[int] = set()
        while not engine.wait(0.02):
            pid = engine.pids().get("worker 0")
            if pid is not None and pid not in seen:
                seen.add(pid)
                os.kill(pid, signal.SIGKILL)
        assert len(seen) == 4
        assert "the worker group died 4 times" in str(engine.failure)
        assert "SIGKILL" in str(engine.failure)
    assert not list(parent.iterdir())


def test_a_taken_port_is_said_at_once(model: Path, parent: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            Engine.start(config(model, parent, port=port), serve_http=True)
    assert not list(parent.iterdir())


def test_a_run_directory_that_cannot_be(model: Path, parent: Path) -> None:
    with pytest.raises(RuntimeError, match="is no directory"):
        Engine.start(config(model, parent / "missing"))
    long = parent / ("x" * 100)
    long.mkdir()
    with pytest.raises(RuntimeError, match="shorter directory"):
        Engine.start(config(model, long))
    assert not list(long.iterdir())
