# SPDX-License-Identifier: MIT
"""Starting an engine: its processes, their files, and their end."""

import atexit
import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import attrs

from .background_writer import BackgroundWriter
from .checkpoint import CheckpointError, open_checkpoint
from .child_process import ChildSpec
from .config import ConfigError, EngineConfig, write_config
from .ipc.codec import encode
from .ipc.messages import WIRE_VERSION, SchedulerConfig
from .ipc.run_directory import RunDirectory, RunDirectoryError
from .launcher_output import LauncherOutput
from .model_source import ModelNotFoundError, resolve
from .readiness import NotReadyError, await_http, await_scheduler
from .scheduler.process import CONFIG_FILE, SchedulerNotFoundError, find_executable, find_libzmq
from .supervisor import Part, Printed, Reported, Supervisor
from .worker_event import WorkerEvent

_API_GRACE_S = 2.0

# libgomp's threads spin for milliseconds at a barrier before they sleep.  On a machine whose cores
# are shared that starves the thread they wait for: measured beside one busy process, a decode
# step took 368 ms on average instead of 16.
_WORKER_VARIABLES = {"GOMP_SPINCOUNT": "100000"}


class EngineError(RuntimeError):
    """An engine cannot start or cannot be kept alive; the message is one line with the cause."""


class Engine:
    """The processes of one engine: a scheduler, a worker per rank, and perhaps an HTTP server.

    They end with `stop`, with the context, at interpreter exit, and when this process dies.
    """

    def __init__(self, model: "ServedModel", run: RunDirectory, serve_http: bool) -> None:
        self.config = model.config
        self.run = run
        self._vocab_size = model.vocab_size
        self._serve_http = serve_http
        self._process_id = os.getpid()
        self._is_ready = threading.Event()
        self._settled = threading.Event()  # ready, or over
        self._refusal = ""

    @classmethod
    def start(
        cls,
        config: EngineConfig,
        *,
        serve_http: bool = False,
        on_event: Callable[[str, WorkerEvent], None] | None = None,
    ) -> "Engine":
        """Start all processes in the background, from any thread; signal handlers stay untouched.

        Children's output goes to this process's stderr, each line with its source.  `on_event`
        gets (child, event) while workers load, on a thread of its own that may wait.

        Raises:
            ConfigError, ModelNotFoundError, CheckpointError, RunDirectoryError: the config, the
                model or the run directory cannot be used.
            SchedulerNotFoundError: its executable was not built.
            EngineError: the port is taken.
        """
        return cls._launch(ServedModel.of(config, serve_http), serve_http, on_event)

    @classmethod
    def _launch(
        cls,
        model: "ServedModel",
        serve_http: bool,
        on_event: Callable[[str, WorkerEvent], None] | None,
    ) -> "Engine":
        run = RunDirectory.create(_parent(model.config))
        try:
            engine = cls(model, run, serve_http)
            engine._start_processes(on_event)
        except BaseException:
            run.remove()
            raise
        return engine

    def _start_processes(self, on_event: Callable[[str, WorkerEvent], None] | None) -> None:
        output = LauncherOutput()

        def write(item: Printed | Reported, dropped: int) -> None:
            output.write(item, dropped)
            if on_event is not None and isinstance(item, Reported):
                on_event(item.source, item.event)

        self._writer = BackgroundWriter(write)
        self._supervisor = Supervisor(self._parts(), self._writer.post, on_end=self._on_end)
        atexit.register(self._stop_at_exit)
        self._supervisor.start()
        threading.Thread(target=self._await_ready, name="readiness", daemon=True).start()

    def _parts(self) -> list[Part]:
        run, config = self.run, self.config
        config_file = run.path / "engine.json"
        write_config(config, config_file)
        scheduler_file = run.path / CONFIG_FILE
        scheduler_file.touch(mode=0o600)
        scheduler_file.write_bytes(encode(self._scheduler_config()))

        def program(module: str, *arguments: str) -> tuple[str, ...]:
            # -P: the current directory must not hide installed packages.
            python = (sys.executable, "-P", "-m", f"{__package__}.{module}")
            return (*python, "--run-dir", str(run.path), "--config", str(config_file), *arguments)

        def forget_ranks() -> None:
            # Ranks that died cannot be met again.
            (run.path / "ranks").unlink(missing_ok=True)

        workers = tuple(
            ChildSpec(f"worker {rank}", program("worker", "--rank", str(rank)), _WORKER_VARIABLES)
            for rank in range(config.tp)
        )
        parts = [
            Part("the scheduler", (ChildSpec("scheduler", _scheduler_command(scheduler_file)),)),
            Part("the worker group", workers, forget_ranks),
        ]
        if self._serve_http:
            server = (ChildSpec("api", program("server")),)
            parts.insert(0, Part("the API process", server, stop_grace_s=_API_GRACE_S))
        return parts

    def _scheduler_config(self) -> SchedulerConfig:
        config = self.config
        return SchedulerConfig(
            version=WIRE_VERSION,
            token=self.run.token,
            hash_key=secrets.token_bytes(16),
            frontend_endpoint=self.run.frontend_endpoint,
            worker_endpoint=self.run.worker_endpoint,
            num_ranks=config.tp,
            max_slots=config.max_running,
            max_step_tokens=config.max_step_tokens,
            max_model_len=config.max_model_len,
            max_waiting=config.max_waiting,
            vocab_size=self._vocab_size,
            prefix_caching=config.prefix_caching,
            parent_pid=os.getpid(),
        )

    @property
    def url(self) -> str:
        """Where the HTTP API listens."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.config.port}"

    @property
    def failure(self) -> EngineError | None:
        """Why the engine is over, if it did not end because it was told to."""
        if self._refusal:
            return EngineError(self._refusal)
        cause = self._supervisor.failure
        return None if cause is None else EngineError(str(cause))

    def pids(self) -> dict[str, int]:
        """Return the process ids of the children that are alive, by name."""
        return self._supervisor.pids()

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until requests are taken.

        Raises:
            EngineError: the engine failed to start, was stopped, or took longer.
        """
        if not self._settled.wait(timeout_s):
            raise EngineError(f"the engine was not ready within {timeout_s:g} s; see its output")
        if not self._is_ready.is_set():
            self._supervisor.wait()
            raise self.failure or EngineError("the engine was stopped before it was ready")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all processes are gone; False if they are not in time."""
        return self._supervisor.wait(timeout_s)

    def begin_stop(self, drain_s: float = 0.0) -> None:
        """Begin to stop: HTTP requests may finish for `drain_s`, then API, scheduler, workers."""
        self._supervisor.stop(drain_s)

    def kill(self) -> None:
        """Kill all processes at once."""
        self._supervisor.kill()

    def stop(self, drain_s: float = 0.0) -> None:
        """Stop as `begin_stop` does and wait for the end; idempotent."""
        self.begin_stop(drain_s)
        self.wait()
        self._writer.close(1.0)
        atexit.unregister(self._stop_at_exit)

    def log(self, text: str) -> None:
        """Write a line to where the children's output goes."""
        self._writer.post(Printed("tokenspeed", text))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._process_id:  # a fork inherits this call, not the children
            self.stop()

    def _on_end(self) -> None:
        self.run.remove()
        self._settled.set()

    def _await_ready(self) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.config.host, self.config.host)
        try:
            is_up = await_scheduler(self.run, self._settled.is_set) and (
                not self._serve_http or await_http(host, self.config.port, self._settled.is_set)
            )
        except NotReadyError as error:
            self._refusal = str(error)
            self._supervisor.stop()
            return
        if is_up:
            self._supervisor.finish_start()
            self._is_ready.set()
            self._settled.set()


