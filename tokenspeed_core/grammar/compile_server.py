# SPDX-License-Identifier: MIT
"""The process in whose children grammars are compiled: each can be killed, none is missed.

    python -m tokenspeed_core.grammar.compile_server FOLDER --deadline-s S --memory BYTES

It loads the libraries once; every grammar gets a forked child with a deadline and a memory cap.
Orders come on stdin and reports go to stdout, each a 4-byte length and msgpack.
"""

import argparse
import contextlib
import math
import os
import resource
import selectors
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import NoReturn

import attrs
import msgspec

from .backend import Backend, backend
from .grammar import GrammarError
from .vocabulary import Vocabulary

MAX_COMPILED_BYTES = 32 << 20
_CHILDREN = 2
_VOCABULARIES = 4


class Order(msgspec.Struct, frozen=True, array_like=True):
    """Compile a tree of formats for a vocabulary, and keep it as a file of this name."""

    number: int
    backend: str
    vocabulary: str  # the name of its file
    tree: str
    name: str


class Report(msgspec.Struct, frozen=True, array_like=True):
    """How an order ended: the bytes of the file, or why there is none."""

    number: int
    size: int
    error: str = ""


@attrs.define
class _Child:
    order: Order
    pid: int
    pipe: int
    until: float
    said: bytes = b""


class CompileServer:
    """Takes orders and forks."""

    def __init__(self, folder: Path, deadline_s: float, memory: int, reports: int) -> None:
        self._folder = folder
        self._deadline_s = deadline_s
        self._memory = memory
        self._reports = reports
        self._waiting: deque[Order] = deque()
        self._children: dict[int, _Child] = {}  # by pipe
        self._backends: dict[tuple[str, str], Backend] = {}
        self._selector = selectors.DefaultSelector()
        self._input = b""

    def serve(self, orders: int) -> None:
        """Work until nobody can send orders any more."""
        self._selector.register(orders, selectors.EVENT_READ)
        try:
            while True:
                for key, _ in self._selector.select(self._patience()):
                    if key.fd != orders:
                        self._hear(self._children[key.fd])
                    elif not self._take(os.read(orders, 1 << 16)):
                        return
                for child in list(self._children.values()):
                    if time.monotonic() > child.until:
                        taken = f"takes longer than {self._deadline_s:g} s to compile"
                        self._end(child, f"{taken}; simplify it")
                while self._waiting and len(self._children) < _CHILDREN:
                    self._begin(self._waiting.popleft())
        finally:
            for child in self._children.values():
                os.kill(child.pid, signal.SIGKILL)

    def _patience(self) -> float | None:
        if not self._children:
            return None
        first = min(child.until for child in self._children.values())
        return max(0.0, first - time.monotonic()) + 0.001

    def _take(self, data: bytes) -> bool:
        self._input += data
        while len(self._input) >= 4:
            end = 4 + int.from_bytes(self._input[:4], "little")
            if len(self._input) < end:
                break
            self._waiting.append(msgspec.msgpack.decode(self._input[4:end], type=Order))
            self._input = self._input[end:]
        return bool(data)

    def _begin(self, order: Order) -> None:
        try:
            library = self._backend(order)
        except (OSError, ImportError, ValueError, msgspec.DecodeError) as error:
            self._report(order, 0, f"cannot be compiled here: {error}")
            return
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._compile(library, order, writing)
        os.close(writing)
        child = _Child(order, pid, reading, time.monotonic() + self._deadline_s)
        self._children[reading] = child
        self._selector.register(reading, selectors.EVENT_READ)

    def _backend(self, order: Order) -> Backend:
        key = (order.backend, order.vocabulary)
        if key not in self._backends:
            vocabulary = msgspec.msgpack.decode(
                (self._folder / order.vocabulary).read_bytes(), type=Vocabulary
            )
            if len(self._backends) == _VOCABULARIES:
                self._backends.pop(next(iter(self._backends)))
            self._backends[key] = backend(order.backend, vocabulary)
        return self._backends[key]

    def _compile(self, library: Backend, order: Order, pipe: int) -> NoReturn:
        """The whole life of a child."""
        try:
            os.nice(10)  # those who stream go first
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            seconds = math.ceil(self._deadline_s) + 1  # in case nobody is left to kill it
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + self._memory, held + self._memory))
            size, error = 0, ""
            try:
                size = self._keep(library.compile(msgspec.json.decode(order.tree)), order.name)
            except GrammarError as refused:
                error = refused.reason
            except RecursionError:
                error = "is nested too deeply"
            except MemoryError:
                error = f"takes more than {self._memory >> 20} MiB to compile; simplify it"
            os.write(pipe, msgspec.msgpack.encode(Report(order.number, size, error)))
        finally:
            os._exit(0)

    def _keep(self, compiled: bytes, name: str) -> int:
        if len(compiled) > MAX_COMPILED_BYTES:
            limit = MAX_COMPILED_BYTES >> 20
            raise GrammarError(
                "grammar", f"is {len(compiled) >> 20} MiB when compiled; at most {limit}"
            )
        unfinished = self._folder / f"{name}.{os.getpid()}"
        unfinished.write_bytes(compiled)
        unfinished.rename(self._folder / name)
        return len(compiled)

    def _hear(self, child: _Child) -> None:
        said = os.read(child.pipe, 1 << 16)
        child.said += said
        if not said:
            self._end(child, "crashed its compiler; simplify it")

    def _end(self, child: _Child, otherwise: str) -> None:
        """Report what a child said, or else `otherwise`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        del self._children[child.pipe]
        try:
            report = msgspec.msgpack.decode(child.said, type=Report)
        except msgspec.DecodeError:
            report = Report(child.order.number, 0, otherwise)
        self._report(child.order, report.size, report.error)

    def _report(self, order: Order, size: int, error: str) -> None:
        frame = framed(msgspec.msgpack.encode(Report(order.number, size, error)))
        while frame:
            frame = frame[os.write(self._reports, frame) :]


def framed(message: bytes) -> bytes:
    """Return a message behind its length."""
    return len(message).to_bytes(4, "little") + message


def main() -> int:
    """Serve until stdin is closed."""
    parser = argparse.ArgumentParser(prog="tokenspeed_core.grammar.compile_server")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--deadline-s", type=float, required=True)
    parser.add_argument("--memory", type=int, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not get between reports.
    reports = os.dup(1)
    os.dup2(2, 1)
    CompileServer(options.folder, options.deadline_s, options.memory, reports).serve(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
