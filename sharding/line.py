# SPDX-License-Identifier: MIT
"""Where in the author's file a value or placement was written."""

import linecache
import os
import re
import sys
from types import FrameType

import attrs

_ROOT = __package__.rpartition(".")[0]
_INTERNAL = (f"{_ROOT}.sharding", f"{_ROOT}.ops", "torch")
_ASSIGNED = re.compile(r"^\s*([A-Za-z_][\w, ]*?)\s*=[^=]")


@attrs.frozen
class Line:
    """One line of a source file; prints as `llama.py:88`."""

    path: str
    number: int

    def __str__(self) -> str:
        return f"{os.path.basename(self.path)}:{self.number}"

    def assigned(self) -> tuple[str, ...]:
        """Return the names that the line assigns to, or nothing if it is no plain assignment."""
        found = _ASSIGNED.match(linecache.getline(self.path, self.number))
        if not found:
            return ()
        names = tuple(name.strip() for name in found[1].split(","))
        return names if all(name.isidentifier() for name in names) else ()


def line_of(frame: FrameType) -> Line:
    """Return the line that `frame` is executing."""
    return Line(frame.f_code.co_filename, frame.f_lineno)


def author_line() -> Line:
    """Return the innermost line on the call stack that belongs to neither us nor torch."""
    frame = _author_frame()
    return line_of(frame) if frame else Line("<unknown>", 0)


def author_expression() -> tuple[Line, str]:
    """Return the author's line and the text of the expression that runs on it, if on one line."""
    frame = _author_frame()
    if frame is None:
        return Line("<unknown>", 0), ""
    positions = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    first, last, start, end = positions
    line = Line(frame.f_code.co_filename, first or frame.f_lineno)
    if first is None or first != last:
        return line, ""
    return line, linecache.getline(line.path, line.number).encode()[start:end].decode()


def _author_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_INTERNAL):
        frame = frame.f_back
    return frame