@attrs.frozen
class ServedModel:
    """A config with what it leaves open decided once, for all processes, and the vocabulary."""

    config: EngineConfig  # the model a path; name, greatest length and port definite
    vocab_size: int

    @classmethod
    def of(cls, config: EngineConfig, serve_http: bool) -> "ServedModel":
        """Find the model, read its sizes, and check the port.

        Raises:
            ConfigError, ModelNotFoundError, CheckpointError: the model cannot be served.
            EngineError: the port is taken.
        """
        if not config.model:
            raise ConfigError("no model is given; name a .gguf file, a directory or a hub id")
        if serve_http:
            config = attrs.evolve(config, port=_free_port(config.host, config.port))
        source = resolve(config.model)
        path = source.path
        with open_checkpoint(path) as checkpoint:
            longest = _size(checkpoint.config, "max_position_embeddings", path)
            vocab_size = _size(checkpoint.config, "vocab_size", path)
        config = attrs.evolve(
            config,
            model=str(path.resolve()),
            served_model_name=config.served_model_name
            or (source.name if Path(config.model).expanduser().exists() else config.model),
            max_model_len=config.max_model_len or longest,
        )
        return cls(config, vocab_size)


def serve(
    config: EngineConfig, ready_message: Callable[[EngineConfig, float], str] | None = None
) -> int:
    """Run an engine with its HTTP server in the foreground; return the exit code.

    SIGINT, SIGTERM or SIGHUP drains, a second one ends at once.  `ready_message(config, seconds)`
    is written when requests are taken.  Call on the main thread.
    """
    started = time.monotonic()
    news: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def on_signal(number: int, frame: FrameType | None) -> None:
        news.put(number)

    try:
        model = ServedModel.of(config, serve_http=True)
    except _START_ERRORS as error:
        return _fail(error)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        engine = Engine._launch(model, serve_http=True, on_event=None)
    except _START_ERRORS as error:
        return _fail(error)
    else:
        return _run(engine, news, started, ready_message or _ready_message)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ready_message(config: EngineConfig, seconds: float) -> str:
    return f"ready in {seconds:.1f} s: {config.model_name} on {config.host}:{config.port}"


