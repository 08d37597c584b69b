# SPDX-License-Identifier: MIT
"""Starting an engine: its processes, their files, and their end."""

import atexit
import contextlib
import functools
import os
import queue
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from .api_processes import ApiProcesses
from .background_writer import BackgroundWriter
from .checkpoint import CheckpointError
from .child_process import ChildSpec
from .config import ConfigError, EngineConfig, write_config
from .engine_watch import EngineWatch, WatchLimits, WatchRefusedError
from .ipc.codec import encode
from .ipc.kv_events import CurveKeyError, replay_endpoint, secret_key
from .ipc.messages import WIRE_VERSION, SchedulerConfig
from .ipc.remote_engine import CurveKeys, CurveKeysError
from .ipc.run_directory import RunDirectory, RunDirectoryError
from .launcher_output import LauncherOutput
from .model_source import ModelNotFoundError
from .pooling import PoolingError
from .run_lock import RunLock, remove_abandoned
from .scheduler.process import CONFIG_FILE, VARIABLES, SchedulerNotFoundError, command
from .served_model import PortInUseError, ServedModel
from .supervisor import Part, Printed, Reported, Supervisor
from .worker_event import Ready, WorkerEvent

_SIGNAL_CHECK_S = 0.25
_GRPC = "the gRPC process"
_SCHEDULER = "the scheduler"
_WORKERS = "the worker group"

# libgomp's threads spin for milliseconds at a barrier before they sleep.  On a machine whose cores
# are shared that starves the thread they wait for: measured beside one busy process, a decode
# step took 368 ms on average instead of 16.  This many spins cost an idle machine nothing.
_WORKER_VARIABLES = {"GOMP_SPINCOUNT": "20000"}


class EngineError(RuntimeError):
    """An engine cannot start or cannot be kept alive; the message is one line with the cause."""


