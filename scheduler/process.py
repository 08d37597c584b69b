# SPDX-License-Identifier: MIT
"""Starts the `tokenspeed-scheduler` executable and watches over it."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import IO

from ..ipc.codec import encode
from ..ipc.messages import SchedulerConfig

EXECUTABLE = "tokenspeed-scheduler"
CONFIG_FILE = "scheduler.msgpack"
# Defaults of its environment: its memory in huge pages, where the kernel gives them to who asks.
# A step touches a page of each request that runs.
VARIABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its final zero


class SchedulerNotFoundError(RuntimeError):
    """The executable is not on this machine."""


class SchedulerEndpointError(ValueError):
    """An endpoint that no socket can be bound to."""


def find_executable() -> Path:
    """Return the path of `tokenspeed-scheduler`: installed, or else of a source build.

    Raises:
        SchedulerNotFoundError: it is nowhere.
    """
    root = Path(__file__).resolve().parents[1]
    places = [Path(sysconfig.get_path("scripts")), Path(sys.executable).parent]
    builds = sorted(root.glob(f"build/*/{EXECUTABLE}"), key=lambda path: path.stat().st_mtime)
    candidates = [place / EXECUTABLE for place in places] + builds[::-1]
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    raise SchedulerNotFoundError(
        f"{EXECUTABLE} is neither in {places[0]} nor under {root / 'build'}; "
        f"run `pip install .`, or `cmake -S scheduler -B build/dev && cmake --build build/dev`"
    )


def find_libzmq() -> Path | None:
    """Return the libzmq that the pyzmq package carries, None if it uses the system's."""
    for file in importlib.metadata.files("pyzmq") or ():
        if file.name.startswith("libzmq") and ".so" in file.name:
            path = Path(str(file.locate()))
            if path.is_file():
                return path.resolve()
    return None


def command(config_file: Path) -> tuple[str, ...]:
    """Return the command that runs the scheduler with a configuration.

    Raises:
        SchedulerNotFoundError: there is no executable.
    """
    libzmq = find_libzmq()
    library = () if libzmq is None else ("--libzmq", str(libzmq))
    return (str(find_executable()), "--config", str(config_file), *library)


class SchedulerProcess:
    """A running scheduler.

    It ends by `terminate` (polite: accepted requests finish; a second call ends it at once), by
    `kill`, or when the process `config.parent_pid` is gone.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        run_dir: Path,
        stderr: IO[bytes] | int | None = None,
    ) -> None:
        """Write the configuration into `run_dir` and start the executable.

        Args:
            config: everything that the scheduler is told.
            run_dir: a private directory; made with mode 0700 if it is missing.
            stderr: where its log goes, as for `subprocess.Popen`; default ours.

        Raises:
            SchedulerNotFoundError: there is no executable.
            SchedulerEndpointError: the path of an ipc endpoint is too long for a socket.
        """
        for endpoint in (config.frontend_endpoint, config.worker_endpoint):
            size = len(os.fsencode(endpoint.removeprefix("ipc://")))
            if endpoint.startswith("ipc://") and size > MAX_SOCKET_PATH_BYTES:
                raise SchedulerEndpointError(
                    f"the socket path of {endpoint} has {size} bytes, at most "
                    f"{MAX_SOCKET_PATH_BYTES} are possible; use a shorter run directory"
                )
        self.config_path = run_dir / CONFIG_FILE
        arguments = command(self.config_path)
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.config_path.unlink(missing_ok=True)
        descriptor = os.open(self.config_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode(config))
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stderr=stderr, env={**VARIABLES, **os.environ}
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, None while it runs; negative if a signal ended it."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        return self._process.wait(timeout)

    def terminate(self) -> None:
        """Ask it to finish what it accepted and exit; a second call ends it at once."""
        if self.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a word to anybody."""
        if self.poll() is None:
            self._process.kill()
