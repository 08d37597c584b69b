# SPDX-License-Identifier: MIT
"""The launcher's output: child lines with their source, and a bar while weights load."""

import contextlib
import os
import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from .supervisor import Printed, Reported
from .worker_event import Failed, Loading, Ready


class LauncherOutput:
    """Writes to a stream what children print; on a terminal, a bar of the bytes of all ranks."""

    def __init__(self, stream: TextIO | None = None) -> None:
        # None where a process was started with stderr closed: then there is nobody to tell.
        self._stream: TextIO | None = stream or sys.stderr
        self._bytes: dict[str, Loading] = {}
        self._bar: Progress | None = None

    def write(self, item: Printed | Reported, dropped: int) -> None:
        """Show one item, after a note of how many were dropped before it."""
        if dropped:
            self._line(f"[supervisor] {dropped} lines were dropped: the reader of this stalled")
        match item:
            case Printed(source, text):
                self._line(f"[{source}] {text}")
            case Reported(source, Loading() as loading):
                self._show(source, loading)
            case Reported(source, Ready(seconds)):
                self._end_bar()
                self._line(f"[{source}] ready after {seconds:.1f} s")
            case Reported(_, Failed()):
                self._end_bar()

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        if self._stream is None:
            return
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):  # a notebook's stream, or a captured one
            self._stream.write(text + "\n")
            return
        # Unbuffered: a stream object's lock, held while its reader stalls, would also stall
        # whoever else prints, and the interpreter's exit.
        data = memoryview((text + "\n").encode(errors="replace"))
        with contextlib.suppress(OSError):  # nobody reads any more
            while data:
                data = data[os.write(descriptor, data) :]

    def _show(self, source: str, loading: Loading) -> None:
        if self._stream is None or not self._stream.isatty():
            return
        self._bytes[source] = loading
        done = sum(part.done_bytes for part in self._bytes.values())
        total = sum(part.total_bytes for part in self._bytes.values())
        if self._bar is None:
            self._bar = Progress(
                TextColumn("loading weights"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            self._bar.add_task("weights", total=total, completed=done)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if done >= total:
            self._end_bar()

    def _end_bar(self) -> None:
        self._bytes.clear()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
