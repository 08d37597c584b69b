# SPDX-License-Identifier: MIT
"""The thread that starts child processes, restarts what dies, and stops everything in order."""

import functools
import itertools
import math
import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import attrs

from .child_process import DUMP_SIGNAL, ChildProcess, ChildSpec, OutputPipe
from .worker_event import Failed, WorkerEvent, decode_event

_KILL_GRACE_S = 2.0
_DUMP_GRACE_S = 0.5  # from DUMP_SIGNAL to SIGKILL
_POLL_S = 0.25  # between looks at who is stopped, of which no descriptor tells


class SupervisorError(RuntimeError):
    """The processes could not be started or kept alive; the message is one line with the cause."""


@attrs.frozen
class Part:
    """Processes that live and die together: one that dies takes the others along."""

    name: str
    children: tuple[ChildSpec, ...]
    before_start: Callable[[], None] = lambda: None
    stop_grace_s: float = _KILL_GRACE_S  # from SIGTERM to SIGKILL, with a second one half way
    group: str = ""  # neighbours of one group are stopped together
    after_stop: Callable[[], None] = lambda: None  # once its group is gone for good
    stopped_s: float = math.inf  # how long SIGSTOP may hold one of its children


@attrs.frozen
class RestartPolicy:
    """How often a part may die before everything is given up."""

    max_deaths: int = 3  # within the window; one more ends it
    window_s: float = 60.0
    backoff_s: tuple[float, ...] = (0.0, 0.5, 2.0)  # before the first, second, ... restart


@attrs.frozen
class Printed:
    """A line for the log; `source` is the child that printed it, or the supervisor."""

    source: str
    text: str


@attrs.frozen
class Reported:
    """A child's report about its start."""

    source: str
    event: WorkerEvent


@attrs.define(eq=False)
class _Running:
    """A part and what of it is alive."""

    part: Part
    children: list[ChildProcess] = attrs.field(factory=list)
    deaths: deque[float] = attrs.field(factory=deque)
    cause: str = ""  # why it is going down; empty while it is up
    failure: str = ""  # the first Failed report since the last start
    restart_at: float | None = None
    kill_at: float | None = None  # it hangs, and has been asked for its stacks
    stopped_at: float | None = None  # when a child was first seen to be stopped