def _run(
    engine: Engine,
    news: "queue.SimpleQueue[int | None]",
    started: float,
    ready_message: Callable[[EngineConfig, float], str],
) -> int:
    def announce() -> None:
        try:
            engine.wait_ready()
        except EngineError:
            pass  # said once, at the end
        else:
            engine.log(ready_message(engine.config, time.monotonic() - started))
        engine.wait()
        news.put(None)

    threading.Thread(target=announce, name="announce", daemon=True).start()
    signals = 0
    while (number := news.get()) is not None:
        signals += 1
        name = signal.Signals(number).name
        if signals == 1:
            engine.log(
                f"{name}: draining for at most {engine.config.drain_s:g} s, again to end now"
            )
            engine.begin_stop(engine.config.drain_s)
        else:
            engine.kill()
    engine.stop()
    return 0 if engine.failure is None else _fail(engine.failure)


_START_ERRORS = (
    ConfigError,
    ModelNotFoundError,
    CheckpointError,
    RunDirectoryError,
    SchedulerNotFoundError,
    EngineError,
)


def _fail(error: Exception) -> int:
    print(f"tokenspeed: error: {error}", file=sys.stderr)
    return 1


def _scheduler_command(config_file: Path) -> tuple[str, ...]:
    libzmq = find_libzmq()
    library = () if libzmq is None else ("--libzmq", str(libzmq))
    return (str(find_executable()), "--config", str(config_file), *library)


def _parent(config: EngineConfig) -> Path | None:
    if not config.run_dir:
        return None
    parent = Path(config.run_dir)
    if not parent.is_dir():
        raise RunDirectoryError(f"run_dir {parent} is no directory; make it, or leave it out")
    return parent


def _free_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0; EngineError if it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()  # where another socket listens, bind may pass and this does not
        except OSError as error:
            raise EngineError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
            ) from error
        chosen: int = probe.getsockname()[1]
        return chosen


def _size(config: dict[str, object], key: str, path: Path) -> int:
    nested = config.get("text_config")
    value: Any = config.get(key, nested.get(key) if isinstance(nested, dict) else None)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(
            f"the config of {path} has {key} = {value!r}; it must be a positive integer"
        )
    return value
