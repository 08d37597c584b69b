# SPDX-License-Identifier: MIT
"""The processes of the HTTP server: they accept from one socket, die alone and come back alone."""

import functools
import threading
from collections.abc import Callable

from .child_process import ChildSpec
from .config import EngineConfig
from .engine_watch import HttpWatch, WatchLimits
from .ipc.run_directory import RunDirectory
from .listener import bind
from .served_model import PortInUseError
from .supervisor import Part

_GRACE_S = 2.0
# Defaults of their environment: what holds a body, its text or its ids, half a megabyte each, is
# taken from memory that is there already, and in huge pages, as of the scheduler.
VARIABLES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8388608:"
    "glibc.malloc.trim_threshold=67108864"
}


class ApiProcesses:
    """Owns the listening socket, which outlives each of its processes: clients that connect while
    one is replaced are taken by another, or wait.
    """

    def __init__(self, config: EngineConfig, run: RunDirectory, limits: WatchLimits) -> None:
        """Listen.  Raises PortInUseError if that is not possible."""
        try:
            self._listener = bind(config.host, config.port)
        except OSError as error:
            raise PortInUseError(
                f"cannot listen on {config.host}:{config.port}: {error.strerror}; "
                f"choose another --port"
            ) from error
        self._names = [
            (f"api {index}", f"API process {index}") for index in range(config.api_processes)
        ]
        if len(self._names) == 1:
            self._names = [("api", "the API process")]
        self._watches = {
            part: HttpWatch(run.api_socket(index), part, limits)
            for index, (_, part) in enumerate(self._names)
        }

    def parts(self, program: Callable[..., tuple[str, ...]]) -> list[Part]:
        """Return a part a process; `program(module, *arguments)` is a command of ours."""
        descriptor = self._listener.fileno()
        found = []
        for index, (name, part) in enumerate(self._names):
            command = program("server", "--index", str(index), "--listener", str(descriptor))
            child = ChildSpec(name, command, VARIABLES, (descriptor,))
            found.append(
                Part(part, (child,), stop_grace_s=_GRACE_S, group="api", after_stop=self.close)
            )
        return found

    def await_ready(self, is_over: Callable[[], bool]) -> bool:
        """Wait until all of them take requests; False if it is over first."""
        return all(watch.await_ready(is_over) for watch in self._watches.values())

    def follow(self, is_over: Callable[[], bool], restart: Callable[[str, str], None]) -> None:
        """Call `restart(part, cause)` for one that freezes, until it is over; in the background."""
        for part, watch in self._watches.items():
            on_frozen = functools.partial(restart, part)
            threading.Thread(
                target=watch.follow, args=(is_over, on_frozen), name="http-watch", daemon=True
            ).start()

    def close(self) -> None:
        """Listen no more; idempotent."""
        self._listener.close()