class Supervisor:
    """Runs parts until `stop`, or until one cannot be kept alive.

    Parts are stopped in the given order, each (or its group) gone before the next is told, and
    started in the opposite one.  Until `finish_start` a death is final; afterwards the part is
    restarted.
    `emit` is called on the supervisor's thread and must not wait.  `on_end` is called there when
    the last process is gone.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        emit: Callable[[Printed | Reported], None],
        *,
        policy: RestartPolicy | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._running = [_Running(part) for part in parts]
        grouped = itertools.groupby(self._running, lambda run: run.part.group or run.part.name)
        self._stages = [tuple(runs) for _, runs in grouped]
        self._emit = emit
        self._policy = policy or RestartPolicy()
        self._on_end = on_end
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._commands: deque[Callable[[], None]] = deque()
        self._is_starting = True
        self._stage: int | None = None  # index of the group that is being stopped
        self._press_at = self._kill_at = 0.0
        self._drain_s = 0.0
        self._ended = threading.Event()
        self.failure: SupervisorError | None = None
        # Children die with the thread that made them, so it must be this one and no caller's.
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start all parts, in the background."""
        self._thread.start()

    def finish_start(self) -> None:
        """Restart what dies from now on."""
        self._command(lambda: setattr(self, "_is_starting", False))

    def stop(self, drain_s: float = 0.0) -> None:
        """Begin to stop in order; the first part gets `drain_s` more than its grace; idempotent."""
        self._command(lambda: self._begin_stop(drain_s))

    def kill(self) -> None:
        """Kill everything at once."""
        self._command(self._kill)

    def restart(self, part: str, cause: str) -> None:
        """Restart a part that hangs, after it has printed its stacks; counts as a death."""
        self._command(lambda: self._restart(part, cause))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all processes are gone; False if they are not in time."""
        return self._ended.wait(timeout_s)

    def pids(self) -> dict[str, int]:
        """Return the process id of every child that is alive, by name; a snapshot."""
        return {child.spec.name: child.pid for run in self._running for child in list(run.children)}

    def _command(self, command: Callable[[], None]) -> None:
        if not self._ended.is_set():
            self._commands.append(command)
            os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            self._selector.register(self._wake, selectors.EVENT_READ, self._drain_wake)
            for run in reversed(self._running):
                self._spawn(run)
            while self._advance(time.monotonic()):
                for key, _ in self._selector.select(self._time_left()):
                    # An exit that came first has closed the pipes of its child.
                    if key.fileobj in self._selector.get_map():
                        key.data()
                while self._commands:
                    self._commands.popleft()()
        except BaseException as error:
            self.failure = SupervisorError(f"the supervisor failed: {error!r}")
            for run in self._running:
                for child in run.children:
                    child.reap()
            raise
        finally:
            try:
                self._on_end()
            finally:
                self._ended.set()
                self._selector.close()

    def _drain_wake(self) -> None:
        os.eventfd_read(self._wake)

    def _spawn(self, run: _Running) -> None:
        run.cause = run.failure = ""
        run.restart_at = run.kill_at = run.stopped_at = None
        run.part.before_start()
        for spec in run.part.children:
            try:
                child = ChildProcess(spec)
            except OSError as error:
                run.failure = f"cannot start {spec.argv[0]}: {error.strerror}"
                self._take_down(run, f"{spec.name}: {run.failure}")
                return
            run.children.append(child)
            on_exit = functools.partial(self._on_exit, run, child)
            self._selector.register(child.pidfd, selectors.EVENT_READ, on_exit)
            for pipe in (child.stdout, child.stderr):
                on_output = functools.partial(self._on_output, run, child, pipe)
                self._selector.register(pipe.fd, selectors.EVENT_READ, on_output)

    def _on_output(self, run: _Running, child: ChildProcess, pipe: OutputPipe) -> None:
        lines = pipe.read_lines()
        if lines is None:
            self._selector.unregister(pipe.fd)
        else:
            self._pass_on(run, child, pipe, lines)

    def _pass_on(
        self, run: _Running, child: ChildProcess, pipe: OutputPipe, lines: Sequence[str]
    ) -> None:
        for line in lines:
            event = decode_event(line) if pipe is child.stdout else None
            if event is None:
                if pipe is child.stderr and line.strip():
                    child.last_line = line.strip()
                self._emit(Printed(child.spec.name, line))
            else:
                if isinstance(event, Failed) and not run.failure:
                    run.failure = f"{child.spec.name}: {event.message}"
                self._emit(Reported(child.spec.name, event))

    def _on_exit(self, run: _Running, child: ChildProcess) -> None:
        self._selector.unregister(child.pidfd)
        child.reap()
        for pipe in (child.stdout, child.stderr):
            self._pass_on(run, child, pipe, pipe.read_rest())
            if pipe.fd in self._selector.get_map():
                self._selector.unregister(pipe.fd)
        child.close()
        run.children.remove(child)
        if self._stage is None and not run.cause:
            how = child.how_it_ended()
            self._take_down(run, run.failure or f"{child.spec.name} {how}{child.last_words()}")
            self._log(f"{child.spec.name} (process {child.pid}) {how}")

    def _take_down(self, run: _Running, cause: str, grace_s: float = 0.0) -> None:
        now = time.monotonic()
        run.cause = cause
        run.deaths.append(now)
        run.kill_at = now + grace_s
        self._kill_overdue(now)

    def _kill_overdue(self, now: float) -> None:
        for run in self._running:
            if run.kill_at is not None and now >= run.kill_at:
                run.kill_at = None
                for child in run.children:
                    child.send(signal.SIGKILL)

    def _restart(self, part: str, cause: str) -> None:
        for run in self._running:
            if run.part.name == part and run.children and not run.cause and self._stage is None:
                self._log(f"{part} is killed: {cause}; its stacks:")
                for child in run.children:
                    child.send(DUMP_SIGNAL)
                    child.send(signal.SIGCONT)
                self._take_down(run, cause, _DUMP_GRACE_S)

    def _advance(self, now: float) -> bool:
        """Do what is due; return False when everything is gone."""
        self._kill_overdue(now)
        if self._stage is None:
            for run in self._running:
                if run.cause and not run.children:
                    self._recover(run, now)
                elif self._watches(run):
                    self._look_for_stopped(run, now)
        if self._stage is not None:
            self._advance_stop(now)
        return self._stage is None or self._stage < len(self._stages)

    @staticmethod
    def _watches(run: _Running) -> bool:
        return bool(run.children) and not run.cause and run.part.stopped_s < math.inf

    def _look_for_stopped(self, run: _Running, now: float) -> None:
        names = [child.spec.name for child in run.children if child.is_stopped()]
        if not names:
            run.stopped_at = None
        elif run.stopped_at is None:
            run.stopped_at = now
        elif now - run.stopped_at >= run.part.stopped_s:
            cause = f"{names[0]} has been stopped for {now - run.stopped_at:.1f} s"
            self._restart(run.part.name, cause)

    def _recover(self, run: _Running, now: float) -> None:
        policy = self._policy
        while run.deaths and run.deaths[0] < now - policy.window_s:
            run.deaths.popleft()
        if self._is_starting:
            self._give_up(run.cause)
        elif len(run.deaths) > policy.max_deaths:
            self._give_up(
                f"{run.part.name} died {len(run.deaths)} times in {policy.window_s:g} s, "
                f"the last time: {run.cause}"
            )
        elif run.restart_at is None:
            delay = policy.backoff_s[min(len(run.deaths), len(policy.backoff_s)) - 1]
            run.restart_at = now + delay
            self._log(f"restarting {run.part.name} in {delay:g} s ({run.cause})")
        if run.restart_at is not None and now >= run.restart_at and self._stage is None:
            self._spawn(run)

    def _give_up(self, cause: str) -> None:
        if self._stage is None:
            self.failure = SupervisorError(cause)
            self._begin_stop(0.0)

    def _begin_stop(self, drain_s: float) -> None:
        if self._stage is None:
            self._drain_s = drain_s
            self._enter_stage(0)
        else:
            now = time.monotonic()
            self._kill_at = min(self._kill_at, now + drain_s + _KILL_GRACE_S)
            self._press_at = min(self._press_at, now + drain_s)

    def _enter_stage(self, stage: int) -> None:
        self._stage = stage
        if stage < len(self._stages):
            runs = self._stages[stage]
            extra = self._drain_s if stage == 0 else 0.0
            grace_s = max(run.part.stop_grace_s for run in runs)
            self._kill_at = time.monotonic() + grace_s + extra
            self._press_at = self._kill_at - grace_s / 2
            for child in _children(runs):
                child.send(signal.SIGTERM)

    def _advance_stop(self, now: float) -> None:
        assert self._stage is not None
        while self._stage < len(self._stages) and not _children(self._stages[self._stage]):
            for run in self._stages[self._stage]:
                run.part.after_stop()
            self._enter_stage(self._stage + 1)
        if self._stage == len(self._stages):
            return
        children = _children(self._stages[self._stage])
        if now >= self._kill_at:
            for child in children:
                self._log(f"{child.spec.name} did not stop in time and is killed")
                child.send(signal.SIGKILL)
            self._kill_at = now + _KILL_GRACE_S
        elif now >= self._press_at:
            # Our children, like most, drain on the first signal and end at once on the second.
            for child in children:
                child.send(signal.SIGTERM)
            self._press_at = self._kill_at

    def _kill(self) -> None:
        if self._stage is None:
            self._stage = 0
        for run in self._running:
            for child in run.children:
                child.send(signal.SIGKILL)

    def _time_left(self) -> float | None:
        """Seconds until the next deadline, None if there is none."""
        if self._stage is not None:
            deadlines = [self._press_at, self._kill_at]
        else:
            deadlines = [run.restart_at for run in self._running if run.restart_at is not None]
            if any(map(self._watches, self._running)):
                deadlines.append(time.monotonic() + _POLL_S)
        deadlines += [run.kill_at for run in self._running if run.kill_at is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _log(self, text: str) -> None:
        self._emit(Printed("supervisor", text))


def _children(runs: Sequence[_Running]) -> list[ChildProcess]:
    return [child for run in runs for child in run.children]
