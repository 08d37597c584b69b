# SPDX-License-Identifier: MIT
"""One supervised process: how it is started, what it prints, how it ended."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

# A child that gets it prints the stacks of its threads to stderr and goes on.
DUMP_SIGNAL = signal.SIGUSR2

_ENTRY = Path(__file__).with_name("child_entry.py")
_MAX_LINE_BYTES = 8192
_READ_BYTES = 65536
_MAX_REST_READS = 64  # a pipe holds 64 KiB; more comes only from processes that outlive the child


@attrs.frozen
class ChildSpec:
    """A process to run: its name in logs and its command; `argv[0]` is a path.

    `variables` are defaults for its environment; what the user has set stands.
    """

    name: str
    argv: tuple[str, ...]
    variables: Mapping[str, str] = attrs.field(factory=dict)
    descriptors: tuple[int, ...] = ()  # of ours that it has too, under the same numbers


@attrs.define
class OutputPipe:
    """The reading end of a child's stdout or stderr, cut into lines."""

    fd: int
    _rest: bytes = b""

    def read_lines(self) -> list[str] | None:
        """Return the whole lines that one read brings, None if nothing will come; never blocks.

        A line longer than 8 KiB is cut into pieces of that size.
        """
        try:
            chunk = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        if not chunk:
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        return [piece for line in lines for piece in _pieces(line)]

    def read_rest(self) -> list[str]:
        """Return what a dead child left in the pipe, an unfinished last line included."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MAX_REST_READS):
                chunk = os.read(self.fd, _READ_BYTES)
                if not chunk:
                    break
                self._rest += chunk
        *lines, last = self._rest.split(b"\n")
        self._rest = b""
        return [piece for line in [*lines, *filter(None, [last])] for piece in _pieces(line)]


def _pieces(line: bytes) -> list[str]:
    starts = range(0, max(len(line), 1), _MAX_LINE_BYTES)
    pieces = (line[start : start + _MAX_LINE_BYTES] for start in starts)
    return [piece.decode(errors="replace").rstrip("\r") for piece in pieces]


class ChildProcess:
    """A running child in a session of its own.

    It dies (SIGKILL) when the thread that made it does, whatever kills that; make it on a thread
    that lives as long as the engine.
    """

    def __init__(self, spec: ChildSpec) -> None:
        """Start the process; OSError if the system cannot."""
        self.spec = spec
        entry = [sys.executable, "-I", "-S", str(_ENTRY), str(os.getpid())]
        self._process = subprocess.Popen(
            [*entry, *spec.argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**spec.variables, **os.environ},
            pass_fds=spec.descriptors,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.pidfd = os.pidfd_open(self._process.pid)
        self.stdout = OutputPipe(self._process.stdout.fileno())
        self.stderr = OutputPipe(self._process.stderr.fileno())
        for pipe in (self.stdout, self.stderr):
            os.set_blocking(pipe.fd, False)
        self.last_line = ""  # of stderr, for the cause of a death

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the child and all of its own children."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def is_stopped(self) -> bool:
        """Whether a signal has stopped it; a debugger that holds it does not count."""
        options = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        with contextlib.suppress(ChildProcessError):  # it is dead, and not reaped yet
            return os.waitid(os.P_PID, self._process.pid, options) is not None
        return False

    def reap(self) -> None:
        """Take the exit status; call once its pidfd is readable.

        What it left behind in its process group is killed while its id cannot be taken by others.
        """
        self.send(signal.SIGKILL)
        self._process.wait()
        os.close(self.pidfd)

    def how_it_ended(self) -> str:
        """Return e.g. `exited with code 1`; call after `reap`."""
        code = self._process.returncode
        if code >= 0:
            return f"exited with code {code}"
        return f"was killed by {signal.Signals(-code).name}"

    def last_words(self) -> str:
        """Return `: ` and its last line of stderr, or nothing if it was killed from outside."""
        is_victim = self._process.returncode in (-signal.SIGKILL, -signal.SIGTERM)
        return f": {self.last_line}" if self.last_line and not is_victim else ""

    def close(self) -> None:
        """Close the pipes."""
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