class Engine:
    """The processes of one engine: a scheduler, a worker per rank, and perhaps an HTTP server.

    They end with `stop`, with the context, at interpreter exit, and when this process dies.
    """

    def __init__(self, model: ServedModel, serve_http: bool, limits: WatchLimits) -> None:
        if not hasattr(os, "pidfd_open"):
            raise EngineError(
                f"engines run on Linux 5.4 or newer, not on {sys.platform}; "
                f"use a Linux machine or container"
            )
        self.config = model.config
        parent = _parent(model.config)
        remove_abandoned(parent)
        self._keys = CurveKeys.of(model.config.bind, model.config.curve_keys)
        self.run = RunDirectory.create(parent)
        self._lock = RunLock.take(self.run)
        self._limits = limits
        self._vocab_size = model.vocab_size
        self._serve_http = serve_http
        self._api: ApiProcesses | None = None
        self._loaded: set[str] = set()  # workers
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
        limits: WatchLimits | None = None,
    ) -> "Engine":
        """Start all processes in the background, from any thread; signal handlers stay untouched.

        Children's output goes to this process's stderr, each line with its source.  `on_event`
        gets (child, event) while workers load, on a thread of its own that may wait.

        Raises:
            ConfigError, ModelNotFoundError, CheckpointError, RunDirectoryError: the config, the
                model or the run directory cannot be used.
            SchedulerNotFoundError: its executable was not built.
            PortInUseError: the HTTP server could not listen.
            EngineError: the system is not Linux.
        """
        engine = cls(ServedModel.of(config, serve_http), serve_http, limits or WatchLimits())
        engine._launch(on_event)
        return engine

    def _launch(self, on_event: Callable[[str, WorkerEvent], None] | None) -> None:
        output = LauncherOutput()

        def write(item: Printed | Reported, dropped: int) -> None:
            output.write(item, dropped)
            if isinstance(item, Reported) and isinstance(item.event, Ready):
                self._loaded.add(item.source)
            if on_event is not None and isinstance(item, Reported):
                on_event(item.source, item.event)

        try:
            parts = self._parts()
        except BaseException:
            self._release()
            raise
        self._writer = BackgroundWriter(write)
        self._supervisor = Supervisor(parts, self._writer.post, on_end=self._on_end)
        watch = EngineWatch(
            self.run,
            self._limits,
            self._on_scheduler_ready,
            functools.partial(self._supervisor.restart, _SCHEDULER),
            functools.partial(self._supervisor.restart, _WORKERS),
            lambda: len(self._loaded) == self.config.num_ranks,
        )
        atexit.register(self._stop_at_exit)
        self._supervisor.start()
        threading.Thread(
            target=self._follow, args=(watch,), name="engine-watch", daemon=True
        ).start()

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
            self._loaded.clear()

        workers = tuple(
            ChildSpec(f"worker {rank}", program("worker", "--rank", str(rank)), _WORKER_VARIABLES)
            for rank in range(config.num_ranks)
        )
        parts = [
            Part(_SCHEDULER, (ChildSpec("scheduler", command(scheduler_file), VARIABLES),)),
            Part(_WORKERS, workers, forget_ranks, stopped_s=self._limits.stopped_s),
        ]
        if config.grpc_port:
            parts.insert(0, Part(_GRPC, (ChildSpec("grpc", program("gateway")),)))
        if self._serve_http:
            self._api = ApiProcesses(config, run, self._limits)
            parts = [*self._api.parts(program), *parts]
        return parts

    def _scheduler_config(self) -> SchedulerConfig:
        config = self.config
        return SchedulerConfig(
            version=WIRE_VERSION,
            token=self.run.token,
            hash_key=secrets.token_bytes(16),
            frontend_endpoint=self.run.frontend_endpoint,
            worker_endpoint=self.run.worker_endpoint,
            num_ranks=config.num_ranks,
            max_slots=config.max_running,
            max_step_tokens=config.step_tokens,
            max_model_len=config.max_model_len,
            max_waiting=config.max_waiting,
            decode_stretch=config.decode_stretch,
            vocab_size=self._vocab_size,
            prefix_caching=config.prefix_caching,
            parent_pid=os.getpid(),
            record_path=os.path.abspath(config.record) if config.record else "",
            record_bytes=config.record_bytes,
            transfer_ms=config.transfer_ms,
            kv_events=config.kv_events,
            kv_replay=replay_endpoint(config.kv_events) if config.kv_events else "",
            kv_topic=f"kv@{config.host}:{config.port}@{config.model_name}",
            kv_curve_secret=secret_key(config.kv_events_key) if config.kv_events_key else "",
            frontend_tcp=config.bind,
            frontend_curve_secret=self._keys.secret_key if self._keys else "",
            frontend_tcp_token=self._keys.token if self._keys else b"",
        )

    @property
    def url(self) -> str:
        """Where the HTTP API listens."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{self.config.scheme}://{host}:{self.config.port}"

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
        self._release()
        self._settled.set()

    def _release(self) -> None:
        if self._api is not None:
            self._api.close()
        self.run.remove()
        self._lock.release()

    def _follow(self, watch: EngineWatch) -> None:
        try:
            watch.follow(self._is_over)
        except WatchRefusedError as error:
            self._refusal = str(error)
            self._supervisor.stop()

    def _on_scheduler_ready(self) -> None:
        if self._api is not None:
            if not self._api.await_ready(self._is_over):
                return
            self._api.follow(self._is_over, self._supervisor.restart)
        self._supervisor.finish_start()
        self._is_ready.set()
        self._settled.set()

    def _is_over(self) -> bool:
        return self._supervisor.wait(0)


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
        engine = Engine(model, True, WatchLimits())
        engine._launch(None)
    except _START_ERRORS as error:
        return _fail(error)
    else:
        return _run(engine, news, started, ready_message or _ready_message)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ready_message(config: EngineConfig, seconds: float) -> str:
    return f"ready in {seconds:.1f} s: {config.model_name} on {config.host}:{config.port}"


def _next(news: "queue.SimpleQueue[int | None]") -> int | None:
    # A signal that comes just before the main thread blocks is handled when it wakes up again.
    while True:
        with contextlib.suppress(queue.Empty):
            return news.get(timeout=_SIGNAL_CHECK_S)


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
            engine.log(f"run directory, for clients over ZeroMQ: {engine.run.path}")
            engine.log(ready_message(engine.config, time.monotonic() - started))
        engine.wait()
        news.put(None)

    threading.Thread(target=announce, name="announce", daemon=True).start()
    signals = 0
    while (number := _next(news)) is not None:
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
    CurveKeyError,
    CurveKeysError,
    ModelNotFoundError,
    CheckpointError,
    PoolingError,
    RunDirectoryError,
    SchedulerNotFoundError,
    PortInUseError,
    EngineError,
)


def _fail(error: Exception) -> int:
    print(f"tokenspeed: error: {error}", file=sys.stderr)
    return 1


def _parent(config: EngineConfig) -> Path:
    if not config.run_dir:
        return Path(tempfile.gettempdir())
    parent = Path(config.run_dir)
    if not parent.is_dir():
        raise RunDirectoryError(f"run_dir {parent} is no directory; make it, or leave it out")
    return parent
